"""`llm-routerd audit`: what was called, what it took, and who agreed to it."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import textwrap
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.settings import open_client, redis_of
from llm_routerd.cli.terminal import Style, json_line, note, one_line, say
from llm_routerd.client import check_id

if TYPE_CHECKING:
    import argparse

    from llm_routerd.client import Client
    from llm_routerd.protocol.audit import AuditEntry

_AGO = re.compile(r"(\d{1,9})([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TABLE_COLUMNS = 100  # of a narrower terminal the lines are broken, and have no columns
_GOOD = {"success", "result", "confirmed"}


def run(arguments: argparse.Namespace) -> Exit:
    """Print the entries, the oldest first, and at the end the sums on stderr; exit code 0 whatever they are."""
    if arguments.follow and arguments.until is not None:
        raise UsageError("audit: --follow has no end, and --until is one: give one of them")
    if arguments.id is not None:
        try:
            check_id(arguments.id)
        except ValueError as error:
            raise UsageError(f"audit: --id: {error}") from error
    since, until = _read_moment("--since", arguments.since), _read_moment("--until", arguments.until)
    sums = _Sums()
    try:
        asyncio.run(_print(arguments, since, until, sums))
    except KeyboardInterrupt:
        note(sums.told())
        raise
    note(sums.told())
    return Exit.OK


async def _print(
    arguments: argparse.Namespace, since: float | datetime | None, until: float | datetime | None, sums: _Sums
) -> None:
    style = Style.of(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    async with await open_client(redis_of(arguments), arguments.id or "") as client:
        async for entry in client.audit(
            since_ms=await _ms(client, since) or 0,
            until_ms=await _ms(client, until),
            tenant_id=arguments.tenant,
            request_id=arguments.id,
            kind=arguments.kind,
            follow=arguments.follow,
        ):
            sums.add(entry)
            say(json_line(msgspec.to_builtins(entry)) if arguments.json else line_of(entry, style, width))


async def _ms(client: Client, moment: float | datetime | None) -> int | None:
    """Unix time in ms of a moment; seconds ago count by the server's clock, which the entries have their IDs by."""
    if isinstance(moment, datetime):
        return max(0, round(moment.timestamp() * 1000))
    return None if moment is None else max(0, await client.server_time_ms() - round(moment * 1000))


def _read_moment(option: str, text: str | None) -> float | datetime | None:
    """A moment as it is given: so many seconds ago, or a date or a time (ISO 8601, of here where it does not say)."""
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return float(int(ago[1]) * _UNIT_SECONDS[ago[2]])
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        forms = "expected 90s, 15m, 2h or 7d ago, a date, or a time like 2026-11-28T14:00"
        raise UsageError(f"audit: {option}: {forms}, not {text!r}") from None


def line_of(entry: AuditEntry, style: Style, width: int) -> str:
    """An entry for people: in columns where there is room for them, else broken at blanks; `width` 0: no terminal."""
    outcome = entry.outcome if entry.code is None else f"{entry.outcome} ({entry.code})"
    columns = [
        (_when(entry.at_ms), 19),
        (_what(entry), 18),
        (outcome, 22),
        ("" if entry.latency_ms is None else f"{entry.latency_ms} ms", -9),
        ("" if entry.prompt_tokens is None else f"{entry.prompt_tokens}+{entry.completion_tokens or 0}", -11),
        (_cost(entry), -10),
        (entry.id, 0),
        (entry.tenant_id or "", 0),
        (f"by {entry.by}" if entry.by else "", 0),
    ]
    texts = [one_line(text) for text, _ in columns]
    if 0 < width < _TABLE_COLUMNS:
        texts = textwrap.wrap(" ".join(filter(None, texts)), max(width, 20), subsequent_indent="  ")
        return _coloured("\n".join(texts), entry, style)
    padded = [
        text.rjust(-size) if size < 0 else text.ljust(size) for text, (_, size) in zip(texts, columns, strict=True)
    ]
    return _coloured(
        " ".join(part for part, (_, size) in zip(padded, columns, strict=True) if size or part), entry, style
    )


def _coloured(line: str, entry: AuditEntry, style: Style) -> str:
    return line.rstrip() if entry.outcome in _GOOD else style.warning(line.rstrip())


def _what(entry: AuditEntry) -> str:
    match entry.kind:
        case "model":
            return entry.deployment or "?"
        case "tool":
            return f"{entry.tool}()"
        case _:
            return f"{entry.tool}?"


def _cost(entry: AuditEntry) -> str:
    if entry.kind != "model":
        return ""
    return "price ?" if entry.cost_usd is None else f"${entry.cost_usd:.6f}"


def _when(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"


class _Sums:
    """What was printed, added up."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()
        self._tokens = 0
        self._cost_usd = 0.0
        self._unpriced = 0

    def add(self, entry: AuditEntry) -> None:
        self._kinds[entry.kind] += 1
        self._tokens += (entry.prompt_tokens or 0) + (entry.completion_tokens or 0)
        if entry.kind == "model":
            self._cost_usd += entry.cost_usd or 0.0
            self._unpriced += entry.cost_usd is None

    def told(self) -> str:
        """One line."""
        if not self._kinds:
            return "nothing in the audit"
        unpriced = f"; without a known price: {self._unpriced}" if self._unpriced else ""
        return (
            f"calls of models: {self._kinds['model']}, of tools: {self._kinds['tool']}; "
            f"words of people: {self._kinds['confirmation']}; "
            f"tokens: {self._tokens}; cost: ${self._cost_usd:.6f}{unpriced}"
        )
