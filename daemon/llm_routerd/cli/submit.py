"""`llm-routerd submit`."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, cast

import orjson

from llm_routerd.cli.confirming import Confirming
from llm_routerd.cli.exits import Exit, NotAcceptedError, UsageError
from llm_routerd.cli.keyboard import Keyboard
from llm_routerd.cli.settings import PATIENCE_SECONDS, open_client, redis_of
from llm_routerd.cli.terminal import json_line, note, say
from llm_routerd.cli.views import choose_view
from llm_routerd.cli.watch import Watch, unconfirmed
from llm_routerd.client import RequestFields, check_id
from llm_routerd.errors import BrokerError, UnsuitableServerError
from llm_routerd.protocol.request import AgentFields

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from llm_routerd.client import Client, Params

# The daemon's own word on a deadline that has passed is better than ours, so it gets the time to say it.
_GRACE_SECONDS = 2.0
_LOOK_SECONDS = 2.0  # at the tools: a hint is worth no more
_MOST_UNSERVED = 5  # that are told one by one


def run(arguments: argparse.Namespace) -> Exit:
    """Submit a request and show its answer."""
    return asyncio.run(_submit(arguments, build_request(arguments)))


def build_request(arguments: argparse.Namespace) -> RequestFields:
    """The request that the arguments ask for, with an id.

    Raises:
        UsageError: they contradict each other, or name what cannot be read.
    """
    request = RequestFields(prompt=_read_prompt(arguments))
    try:
        request["id"] = check_id(arguments.id or uuid.uuid4().hex)
    except ValueError as error:
        raise UsageError(f"--id: {error}") from error
    if arguments.model is not None:
        request["model"] = arguments.model
    if arguments.tenant is not None:
        request["tenant_id"] = arguments.tenant
    if arguments.context is not None:
        request["context"] = arguments.context
    if arguments.local_only:
        request["local_only"] = True
    _read_objects(arguments, request)
    stream = arguments.stream or ("probe" if _shows_tokens(arguments) else "off")
    if stream != "off":
        request["stream"] = "live" if stream == "live" else "probe"
    try:
        orjson.dumps(request)
    except TypeError as error:  # e.g. an argument that is not UTF-8; the message quotes nothing
        raise UsageError(f"this cannot be sent: {error}") from error
    return request


def _read_objects(arguments: argparse.Namespace, request: RequestFields) -> None:
    """Put in what has properties of its own."""
    if arguments.schema is not None:
        request["schema"] = _read_schema(arguments.schema)
    if arguments.param:
        request["params"] = cast("Params", dict(map(_read_param, arguments.param)))  # whoever is wrong is told so
    if (agent := _read_agent(arguments)) is not None:
        request["agent"] = agent


async def _submit(arguments: argparse.Namespace, request: RequestFields) -> Exit:
    # What is refused for longer than an answer is wanted is refused.
    patience_seconds = min(PATIENCE_SECONDS, arguments.timeout or PATIENCE_SECONDS)
    adding = _Adding(patience_seconds)
    with adding.refused():
        client = await open_client(redis_of(arguments), request["id"], patience_seconds=patience_seconds)
    async with client:
        with adding.refused():
            if (why := await client.losing(request["id"])) is not None:
                raise why
        timeout_seconds = None
        if arguments.timeout is not None:
            timeout_seconds = arguments.timeout + _GRACE_SECONDS
            await _set_deadline(client, request, int(arguments.timeout * 1000))

        async def submit() -> None:
            with adding.refused():
                await client.submit(lane=arguments.lane, on_trouble=adding.trouble, **request)

        if arguments.no_wait:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await submit()
            except TimeoutError:
                raise unconfirmed(request["id"]) from None
            say(json_line({"id": request["id"]}) if arguments.json else request["id"])
            await _tell_unserved(client, request, note)
            return Exit.OK
        view = choose_view(as_json=arguments.json, every_event=False)
        confirming = Confirming(client, view, request["id"], Keyboard.of_person())

        async def beside() -> Never:
            await _tell_unserved(client, request, confirming.remark)
            await confirming.run()

        watch = Watch(
            client=client,
            view=confirming,
            beside=beside,
            request_id=request["id"],
            timeout_seconds=timeout_seconds,
            cancel_on_interrupt=not arguments.keep,
        )
        return await watch.run(submit)


async def _tell_unserved(client: Client, request: RequestFields, tell: Callable[[str], None]) -> None:
    """Tell which tools nobody serves of those that its model may call; nothing where this user may not look."""
    if (agent := request.get("agent")) is None:
        return
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            found = await client.shards.home(request["id"]).tools(agent["tools"])
    except (BrokerError, TimeoutError):
        return
    told = [f"{tool.name}: {tool.why_unserved}" for tool in found.tools if tool.why_unserved]
    for line in told[:_MOST_UNSERVED]:
        tell(line)
    if len(told) > _MOST_UNSERVED:
        tell(f"and {len(told) - _MOST_UNSERVED} more that nobody serves; see llm-routerd tools")


class _Adding:
    """Adding one request: what a person is told meanwhile, and when it does not come about."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._is_told = False
        self._may_be_queued = False  # a reply has been lost

    def trouble(self, trouble: BrokerError) -> None:
        """Tell the first one: nobody waits a minute without a word."""
        self._may_be_queued = self._may_be_queued or not trouble.is_refusal
        if not self._is_told:
            self._is_told = True
            note(f"not queued yet: {trouble}; trying for {self._patience_seconds:g} s")

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Within the block, a refusal is one of the request, unless that may be queued all the same.

        Of a server that can serve nobody every command says the same.

        Raises:
            NotAcceptedError: it is not queued.
        """
        try:
            yield
        except BrokerError as error:
            if not error.is_refusal or self._may_be_queued or isinstance(error, UnsuitableServerError):
                raise
            raise NotAcceptedError(error) from error


async def _set_deadline(client: Client, request: RequestFields, timeout_ms: int) -> None:
    """Bound the whole wait by the server's clock; who may not read it bounds the time from pick-up."""
    try:
        request["deadline_ms"] = await client.server_time_ms(request["id"]) + timeout_ms
    except BrokerError:
        request["timeout_ms"] = timeout_ms


