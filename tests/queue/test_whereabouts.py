"""Where the server is: what Sentinels and nodes of a Cluster say, and what is made of it when they say other things."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis.exceptions import AuthenticationError, ClusterDownError, MovedError, NoPermissionError, ResponseError

from llm_routerd.queue.connection import ConnectionFactory, Pipe, sentinels
from llm_routerd.queue.connection.cluster import ClusterNodes
from llm_routerd.queue.connection.describing import NobodyTells, SetupError, describe
from llm_routerd.queue.connection.fitness import Greeting
from llm_routerd.queue.connection.locating import whereabouts_of
from llm_routerd.queue.connection.sentinels import Sentinels
from llm_routerd.queue.connection.whereabouts import Fixed, Place
from tests.support.eventually import eventually
from tests.support.processes import lasting_port
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from llm_routerd.queue.connection.asking import Asker

S1, S2, S3 = (Place(f"s{number}", 26379) for number in (1, 2, 3))
A, B, C = (Place(name, 6379) for name in "abc")
MASTER = Greeting(kind="valkey", version="9.0.0", mode="standalone", role="master")
REPLICA = Greeting(kind="valkey", version="9.0.0", mode="standalone", role="replica")
LOST = ConnectionError("gone")


class Said:
    """What each server answers, and who was asked."""

    def __init__(self, answers: dict[Place, Any]) -> None:
        self.answers = answers
        self.asked: list[Place] = []
        self.epochs: dict[Place, Any] = {}  # replies to SENTINEL MASTER

    async def ask(self, place: Place, *words: str) -> Any:
        """As `Asker.ask`."""
        self.asked.append(place)
        await asyncio.sleep(0)
        answer = self.answers.get(place, ConnectionRefusedError())
        if words[:2] == ("SENTINEL", "MASTER"):
            answer = self.epochs.get(place, NoPermissionError("no permissions to run the 'sentinel|master' command"))
        if isinstance(answer, BaseException):
            raise answer
        return answer


def named(place: Place) -> list[bytes]:
    """The reply to SENTINEL GET-MASTER-ADDR-BY-NAME."""
    return [place.host.encode(), str(place.port).encode()]


def slots(*ranges: tuple[int, int, Place]) -> list[Any]:
    """The reply to CLUSTER SLOTS."""
    return [[first, last, [place.host.encode(), place.port, b"id", []]] for first, last, place in ranges]


def watched(said: Said, told: list[str] | None = None) -> Sentinels:
    """A service that three Sentinels watch."""
    tell = told.append if told is not None else lambda _what: None
    return Sentinels((S1, S2, S3), "queue", cast("Asker", said), tell=tell)


def member(said: Said, *seeds: Place, slot: int = 100, is_cluster: bool = True) -> ClusterNodes:
    """A slot of a Cluster."""
    return ClusterNodes(seeds, slot, cast("Asker", said), is_cluster=is_cluster)


async def test_sentinels_are_asked_once_and_again_when_the_place_is_lost() -> None:
    """Every connection after the first goes where the first went."""
    said = Said({S1: named(A), S2: named(A), S3: named(A)})
    where = watched(said)
    assert [await where.find(), await where.find()] == [A, A]
    assert len(said.asked) == 3
    said.answers = {S2: named(B), S3: named(B)}
    where.lost(LOST)
    assert await where.find() == B


async def test_where_sentinels_disagree_the_most_are_heard_first_and_then_the_others() -> None:
    """It is told once; a place that is a replica is none."""
    told: list[str] = []
    where = watched(Said({S1: named(A), S2: named(B), S3: named(A)}), told)
    assert await where.find() == A
    with pytest.raises(NobodyTells, match="is a replica"):
        await where.accept(REPLICA)
    where.lost(LOST)
    assert await where.find() == B
    await where.accept(MASTER)
    where.lost(LOST)
    await where.find()
    assert told == ["the Sentinels name several primaries of queue: a:6379 (2), b:6379 (1)"]


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (ConnectionRefusedError(), NobodyTells, "none of 3 Sentinels tells where queue is (does not answer)"),
        (TimeoutError(), NobodyTells, "none of 3 Sentinels tells where queue is (does not answer)"),
        (None, SetupError, 'the Sentinels watch no service "queue"; name it as `sentinel monitor` does'),
        (ResponseError("unknown command 'SENTINEL'"), NobodyTells, "(what answers is no Sentinel)"),
        ([b"a"], NobodyTells, "(what answers is no Sentinel)"),
        ([b"", b"1"], NobodyTells, "(what answers is no Sentinel)"),
        ([b"a", b"x" * 10_000], NobodyTells, "(what answers is no Sentinel)"),
        ([b"a", b"9" * 10_000], NobodyTells, "(what answers is no Sentinel)"),
        ([b"a", b"0"], NobodyTells, "(what answers is no Sentinel)"),
        ([b"a", b"65536"], NobodyTells, "(what answers is no Sentinel)"),
        ([b"a" * 64, b"1"], NobodyTells, "(what answers is no Sentinel)"),
        ([b"a..b", b"1"], NobodyTells, "(what answers is no Sentinel)"),
        ([b"a\0b", b"1"], NobodyTells, "(what answers is no Sentinel)"),
        (b"secret" * 1000, NobodyTells, "(what answers is no Sentinel)"),
        (AuthenticationError("Authentication required."), AuthenticationError, "wants a password"),
        (NoPermissionError("no permissions to run the 'sentinel' command"), NoPermissionError, "may not run sentinel"),
    ],
)
async def test_why_no_sentinel_tells_is_one_line(answer: Any, kind: type[Exception], says: str) -> None:
    """What somebody has to change is told as such, and is not tried for ever without a word."""
    with pytest.raises(kind) as caught:
        await watched(Said(dict.fromkeys((S1, S2, S3), answer))).find()
    told = describe(caught.value)
    assert says in told
    assert "NobodyTells" not in told
    assert "\n" not in told
    assert "secret" not in told
    assert len(told) < 200


async def test_one_sentinel_that_knows_is_enough() -> None:
    """The others may hang, be something else, or not know the service."""
    assert await watched(Said({S1: None, S2: ResponseError("unknown command"), S3: named(A)})).find() == A


async def test_sentinels_are_asked_whether_a_silent_primary_has_a_successor() -> None:
    """Only then is it given up."""
    said = Said({S1: named(A), S2: named(A), S3: named(A)})
    where = watched(said)
    await where.find()
    assert not await where.moved()
    said.answers = {}
    assert not await where.moved()
    said.answers = {S1: named(A), S2: named(B), S3: named(B)}
    assert await where.moved()
    assert await where.find() == B


async def test_latest_failover_is_heard_before_the_most() -> None:
    """The one who has made it knows first; where it is followed, the others' old word does not call us back."""
    said = Said({S1: named(A), S2: named(B), S3: named(A)})
    said.epochs = {
        S1: [b"name", b"queue", b"config-epoch", b"4"],
        S2: [b"config-epoch", b"5"],
        S3: ResponseError("ERR"),
    }
    where = watched(said)
    assert await where.find() == B
    assert not await where.moved()
    assert await where.find() == B


