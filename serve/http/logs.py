"""Where a server's processes write: access log and errors, one JSON object a line.

Both loggers are silent until `write_logs` is called. Ray keeps what its workers write to stderr in files of its own
(`session_latest/logs/worker-*.err`), which log collectors read.
"""

from __future__ import annotations

import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path

from cluster.logging_setup import JsonLines
from library.errors import UsageError

#: To stderr rather than to a file.
STDERR = "-"
_ACCESS, _ERRORS = "striate.access", "striate.serve"


class _Lines(JsonLines):
    """As these; lines of the access log are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == _ACCESS else super().format(record)


def log_path(given: str | None) -> str | None:
    """A path as processes in other folders need it.

    Raises:
        UsageError: when there is no such folder.
    """
    if given is None or given == STDERR:
        return given
    path = Path(given).absolute()
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--access-log {given}: no file can be written there; name one in a folder that exists, or -")
    return str(path)


def write_logs(access: str | None) -> None:
    """Have this process write errors to stderr, and a line for each request where `access` says.

    Args:
        access: path of a file, which may be moved away and is then begun anew; `-` for stderr; None for no lines.

    Raises:
        OSError: when the file cannot be written.
    """
    _attach(_ERRORS, logging.StreamHandler(sys.stderr), logging.WARNING)
    if access is not None:
        handler = logging.StreamHandler(sys.stderr) if access == STDERR else WatchedFileHandler(access)
        _attach(_ACCESS, handler, logging.INFO)


def _attach(name: str, handler: logging.Handler, level: int) -> None:
    logger = logging.getLogger(name)
    handler.setFormatter(_Lines())
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
