"""What is true after a storm over HTTP, beside what is true after any: what each client was told is what stands."""

from __future__ import annotations

import json
from collections import defaultdict
from math import inf
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.events import FINAL_ID
from tests.chaos.http_clients import UNAVAILABLE, Seen
from tests.chaos.plan import LEASE_SECONDS, MOST_DEATHS
from tests.chaos.verdict import RECOVERY_SECONDS, Call, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.http_clients import Stream
    from tests.chaos.world import Span, World

# From a worker's SIGTERM until it has let go of what it could not finish, and has ended.
DRAIN_SECONDS = 3.0


class HttpVerdict(Verdict):
    """Also holds against the streams what the clients were told."""

    def __init__(self, world: World, streams: Sequence[Stream]) -> None:
        super().__init__(world, [stream.order for stream in streams])
        self._streams = streams

    async def reach(self, client: Any) -> None:
        """Look at everything."""
        await super().reach(client)
        calls: defaultdict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            calls[call.name].append(call)
        for stream in self._streams:
            entries = await client.xrange(stream.order.events_key)
            written = [Seen(event_id, fields["type"], fields["data"]) for event_id, fields in entries]
            lives = [life for _, life in self._world.lives()]
            ends = [life.end for life in lives if life.end < inf] + [stop.end for life in lives for stop in life.stops]
            deaths = sum(stream.asked_at <= end for end in ends)
            found = judge_stream(stream, written, calls[stream.order.name], self._world.troubles, deaths)
            self.faults += [f"{stream.order.name}: {each}" for each in found]


def judge_stream(
    stream: Stream, written: Sequence[Seen], calls: Sequence[Call], troubles: Sequence[Span], deaths: int = 0
) -> Iterator[str]:
    """What is wrong with one client's stream.

    Args:
        stream: what the client remembers.
        written: what stands in its events stream.
        calls: to a model, for this request.
        troubles: when the server did not serve.
        deaths: of workers since it was asked; one that slept may count as dead.
    """
    yield from stream.faults
    if not stream.order.accepted:
        yield "it was never accepted"
    elif not written or written[-1].id != FINAL_ID:
        yield "there is no final event"
    else:
        yield from _what_is_wrong_with_the_answer(written, deaths)
        yield from _what_was_told_otherwise(stream, written)
        if stream.order.kind == "openai":
            yield from _what_was_shown_otherwise(stream, written)
        yield from _calls_without_a_reason(written, calls, troubles)


def _what_is_wrong_with_the_answer(written: Sequence[Seen], deaths: int) -> Iterator[str]:
    """Nobody cancels, so whoever hangs up has not; and the answer is the text of its attempt."""
    final = written[-1]
    if json.loads(final.data).get("code") == "poisoned" and deaths >= MOST_DEATHS:
        return
    if final.type != "result":
        yield f"ended in {final.type} {final.data}"
        return
    result, texts = json.loads(final.data), _texts(written)
    attempt: int = result["attempt"]
    text, answer = texts.get(attempt, ""), result["raw_text"]
    # A worker that was taken for dead may answer when the next one's attempt stands: its last words are refused.
    is_late = attempt < max(texts, default=0)
    if not (answer.startswith(text) if is_late else answer == text):
        yield f"the text of attempt {attempt} is not the answer's: {text!r}"


def _what_was_told_otherwise(stream: Stream, written: Sequence[Seen]) -> Iterator[str]:
    """Each event comes once, in order, to the last byte; whoever has left has the beginning."""
    due = list(written[: len(stream.seen)] if stream.leaves else written)
    if stream.seen == due:
        return
    for number, (seen, wanted) in enumerate(zip(stream.seen, due, strict=False)):
        if seen != wanted:
            yield f"event {number} was told as {seen}, and stands there as {wanted}"
            return
    yield f"was told {len(stream.seen)} events of {len(due)}"


def _what_was_shown_otherwise(stream: Stream, written: Sequence[Seen]) -> Iterator[str]:
    """What goes through OpenAI's door begins an attempt's text; where it is said to be whole, it is the answer.

    It breaks off as the request did, or while that goes on: its text was discarded, Redis was away.
    """
    end = json.loads(written[-1].data)
    answer = end.get("raw_text", "")
    if stream.told_whole and stream.shown != answer:
        yield f"{stream.shown!r} was told as whole, and {answer!r} is the answer"
    if stream.broken and stream.broken not in {"superseded", UNAVAILABLE, end.get("code")}:
        yield f"broke off with {stream.broken}"
    if not any(text.startswith(stream.shown) for text in [*_texts(written).values(), answer]):
        yield f"was shown what no attempt has said: {stream.shown!r}"


def _calls_without_a_reason(written: Sequence[Seen], calls: Sequence[Call], troubles: Sequence[Span]) -> Iterator[str]:
    """A model is asked again because a worker or the server was not there, or an answer not good; not for a client."""
    earlier = sorted(calls, key=lambda call: call.start)[:-1]
    unexplained = [call for call in earlier if not _is_explained(call, troubles)]
    if len(unexplained) > sum(event.type == "rejected" for event in written):
        yield f"there were {len(calls)} calls, and no reason for another after that of {unexplained[0].start:.2f} s"


def _is_explained(call: Call, troubles: Sequence[Span]) -> bool:
    """Whether its worker ended, slept, or could not write, while it ran or soon after."""
    if call.worker.end <= call.end + DRAIN_SECONDS:
        return True
    until = call.end + RECOVERY_SECONDS
    slept = any(each.start <= until and each.end >= call.start for each in call.worker.stops)
    return slept or any(each.start <= until and each.end + LEASE_SECONDS >= call.start for each in troubles)


def _texts(written: Sequence[Seen]) -> dict[int, str]:
    """The text of each attempt that said anything, by its number."""
    texts: defaultdict[int, str] = defaultdict(str)
    for seen in written:
        if seen.type in {"attempt", "token"}:
            texts[int(seen.id.partition("-")[0])] += json.loads(seen.data).get("text", "")
    return texts
