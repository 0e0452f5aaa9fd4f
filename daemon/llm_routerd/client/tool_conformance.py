"""Tries a tool worker out, in whatever language it is: plays the daemon's side, and says which rules it keeps.

    python -m llm_routerd.client.tool_conformance [--redis URL] [--patience SECONDS] -- COMMAND …

COMMAND is started with the environment variables REDIS_URL (the server) and TOOL_FILE (the path of a file), and has to
serve two tools there, under the prefix `llm`, until SIGTERM:

- `echo`, with the argument `text` (a string, required): its result is that text.
- `note`, with `text` (a string, required) and `seconds` (a number, 0 where it is not given): appends the line
  `<call_id> <text>` to the file that TOOL_FILE names, once for a `call_id`; then waits so many seconds; and then has
  the result `noted`.

Redis has to have nothing of this prefix in it.  It is a real one, and the worker is killed, cut off and started again.

Exit code: 0 every rule was kept, 1 not, 2 COMMAND cannot be started, 69 Redis cannot be used, 130 it was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from llm_routerd.client.tool_stage import TOOLS, BrokenRuleError, Stage
from llm_routerd.config.addresses import read_redis_url
from llm_routerd.errors import BrokerError
from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema
from llm_routerd.protocol.keys import TOOL_GROUP
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.queue.connection import Needs, as_broker_error, pooled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_AGED_MS = 3_600_000
_STRANGE = 'ä 日本 🦆 "quoted" \\back\\slash $HOME `id` %s {} \' \t tab \u2028 end\nand a second line'


async def registers(stage: Stage) -> None:
    """Registers `echo` and `note`, each as schemas/tool has it"""
    await stage.until(stage.are_registered, "they are not there")
    schema = compile_schema(load_schema("tool"))
    for tool in TOOLS:
        [text] = await stage.redis.hmget(stage.keys.tools, [tool])
        try:
            registration = json.loads(text or b"")
        except ValueError:
            raise BrokenRuleError(f"the registration of {tool} is no JSON") from None
        if isinstance(schema, AnswerSchema) and (problem := schema.validate(registration)):
            raise BrokenRuleError(f"{tool}: {problem}")
        parameters = compile_schema(registration.get("parameters", {"type": "object"}))
        if not isinstance(parameters, AnswerSchema):
            raise BrokenRuleError(f"{tool}: parameters: {parameters.message}")


async def has_groups(stage: Stage) -> None:
    """Reads each tool's stream through the consumer group `llm-tools`, and through no other"""
    for stream in stage.streams:

        async def groups(stream: str = stream) -> Any:
            return await stage.redis.exists(stream) and await stage.redis.xinfo_groups(stream)

        others = {each["name"] for each in await stage.until(groups, f"{stream} has none")} - {TOOL_GROUP.encode()}
        if others:
            told = ", ".join(repr(name.decode("utf-8", "replace")) for name in sorted(others))
            raise BrokenRuleError(f"{stream} has {told}, and each group gets every call")


async def answers(stage: Stage) -> None:
    """Answers a call, in the inbox of its request"""
    if (result := await stage.result(await stage.call("echo", {"text": "hello"}))) not in (b"hello", b'"hello"'):
        raise BrokenRuleError(f"not with what was said, but with {result[:100]!r}")


async def keeps_bytes(stage: Stage) -> None:
    """Changes no byte: quotes, backslashes, newlines, letters of any script"""
    await _echoes(stage, _STRANGE)


async def takes_large(stage: Stage) -> None:
    """Takes an argument of 300 kB, and gives a result as large"""
    await _echoes(stage, "0123456789 ä€🦆 " * 14_000)


async def _echoes(stage: Stage, text: str) -> None:
    result = await stage.result(await stage.call("echo", {"text": text}))
    if result != text.encode():
        with suppress(ValueError):
            if json.loads(result) == text:
                return
        raise BrokenRuleError(f"{len(text.encode())} bytes became {len(result)} others")


async def acts(stage: Stage) -> None:
    """Acts on a call: `note` appends `<call_id> <text>` to the file that TOOL_FILE names, and has the result `noted`"""
    call_id = await stage.call("note", {"text": "a plain act"})
    result = await stage.result(call_id)
    if (line := f"{call_id} a plain act".encode()) not in stage.lines():
        found = stage.lines()[-1:] or [b"nothing"]
        raise BrokenRuleError(f"there is {found[0][:100]!r}, and not {line!r}")
    stage.has_acted = True
    if result not in {b"noted", b'"noted"'}:
        raise BrokenRuleError(f"the result is {result[:100]!r}")