def _shows_tokens(arguments: argparse.Namespace) -> bool:
    return sys.stdout.isatty() and not arguments.json and not arguments.no_wait


def _read_prompt(arguments: argparse.Namespace) -> str:
    if (arguments.prompt is None) == (arguments.file is None):
        raise UsageError("give the prompt either as an argument or with --file")
    prompt: str = arguments.prompt if arguments.file is None else _read_text(arguments.file, "--file")
    return prompt


def _read_text(path: str, option: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode()
    except OSError as error:
        raise UsageError(f"{option}: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option}: {path} is not UTF-8") from error


def _read_schema(path: str) -> Any:
    try:
        schema = json.loads(_read_text(path, "--schema"))
    except json.JSONDecodeError as error:
        raise UsageError(f"--schema: {path} is not JSON: line {error.lineno}, column {error.colno}") from error
    if not isinstance(schema, (dict, bool)):
        raise UsageError(f"--schema: {path} is not a JSON Schema: expected an object, true or false")
    return schema


def _read_agent(arguments: argparse.Namespace) -> AgentFields | None:
    """Which tools its model may call; None: the options say nothing of that."""
    if arguments.agent is None:
        if arguments.max_turns is not None or arguments.confirm is not None:
            raise UsageError("--max-turns and --confirm go with --agent")
        return None
    agent = AgentFields(tools=_read_names(arguments.agent, "--agent"))
    if arguments.max_turns is not None:
        agent["max_turns"] = arguments.max_turns
    if arguments.confirm is not None:
        agent["confirm"] = _read_names(arguments.confirm, "--confirm")
    return agent


def _read_names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"{option}: expected names of tools, like weather,lights.*")
    return names


def _read_param(text: str) -> tuple[str, Any]:
    """`k=v`, where v is JSON if it can be read as such, else a string."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--param: expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
