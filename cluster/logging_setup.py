"""Log lines: workers and servers write one JSON object per line; Ray's own lines stay off a command's terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

# Files of Ray's core whose lines concern only Ray: its log level, and each attempt to reach a head.
_NOTES_FROM = (b"logging.cc", b"gcs_client.cc")


class JsonLines(logging.Formatter):
    """Formats a record as `{"time": ..., "level": ..., "message": ...}` with `WorkLog`'s fields and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class WorkLog(logging.LoggerAdapter[logging.Logger]):
    """Logs JSON lines to the stderr of a worker, which Ray writes to `session_latest/logs/worker-*.err`.

        log = WorkLog(command="filter", run="3f2c...")
        log.info("shard done", extra={"shard": "out/edges/part-000003"})

    Args:
        fields: added to each line.
    """

    def __init__(self, **fields: Any) -> None:
        logger = logging.getLogger("striate.work")
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        super().__init__(logger, fields)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        more: Mapping[str, Any] = kwargs.get("extra") or {}
        return msg, {**kwargs, "extra": {"fields": {**(self.extra or {}), **more}}}


@contextmanager
def ray_notes_held_back(notes: list[bytes]) -> Generator[None]:
    """Collects in `notes` what Ray's core writes to stderr about itself; everything else still reaches stderr."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if any(source in line for source in _NOTES_FROM):
                    notes.append(line)
                else:
                    os.write(2, line)
