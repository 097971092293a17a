"""The files of a folder that are uploaded with a job."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.submit import upload
from cluster.submit.upload import working_tree
from library.errors import UsageError
from tests import ROOT


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@contextmanager
def open_folder() -> Generator[Path]:
    """A folder that other users can enter too, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(os.path.realpath(folder))


@contextmanager
def closed(path: Path) -> Generator[None]:
    """Makes a file or folder unreadable during the block, even for root."""
    mode, uid = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    try:
        if uid == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(uid)
        path.chmod(mode)


def test_ignored_files_stay_here_at_every_depth(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "*.log\n/runs/\nbuild/\nkept/*\n!kept/this.txt\n",
            "recipe.yaml": "",
            "a.log": "",
            "runs/1.txt": "",
            "deep/runs/1.txt": "",
            "deep/build/x.py": "",
            "deep/.gitignore": "secret.py\n",
            "deep/secret.py": "",
            "secret.py": "",
            "kept/this.txt": "",
            "kept/that.txt": "",
            ".rayignore": "notes/\n",
            "notes/a.md": "",
        },
    )
    sent = set(working_tree(str(tmp_path)).files)
    ignore_files = {".gitignore", ".rayignore", "deep/.gitignore"}
    assert sent - ignore_files == {"recipe.yaml", "deep/runs/1.txt", "secret.py", "kept/this.txt"}


def test_history_outputs_and_secrets_stay_here_without_an_ignore_file(tmp_path: Path) -> None:
    left_out = (".git/config", ".venv/x.py", "a/__pycache__/x.pyc", "out/x.json", "data/x.csv", ".env", ".a_cache/1")
    left_out += (".env.production", "a/.netrc", ".kube/config", "tls/server.pem", "tls/server.key", "api-keys.txt")
    left_out += ("id_rsa", "a/id_ed25519.pub", "a/credentials", "ray/auth_token")
    write(tmp_path, dict.fromkeys((*left_out, "a/data/loader.py", "a/out/x.py", "main.py"), ""))
    assert set(working_tree(str(tmp_path)).files) == {"a/data/loader.py", "a/out/x.py", "main.py"}


def test_links_are_followed_even_in_circles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write(tmp_path / "project", {"main.py": "", "there/big.txt": "x"})
    (project / "linked").symlink_to("there")
    (project / "small.txt").symlink_to(project / "there/big.txt")
    (project / "broken.txt").symlink_to(tmp_path / "gone.txt")
    assert working_tree(str(project)).files == {"main.py": 0, "there/big.txt": 1, "linked/big.txt": 1, "small.txt": 1}
    monkeypatch.setattr(upload, "MAX_FILES", 50)
    (project / "self").symlink_to(project)
    (project / "again").symlink_to(project)
    with pytest.raises(UsageError, match="or 50 files"):
        working_tree(str(project))


@pytest.mark.parametrize("target", ["home/.aws", "project-2", "home/.aws/config"])
def test_a_link_that_leads_out_of_the_folder_is_refused_unless_ignored(target: str, tmp_path: Path) -> None:
    write(tmp_path, {"home/.aws/config": "x", "project-2/a.txt": ""})
    project = write(tmp_path / "project", {"main.py": "", "deep/a.py": ""})
    (project / "deep/creds").symlink_to(tmp_path / target)
    (project / "again").symlink_to("deep")
    with pytest.raises(UsageError, match=rf"(deep|again)/creds is a link out of {project}, to {tmp_path / target}, "):
        working_tree(str(project))
    write(project, {".rayignore": "creds\n"})
    assert working_tree(str(project)).files.keys() == {"main.py", "deep/a.py", "again/a.py", ".rayignore"}


def test_an_unreadable_folder_is_refused_even_if_it_is_ignored() -> None:
    with open_folder() as folder:
        write(folder, {"main.py": "", ".rayignore": "pgdata\n", "pgdata/1": ""})
        assert working_tree(str(folder)).files.keys() == {"main.py", ".rayignore"}
        refused = rf"{folder}/pgdata cannot be read \(Permission denied\).*move it out of {folder}"
        with closed(folder / "pgdata"), pytest.raises(UsageError, match=refused):
            working_tree(str(folder))


def test_a_tree_that_is_too_large_is_refused_with_its_largest_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "MAX_BYTES", 2**20)
    write(tmp_path, {"models/a.bin": bytes(900_000), "logs/b.txt": bytes(300_000), "main.py": b""})
    with pytest.raises(UsageError, match=r"1 MiB.*models/ .*0\.9 MiB, logs/ .*0\.3 MiB.*\.gitignore or \.rayignore"):
        working_tree(str(tmp_path))


@pytest.mark.parametrize(
    "files", [{f"photos/cat/{n}.jpg": b"" for n in range(201)}, {"photos/x.parquet": bytes(2**20)}]
)
def test_a_folder_of_data_is_refused_with_advice(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "MAX_BYTES", 2**19)
    monkeypatch.setattr(upload, "MAX_FILES", 200)
    write(tmp_path, {"main.py": b"", **files})
    with pytest.raises(UsageError, match=r"\(photos/ .*aws s3 cp --recursive FOLDER s3://"):
        working_tree(str(tmp_path))


def test_a_few_pictures_are_uploaded(tmp_path: Path) -> None:
    write(tmp_path, {f"pictures/{number}.jpg": b"jpeg" for number in range(20)})
    tree = working_tree(str(tmp_path))
    assert (len(tree.files), tree.bytes) == (20, 80)
    assert tree.holds("pictures")
    assert tree.holds("./pictures/3.jpg")
    assert not tree.holds("pictures/30.jpg")
    assert not tree.holds("pic")


def test_a_home_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="not a project"):
        working_tree(str(tmp_path))


def test_this_project_itself_can_be_uploaded() -> None:
    tree = working_tree(str(ROOT))
    assert tree.holds("jobs/cli/app.py")
    assert tree.holds("library/storage.py")
    assert tree.bytes < 16 * 2**20
