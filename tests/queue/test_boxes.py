"""The picture of the boxes: the same rules in one process, on fakeredis and on a server."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from llm_routerd.queue.picture import (
    MOST_CANDIDATES,
    MOST_MODELS,
    MOST_NAME,
    MOST_SECONDS,
    MOST_TOLD,
    BoxReport,
    Candidate,
    Resident,
    WaitingDetails,
    Waits,
)
from tests.queue.boxes_scene import LEASE_SECONDS, LocalScene, call, shared_scene, tokens_of, waits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.protocol.keys import Lane
    from llm_routerd.queue.picture import Quiet
    from tests.queue.boxes_scene import Scene


@pytest.fixture(params=["local", "fakeredis", "valkey"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """Wherever it is kept."""
    if request.param == "local":
        yield LocalScene()
        return
    async with shared_scene(
        request.getfixturevalue("redis_url" if request.param == "fakeredis" else "valkey_url")
    ) as it:
        yield it


async def test_nothing_is_known_at_first(scene: Scene) -> None:
    """And nothing that is asked of it is an error."""
    boxes = await scene.boxes()
    picture = await boxes.look()
    assert (picture.calls, picture.waiting, picture.waiting_count, picture.boxes) == ((), (), 0, {})
    assert await boxes.renew([]) == []
    assert await boxes.renew(["t1"]) == ["t1"]
    await boxes.wait([])
    await boxes.release()
    await boxes.release("t1")
    await boxes.leave()


async def test_no_more_calls_than_slots(scene: Scene) -> None:
    """Who gets none is told how many are there; another box has its own."""
    boxes = await scene.boxes()
    verdicts = [await boxes.occupy(f"t{number}", call(), slots=2) for number in range(3)]
    assert [(each.verdict, each.running) for each in verdicts] == [("granted", 1), ("granted", 2), ("full", 2)]
    assert (await boxes.occupy("t9", call("cellar"), slots=1)).verdict == "granted"
    await boxes.release("t0")
    assert (await boxes.occupy("t2", call(), slots=2)).verdict == "granted"
    assert (await boxes.occupy("t3", call(), slots=0)).verdict == "full"


async def test_reserve_is_for_the_high_lane(scene: Scene) -> None:
    """The others leave it free; the high lane may have all, and what it has of the reserve is none of theirs."""
    boxes = await scene.boxes()

    async def ask(token: str, lane: Lane) -> str:
        return (await boxes.occupy(token, call(lane=lane), slots=3, reserve=1)).verdict

    assert [await ask("a", "low"), await ask("b", "normal"), await ask("c", "low")] == ["granted", "granted", "full"]
    assert [await ask("h1", "high"), await ask("h2", "high")] == ["granted", "full"]
    await boxes.release("a")
    assert [await ask("c", "low")] == ["granted"]
    await boxes.release("b", "c")
    assert [await ask("h2", "high"), await ask("h3", "high"), await ask("d", "low")] == ["granted", "granted", "full"]


async def test_second_occupy_takes_nothing_more(scene: Scene) -> None:
    """The reply was lost; also where no slot is free any more."""
    boxes = await scene.boxes()
    for _ in range(3):
        occupied = await boxes.occupy("t1", call(model="m"), slots=1)
        assert (occupied.verdict, occupied.running) == ("granted", 1)
        await scene.pass_time(LEASE_SECONDS - 10)
    picture = await boxes.look()
    (held,) = picture.calls
    assert (held.token, held.model) == ("t1", "m")
    assert picture.now_ms - held.began_ms >= 3 * (LEASE_SECONDS - 10) * 1000, "it is another call by now"


async def test_token_that_holds_a_slot_gets_none_of_another_box(scene: Scene) -> None:
    """It is counted once, where it is."""
    boxes = await scene.boxes()
    await boxes.occupy("t1", call(), slots=1)
    assert (await boxes.occupy("t1", call("cellar"), slots=1)).verdict == "elsewhere"
    assert [each.box for each in (await boxes.look()).calls] == ["attic"]


async def test_second_release_does_nothing(scene: Scene) -> None:
    """Not even to the call that has the slot now."""
    boxes = await scene.boxes()
    await boxes.occupy("t1", call(), slots=1)
    await boxes.release("t1")
    await boxes.occupy("t2", call(), slots=1)
    await boxes.release("t1")
    assert tokens_of(await boxes.look()) == (["t2"], [])


async def test_slot_of_a_dead_worker_is_free_after_its_lease(scene: Scene) -> None:
    """And not before; what is renewed stays."""
    boxes = await scene.boxes()
    await boxes.occupy("dead", call(), slots=2)
    await boxes.occupy("alive", call(), slots=2)
    await scene.pass_time(LEASE_SECONDS - 5)
    assert (await boxes.occupy("next", call(), slots=2)).verdict == "full"
    assert await boxes.renew(["alive"]) == []
    await scene.pass_time(6)
    assert (await boxes.occupy("next", call(), slots=2)).verdict == "granted"
    assert await boxes.renew(["dead", "alive", "never"]) == ["dead", "never"]
    assert set(tokens_of(await boxes.look())[0]) == {"alive", "next"}


async def test_who_waits_is_seen_until_it_gets_a_slot(scene: Scene) -> None:
    """The high lane first, then who has waited longest, whoever came first here."""
    boxes = await scene.boxes()
    await boxes.wait([waits("low", "low", waited_seconds=50), waits("new"), waits("old", waited_seconds=20)])
    await boxes.wait([waits("urgent", "high")])
    assert tokens_of(await boxes.look())[1] == ["urgent", "old", "new", "low"]
    assert (await boxes.occupy("old", call(), slots=1)).verdict == "granted"
    assert (await boxes.occupy("new", call(), slots=1)).verdict == "full"
    await boxes.release("low")
    assert tokens_of(await boxes.look()) == (["old"], ["urgent", "new"])


async def test_what_is_told_of_a_call_comes_back(scene: Scene) -> None:
    """All of it, and since when."""
    boxes = await scene.boxes()
    details = WaitingDetails(
        lane="low",
        candidates=(Candidate("attic", 'q"wen\\3:32b'), Candidate("keller ü", "m")),
        tenant="ada",
        expected_seconds=2.5,
        affinity="c0ffee",
    )
    await boxes.wait([Waits(token="t1", details=details, waited_seconds=7)])
    asked = call('at"tic\n', model="m", deployment="local", tenant="bob", expected_seconds=1.5)
    await boxes.occupy("t2", asked, slots=1)
    assert (await boxes.occupy("t3", asked, slots=1)).verdict == "full"
    picture = await boxes.look()
    (waiting,), (held,) = picture.waiting, picture.calls
    for name in ("lane", "candidates", "tenant", "expected_seconds", "affinity"):
        assert getattr(waiting, name) == getattr(details, name)
    assert waiting.worker == held.worker == "w1"
    assert 7000 <= picture.now_ms - waiting.since_ms < 9000
    for name in ("lane", "box", "model", "deployment", "tenant", "expected_seconds"):
        assert getattr(held, name) == getattr(asked, name)
    assert 0 <= picture.now_ms - held.began_ms < 2000
    for each in (waiting, held):
        assert picture.now_ms < each.until_ms <= picture.now_ms + LEASE_SECONDS * 1000


async def test_who_refreshes_has_waited_since_it_came(scene: Scene) -> None:
    """Whatever it says it has waited by now; who does not, waits no more."""
    boxes = await scene.boxes()
    await boxes.wait([waits("t1", waited_seconds=5), waits("gone")])
    await scene.pass_time(LEASE_SECONDS - 10)
    await boxes.wait([waits("t1")])
    await scene.pass_time(LEASE_SECONDS - 10)
    picture = await boxes.look()
    assert tokens_of(picture)[1] == ["t1"]
    assert 0 <= picture.now_ms - picture.waiting[0].since_ms - (5 + 2 * LEASE_SECONDS - 20) * 1000 < 2000
    assert await boxes.renew(["t1"]) == []
    await scene.pass_time(LEASE_SECONDS - 10)
    assert tokens_of(await boxes.look())[1] == ["t1"]


async def test_who_was_passed_over_is_so_since_the_first_time(scene: Scene) -> None:
    """Whoever notes it, and whatever is said of the call later; of what does not wait nothing is noted."""
    boxes = await scene.boxes()
    await boxes.wait([waits("t1"), waits("t2")])
    await boxes.pass_over([])
    await boxes.pass_over(["t1", "unheard of"])
    await scene.pass_time(10)
    for noted in (boxes, await scene.boxes("w2")):
        await noted.pass_over(["t1"])
    await boxes.wait([waits("t1")])
    assert await boxes.renew(["t1", "t2"]) == []
    picture = await boxes.look()
    turns = {each.token: each.turn_ms for each in picture.waiting}
    assert 0 <= picture.now_ms - (turns["t1"] or 0) - 10_000 < 2000
    assert turns["t2"] is None


async def test_what_holds_a_slot_does_not_wait(scene: Scene) -> None:
    """A refresh that was sent before it got one came late."""
    boxes = await scene.boxes()
    await boxes.occupy("t1", call(), slots=1)
    await boxes.wait([waits("t1"), waits("t2")])
    assert tokens_of(await boxes.look()) == (["t1"], ["t2"])


async def test_worker_that_leaves_leaves_nothing(scene: Scene) -> None:
    """Neither calls nor waiting ones; what was reported stays."""
    boxes = await scene.boxes()
    await boxes.occupy("t1", call(), slots=1)
    await boxes.wait([waits("t2")])
    await boxes.report("attic", BoxReport(resident={"m": 1}))
    for _ in range(2):
        await boxes.leave()
        picture = await boxes.look()
        assert tokens_of(picture) == ([], [])
        assert set(picture.boxes) == {"attic"}


async def test_report_tells_what_is_resident_and_since_when(scene: Scene) -> None:
    """Since it was first seen so without a break; what is no longer told of is gone."""
    boxes = await scene.boxes()
    await boxes.report("attic", BoxReport(resident={"a": 4_700_000_000, "b": 0}, loading=("c",)))
    await scene.pass_time(40)
    await boxes.report("attic", BoxReport(resident={"a": 4_700_000_001, "c": 7}, loading=("d",)))
    picture = await boxes.look()
    seen = picture.boxes["attic"]
    assert seen.resident is not None
    assert {model: each.bytes for model, each in seen.resident.items()} == {"a": 4_700_000_001, "c": 7}
    assert 40_000 <= picture.now_ms - seen.resident["a"].since_ms < 42_000
    assert 0 <= picture.now_ms - seen.resident["c"].since_ms < 2_000
    assert set(seen.loading) == {"d"}
    await scene.pass_time(10)
    await boxes.report("attic", BoxReport(resident={}, loading=("d",)))
    picture = await boxes.look()
    assert picture.boxes["attic"].resident == {}
    assert 10_000 <= picture.now_ms - picture.boxes["attic"].loading["d"] < 12_000


async def test_old_report_is_no_report(scene: Scene) -> None:
    """Nobody knows what is resident; what was learned is remembered for a day."""
    boxes = await scene.boxes()
    await boxes.report("attic", BoxReport(resident={"a": 1}, loading=("b",), load_seconds={"a": 9.5}))
    await scene.pass_time(61)
    seen = (await boxes.look()).boxes["attic"]
    assert (seen.resident, seen.loading, seen.load_seconds) == (None, {}, {"a": 9.5})
    await boxes.report("attic", BoxReport(tokens_per_second={"a": 31.0}))
    assert (await boxes.look()).boxes["attic"].resident is None
    await boxes.report("attic", BoxReport(resident={"a": 1}))
    picture = await boxes.look()
    resident = picture.boxes["attic"].resident
    assert resident is not None
    assert picture.now_ms - resident["a"].since_ms < 2_000
    await scene.pass_time(86_401)
    assert (await boxes.look()).boxes == {}


async def test_reports_are_merged_model_by_model(scene: Scene) -> None:
    """The latest counts; one that says nothing of what is resident leaves that as it is."""
    boxes = await scene.boxes()
    await boxes.report("attic", BoxReport(resident={"a": 5}, load_seconds={"a": 9.0, "b": 30.0}))
    await boxes.report("attic", BoxReport(load_seconds={"a": 8.0}, tokens_per_second={"a": 25.5}))
    await boxes.report("cellar", BoxReport(tokens_per_second={"a": 3.0}))
    seen = (await boxes.look()).boxes
    assert seen["attic"].load_seconds == {"a": 8.0, "b": 30.0}
    assert seen["attic"].tokens_per_second == {"a": 25.5}
    assert isinstance((seen["attic"].resident or {})["a"], Resident)
    assert (seen["cellar"].resident, seen["cellar"].tokens_per_second) == (None, {"a": 3.0})


async def test_box_is_down_for_as_long_as_was_said(scene: Scene) -> None:
    """Or until somebody says that it is not; a report that does not speak of it changes nothing."""
    boxes = await scene.boxes()
    await boxes.report("attic", BoxReport(down_seconds=20))
    await boxes.report("attic", BoxReport(load_seconds={"a": 8.0}))
    picture = await boxes.look()
    assert 18_000 < (picture.boxes["attic"].down_until_ms or 0) - picture.now_ms <= 20_000
    await scene.pass_time(21)
    assert (await boxes.look()).boxes["attic"].down_until_ms is None
    await boxes.report("attic", BoxReport(down_seconds=20))
    await boxes.report("attic", BoxReport(resident={}, down_seconds=0))
    assert (await boxes.look()).boxes["attic"].down_until_ms is None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 1e300])
async def test_numbers_that_are_none_are_bounded(scene: Scene, number: float) -> None:
    """Somebody has divided by what was not measured."""
    boxes = await scene.boxes()
    await boxes.wait([waits("t1", expected_seconds=number, waited_seconds=number)])
    await boxes.occupy("t2", call(expected_seconds=number), slots=1)
    figures = {"a": number, "b": 2.0}
    await boxes.report("attic", BoxReport(load_seconds=figures, tokens_per_second=figures, down_seconds=number))
    picture = await boxes.look()
    most = MOST_SECONDS if number > 0 else 0.0
    assert (picture.waiting[0].expected_seconds, picture.calls[0].expected_seconds) == (most, most)
    assert 0 <= picture.now_ms - picture.waiting[0].since_ms <= most * 1000 + 2000
    assert picture.boxes["attic"].load_seconds == picture.boxes["attic"].tokens_per_second == {"b": 2.0}


async def test_what_is_kept_is_bounded(scene: Scene) -> None:
    """Names, candidates, models; what comes back are the first."""
    boxes = await scene.boxes()
    long = "x" * 10_000
    many = tuple(Candidate(long, f"m{number}") for number in range(100))
    details = WaitingDetails(lane="low", candidates=many, tenant=long, affinity=long)
    await boxes.wait([Waits(token=long, details=details)])
    await boxes.occupy(f"t{long}", call(long, model=long, deployment=long, tenant=long), slots=1)
    models = {f"m{number}": number + 1 for number in range(100)}
    await boxes.report(long, BoxReport(resident=models, loading=tuple(models), load_seconds=models))
    await boxes.report(long, BoxReport(load_seconds={"other": 1.0}))
    picture = await boxes.look()
    (waiting,), (held,), ((name, seen),) = picture.waiting, picture.calls, picture.boxes.items()
    assert {len(text or "") for text in (waiting.token, waiting.tenant, waiting.affinity)} == {MOST_NAME}
    assert {len(text or "") for text in (held.token, held.box, held.model, held.deployment, held.tenant)} == {MOST_NAME}
    assert len(name) == MOST_NAME
    assert waiting.candidates == tuple(Candidate("x" * MOST_NAME, f"m{n}") for n in range(MOST_CANDIDATES))
    assert len(seen.resident or {}) == len(seen.loading) == len(seen.load_seconds) == MOST_MODELS
    assert "other" in seen.load_seconds
    assert await boxes.renew([long, f"t{long}"]) == []
    await boxes.release(long, f"t{long}")
    assert tokens_of(await boxes.look()) == ([], [])


async def test_of_very_many_that_wait_the_most_urgent_are_told(scene: Scene) -> None:
    """And how many there are."""
    boxes = await scene.boxes()
    await boxes.wait([waits(f"n{number:04}", waited_seconds=number + 1) for number in range(MOST_TOLD)])
    await boxes.wait([waits("low", "low", waited_seconds=90_000), waits("high", "high")])
    picture = await boxes.look()
    assert picture.waiting_count == MOST_TOLD + 2
    tokens = tokens_of(picture)[1]
    assert tokens[:2] == ["high", f"n{MOST_TOLD - 1:04}"]
    assert (len(tokens), tokens[-1]) == (MOST_TOLD, "n0001")


async def test_who_has_not_looked_gets_a_slot_only_where_nothing_is_to_be_weighed(scene: Scene) -> None:
    """Nobody waits for any box, this one is up, has the model, and runs no other; else a look is to be had first."""
    boxes = await scene.boxes()

    async def ask(token: str, quiet: Quiet = "resident", model: str = "m") -> str:
        verdict = (await boxes.occupy(token, call(model=model), slots=2, quiet=quiet)).verdict
        if token != "kept":
            await boxes.release(token)
        return verdict

    assert [await ask("t"), await ask("t", "any"), await ask("t", "")] == ["contended", "granted", "granted"]
    await boxes.report("attic", BoxReport(resident={"m": 1}))
    assert [await ask("t"), await ask("t", model="n"), await ask("t", "any", "n")] == [
        "granted",
        "contended",
        "granted",
    ]
    await boxes.wait([waits("other")])
    assert [await ask("t"), await ask("t", "any"), await ask("t", "")] == ["contended", "contended", "granted"]
    await boxes.release("other")
    assert [await ask("kept"), await ask("t"), await ask("t", "any", "n")] == ["granted", "granted", "contended"]
    await boxes.release("kept")
    await boxes.report("attic", BoxReport(down_seconds=5.0))
    assert [await ask("t"), await ask("t", "any"), await ask("t", "")] == ["contended", "contended", "granted"]
    await scene.pass_time(6)
    assert await ask("t") == "granted"
    await scene.pass_time(60)
    assert [await ask("t"), await ask("t", "any")] == ["contended", "granted"], "the report is old"


async def test_quiet_call_that_finds_no_slot_is_told_so(scene: Scene) -> None:
    """And one whose reply was lost has its slot."""
    boxes = await scene.boxes()
    assert (await boxes.occupy("a", call(model="m"), slots=1, quiet="any")).verdict == "granted"
    await boxes.wait([waits("other")])
    assert (await boxes.occupy("a", call(model="m"), slots=1, quiet="any")).verdict == "granted"
    boxes.drop("other")
    assert (await boxes.occupy("b", call(model="m"), slots=1, quiet="any")).verdict == "full"
    boxes.drop("a")
    assert (await boxes.occupy("b", call(model="m"), slots=1, quiet="any")).verdict == "granted"
