"""What becomes of a run with tools: looked at, dispatched, heard, observed, and taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from llm_routerd.protocol.audit import audit_lines
from llm_routerd.protocol.keys import ALWAYS, GROUP
from llm_routerd.protocol.reading import read_event
from llm_routerd.protocol.tool import MOST_REGISTERED, MOST_REGISTRATION_BYTES
from llm_routerd.protocol.wire import encode
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import ResponseError
from llm_routerd.queue.deliveries import text_of
from llm_routerd.queue.settle import Settlement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from llm_routerd.protocol.audit import AuditEntry
    from llm_routerd.protocol.cut import Fields
    from llm_routerd.protocol.events import StreamEvent
    from llm_routerd.protocol.reading import SeenEvent
    from llm_routerd.protocol.tool import ToolRequest
    from llm_routerd.queue.deliveries import BeginVerdict, Delivery
    from llm_routerd.queue.outbox import Transcript
    from llm_routerd.queue.scripts.binding import Call

JOURNAL_PAGE = 500
MOST_WORDS = 64  # of one stream, at one look
MOST_WORD_BYTES = 65_536  # of one value of a person's word, of which the arguments are the longest

Verdict = Literal["done", "lost", "sealed", "stale", "unusable", "unwritable"]


class Looked(Struct, frozen=True, kw_only=True):
    """What stands of a request, before it is gone on with.

    Attributes:
        verdict: as of `begin`.
        is_ours: its events are of this entry; else they are another's, which is gone.
        sealed_by: the type of the final event, where one stands.
    """

    verdict: BeginVerdict
    is_ours: bool = False
    sealed_by: str | None = None


class Word(Struct, frozen=True, kw_only=True):
    """An event of a run that is to be written, and the call that goes on its tool's stream with it."""

    event: StreamEvent
    call: ToolRequest | None = None


class End(Struct, frozen=True, kw_only=True):
    """A call that has done its service in its tool's stream.

    Attributes:
        tool, entry: where it stands.
        word: the position of the event that stands only if a tool has taken the call; None: it stands anyway.
        untaken: the event in its place if none has.
    """

    tool: str
    entry: str
    word: int | None = None
    untaken: StreamEvent | None = None


class Wrote(Struct, frozen=True, kw_only=True):
    """What came of writing to a run.

    Attributes:
        events: as they stand, with their IDs.
        tool: of `unusable`: the one whose stream takes no call.
        unaudited: why the audit was refused; None: it was not.
    """

    verdict: Verdict
    events: tuple[SeenEvent, ...] = ()
    tool: str = ""
    unaudited: str | None = None


class Spoken(Struct, frozen=True, kw_only=True):
    """What has been said to a run.

    Attributes:
        now_ms: the server's time.
        answers: {ID, call id, kind, beginning, size}, of the inbox.
        consents: {ID, fields}.
    """

    now_ms: int
    answers: Sequence[tuple[bytes, bytes, bytes, bytes, int]]
    consents: Sequence[tuple[bytes, dict[bytes, bytes]]]