def _left_alone(stage: Stage, call_id: str) -> None:
    """It was not acted on, which is told from a worker that acts where it should."""
    if not stage.has_acted:
        raise BrokenRuleError("that cannot be told of one that does not act on a plain call")
    _noted(stage, call_id, 0)


async def refuses(stage: Stage) -> None:
    """Answers arguments that are not what its `parameters` say with an error, and does not act"""
    wrong: list[tuple[str, dict[str, Any]]] = [("echo", {"text": 5}), ("echo", {}), ("note", {"seconds": 0})]
    for tool, arguments in wrong:
        call_id = await stage.call(tool, arguments)
        if b"error" not in await stage.answer(call_id):
            raise BrokenRuleError(f"{tool} has a result for {json.dumps(arguments)}")
        _left_alone(stage, call_id)


async def acts_once(stage: Stage) -> None:
    """Acts once on a call that comes twice"""
    call_id = await stage.call("note", {"text": "twice"})
    await stage.answer(call_id)
    await stage.call("note", {"text": "twice"}, call_id=call_id)
    await stage.until_empty()
    _noted(stage, call_id)


def _noted(stage: Stage, call_id: str, times: int = 1) -> None:
    if (found := stage.notes(call_id)) != times:
        raise BrokenRuleError(f"acted {found} times, not {times}")


async def is_in_time(stage: Stage) -> None:
    """Does not act on a call whose `deadline_ms` has passed"""
    late = await stage.call("note", {"text": "late"}, seconds=-5)
    await stage.answer(await stage.call("note", {"text": "in time"}))

    async def is_read() -> bool:
        return not await stage.pending()

    await stage.until(is_read, "it was read, and is not acknowledged")
    await asyncio.sleep(0.5)
    _left_alone(stage, late)
    await stage.redis.xtrim(stage.keys.tool_calls("note"), maxlen=0, approximate=False)


async def leaves_no_inbox(stage: Stage) -> None:
    """Makes no inbox that nobody would remove: XADD NOMKSTREAM"""
    inbox = stage.keys.inbox("tool-conformance-gone")
    try:
        await stage.call("echo", {"text": "to nobody"}, request="tool-conformance-gone")
        await stage.until_empty()
        if await stage.redis.ttl(inbox) == -1:
            raise BrokenRuleError("it is there, without a TTL")
    finally:
        await stage.redis.delete(inbox)


async def acknowledges(stage: Stage) -> None:
    """Acknowledges and deletes what it has answered"""
    for tool in TOOLS:
        await stage.answer(await stage.call(tool, {"text": "done"}))
    await stage.until_empty()


async def shares(stage: Stage) -> None:
    """Shares the calls with another of its kind"""
    other = await stage.start()
    try:
        await asyncio.sleep(2)
        calls = [await stage.call("echo", {"text": "shared"}) for _ in range(20)]
        for call_id in calls:
            await stage.result(call_id)
        await stage.until_empty()
        if any([len(await stage.answers(call_id)) != 1 for call_id in calls]):
            raise BrokenRuleError("a call was answered twice")
        other.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(other.wait(), stage.patience_seconds)
    finally:
        await stage.kill(other)


async def goes_on_when_cut_off(stage: Stage) -> None:
    """Goes on after its connections were cut, idle and while it acts"""

    async def cut() -> int:
        return await stage.cut_off()

    await stage.until(cut, "it has no connection")
    await stage.result(await stage.call("echo", {"text": "on"}))
    call_id = await stage.call("note", {"text": "cut off", "seconds": 1.0})
    await stage.until_noted(call_id)
    await stage.cut_off()
    await stage.answer(call_id)
    await stage.until_empty()
    _noted(stage, call_id)


async def goes_on_when_emptied(stage: Stage) -> None:
    """Registers again and serves, after Redis was emptied"""
    await stage.clean()
    await registers(stage)
    await has_groups(stage)
    await stage.open_inbox()
    await stage.result(await stage.call("echo", {"text": "again"}))


RULES = (
    registers, has_groups, answers, keeps_bytes, takes_large, acts, refuses, acts_once, is_in_time,
    leaves_no_inbox, acknowledges, shares, goes_on_when_cut_off, goes_on_when_emptied,
)  # fmt: skip


