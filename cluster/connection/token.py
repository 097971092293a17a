"""Finds the token of a Ray cluster, and creates the token of a local Ray."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from library.errors import UsageError

#: Ray's default token file; a Ray that starts creates it if it is absent.
RAYS_TOKEN_FILE = "~/.ray/auth_token"


def find_token(file: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the cluster's token from `file`, else from where Ray looks for it; None if there is none.

    Ray looks in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, and in ~/.ray/auth_token.

    Raises:
        UsageError: when the file cannot be read, or does not contain a valid token.
    """
    if file is not None:
        return _read_token(file, "--token-file")
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if environment.get("RAY_AUTH_TOKEN"):
        return _checked_token(environment["RAY_AUTH_TOKEN"], "RAY_AUTH_TOKEN")
    if environment.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(environment["RAY_AUTH_TOKEN_PATH"], "RAY_AUTH_TOKEN_PATH")
    default = os.path.expanduser(RAYS_TOKEN_FILE)
    return _read_token(default, "Ray's own file") if os.path.isfile(default) else None


def _read_token(path: str, named: str) -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{named} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return _checked_token(text, f"{named} {path}")


def _checked_token(text: str, named: str) -> str:
    token = text.strip()
    # It becomes an HTTP header. The message never shows it.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{named} is not a valid token: a token is one word, as `ray get-auth-token` prints it")
    return token


def make_token() -> None:
    """Creates the token of a local Ray if there is none, because Ray would create a file that all users can read."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path(RAYS_TOKEN_FILE).expanduser()
    with contextlib.suppress(OSError):  # the file exists, or the home cannot be written, which Ray reports
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
