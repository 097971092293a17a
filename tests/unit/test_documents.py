"""What documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "k8s/README.md", ROOT / "benchmarks/README.md"]
)


def test_every_test_that_shows_a_claim_about_security_is_there() -> None:
    named = re.findall(r"`([a-z0-9_/]+\.py)::(test_\w+)`", (ROOT / "docs/security.md").read_text("utf-8"))
    assert len(named) > 50
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_files_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8"))
    for link in links:
        assert "://" in link or (document.parent / link).exists(), link


def test_every_variable_that_is_read_or_set_is_listed() -> None:
    told = (ROOT / "docs/environment.md").read_text("utf-8")
    code = "".join(
        path.read_text("utf-8") for folder in ("cluster", "jobs", "serve") for path in (ROOT / folder).glob("*.py")
    )
    used = set(re.findall(r"""["']((?:RAY|STRIATE)_\w+|OMP_WAIT_POLICY)["']""", code))
    assert len(used) > 25
    missing = {name for name in used if f"`{name}`" not in told and not name.startswith("RAY_SERVE_HAPROXY_")}
    assert missing == set()
