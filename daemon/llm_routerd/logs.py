"""Logging: lines for people on a terminal, JSON otherwise, journal priorities under systemd.

Events are fixed snake_case names with fields.  Prompts, answers and keys do not belong into them; the
scrubber here is the last resort for when one gets there all the same.  Exceptions are shown without local
variables and, unless their type is known to be harmless, without their message: many quote their input.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import orjson

from llm_routerd.errors import RouterdError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, MutableMapping

    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

    from llm_routerd.config.tree import LogConfig

# Wherever rich is installed, structlog imports it (40 ms, 4 MB) and makes its tracebacks, which print local
# variables and with them prompts, the default.  Hide it for the moment of the import.
_rich_is_hidden = "rich" not in sys.modules
if _rich_is_hidden:
    sys.modules["rich"] = cast("Any", None)
try:
    import structlog
finally:
    if _rich_is_hidden:
        del sys.modules["rich"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_JOURNAL_PRIORITY = {"debug": b"<7>", "info": b"<6>", "warning": b"<4>", "error": b"<3>", "critical": b"<2>"}

_MASK = "***"
_SECRET_KEY = re.compile(
    r"api_?key|passw|secret|credential|authorization|cookie|bearer|^(auth_?|access_?)?token$", re.IGNORECASE
)
_TEXT_KEYS = frozenset({"prompt", "messages", "content", "raw_text", "answer", "text", "completion"})
# In the authority of a URL, up to the last @ since a password may hold one unquoted; or in its query.
_URL_CREDENTIALS = re.compile(r"(?<=://)(?:[^\s:/@]+|[^\s:/@]*:\S*)(?=@)|(?<=[?&]password=)[^\s&]+")
_BARE_KEY = re.compile(r"\b(?:sk|pk)-[A-Za-z0-9_-]{16,}|\bBearer\s+\S+")
_MAX_VALUE_CHARS = 2000
_MAX_DEPTH = 4

# What these say is about the program or the machine, never about a request.
_HARMLESS = (RouterdError, OSError, AttributeError, NameError, ImportError, TypeError, RecursionError)
_MAX_FRAMES = 30
_MAX_EXCEPTIONS = 10


def get_logger() -> FilteringBoundLogger:
    """Return a logger; usable before `set_up_logs`, whose settings it takes at its first use.

    A call below the configured level costs next to nothing where the result of `.bind()` is kept.
    """
    return cast("FilteringBoundLogger", structlog.get_logger())


def name_in_logs(**names: str) -> None:
    """Have every line that this task logs, and the tasks that it starts from now on, say these too."""
    structlog.contextvars.bind_contextvars(**names)


def set_up_logs(config: LogConfig, *, stream: BinaryIO | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Send the daemon's and the libraries' log lines to `stream`.

    Call it once, early; loggers keep the level that they had at their first use.

    Args:
        config: level and format; "auto" is "console" on a terminal and "json" otherwise.
        stream: where lines go; None: standard error.
        environ: `JOURNAL_STREAM` tells that the stream is systemd's journal, `NO_COLOR` asks for no colour.
    """
    target = sys.stderr.buffer if stream is None else stream
    if config.format == "console" or (config.format == "auto" and target.isatty()):
        colors = target.isatty() and not environ.get("NO_COLOR")
        render: Processor = _Console(colors=colors)
    else:
        render = _Json(journal=_is_journal(target, environ))
    level = _LEVELS[config.level]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            scrub,
            _render_exception,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Sink(target),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(max(level, logging.WARNING))


