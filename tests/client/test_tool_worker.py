"""Tools that are served in Python: what is answered to a call, whatever the call, the tool and its registration are."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from llm_routerd import ToolError, ToolRequest, ToolWorker
from llm_routerd.errors import BrokerError
from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema
from llm_routerd.protocol.keys import TOOL_GROUP
from llm_routerd.protocol.schema_files import load_schema
from tests.support.toolcalls import Caller, Troubles, make_worker, open_caller, serving, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "hunter2-is-the-password"


class Place(BaseModel):
    """A model of pydantic, as an argument and as a result."""

    city: str
    where: tuple[float, float] | None = None


@dataclass
class Reading:
    """A dataclass."""

    degrees: float


def furnish(worker: ToolWorker) -> None:
    """Tools for these tests."""

    @worker.tool(idempotent=True, timeout_seconds=5)
    def echo(text: str) -> str:
        """Say it again."""
        return text

    @worker.tool
    async def give(what: str) -> Any:
        """Give something."""
        return {
            "none": None,
            "list": [1, "ä", {"b": True}],
            "model": {"place": Place(city="Oslo")},
            "dataclass": Reading(4.5),
            "bytes": b"\xff\xfe no text",
            "half": "half a \ud800 pair",
            "no json": object(),
            "nan": float("inf"),
        }[what]

    @worker.tool
    async def fail(how: str) -> str:
        """Fail."""
        if how == "told":
            raise ToolError("there is no such lamp")
        if how == "timeout":
            raise TimeoutError(SECRET)
        if how == "group":
            raise ExceptionGroup(SECRET, [ValueError(SECRET)])
        raise ValueError(SECRET)

    @worker.tool
    async def hang() -> str:
        """Take long."""
        await asyncio.sleep(60)
        return "late"

    @worker.tool(name="house.place", confirm=True, description="Where something is.")
    def place_of(
        place: Place,
        schema: Annotated[int, Field(ge=1, description="how precise")] = 1,
        *,
        _private: str | None = None,
        call: ToolRequest,
    ) -> list[Any]:
        """Not what the model reads."""
        return [place.city, schema, _private, call.call_id, threading.current_thread() is threading.main_thread()]


@pytest.fixture
async def served(broker_url: str) -> AsyncIterator[tuple[ToolWorker, Troubles, Caller]]:
    """A worker that serves, what it tells of, and who calls it."""
    worker, troubles = make_worker(broker_url)
    furnish(worker)
    async with open_caller(broker_url) as caller, serving(worker):
        await caller.until_registered(*worker.tools)
        yield worker, troubles, caller


Served = tuple[ToolWorker, Troubles, Caller]


async def test_call_is_answered_acknowledged_and_deleted(served: Served) -> None:
    """And the inbox keeps the time that it has to live."""
    _, troubles, caller = served
    assert await caller.asked("echo", {"text": "hello"}) == {"result": "hello"}
    assert await caller.left("echo") == (0, 0)
    assert await caller.redis.ttl(caller.keys.inbox(caller.request_id)) > 500
    assert troubles.lines == []


async def test_inbox_that_is_gone_is_not_made_again(served: Served) -> None:
    """Nobody would ever remove it."""
    _, _, caller = served
    await caller.redis.delete(caller.keys.inbox(caller.request_id))
    await caller.call("echo", {"text": "hello"})
    await caller.until_done("echo")
    assert not await caller.redis.exists(caller.keys.inbox(caller.request_id))


async def test_registrations_are_those_of_the_protocol(served: Served) -> None:
    """They satisfy its schema, and say what the functions say."""
    _, _, caller = served
    registered = {name: json.loads(text) for name, text in (await caller.redis.hgetall(caller.keys.tools)).items()}
    schema = compile_schema(load_schema("tool"))
    assert isinstance(schema, AnswerSchema)
    assert [schema.validate(each) for each in registered.values()] == [None] * len(registered)
    assert registered["echo"] == {
        "description": "Say it again.",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        },
        "confirm": False,
        "idempotent": True,
        "timeout_ms": 5000,
    }
    place = registered["house.place"]
    assert (place["description"], place["confirm"]) == ("Where something is.", True)
    assert set(place["parameters"]["properties"]) == {"place", "schema", "_private"}
    assert place["parameters"]["properties"]["schema"] == {
        "type": "integer", "minimum": 1, "default": 1, "description": "how precise",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, '"text" is a required property'),
        ({"text": 5}, '$.text: 5 is not of type "string"'),
        ({"text": "a", "more": 1}, "$: Additional properties"),
    ],
)
async def test_arguments_are_judged_again(served: Served, arguments: Any, problem: str) -> None:
    """Whoever wrote to the stream, the tool gets what it has asked for."""
    _, troubles, caller = served
    told = (await caller.asked("echo", arguments))["error"]
    assert told.startswith("the arguments are not valid: ")
    assert problem in told
    assert troubles.lines == []


async def test_typed_arguments_become_what_the_function_names(served: Served) -> None:
    """Models and defaults, names that pydantic would not take, the call itself; in a thread, since it is not async."""
    _, _, caller = served
    answer = await caller.asked("house.place", {"place": {"city": "Oslo", "where": [59.9, 10.7]}, "_private": "p"})
    assert json.loads(answer["result"]) == ["Oslo", 1, "p", "call_1", False]


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("none", {"result": "null"}),
        ("list", {"result": '[1,"ä",{"b":true}]'}),
        ("model", {"result": '{"place":{"city":"Oslo","where":null}}'}),
        ("dataclass", {"result": '{"degrees":4.5}'}),
        ("half", {"result": "half a ? pair"}),
        ("nan", {"result": "null"}),
        ("no json", {"error": "the tool has acted, and its result is no JSON"}),
    ],
)
async def test_result_is_text_or_json(served: Served, what: str, answer: dict[str, str]) -> None:
    """Texts are as they are; what is neither is an error that says that the tool has acted."""
    _, troubles, caller = served
    assert await caller.asked("give", {"what": what}) == answer
    assert len(troubles.lines) == ("error" in answer)


async def test_bytes_that_are_no_text_reach_the_inbox_as_they_are(valkey_url: str) -> None:
    """The daemon replaces what is no UTF-8."""
    worker, _ = make_worker(valkey_url)
    furnish(worker)
    async with open_caller(valkey_url) as caller, serving(worker):
        await caller.until_registered("give")
        await caller.call("give", {"what": "bytes"})
        await caller.until_done("give")
        async with Redis.from_url(valkey_url, protocol=2) as redis:
            entries: Any = await redis.xrange(caller.keys.inbox(caller.request_id))
        [[_, fields]] = entries
        assert fields[b"result"] == b"\xff\xfe no text"


@pytest.mark.parametrize("how", ["raised", "timeout", "group"])
async def test_exception_is_told_without_its_text(served: Served, how: str) -> None:
    """It may hold a secret: the model learns that the tool failed, the operator of what kind and where."""
    _, troubles, caller = served
    assert await caller.asked("fail", {"how": how}) == {"error": "the tool failed"}
    [line] = troubles.lines
    kind = {"raised": "ValueError", "timeout": "TimeoutError", "group": "ExceptionGroup"}[how]
    assert line.startswith(f"fail: 'call_1' failed: {kind} (test_tool_worker.py:")
    assert SECRET not in line
    assert SECRET in str(troubles.errors[0])


async def test_what_a_tool_error_says_is_told(served: Served) -> None:
    """And is no trouble."""
    _, troubles, caller = served
    assert await caller.asked("fail", {"how": "told"}) == {"error": "there is no such lamp"}
    assert troubles.lines == []


async def test_tool_that_hangs_is_given_up_at_the_deadline_and_frees_its_place(valkey_url: str) -> None:
    """The one place serves the next call."""
    worker, _ = make_worker(valkey_url, concurrency=1)
    furnish(worker)
    async with open_caller(valkey_url) as caller, serving(worker):
        answer = await caller.asked("hang", seconds=0.6)
        assert answer == {"error": "the tool has not ended in time, and may have acted"}
        assert await caller.asked("echo", {"text": "next"}) == {"result": "next"}


async def test_thread_that_hangs_keeps_no_process_from_its_end(valkey_url: str) -> None:
    """A function that is not async cannot be stopped; the worker ends all the same."""
    code = (
        "import asyncio, time\n"
        "from llm_routerd import ToolWorker\n"
        f"worker = ToolWorker({valkey_url!r}, drain_seconds=0.2)\n"
        "@worker.tool\n"
        "def hang() -> None:\n"
        "    'Hang.'\n"
        "    worker.stop()\n"
        "    time.sleep(3600)\n"
        "asyncio.run(worker.run())\n"
    )
    async with open_caller(valkey_url) as caller:
        await caller.call("hang")
        ended = await asyncio.to_thread(subprocess.run, (sys.executable, "-c", code), timeout=30, check=False)
        assert ended.returncode == 0
        assert (await caller.answer("call_1"))["error"].startswith("unknown outcome: ")


async def test_call_whose_deadline_has_passed_is_not_acted_on(served: Served) -> None:
    """By the clock of Redis; it is acknowledged and deleted, and nobody is answered."""
    worker, _, caller = served
    acted: list[str] = []

    @worker.tool
    async def act(call: ToolRequest) -> None:
        """Act."""
        acted.append(call.call_id)

    await caller.call("act", seconds=-0.001)
    await caller.call("act")
    assert await caller.answer("call_2") == {"result": "null"}
    await caller.until_done("act")
    assert (acted, await caller.answers()) == (["call_2"], [{"call_id": "call_2", "result": "null"}])


async def test_call_that_is_deleted_while_it_waits_for_a_place_is_not_acted_on(valkey_url: str) -> None:
    """The run was cancelled, and nobody wants it done."""
    worker, _ = make_worker(valkey_url, concurrency=1)
    acted: list[str] = []
    going, gone = asyncio.Event(), asyncio.Event()

    @worker.tool
    async def act(call: ToolRequest) -> None:
        """Act."""
        acted.append(call.call_id)
        going.set()
        await gone.wait()

    @worker.tool
    async def act_too(call: ToolRequest) -> None:
        """Act as well."""
        acted.append(call.call_id)
        going.set()
        await gone.wait()

    async with open_caller(valkey_url) as caller:
        ids = {await caller.call("act"), await caller.call("act_too")}
        async with asyncio.timeout(20), serving(worker):
            await going.wait()
            await until(lambda: _pending_in_all(caller, "act", "act_too", count=2))  # one waits here for the place
            [first] = acted
            other = "act_too" if first == "call_1" else "act"
            await caller.redis.xtrim(caller.keys.tool_calls(other), maxlen=0, approximate=False)
            gone.set()
            await caller.until_done(other)
            await caller.until_done("act" if other == "act_too" else "act_too")
            assert acted == [first]
            assert {answer["call_id"] for answer in await caller.answers()} == {first} < ids


async def _pending_in_all(caller: Caller, *tools: str, count: int) -> bool:
    return sum([(await caller.left(tool))[1] for tool in tools]) == count


async def test_call_that_comes_twice_is_acted_on_once(served: Served) -> None:
    """Under one `call_id`, in two entries, while it is at work and after it."""
    worker, _, caller = served
    acted: list[str] = []

    @worker.tool
    async def act(call: ToolRequest) -> int:
        """Act."""
        acted.append(call.call_id)
        await asyncio.sleep(0.3)
        return len(acted)

    await caller.call("act", call_id="call_a")
    await caller.call("act", call_id="call_a")
    assert await caller.answer("call_a") == {"result": "1"}
    await caller.call("act", call_id="call_a")
    assert await caller.asked("act", call_id="call_b") == {"result": "2"}
    await caller.until_done("act")
    assert acted == ["call_a", "call_b"]
    assert [answer["call_id"] for answer in await caller.answers()] == ["call_a", "call_b"]


@pytest.mark.parametrize(
    "fields",
    [{"call": "{"}, {"call": b"\xff\xfe"}, {"call": "[]"}, {"call": '{"id": "r1"}'}, {"other": "field"}],
    ids=["no-json", "no-utf8", "no-object", "no-call-id", "no-call"],
)
async def test_entry_that_is_no_call_is_told_of_and_deleted(served: Served, fields: dict[Any, Any]) -> None:
    """It would be found again for ever."""
    _, troubles, caller = served
    await caller.redis.xadd(caller.keys.tool_calls("echo"), fields)
    assert await caller.asked("echo", {"text": "next"}) == {"result": "next"}
    await caller.until_done("echo")
    assert troubles.lines == ["echo: an entry that is no call (schemas/tool-call) was deleted"]


async def test_huge_result_is_cut_where_no_daemon_keeps_more(valkey_url: str) -> None:
    """10 MB would be in Redis and on the wire for nothing; a large argument comes whole."""
    worker, _ = make_worker(valkey_url)

    @worker.tool
    def repeat(text: str) -> str:
        """Ten times."""
        return text * 10

    async with open_caller(valkey_url) as caller, serving(worker):
        answer = await caller.asked("repeat", {"text": "ä" * 500_000})
        assert len(answer["result"].encode()) == 4_194_312


async def test_registration_that_was_lost_is_made_again_and_another_ones_is_left(served: Served) -> None:
    """Two that differ are told of once, and not fought over."""
    _, troubles, caller = served
    ours = await caller.redis.hget(caller.keys.tools, "echo")
    await caller.redis.delete(caller.keys.tools)
    await caller.until_registered("echo", "give")
    assert await caller.redis.hget(caller.keys.tools, "echo") == ours
    same = json.dumps(json.loads(ours), indent=1)
    await caller.redis.hset(caller.keys.tools, "echo", same)
    await caller.redis.hset(caller.keys.tools, "give", "no JSON")
    await until(lambda: _is_true(troubles.lines))
    await asyncio.sleep(1.0)  # three more looks
    assert troubles.lines == ["give: what is registered in Redis differs from this worker's, and holds"]
    assert await caller.redis.hmget(caller.keys.tools, "echo", "give") == [same, "no JSON"]


async def _is_true(value: object) -> bool:
    return bool(value)


async def test_tools_come_and_go_while_it_runs(served: Served) -> None:
    """Without pydantic; another one's registration stays."""
    worker, _, caller = served

    async def handle(arguments: dict[str, Any], call: ToolRequest) -> Any:
        return [arguments, call.name]

    worker.add("late", handle, {"description": "It came late."})
    await caller.until_registered("late")
    assert json.loads((await caller.asked("late", {"a": 1}))["result"]) == [{"a": 1}, "late"]
    await caller.redis.hset(caller.keys.tools, "give", "another's")
    for name in ("late", "give", "unknown"):
        await worker.remove(name)
    assert await caller.redis.hmget(caller.keys.tools, "late", "give") == [None, "another's"]
    await caller.call("late", call_id="nobody")
    assert await caller.asked("echo", {"text": "on"}) == {"result": "on"}
    assert await caller.redis.xlen(caller.keys.tool_calls("late")) == 1


