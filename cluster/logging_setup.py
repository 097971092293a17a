"""Logs as one JSON object a line, for whatever collects them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """`{"time": ..., "level": ..., "message": ...}`, the fields of `WorkLog`, and a traceback where there is one."""

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
    """What a worker logs, to its stderr; Ray keeps that in a file a process (`session_latest/logs/worker-*.err`).

        log = WorkLog(command="filter", run="3f2c...")
        log.info("shard done", extra={"shard": "out/edges/part-000003"})

    Args:
        fields: of each line.
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
