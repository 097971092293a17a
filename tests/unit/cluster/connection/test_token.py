"""The token that is sent to a cluster, and the creation of a token for a local Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.connection.token import find_token, make_token
from library.errors import UsageError


def test_the_token_comes_from_the_named_file_or_from_rays_own_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "named").write_text("from-file\n")
    (tmp_path / "path").write_text("from-path")
    (tmp_path / ".ray").mkdir()
    here = {"RAY_AUTH_TOKEN": "from-variable", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "path")}
    assert find_token(str(tmp_path / "named"), here) == "from-file"
    assert find_token(None, here) == "from-variable"
    assert find_token(None, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "path")}) == "from-path"
    assert find_token(None, {}) is None
    (tmp_path / ".ray/auth_token").write_text("from-home")
    assert find_token(None, {}) == "from-home"
    assert find_token(None, {"RAY_AUTH_MODE": "disabled"}) is None


@pytest.mark.parametrize("content", ["", "  \n", "two words", "a\nb", "ünicode"])
def test_an_invalid_token_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(UsageError, match="is not a valid token") as refused:
        find_token(str(tmp_path / "token"), {})
    assert not content.strip() or content.strip() not in str(refused.value)


def test_a_created_token_is_readable_only_by_its_owner_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    make_token()
    file = tmp_path / ".ray" / "auth_token"
    token = file.read_text()
    assert (file.stat().st_mode & 0o777, find_token(None, {})) == (0o600, token)
    make_token()
    assert file.read_text() == token


@pytest.mark.parametrize("variable", [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "own")])
def test_no_token_is_created_if_tokens_are_disabled_or_one_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(*variable)
    make_token()
    assert not (tmp_path / ".ray").exists()
