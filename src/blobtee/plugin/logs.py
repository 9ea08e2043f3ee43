"""Lines of the log: one fact each, as text for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import time
import traceback

FORMATS = ("text", "json")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # One line, whatever a client put into a ref.
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in record.getMessage())
        line = f"{_time(record)} {record.levelname.lower():<7} {text}"
        if record.exc_info:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


def configure(form: str, *, quiet: bool = False) -> None:
    """Write all that blobtee logs to standard error, as `form` of `FORMATS` says; with `quiet` warnings alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logger = logging.getLogger("blobtee")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def _time(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03}Z"
