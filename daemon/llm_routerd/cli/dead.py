"""`llm-routerd dead`: what an operator does with the requests that nobody will answer."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.settings import open_client, redis_of
from llm_routerd.cli.terminal import harmless, json_line, note, one_line, say
from llm_routerd.client.dead_letters import DeadLetter, DeadLetters, Location, Retried, Verdict, check_letter

if TYPE_CHECKING:
    import argparse

_WHY_NOT = {
    Verdict.MISSING: "there is no such dead letter",
    Verdict.ANSWERED: "its id has been answered or cancelled meanwhile: drop the letter",
    Verdict.IN_PROGRESS: "its id has been submitted again and is being answered: drop the letter",
    Verdict.CUT: "its request was too long to be kept, and only its beginning is here: submit it again, in fewer bytes",
    Verdict.UNREAD: "it is too long to be read whole: submit its request again, in fewer bytes, or drop it",
    Verdict.UNREADABLE: "it does not hold what was submitted",
}


def run(arguments: argparse.Namespace) -> Exit:
    """List, show, retry or drop; fails if one of the letters was not there or could not be retried."""
    _check_arguments(arguments)
    return asyncio.run(_run(arguments))


def _check_arguments(arguments: argparse.Namespace) -> None:
    action, entries = arguments.action, arguments.entries
    if action in {"list", "show"} and arguments.all:
        raise UsageError(f"dead {action}: --all goes with retry and drop")
    if action == "list" and entries:
        raise UsageError("dead list: takes no entries; did you mean show?")
    if action == "show" and not entries:
        raise UsageError("dead show: which entry?")
    if action in {"retry", "drop"} and bool(entries) == arguments.all:
        raise UsageError(f"dead {action}: give either entries or --all")
    for entry in entries:
        try:
            check_letter(entry)
        except ValueError as error:
            raise UsageError(f"dead {action}: {entry!r}: {error}") from error


async def _run(arguments: argparse.Namespace) -> Exit:
    async with await open_client(redis_of(arguments)) as client, DeadLetters(client) as letters:
        return await _act(letters, arguments)


async def _act(letters: DeadLetters, arguments: argparse.Namespace) -> Exit:
    if arguments.action == "list":
        return await _list(letters, as_json=arguments.json)
    # All that there are now: what a retry brings back is not retried for ever.
    names = [letter.name async for letter in letters.all()] if arguments.all else arguments.entries
    done = [await _act_on(letters, name, arguments) for name in names]
    return Exit.OK if all(done) else Exit.FAILED


async def _act_on(letters: DeadLetters, name: str, arguments: argparse.Namespace) -> bool:
    match await letters.find(name):
        case []:
            return _refuse(name, _WHY_NOT[Verdict.MISSING], as_json=arguments.json)
        case [location]:
            return await _ACTIONS[arguments.action](letters, location, as_json=arguments.json)
        case several:
            which = ", ".join(location.name for location in several)
            return _refuse(name, f"several shards have one of this entry: name one of {which}", as_json=arguments.json)


async def _list(letters: DeadLetters, *, as_json: bool) -> Exit:
    count = 0
    async for letter in letters.all():
        count += 1
        say(json_line(letter.to_json(whole=False)) if as_json else _summary(letter))
    if not count:
        note("no dead letters")
    return Exit.OK


async def _show(letters: DeadLetters, location: Location, *, as_json: bool) -> bool:
    letter = await letters.get(location)
    if letter is None:
        return _refuse(location.name, _WHY_NOT[Verdict.MISSING], as_json=as_json)
    if as_json:
        say(json_line(letter.to_json(whole=True)))
        return True
    say(_summary(letter))
    shown = letter.data if letter.unread is None else {"unread": letter.unread}
    say(harmless(json.dumps(shown, ensure_ascii=False, indent=2)))
    return True


async def _retry(letters: DeadLetters, location: Location, *, as_json: bool) -> bool:
    letter = await letters.get(location)
    retried = Retried(verdict=Verdict.MISSING) if letter is None else await letters.retry(letter)
    name = location.name
    if retried.verdict is not Verdict.QUEUED:
        return _refuse(name, _WHY_NOT[retried.verdict], as_json=as_json)
    if as_json:
        say(json_line({"letter": name, "done": True, "id": retried.request_id, "renamed": retried.renamed}))
    else:
        renamed = " (it had no id of its own: this is a new one)" if retried.renamed else ""
        say(f"{name} queued again as {retried.request_id}{renamed}")
    return True


async def _drop(letters: DeadLetters, location: Location, *, as_json: bool) -> bool:
    name = location.name
    if not await letters.drop(location):
        return _refuse(name, _WHY_NOT[Verdict.MISSING], as_json=as_json)
    say(json_line({"letter": name, "done": True}) if as_json else f"{name} dropped")
    return True


_ACTIONS = {"show": _show, "retry": _retry, "drop": _drop}


def _refuse(entry: str, why: str, *, as_json: bool) -> bool:
    if as_json:
        say(json_line({"letter": entry, "done": False, "why": why}))
    else:
        note(f"{entry}: {why}")
    return False


def _summary(letter: DeadLetter) -> str:
    """One line; the prompt is not in it."""
    about = letter.about
    parts: list[Any] = [
        letter.name,
        _when(about.get("at_ms", "")),
        about.get("lane", "?"),
        about.get("id") or "(no id)",
    ]
    parts += [
        about.get("reason", "?"),
        f"deliveries={about.get('deliveries', '?')}",
        about.get("message", ""),
        *([] if letter.cut_bytes is None else [f"(cut: {letter.cut_bytes} bytes)"]),
        *([] if letter.unread is None else [f"(a letter of {letter.unread['bytes']} bytes, which is not read)"]),
    ]
    return one_line(" ".join(map(str, parts)))


def _when(at_ms: str) -> str:
    try:
        return datetime.fromtimestamp(int(at_ms) / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return "?"