@pytest.mark.parametrize(
    "reply", [b"what", [b"config-epoch"], [b"config-epoch", b"x"], [b"config-epoch", b"9" * 5000], []]
)
async def test_epoch_that_is_none_counts_for_nothing(reply: Any) -> None:
    """The place that most name is the first then."""
    said = Said({S1: named(A), S2: named(B), S3: named(A)})
    said.epochs = dict.fromkeys((S1, S2, S3), reply)
    assert await watched(said).find() == A


async def test_one_sentinel_after_the_other_is_asked_whether_there_is_a_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while the primary answers; only where one names another, or nothing, are the others asked."""
    monkeypatch.setattr(sentinels, "GLANCE_SECONDS", 0.0)
    said = Said({S1: named(A), S2: named(A), S3: named(A)})
    where = watched(said)
    assert not await where.glance()
    assert said.asked == [S1]  # before there is a place, nothing has moved
    await where.find()
    said.asked.clear()
    assert [await where.glance() for _ in range(3)] == [False] * 3
    assert said.asked == [S2, S3, S1]
    said.answers = {S1: named(B), S2: ConnectionRefusedError(), S3: named(B)}
    assert await where.glance()
    assert await where.find() == B


async def test_sentinels_are_asked_once_a_second_by_however_many_connections() -> None:
    """All shards of a worker share what is known of them."""
    said = Said({S1: named(A), S2: named(A), S3: named(A)})
    where = watched(said)
    await where.find()
    said.asked.clear()
    assert [await where.glance() for _ in range(50)] == [False] * 50
    assert said.asked == [S1]


async def test_sentinels_that_are_all_away_call_nobody_away() -> None:
    """Whoever has a connection keeps it."""
    said = Said({S1: named(A), S2: named(A), S3: named(A)})
    where = watched(said)
    await where.find()
    said.answers = {}
    assert not await where.glance()
    assert await where.find() == A


async def test_node_of_our_slot_is_found_by_any_node() -> None:
    """Also when the one of the URL is gone."""
    said = Said({A: slots((0, 99, A), (100, 16383, B))})
    where = member(said, A)
    assert await where.find() == B
    said.answers = {B: slots((0, 99, C), (100, 16383, B))}
    where.lost(LOST)
    assert await where.find() == B
    said.answers = {C: slots((0, 16383, C))}
    where.lost(LOST)
    assert await where.find() == C


async def test_moved_names_the_next_node_and_the_map_is_asked_of_it() -> None:
    """An empty host is that of the node that was asked."""
    said = Said({A: slots((0, 16383, A))})
    where = member(said, A)
    await where.find()
    said.answers = {Place("a", 7001): slots((0, 16383, Place("", 7002)))}
    where.lost(MovedError("100 :7001"))
    assert await where.find() == Place("a", 7002)
    where.lost(MovedError("100 c:7003"))
    said.answers = {Place("c", 7003): NoPermissionError("no permissions to run the 'cluster|slots' command")}
    assert await where.find() == Place("c", 7003)  # it may not be asked, and MOVED has to do


async def test_node_that_is_cut_off_is_not_believed_twice() -> None:
    """It goes on telling how it was; the others know better."""
    said = Said({A: slots((0, 99, B), (100, 16383, A)), B: slots((0, 99, B), (100, 16383, C))})
    where = member(said, A)
    assert await where.find() == A
    where.lost(ClusterDownError("The cluster is down"))
    assert await where.find() == C


@pytest.mark.parametrize("place", [Place("a" * 64, 1), Place("a\0b", 1), Place("a", 65536), Place("a", 0)])
async def test_place_to_which_no_socket_can_be_connected_is_none(place: Place) -> None:
    """It is left out, where a node or MOVED names it."""
    said = Said({A: slots((0, 50, place), (51, 16383, B))})
    where = member(said, A)
    assert await where.find() == B
    where.lost(MovedError(f"100 {place.host}:{place.port}"))
    assert await where.find() == B


async def test_slot_that_nobody_serves_is_one_line() -> None:
    """It names the slot."""
    with pytest.raises(NobodyTells, match="no node of the Cluster serves slot 100, where our keys are"):
        await member(Said({A: slots((0, 99, A))}), A).find()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ConnectionRefusedError(), "no node of the Cluster tells where our keys are"),
        ([], "no node of the Cluster tells where our keys are"),
        ([[1, 2]], "no node of the Cluster tells where our keys are"),
        (b"what", "no node of the Cluster tells where our keys are"),
        (
            ResponseError("This instance has cluster support disabled"),
            "the server is no node of a Cluster; write redis:// in the Redis URL",
        ),
    ],
)
async def test_why_no_node_tells_is_one_line(answer: Any, says: str) -> None:
    """Whatever answers."""
    with pytest.raises((NobodyTells, SetupError)) as caught:
        await member(Said({A: answer}), A).find()
    assert says in describe(caught.value)


async def test_plain_server_is_asked_for_nothing() -> None:
    """Unless it says that it is one of a Cluster: then its neighbours are learned while it is there."""
    said = Said({A: slots((0, 99, A), (100, 16383, B)), B: slots((0, 16383, B))})
    where = member(said, A, is_cluster=False)
    assert (await where.find(), where.may_move) == (A, False)
    await where.accept(MASTER)
    where.lost(LOST)
    assert (await where.find(), said.asked) == (A, [])
    await where.accept(Greeting(kind="valkey", version="9.0.0", mode="cluster", role="master"))
    del said.answers[A]
    where.lost(LOST)
    assert (await where.find(), where.may_move) == (B, True)


async def test_plain_server_that_says_moved_is_left_for_the_node_that_it_names() -> None:
    """As an ACL may hide that it is one of a Cluster."""
    said = Said({B: slots((0, 16383, B))})
    where = member(said, A, is_cluster=False)
    await where.find()
    where.lost(MovedError("100 b:6379"))
    assert await where.find() == B


def test_url_says_who_is_to_be_asked() -> None:
    """A Unix socket is nowhere else."""
    assert isinstance(whereabouts_of("unix:///run/redis.sock", "k"), Fixed)
    assert isinstance(whereabouts_of("redis+sentinel://a,b:1/queue", "k"), Sentinels)
    assert isinstance(whereabouts_of("rediss+cluster://a,b:1", "k"), ClusterNodes)
    plain = whereabouts_of("redis://a", "k")
    assert isinstance(plain, ClusterNodes)
    assert not plain.may_move


@pytest.mark.parametrize(
    "refusal", [AuthenticationError("NOAUTH"), NoPermissionError("no permissions to run the 'cluster|slots' command")]
)
async def test_node_that_may_not_be_asked_is_connected_to(refusal: Exception) -> None:
    """What it refuses is told there, or it says MOVED; one that is not there is passed over."""
    assert await member(Said({B: refusal}), B, A).find() == B
    assert await member(Said({B: slots((0, 16383, C)), A: refusal}), A, B).find() == C


class Shared(Fixed):
    """Found anew by another connection: who asks is told that nothing has moved since."""

    may_move = True

    def __init__(self, place: Place) -> None:
        self.place = place

    async def find(self) -> Place:
        """By now."""
        return self.place


async def test_pipe_goes_where_another_connection_has_found_the_server_anew() -> None:
    """Though its own goes on answering."""
    servers = [ValkeyProcess({}, port=lasting_port()) for _ in range(2)]
    try:
        for server in servers:
            server.start()
        here, there = (Place("127.0.0.1", server.port) for server in servers)
        where = Shared(here)
        states: list[str] = []
        maker = ConnectionFactory("redis://127.0.0.1", client_name="test", whereabouts=where)
        pipe = Pipe(maker, on_state=lambda state, why: states.append(f"{state.value} {why}"))
        running = asyncio.create_task(pipe.run())
        await pipe.call("SET", "k", "here")
        where.place = there
        await eventually(lambda: pipe.generation == 2)
        assert await pipe.call("GET", "k") is None
        assert states == ["ready ", "away ConnectionError: another server has taken its place", "ready "]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        for server in servers:
            server.close()