@pytest.mark.parametrize(
    ("name", "registration", "problem"),
    [
        ("no name", {"description": "x"}, "no name of a tool"),
        (".x", {"description": "x"}, "no name of a tool"),
        ("x", {}, "description|nothing"),
        ("x", {"description": ""}, r"\$\.description"),
        ("x", {"description": "x", "timeout_ms": 0}, r"\$\.timeout_ms"),
        ("x", {"description": "x", "retries": 3}, "'retries' was unexpected"),
        ("x", {"description": "x", "parameters": {"type": "objekt"}}, "parameters cannot be used"),
        ("x", {"description": "x", "parameters": {"$ref": "http://example.com/"}}, "parameters cannot be used"),
    ],
)
async def test_unsound_registration_is_refused_at_once(name: str, registration: Any, problem: str) -> None:
    """By the program that makes it, before anything stands in Redis."""

    async def handle(_arguments: dict[str, Any], _call: ToolRequest) -> None: ...

    with pytest.raises(ValueError, match=problem):
        ToolWorker().add(name, handle, registration)


async def test_replaced_tool_is_registered_anew(served: Served) -> None:
    """While it runs, as the MCP bridge does."""
    worker, _, caller = served

    async def handle(_arguments: dict[str, Any], _call: ToolRequest) -> str:
        return "another"

    worker.add("echo", handle, {"description": "Another."}, replace=True)

    async def is_new() -> bool:
        return bool(json.loads(await caller.redis.hget(caller.keys.tools, "echo")) == {"description": "Another."})

    await until(is_new)
    assert await caller.asked("echo") == {"result": "another"}


