"""Log lines as JSON, one object a line, on standard error."""

from __future__ import annotations

import logging
import sys

import structlog

_LOUD = ("botocore", "boto3", "urllib3", "diffusers", "transformers")


def configure_logs(**context: object) -> None:
    """Send every logger's records to standard error as JSON, `context` in each line.

    Fields given as `extra` become keys. Prompt text must never be logged.
    """

    def add_context(
        _logger: object, _name: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        return {**context, **event}

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso"),
            add_context,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