class Runs(Settlement):
    """The steps of runs with tools."""

    async def look(self, delivery: Delivery, request_id: str) -> Looked:
        """Whether a request is ours to go on with; nothing is begun with that."""
        call = scripts.begin(
            events=self.keys.events(request_id),
            lanes=self.keys.lanes,
            consumer=self.consumer,
            entry=delivery.entry,
            lane=delivery.lane,
            is_new=not delivery.claimed,
            deliveries=delivery.deliveries,
            ttl_ms=self.limits.result_ttl_ms,
            data="",
            publishes=False,
            request_id=request_id,
            looks=True,
        )
        reply = await self.run_with_groups(call)
        verdict: BeginVerdict = reply[0].decode()
        if verdict == "begun":
            return Looked(verdict=verdict, is_ours=reply[2] == 1)
        return Looked(verdict=verdict, sealed_by=reply[1].decode("utf-8", "replace") if verdict == "sealed" else None)

    async def journal(self, request_id: str) -> AsyncIterator[SeenEvent]:
        """The events of a run, without the text of its models.  The last one stands for the end of the stream."""
        cursor, last = "-", b""
        while True:
            call = scripts.journal(events=self.keys.events(request_id), cursor=cursor, page=JOURNAL_PAGE)
            following, seen, told = await self.pipe.run_script(call, is_whole=True)
            last = seen or last
            for event_id, kind, data in told:
                yield read_event(event_id.decode(), kind.decode("utf-8", "replace"), data)
            if not following:
                if last:
                    yield read_event(last.decode(), "", b"{}")
                return
            cursor = following.decode()

    async def request_of(self, delivery: Delivery) -> Fields | None:
        """What stands in a request's entry; None: it is gone."""
        found = await self.pipe.call("XRANGE", self.keys.requests(delivery.lane), delivery.entry, delivery.entry)
        return found[0][1] if found else None

    async def is_ours(self, delivery: Delivery) -> bool:
        """Whether this worker is to answer for an entry, also where nothing is left of that."""
        at = delivery.entry
        found = await self.pipe.call("XPENDING", self.keys.requests(delivery.lane), GROUP, at, at, 1, self.consumer)
        return bool(found)

    async def tools(self) -> dict[str, bytes | int]:
        """What is registered, by name; of what is too long the size in bytes."""
        call = scripts.registry(tools=self.keys.tools, most=MOST_REGISTERED, most_bytes=MOST_REGISTRATION_BYTES)
        return {name.decode("utf-8", "replace"): text for name, text in await self.pipe.run_script(call, is_whole=True)}

    async def hear(self, request_id: str, *, most_bytes: int) -> Spoken:
        """What has been said to a run since it was observed last; of an answer no more than `most_bytes`."""
        keys = self.keys
        call = scripts.hear(
            inbox=keys.inbox(request_id),
            consent=keys.consent(request_id),
            most=MOST_WORDS,
            most_bytes=most_bytes,
            most_word_bytes=MOST_WORD_BYTES,
        )
        now_ms, answers, consents = await self.pipe.run_script(call, is_whole=True)
        words = [(word_id, dict(zip(flat[::2], flat[1::2], strict=True))) for word_id, flat in consents]
        return Spoken(now_ms=now_ms, answers=answers, consents=words)

    async def dispatch(
        self,
        delivery: Delivery,
        transcript: Transcript,
        words: Sequence[Word],
        *,
        audit: Sequence[AuditEntry],
        publish: bool,
        keep_ms: int,
    ) -> Wrote:
        """Write a model's turn behind all that its attempt has written, and put its calls on their streams."""
        last_words, lines = transcript.close(), audit_lines(audit)
        after = transcript.last_id
        request_id = transcript.events_key.removeprefix(self.keys.events(""))
        streams, flat = self._written(words, after)
        while True:
            call = scripts.dispatch(
                lanes=self.keys.lanes,
                events=transcript.events_key,
                inbox=self.keys.inbox(request_id),
                consent=self.keys.consent(request_id),
                streams=list(map(self.keys.tool_calls, streams)),
                consumer=self.consumer,
                entry=delivery.entry,
                lane=delivery.lane,
                under_way=transcript.under_way,
                after=after,
                ttl_ms=self.limits.result_ttl_ms,
                keep_ms=keep_ms,
                publishes=publish,
                audit_key=self.keys.audit,
                audit_maxlen=self.limits.audit_maxlen,
                last_words=last_words,
                words=flat,
                audit=lines,
            )
            reply = await self._write_with_groups(call, needs_replicas=True)
            if reply[0] != b"gap":
                return _wrote(reply, words, list(streams))

    async def observe(  # noqa: PLR0913 - all by name
        self,
        delivery: Delivery,
        request_id: str,
        *,
        after: str,
        words: Sequence[Word] = (),
        ends: Sequence[End] = (),
        heard: Sequence[bytes] = (),
        agreed: Sequence[bytes] = (),
        always: Sequence[str] = (),
        audit: Sequence[AuditEntry] = (),
        publish: bool,
        keep_ms: int,
    ) -> Wrote:
        """Write what has been said to a run, behind the event `after`; with nothing to write: make sure it is ours."""
        streams, flat = self._written(words, after, [end.tool for end in ends])
        flat_ends: list[Any] = []
        for end in ends:
            at = "" if end.word is None else 5 * end.word + 1
            flat_ends += (streams[end.tool], end.entry, at, b"" if end.untaken is None else encode(end.untaken))
        call = scripts.observe(
            lanes=self.keys.lanes,
            events=self.keys.events(request_id),
            inbox=self.keys.inbox(request_id),
            consent=self.keys.consent(request_id),
            streams=list(map(self.keys.tool_calls, streams)),
            consumer=self.consumer,
            entry=delivery.entry,
            lane=delivery.lane,
            after=after,
            ttl_ms=self.limits.result_ttl_ms,
            keep_ms=keep_ms,
            publishes=publish,
            audit_key=self.keys.audit,
            audit_maxlen=self.limits.audit_maxlen,
            words=flat,
            ends=flat_ends,
            heard=heard,
            agreed=agreed,
            always=always,
            audit=audit_lines(audit),
        )
        return _wrote(await self._write_with_groups(call, needs_replicas=bool(words)), words, list(streams))

    async def _write_with_groups(self, call: Call, *, needs_replicas: bool) -> Any:
        """As `run_with_groups`, behind all events: a run goes on whose group was dropped."""
        return await self._with_groups(lambda: self._after_events(call, needs_replicas=needs_replicas, is_whole=True))

    async def always(self, request_id: str) -> set[str]:
        """The tools that a person has let this run call without being asked again."""
        try:
            groups = await self.pipe.call("XINFO", "GROUPS", self.keys.consent(request_id))
        except ResponseError:  # it is gone, or no stream: then somebody is asked again
            return set()
        names = [dict(zip(flat[::2], flat[1::2], strict=True))[b"name"].decode("utf-8", "replace") for flat in groups]
        return {name.removeprefix(ALWAYS) for name in names if name.startswith(ALWAYS)}

    async def withdraw(self, request_id: str, calls: Sequence[tuple[str, str]]) -> list[bool]:
        """A run is over: take back its calls, {tool, entry}, and hear nothing more; which may a tool have taken?"""
        streams = _numbered(tool for tool, _ in calls)
        call = scripts.withdraw(
            inbox=self.keys.inbox(request_id),
            consent=self.keys.consent(request_id),
            streams=list(map(self.keys.tool_calls, streams)),
            ttl_ms=self.limits.result_ttl_ms,
            calls=[part for tool, entry in calls for part in (streams[tool], entry)],
        )
        return [taken == 1 for taken in await self.pipe.run_script(call)]

    async def news(self, events: Sequence[str], ears: Sequence[str]) -> tuple[list[int], list[int]]:
        """Positions of those events streams that have been ended, and of those inboxes in which something stands."""
        found = await self.pipe.run_script(scripts.news(streams=[*events, *ears], count=len(events)))
        count = len(events)
        return [at for at in found if at < count], [at - count for at in found if at >= count]

    @staticmethod
    def _written(words: Sequence[Word], after: str, more: Sequence[str] = ()) -> tuple[Mapping[str, int], list[Any]]:
        """The tools that are spoken to, by number, and the words as the scripts take them."""
        tools = [word.call.name for word in words if word.call is not None]
        streams = _numbered([*tools, *more])
        attempt, _, seq = after.partition("-")
        flat: list[Any] = []
        for number, word in enumerate(words, int(seq or 0) + 1):
            call = ("", "") if word.call is None else (streams[word.call.name], encode(word.call))
            flat += (f"{attempt}-{number}", word.event.type, encode(word.event), *call)
        return streams, flat


def _numbered(tools: Iterable[str]) -> dict[str, int]:
    """Each tool once, with the number of its stream among those that a script is given."""
    return {tool: number for number, tool in enumerate(dict.fromkeys(tools), 1)}


def _wrote(reply: Sequence[Any], words: Sequence[Word], tools: Sequence[str]) -> Wrote:
    verdict: Verdict = reply[0].decode()
    if verdict == "unusable":
        return Wrote(verdict=verdict, tool=tools[reply[1] - 1])
    if verdict != "done":
        return Wrote(verdict=verdict)
    return Wrote(
        verdict=verdict,
        unaudited=text_of(reply[2]) if len(reply) > 2 else None,  # noqa: PLR2004 - a table ends at its first nil
        events=tuple(
            read_event(event_id.decode(), word.event.type, text)
            for (event_id, text), word in zip(reply[1], words, strict=False)
        ),
    )