async def stops(stage: Stage, process: asyncio.subprocess.Process) -> None:
    """Ends on SIGTERM, and first answers what it has begun"""
    call_id = await stage.call("note", {"text": "last", "seconds": 2.0})
    await stage.until_noted(call_id)
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), stage.patience_seconds)
    except TimeoutError:
        raise BrokenRuleError(f"it still runs after {stage.patience_seconds:g} s") from None
    if not await stage.answers(call_id):
        raise BrokenRuleError("what it had begun was not answered")
    await stage.until_empty()
    _noted(stage, call_id)


async def is_never_twice(stage: Stage, process: asyncio.subprocess.Process) -> None:
    """Killed while it acts and started again, it answers that call, and does not act on it twice"""
    call_id = await stage.call("note", {"text": "killed", "seconds": 60.0}, seconds=120)
    await stage.until_noted(call_id)
    await stage.kill(process)
    for stream, group, consumer, entry in await stage.pending():  # as if an hour had passed
        await stage.redis.xclaim(stream, group, consumer, 0, [entry], idle=_AGED_MS, justid=True)
    again = await stage.start()
    try:
        await stage.answer(call_id)
        await stage.until_empty()
        _noted(stage, call_id)
    finally:
        await stage.kill(again)


async def _tried(rule: Callable[..., Awaitable[None]], *on: Any) -> bool:
    """Whether a rule is kept; says so."""
    problem = ""
    try:
        await rule(*on)
    except BrokenRuleError as error:
        problem = f": {error}"
    except RedisError as error:
        problem = f": Redis answered with {type(error).__name__}"
    print(f"{'FAIL' if problem else 'PASS'}  {rule.__doc__}{problem}", flush=True)
    return not problem


async def _try_all(stage: Stage) -> int:
    await stage.open_inbox()
    kept = []
    process = await stage.start()
    try:
        for rule in RULES:
            kept.append(await _tried(rule, stage))
            if rule is registers and not await stage.are_registered():
                ended = "" if process.returncode is None else f"; it has ended, with exit code {process.returncode}"
                print(f"No other rule was tried, for it has to register both tools first{ended}")
                return _told(stage, kept)
            if process.returncode is not None:
                print(f"It has ended, with exit code {process.returncode}; it is started again")
                process = await stage.start()
        kept.append(await _tried(stops, stage, process))
        await stage.kill(process)
        process = await stage.start()
        kept.append(await _tried(is_never_twice, stage, process))
    finally:
        await stage.kill(process)
        await stage.clean()
    return _told(stage, kept)


def _told(stage: Stage, kept: Sequence[bool]) -> int:
    """The exit code; says what it is for."""
    print(f"{sum(kept)} of {len(RULES) + 2} rules are kept")
    if all(kept):
        return 0
    words = stage.output.read_text("utf-8", "replace").splitlines()[-20:]
    print("The last that it wrote:", *words, sep="\n  ")
    return 1


async def run(url: str, command: Sequence[str], patience_seconds: float) -> int:
    """Try a worker; returns the exit code."""
    try:
        server = pooled.Server.at(url, Needs(prefix="llm"))
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 69
    # SIGTERM is Ctrl-C: the worker is in a session of its own, and would go on serving a database that nobody empties.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        with tempfile.TemporaryDirectory() as directory:
            stage = Stage(server.redis, url, command, Path(directory), patience_seconds=patience_seconds)
            if await server.redis.exists(stage.keys.tools, *stage.streams):
                told = "Redis has tools under the prefix `llm`: give it an empty database"
                print(f"{told}; {_emptied(url)}", file=sys.stderr)
                return 69
            return await _try_all(stage)
    except RedisError as error:
        print(as_broker_error(error), file=sys.stderr)
        return 69
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        await server.aclose()


def _emptied(url: str) -> str:
    """How to get rid of what a trial that was interrupted has left."""
    database = parse_url(read_redis_url(url).url).get("db", 0)
    return f"what an interrupted trial has left, `redis-cli -n {database} FLUSHDB` removes, with all else that is there"


def main() -> int:
    """Read the arguments, and try."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m llm_routerd.client.tool_conformance",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--redis", default=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), help="URL")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds that each thing may take (20)")
    parser.add_argument("command", nargs="+", help="the tool worker, after --")
    options = parser.parse_args()
    try:
        return asyncio.run(run(options.redis, options.command, options.patience))
    except KeyboardInterrupt:
        print(f"Interrupted; {_emptied(options.redis)}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
