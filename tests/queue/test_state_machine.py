"""Random histories on the real scripts, against a model in Python: whatever order things happen in, nothing is lost.

The model says what each script must answer; the invariants say what must be true of the streams after every step.
Time passes by rule: `_age` sets an entry's idle time, so no test waits.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP, HANDED_BACK, LANES, Keys, Lane, handed_back_for, is_handed_back
from llm_routerd.queue import scripts

if TYPE_CHECKING:
    from llm_routerd.queue.scripts.binding import Call

KEYS = Keys()
WORKERS = ("w1", "w2", "w3")
LEASE_MS = 100_000  # never runs out by itself
TTL_MS = 60_000
METRICS = "llm_router_metrics"
KNOWING, MODEL = "w1", "m"  # the one worker that knows this model, as its renewals tell the others
FAR_MS = 10**15

workers = st.sampled_from(WORKERS)
lanes = st.sampled_from(LANES)


@dataclass(slots=True, eq=False)
class Entry:
    """A request in a lane, and who owns it in the consumer group (None: not delivered, or the group is new).

    `waits`: it stands in its lane; `trimmed`: somebody removed it from there unanswered.
    """

    lane: Lane
    entry: str
    key: str
    waits: bool = True
    trimmed: bool = False
    owner: str | None = None
    crashes: int = 0  # claims after a lease ran out: the only thing that may raise the delivery count


@dataclass(slots=True, eq=False)
class Stream:
    """An events stream: each attempt's worker, delivery and number of events; who began it; what sealed it."""

    head: Entry | None = None
    attempts: list[list[Any]] = field(default_factory=list)
    sealed: str | None = None
    has_ttl: bool = False


@dataclass(slots=True, eq=False)
class Task:
    """What a worker remembers of an entry that it was given."""

    worker: str
    entry: Entry
    deliveries: int
    claimed: bool
    attempt: int = 0
    seq: int = 0
    committed: bool = False
    number: int = field(default_factory=itertools.count().__next__)  # no two have the same answer


def commit_of(entry: Entry, key: str, *, worker: str, kind: str, data: str, is_begun: bool, under_way: str) -> Call:
    """The end of an entry, on an events stream."""
    return scripts.commit(
        lanes=KEYS.lanes, letters=KEYS.dead, metrics_stream=METRICS, streams=(key,), entry=entry.entry, lane=entry.lane,
        consumer=worker, is_begun=is_begun, under_way=under_way, kind=kind, data=data, ttl_ms=TTL_MS, publishes=False,
        events_prefix=KEYS.events(""), metrics=b"", metrics_maxlen=100, most_letters=10, most_letter_bytes=100_000,
        audit_key=KEYS.audit, audit_maxlen=10, last_words=(), letter=(), audit=(),
    )  # fmt: skip


