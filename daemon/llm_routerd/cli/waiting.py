"""All tool calls that wait for a person, as `llm-routerd confirm` without an id lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.run_lines import waiting_line
from llm_routerd.cli.settings import open_client, redis_of
from llm_routerd.cli.terminal import json_line, note, say
from llm_routerd.client import Survey
from llm_routerd.errors import NotAllowedError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


_REMEDY = "it needs all that an operator may, as the user `operator` of systemd/users.acl; or name the request"


class _Call(Struct, frozen=True):
    """Of a `tool_call` event, of which the survey leaves out long arguments."""

    call_id: str
    name: str
    arguments: Any = "(long)"
    args_sha256: str = ""
    expires_at_ms: int | None = None


_CALL = msgspec.json.Decoder(_Call)


async def list_waiting(arguments: argparse.Namespace) -> Exit:
    """List them, the oldest request of each lane first; exit code 1 where nothing waits.

    Raises:
        NotAllowedError: this user may not look at what runs.
    """
    async with await open_client(redis_of(arguments)) as client:
        try:
            surveys = [await shard.survey() for shard in client.shards.all]
            running = sum(lane.running for lane in await client.lanes())
        except NotAllowedError as error:
            raise NotAllowedError(error.detail, _REMEDY) from error
    found = 0
    for survey in surveys:
        for request_id, call in _calls(survey):
            found += 1
            if arguments.json:
                say(json_line({"request": request_id, **msgspec.structs.asdict(call)}))
            else:
                line = waiting_line(call.call_id, call.name, call.arguments, call.expires_at_ms, survey.server_ms)
                say(f"{request_id} {line}")
    seen = sum(len(survey.running) for survey in surveys)
    if running > seen:
        looked = f"of {running} requests under way {seen} were looked at, the {Survey.most_running} oldest of each lane"
        note(f"there may be more: {looked}")
    if not found:
        note("no tool call waits for a person")
    return Exit.OK if found else Exit.FAILED


def _calls(survey: Survey) -> Iterator[tuple[str, _Call]]:
    """Those that wait in a shard; what cannot be read is none."""
    for each in survey.running:
        for text in each.calls:
            try:
                yield each.request_id, _CALL.decode(text)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