async def test_worker_without_a_place_or_an_address_is_none() -> None:
    """Said at once."""
    with pytest.raises(ValueError, match="concurrency"):
        ToolWorker(concurrency=0)
    with pytest.raises(BrokerError):
        ToolWorker("nonsense")


def test_without_pydantic_there_is_a_line_that_says_what_to_install() -> None:
    """And `add` does without."""
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from llm_routerd import ToolWorker\n"
        "worker = ToolWorker()\n"
        "worker.add('x', None, {'description': 'x'})\n"
        "try:\n    worker.tool(print)\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    ran = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout == "tools from functions need pydantic: pip install 'llm-routerd[tools]', or use `add`\n"


async def test_each_shard_is_served(broker_url: str) -> None:
    """Its registrations, its streams, its inboxes."""
    worker, _ = make_worker(broker_url, shards=3, concurrency=1)
    furnish(worker)
    async with serving(worker):
        for shard, serving_keys in enumerate(serve._shard.keys for serve in worker._serving):
            async with open_caller(broker_url, keys=serving_keys, request_id=f"r{shard}") as caller:
                await caller.until_registered("echo")
                assert await caller.asked("echo", {"text": str(shard)}) == {"result": str(shard)}


async def test_consumer_leaves_with_its_worker(served: Served) -> None:
    """The list of consumers is not to grow with every start."""
    worker, _, caller = served
    await caller.asked("echo", {"text": "hello"})
    key = caller.keys.tool_calls("echo")
    assert [each["name"] for each in await caller.redis.xinfo_consumers(key, TOOL_GROUP)] == [worker.consumer]
    worker.stop()

    async def has_left() -> bool:
        return not await caller.redis.xinfo_consumers(key, TOOL_GROUP)

    await until(has_left)