class QueueMachine(RuleBasedStateMachine):
    """Producers, three workers, and an operator who drops groups."""

    entries = Bundle("entries")
    tasks = Bundle("tasks")

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self.client: Any = client
        self.client.flushall()
        for script in scripts.ALL:
            self.client.script_load(script.source)
        for lane in KEYS.lanes:
            self.client.xgroup_create(lane, GROUP, "0", mkstream=True)
        self.all: list[Entry] = []
        self.streams: dict[str, Stream] = {}
        self.seen: dict[str, list[Any]] = {}
        self.number = 0  # of the last entry, as its ID has it
        self.is_known = False  # the others have been told of the model
        self.dropped: set[Lane] = set()  # groups that were made again: everything is delivered as new once more
        first: list[tuple[Lane, str | None]] = [("normal", "a"), ("high", None), ("normal", None), ("low", "a")]
        for lane, request_id in first:
            self._add(lane, request_id)

    def run(self, call: Call) -> Any:
        """Run one of our scripts."""
        return self.client.execute_command(*call.command)

    def stream(self, entry: Entry) -> Stream:
        """The model of an entry's events stream."""
        return self.streams.setdefault(entry.key, Stream())

    @initialize(target=entries)
    def some_requests_wait(self) -> Any:
        """Two of them with the same id."""
        return multiple(*self.all)

    @initialize(target=tasks)
    def some_are_under_way(self) -> Any:
        """Two workers are busy, and one has told what it knows."""
        self._renew(KNOWING, [])
        found = self._take("w1", 3) + self._take("w2", 1)
        for task in found[1:]:
            self._check_begin(task)
        return multiple(*found)

    # What producers do.

    @rule(target=entries, lane=lanes, request_id=st.sampled_from(["a", "b", None, None, None]))
    def a_producer_adds(self, lane: Lane, request_id: str | None) -> Entry:
        """XADD, with an id that others use too, or without one."""
        return self._add(lane, request_id)

    def _add(self, lane: Lane, request_id: str | None) -> Entry:
        self.number += 1
        entry = f"{self.number}-0"  # not the clock's, so that a failure can be played again
        fields = {"prompt": "hi"} | ({} if request_id is None else {"id": request_id})
        self.client.xadd(KEYS.requests(lane), fields, id=entry)
        added = Entry(lane, entry, KEYS.events(request_id or entry))
        self.all.append(added)
        return added

    @rule(target=entries, lane=lanes, request_id=st.sampled_from(["a", None]))
    def a_producer_adds_far_ahead(self, lane: Lane, request_id: str | None) -> Any:
        """With an ID of his own; the lane is made anew, and the entry waits under an ID of now, answered as ever."""
        if any(each.lane == lane and each.trimmed and each.owner is not None for each in self.all):
            return multiple()  # it would have to wait for their end
        far = f"{FAR_MS + len(self.all)}-0"
        fields = {"prompt": "hi"} | ({} if request_id is None else {"id": request_id})
        self.client.xadd(KEYS.requests(lane), fields, id=far)
        streams = (*KEYS.lanes, KEYS.dead)
        found = self.run(
            scripts.mend(streams=streams, ahead_ms=TTL_MS, most=1000, most_bytes=10**7, lane_count=len(LANES))
        )
        assert found == [[LANES.index(lane), b"mended", 1, far.encode()]]
        ((raw, _),) = self.client.xrevrange(KEYS.requests(lane), count=1)
        added = Entry(lane, raw.decode(), KEYS.events(request_id or far))
        self.number = max(self.number, int(added.entry[:-2]))
        self.all.append(added)
        return added

    @rule(entry=entries)
    def a_producer_cancels(self, entry: Entry) -> None:
        """The final event, written by its producer, unless one stands."""
        stream = self.stream(entry)
        try:
            self.client.xadd(entry.key, {"type": "cancelled", "data": '{"by":"producer"}'}, id=FINAL_ID)
        except redis.ResponseError:
            assert stream.sealed is not None
        else:
            assert stream.sealed is None
            stream.sealed = "cancelled"

    # What workers do.

    @rule(target=tasks, worker=workers, count=st.integers(1, 3))
    def a_worker_takes(self, worker: str, count: int) -> Any:
        """New requests, and no more than it asked for."""
        return multiple(*self._take(worker, count))

    def _take(self, worker: str, count: int) -> list[Task]:
        reply = self.run(scripts.take(lanes=KEYS.lanes, consumer=worker, count=count, shut=""))
        taken = [self._entry(lane, entry) for lane, found in reply for entry, _ in found]
        assert len(taken) <= count
        for entry in taken:
            entry.owner = worker
        return [Task(worker, entry, 1, claimed=False) for entry in taken]

    @rule(target=tasks, worker=workers)
    def a_worker_takes_and_begins(self, worker: str) -> Any:
        """What usually happens."""
        found = self._take(worker, 1)
        for task in found:
            self._check_begin(task)
        return multiple(*found)

    def _entry(self, lane: bytes, entry: bytes) -> Entry:
        (found,) = (
            each for each in self.all if each.entry == entry.decode() and KEYS.requests(each.lane) == lane.decode()
        )
        assert found.waits, "an entry was delivered that had been settled"
        return found

    @rule(target=tasks, worker=workers, lane=lanes, count=st.integers(1, 3), owner=st.sampled_from(["", HANDED_BACK]))
    def a_worker_claims(self, worker: str, lane: Lane, count: int, owner: str) -> Any:
        """What has outlived its lease, or what was handed back."""
        return multiple(*self._claim(worker, lane, count, owner))

    @rule(target=tasks, worker=workers, entry=entries)
    def a_worker_takes_over_from_a_silent_one(self, worker: str, entry: Entry) -> Any:
        """Its lease has run out: it is dead, or it sleeps and does not know yet."""
        self._age(entry)
        return multiple(*self._claim(worker, entry.lane, 3, ""))

    @rule(target=tasks, worker=workers, lane=lanes)
    def a_worker_reconnects_and_takes_up_its_own(self, worker: str, lane: Lane) -> Any:
        """A reply may have been lost."""
        return multiple(*self._claim(worker, lane, 10, worker))

    def _claim(self, worker: str, lane: Lane, count: int, owner: str, lease_ms: int = LEASE_MS) -> list[Task]:
        requests = KEYS.requests(lane)
        call = scripts.claim(
            requests=requests, consumer=worker, lease_ms=lease_ms, most=count, cursor="-", from_owner=owner,
            asked_ms=None, late_ms=0, registry="" if lease_ms == 0 else KEYS.workers,
        )  # fmt: skip
        _, claimed, gone, late, _, _ = self.run(call)
        assert late == 0
        for raw, _ in gone:
            (entry,) = (each for each in self.all if (each.entry, each.lane) == (raw.decode(), lane))
            assert entry.trimmed
            assert is_handed_back(entry.owner or "") or entry.owner == ("" if owner else worker) or lease_ms == 0
            self._end_trimmed(entry)
        tasks = []
        for raw, _, deliveries in claimed:
            entry = self._entry(requests.encode(), raw)
            assert entry.owner is not None
            assert owner in {"", entry.owner}
            if entry.owner == handed_back_for(MODEL):
                assert worker == KNOWING or not self.is_known or lease_ms == 0
            if not is_handed_back(entry.owner) and owner != worker:
                entry.crashes += 1
            entry.owner = worker
            tasks.append(Task(worker, entry, deliveries, claimed=owner != worker or deliveries > 1))
        return tasks

    def _end_trimmed(self, entry: Entry) -> None:
        """What a worker does with an entry that is gone: its events stream is sought, and ended."""
        keys = [key for key in self.streams if self.client.exists(key)]
        found = self.run(scripts.owned(streams=keys, sought=(entry.lane, entry.entry))) if keys else []
        key = keys[found[0][0]] if found else KEYS.events(entry.entry)
        assert bool(found) == (self.stream(entry).head is entry)
        assert not found or key == entry.key
        stream = self.streams.setdefault(key, Stream())
        data = json.dumps({"by": "trimmed", "entry": entry.entry, "lane": entry.lane})
        for _ in range(2):  # the second time as after a lost reply
            reply = self.run(commit_of(entry, key, worker="w1", kind="error", data=data, is_begun=False, under_way=""))
            if stream.sealed is not None:
                assert reply == [b"sealed", stream.sealed.encode()]
                stream.has_ttl = True
                break
            if stream.attempts and stream.head not in {None, entry} and stream.head.waits:
                assert reply == [b"duplicate"]
                break
            assert reply == [b"committed"]
        else:
            stream.sealed, stream.has_ttl = "error", True
        entry.owner = None

    @rule(worker=workers, lane=lanes)
    def a_claim_that_gets_there_late_takes_nothing(self, worker: str, lane: Lane) -> None:
        """The server stood still in the meantime."""
        seconds, _ = self.client.time()
        call = scripts.claim(
            requests=KEYS.requests(lane), consumer=worker, lease_ms=0, most=10, cursor="-", from_owner="",
            asked_ms=seconds * 1000 - 10_000, late_ms=5_000, registry="",
        )  # fmt: skip
        assert self.run(call) == [b"-", [], [], 1, 0, 0]

    @rule(task=tasks, retried=st.booleans())
    def a_worker_begins(self, task: Task, retried: bool) -> None:
        """Once, or twice as after a lost reply."""
        self._check_begin(task, retried=retried)

    def _check_begin(self, task: Task, *, retried: bool = False) -> None:
        expected = self._expected_begin(task)
        for _ in range(1 + (retried and expected[0] == "begun")):  # as after a lost reply
            reply = self._begin(task)
            assert (reply[0].decode(), *reply[1:2]) == expected
        if expected[0] == "begun":
            task.attempt, task.seq = int(expected[1]), 0

    def _begin(self, task: Task) -> Any:
        data = {"delivery": task.deliveries, "consumer": task.worker}
        call = scripts.begin(
            events=task.entry.key, lanes=KEYS.lanes, consumer=task.worker, entry=task.entry.entry, lane=task.entry.lane,
            is_new=not task.claimed, deliveries=task.deliveries, ttl_ms=TTL_MS, data=json.dumps(data), publishes=False,
            request_id=task.entry.key.removeprefix(KEYS.events("")), looks=False,
        )  # fmt: skip
        return self.run(call)

    def _expected_begin(self, task: Task) -> tuple[Any, ...]:
        """What begin must answer; the model is brought up to date."""
        entry, stream = task.entry, self.stream(task.entry)
        if entry.owner != task.worker:
            return ("lost",)
        if stream.sealed is not None:
            stream.has_ttl = True
            self._settle(entry)
            return ("sealed", stream.sealed.encode())
        if stream.attempts:
            if stream.head is not entry and stream.head is not None and stream.head.waits:
                self._settle(entry)
                return ("duplicate",)
            number, (worker, deliveries, events) = len(stream.attempts), stream.attempts[-1]
            if stream.head is entry and (worker, deliveries, events) == (task.worker, task.deliveries, 1):
                return ("begun", number)
            if stream.head is entry and not task.claimed and worker != task.worker and entry.waits:
                entry.owner = worker
                return ("returned",)
        stream.head = entry  # it was the first, or has taken the place of one that is gone
        stream.attempts.append([task.worker, task.deliveries, 1])
        stream.has_ttl = True
        return ("begun", len(stream.attempts))

    def _settle(self, entry: Entry) -> None:
        entry.waits = False
        entry.owner = None

    @rule(task=tasks, count=st.integers(1, 3), retried=st.booleans())
    def a_worker_writes(self, task: Task, count: int, retried: bool) -> None:
        """Some events in one command, at any time, also long after it has lost the request."""
        if not task.attempt or task.committed:
            return
        stream = self.stream(task.entry)
        fits = stream.sealed is None and len(stream.attempts) == task.attempt and stream.attempts[-1][2] == task.seq + 1
        args = []
        for _ in range(count):
            task.seq += 1
            args += [f"{task.attempt}-{task.seq}", "token", '{"text":"x"}']
        for again in range(1 + retried):
            refusal = ""
            try:
                self.run(scripts.write(events=task.entry.key, publishes=False, words=args))
            except redis.ResponseError as error:
                refusal = str(error)
            assert ("equal or smaller" in refusal) == (bool(again) or not fits), refusal
            if not refusal:
                stream.attempts[-1][2] += count

    @rule(task=tasks, retried=st.booleans(), hole=st.booleans())
    def a_worker_commits(self, task: Task, retried: bool, hole: bool) -> None:
        """Its answer, with or without an attempt before, and with or without a hole before it."""
        entry, stream = task.entry, self.stream(task.entry)
        if task.committed:
            return
        begun = task.attempt > 0
        under_way = f"{task.attempt}-{task.seq + 5}" if begun and hole else ""
        if under_way and stream.sealed is None and len(stream.attempts) == task.attempt:
            assert self._commit(task, under_way) == [b"gap"]  # and nothing has changed, as the invariants see
            return
        task.committed = True
        own = stream.head is entry or not stream.attempts or stream.head is None or not stream.head.waits
        if stream.sealed is None and (begun or own):
            expected = [b"committed"]
            stream.sealed = "result"
        elif stream.sealed is not None:
            expected = [b"sealed", stream.sealed.encode()]
        else:
            expected = [b"duplicate"]
        stream.has_ttl = stream.has_ttl or stream.sealed is not None
        assert self._commit(task, under_way) == expected
        if retried and expected == [b"committed"]:
            assert self._commit(task, under_way) == expected
        self._settle(entry)

    def _commit(self, task: Task, under_way: str) -> Any:
        data = json.dumps({"by": task.worker, "entry": task.entry.entry, "task": task.number})
        call = commit_of(
            task.entry, task.entry.key, worker=task.worker, kind="result", data=data, is_begun=bool(task.attempt),
            under_way=under_way,
        )  # fmt: skip
        return self.run(call)

    @rule(task=tasks, others=st.lists(tasks, max_size=3))
    def a_worker_renews(self, task: Task, others: list[Task]) -> None:
        """Some of what it believes to have."""
        worker = task.worker
        held = [each for each in (task, *others) if each.worker == worker and not each.committed]
        mine = list({id(each.entry): each for each in held}.values())
        lost, sealed = self._renew(worker, mine)
        for position, each in enumerate(mine):
            entry, stream = each.entry, self.stream(each.entry)
            assert (position in sealed) == (stream.sealed is not None)
            if stream.sealed is not None:
                continue
            assert (position in lost) == (entry.owner not in {None, worker})
            if entry.waits and entry.owner is None:
                entry.owner = worker

    def _renew(self, worker: str, mine: list[Task]) -> tuple[list[int], list[int]]:
        """Positions of those lost, and of those sealed."""
        self.is_known = self.is_known or worker == KNOWING
        models = json.dumps([MODEL] if worker == KNOWING else [])
        call = scripts.renew(
            lanes=KEYS.lanes, streams=[each.entry.key for each in mine], consumer=worker, ttl_ms=TTL_MS,
            registry=KEYS.workers, lease_ms=LEASE_MS, models=models,
            entries=[part for each in mine for part in (each.entry.lane, each.entry.entry)],
        )  # fmt: skip
        lost, sealed, _, longest_ms, complaint = self.run(call)
        assert (longest_ms, complaint) == (LEASE_MS, None)
        return lost, sealed

    @rule(task=consumes(tasks))
    def a_worker_hands_back(self, task: Task) -> None:
        """One entry that it believes to have."""
        place = (task.entry.lane, task.entry.entry)
        call = scripts.hand_back(lanes=KEYS.lanes, consumer=task.worker, everything=False, entries=place)
        mine = task.entry.owner == task.worker
        assert self.run(call) == int(mine and task.entry.waits)
        if mine and task.entry.waits:
            task.entry.owner = HANDED_BACK

    @rule(task=consumes(tasks), is_complete=st.booleans())
    def a_worker_passes_on(self, task: Task, *, is_complete: bool) -> None:
        """One entry that it believes to have, for a worker that knows its model, if there is one."""
        entry, owner = task.entry, handed_back_for(MODEL)
        expected = b"lost"
        if entry.owner == task.worker:
            is_found = self.is_known and task.worker != KNOWING
            expected = b"unknown" if not entry.waits or is_complete > is_found else b"passed" if is_found else b"parked"
        late_ms = 10_000_000_000_000  # whatever the time is
        call = scripts.pass_on(
            requests=KEYS.requests(entry.lane), consumer=task.worker, entry=entry.entry, registry=KEYS.workers,
            model=MODEL, owner=owner, is_complete=is_complete, asked_ms=0, late_ms=late_ms,
        )  # fmt: skip
        assert self.run(call) == expected
        if expected in {b"passed", b"parked"}:
            entry.owner = owner

    @rule(worker=workers)
    def a_worker_leaves(self, worker: str) -> None:
        """Everything that it has, known to it or not."""
        mine = [entry for entry in self.all if entry.owner == worker and entry.waits]
        call = scripts.hand_back(lanes=KEYS.lanes, consumer=worker, everything=True, entries=())
        assert self.run(call) == len(mine)
        for entry in mine:
            entry.owner = HANDED_BACK
        self.run(scripts.retire(lanes=KEYS.lanes, leaving=worker, silent_ms=LEASE_MS, registry=KEYS.workers))
        self.is_known = self.is_known and worker != KNOWING

    # What happens to them.

    def _age(self, entry: Entry) -> None:
        """Its owner has been silent for longer than a lease; a trimmed entry cannot be made older."""
        if entry.owner is not None and not entry.trimmed:
            self.client.xclaim(
                KEYS.requests(entry.lane), GROUP, entry.owner, 0, [entry.entry], idle=LEASE_MS + 1, justid=True
            )

    @precondition(lambda self: len(self.dropped) < len(LANES))
    @rule(lane=lanes)
    def a_group_is_dropped_and_made_again(self, lane: Lane) -> None:
        """By an operator, or by a flush."""
        self.dropped.add(lane)
        self.client.xgroup_destroy(KEYS.requests(lane), GROUP)
        self.client.xgroup_create(KEYS.requests(lane), GROUP, "0")
        for entry in self.all:
            if entry.lane == lane:
                entry.owner = None

    @rule(entry=entries)
    def somebody_trims_a_lane(self, entry: Entry) -> None:
        """Everything up to an entry, whoever has it."""
        self.client.xtrim(KEYS.requests(entry.lane), minid=f"{entry.entry.partition('-')[0]}-1", approximate=False)
        for each in self.all:
            if each.lane == entry.lane and each.waits and int(each.entry[:-2]) <= int(entry.entry[:-2]):
                each.waits, each.trimmed = False, True

    # What is always true.

    @invariant()
    def transcripts_only_grow_and_have_one_end(self) -> None:
        """Nothing that was read is ever taken back, nothing comes after the end."""
        for key, stream in self.streams.items():
            events = self.client.xrange(key)
            before = self.seen.get(key, [])
            assert events[: len(before)] == before
            self.seen[key] = events
            ends = [at for at, (event_id, _) in enumerate(events) if event_id.decode() == FINAL_ID]
            assert ends == ([] if stream.sealed is None else [len(events) - 1])
            assert not stream.has_ttl or self.client.pttl(key) > 0

    @invariant()
    def no_entry_is_lost_and_none_stays_when_it_is_settled(self) -> None:
        """It waits in its lane until its stream, or its twin, has the answer."""
        for lane in LANES:
            waiting = {entry.decode() for entry, _ in self.client.xrange(KEYS.requests(lane))}
            assert waiting == {each.entry for each in self.all if each.lane == lane and each.waits}
        for entry in self.all:
            if not entry.waits and not entry.trimmed:
                others = (other for other in self.all if other.key == entry.key and (other.waits or other.trimmed))
                assert self.stream(entry).sealed is not None or any(others)

    @invariant()
    def owners_and_delivery_counts_are_as_they_should_be(self) -> None:
        """Only crashes raise the delivery count."""
        for lane in LANES:
            pending = self.client.xpending_range(KEYS.requests(lane), GROUP, "-", "+", 1000)
            owners = {each["message_id"].decode(): each["consumer"].decode() for each in pending}
            mine = [each for each in self.all if each.lane == lane]
            assert owners == {each.entry: each.owner for each in mine if each.owner is not None}
            counts = {each["message_id"].decode(): each["times_delivered"] for each in pending}
            for entry in mine:
                lowest = 0 if is_handed_back(entry.owner or "") else 1
                most = 1 + entry.crashes
                assert entry.owner is None or lowest <= counts[entry.entry] <= most

    def teardown(self) -> None:
        """Whatever has happened: one worker that lives answers all the rest."""
        had_owner = [entry for entry in self.all if entry.owner is not None]
        for _ in range(2):
            tasks = [task for lane in LANES for task in self._claim("w9", lane, 1000, "", 0)] + self._take("w9", 1000)
            for task in tasks:
                self._check_begin(task)
                if task.attempt:
                    self.a_worker_commits(task, retried=False, hole=False)
        assert not [entry for entry in self.all if entry.waits or entry.owner is not None]
        for entry in had_owner:  # trimmed or not
            stream = self.stream(entry)
            assert stream.sealed is not None or stream.head is not entry
        self.transcripts_only_grow_and_have_one_end()
        self.no_entry_is_lost_and_none_stays_when_it_is_settled()


def test_scripts_keep_every_promise_in_every_order(valkey_url: str) -> None:
    """At most one final event, IDs only grow, no entry is lost, crashes alone count, every key has a TTL."""
    with redis.Redis.from_url(valkey_url) as client:
        run_state_machine_as_test(
            lambda: QueueMachine(client),  # type: ignore[arg-type]  # it only calls it
            settings=settings(
                max_examples=60,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=[Phase.generate],  # shrinking takes minutes; add Phase.shrink to have a short history
            ),
        )
