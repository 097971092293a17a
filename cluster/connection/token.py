"""Ray's token: where it is found, and how it is made."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from library.errors import UsageError

#: Ray looks here where nothing else is said, and makes it where it starts and there is none.
RAYS_TOKEN_FILE = "~/.ray/auth_token"


def find_token(file: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The cluster's token: of `file`, else where Ray itself looks for it; None where there is none.

    Ray looks in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, and in ~/.ray/auth_token.

    Raises:
        UsageError: when a file that is named cannot be read, or what it holds is no token.
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
    # It becomes a header; and it is never shown, whatever it is.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{named} holds no token: a token is one word, as `ray get-auth-token` prints it")
    return token


def make_token() -> None:
    """Make the token of a Ray that is started here, where there is none: Ray itself would let all users read it."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path(RAYS_TOKEN_FILE).expanduser()
    with contextlib.suppress(OSError):  # there already; or no home to write to, of which Ray tells
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
