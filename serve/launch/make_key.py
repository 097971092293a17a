"""`striate keys`: make an API key."""

from __future__ import annotations

import json as json_lines
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.console import Json, say


def keys_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; appears in the access log.")],
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="Key file to add it to; made if missing.")],
    json: Json = False,
) -> None:
    """Make an API key: print it once, and add its SHA-256 to a key file.

    The file goes to `striate serve --api-keys FILE`. Take a line out to revoke a key; servers notice by themselves.
    """
    from library.errors import UsageError
    from serve.http.keys import new_key, read_keys

    key, line = new_key(name)
    known = read_keys(file) if file.exists() else {}
    if name in known:
        raise UsageError(f"{file} has a key named '{name}' already: choose another name, or take its line out first")
    ends_whole = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    try:
        # Only its owner reads it, although hashes give no key away.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as out:
            out.write(("" if ends_whole else "\n") + line + "\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    say(json_lines.dumps({"name": name, "key": key, "file": str(file)}) if json else key)
    say(
        f"Added to {file}. This is the only time the key is shown; send it as: Authorization: Bearer KEY",
        file=sys.stderr,
    )