def on_loop_exception(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Log what asyncio's event loop could not deliver; for `loop.set_exception_handler`.

    The loop's own handler prints the callback with its arguments and the task with its exception: data.
    """
    del loop
    what = _headline(context.get("message"))
    get_logger().error("event_loop_exception", what=what, exc_info=context.get("exception"))


def scrub(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Mask secrets, credentials in URLs and texts of requests, in place (a structlog processor)."""
    del logger, method
    for key, value in event.items():
        if key not in {"event", "exc_info"}:
            event[key] = _scrubbed(key, value, 0)
    return event


def _scrubbed(key: str, value: object, depth: int) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if key in _TEXT_KEYS or _SECRET_KEY.search(key) or depth == _MAX_DEPTH:
        return _MASK
    match value:
        case str() | os.PathLike():
            return _BARE_KEY.sub(_MASK, _URL_CREDENTIALS.sub(_MASK, str(value)[:_MAX_VALUE_CHARS]))
        case dict():
            return {str(name): _scrubbed(str(name), item, depth + 1) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_scrubbed(key, item, depth + 1) for item in value]
        case _:
            return _type_name(value)  # its repr() may hold anything


def format_exception(exception: BaseException) -> str:
    """Return a traceback without local variables, and without messages that may quote a request."""
    lines: list[str] = []
    _describe(exception, lines, seen=set())
    return "".join(lines).rstrip("\n")


def _describe(exception: BaseException, lines: list[str], *, seen: set[int]) -> None:
    seen.add(id(exception))
    origin = exception.__cause__ or (None if exception.__suppress_context__ else exception.__context__)
    if origin is not None and id(origin) not in seen and len(seen) < _MAX_EXCEPTIONS:
        _describe(origin, lines, seen=seen)
        lines.append("\nwhich led to:\n")
    lines.extend(traceback.format_tb(exception.__traceback__, limit=-_MAX_FRAMES))
    name = f"{type(exception).__module__}.{type(exception).__qualname__}".removeprefix("builtins.")
    lines.append(f"{name}: {exception}\n" if isinstance(exception, _HARMLESS) else f"{name}\n")
    if isinstance(exception, BaseExceptionGroup):
        for member in exception.exceptions:
            if id(member) not in seen and len(seen) < _MAX_EXCEPTIONS:
                lines.append("\nwith:\n")
                _describe(member, lines, seen=seen)


def _render_exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    del logger, method
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    if isinstance(exc_info, BaseException):
        event["exception"] = format_exception(exc_info)
    return event


class _Json:
    """Renders an event as one line of JSON, behind a priority where the journal reads it."""

    def __init__(self, *, journal: bool) -> None:
        self._journal = journal

    def __call__(self, logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> bytes:
        del logger
        try:
            line = orjson.dumps(event, default=_type_name, option=orjson.OPT_NON_STR_KEYS)
        except TypeError:  # a lone surrogate, or an integer of more than 64 bits
            line = json.dumps(event, default=_type_name).encode("ascii")
        return _JOURNAL_PRIORITY.get(method, b"<6>") + line if self._journal else line


class _Console:
    """Renders an event as one readable line; control characters of values come out escaped."""

    def __init__(self, *, colors: bool) -> None:
        # Strings go through repr(): a model server's error text could otherwise steer the terminal.
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        )

    def __call__(self, logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> bytes:
        return self._render(logger, method, event).encode(errors="backslashreplace")


class _Sink:
    """The end of the line: writes it, and goes on where nobody reads any more."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target

    def msg(self, line: bytes) -> None:
        """Write one line."""
        try:
            self._target.write(line + b"\n")
            self._target.flush()
        except (OSError, ValueError):
            return  # the terminal or the pipe is gone: the daemon is not to die of it

    debug = info = warning = error = critical = msg


class _LibraryHandler(logging.Handler):
    """Passes what libraries log through the standard module on, by its first line only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record; never raises."""
        try:
            level = min(record.levelno // 10 * 10, logging.CRITICAL)
            # The template and not the message: the arguments are data.
            what = _headline(record.msg)
            get_logger().log(level, "library", library=record.name, what=what, exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 -- as logging.Handler has it: logging must not raise
            self.handleError(record)


def _headline(message: object) -> str:
    """What a library's message says before it quotes: asyncio names callbacks with their arguments."""
    return str(message).partition("\n")[0].partition(" in callback")[0][:200]


def _is_journal(target: BinaryIO, environ: Mapping[str, str]) -> bool:
    """Whether systemd connected the stream to its journal: `JOURNAL_STREAM` holds its device and inode."""
    try:
        status = os.fstat(target.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _type_name(value: object) -> str:
    return f"<{type(value).__name__}>"
