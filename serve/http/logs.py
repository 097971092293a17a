"""Destinations of the access log and of errors, one JSON object per line.

Both loggers are silent until `write_logs` is called. Ray writes its workers' stderr to its own files
(`session_latest/logs/worker-*.err`), which log collectors read.
"""

from __future__ import annotations

import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path

from cluster.logging_setup import JsonLines
from library.errors import UsageError

#: Writes to stderr rather than to a file.
STDERR = "-"
_ACCESS, _ERRORS = "striate.access", "striate.serve"


class _Lines(JsonLines):
    """Formats records as JSON; lines of the access log are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == _ACCESS else super().format(record)


def log_path(option: str | None) -> str | None:
    """Returns the absolute path of --access-log, for processes in other folders.

    Raises:
        UsageError: when the folder does not exist.
    """
    if option is None or option == STDERR:
        return option
    path = Path(option).absolute()
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--access-log {option}: cannot write a file there; name a file in an existing folder, or -")
    return str(path)


def write_logs(access: str | None) -> None:
    """Lets this process write errors to stderr, and a line for each request to `access`.

    Args:
        access: path of a file, which is created again after it was moved; `-` for stderr; None for no access log.

    Raises:
        OSError: when the file cannot be written.
    """
    # Not sys.stderr: Serve replaces it in a replica by its own logger, which drops these lines.
    stderr = sys.__stderr__
    _attach(_ERRORS, logging.StreamHandler(stderr), logging.WARNING)
    if access is not None:
        handler = logging.StreamHandler(stderr) if access == STDERR else WatchedFileHandler(access)
        _attach(_ACCESS, handler, logging.INFO)


def _attach(name: str, handler: logging.Handler, level: int) -> None:
    logger = logging.getLogger(name)
    handler.setFormatter(_Lines())
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
