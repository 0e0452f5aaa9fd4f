"""Who may wake a box, and who put it to sleep: the same rules in one process, on fakeredis and on a server."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from llm_routerd.queue.picture import BoxReport, Candidate, WaitingDetails, Waits
from llm_routerd.queue.power import AWAKE_SECONDS, MOST_PAUSE_SECONDS
from tests.queue.boxes_scene import KEYS, LocalScene, call, shared_scene, waits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.queue.picture import Boxes
    from llm_routerd.queue.power import Power
    from tests.queue.boxes_scene import Scene, SharedScene

UP, SILENT = BoxReport(down_seconds=0.0), BoxReport(down_seconds=5.0)
BOOT = 90.0


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


@pytest.fixture
async def shared(broker_url: str) -> AsyncIterator[SharedScene]:
    """On fakeredis, and on a server."""
    async with shared_scene(broker_url) as it:
        yield it


async def power_of(boxes: Boxes, box: str = "attic") -> tuple[Power, int]:
    """What is known of it, and what time it is."""
    picture = await boxes.look()
    return picture.boxes[box].power, picture.now_ms


async def rest(boxes: Boxes, token: str, *, idle: float = 1000.0, after: float = 600.0, box: str = "attic") -> bool:
    """Ask to put it to sleep."""
    return await boxes.rest(box, token, idle_seconds=idle, after_seconds=after, claim_seconds=70)


async def idle_since(scene: Scene, boxes: Boxes, seconds: float) -> None:
    """It was used last so long ago, and has answered just now."""
    assert not await rest(boxes, "first", idle=0)
    await scene.pass_time(seconds)
    await boxes.report("attic", UP)


async def test_box_is_woken_once_while_it_boots(scene: Scene) -> None:
    """By whoever asks first; a reply that was lost is given again, and counts once."""
    one, other = await scene.boxes("w1"), await scene.boxes("w2")
    await one.report("attic", SILENT)
    assert await one.wake("attic", "k1", boot_seconds=BOOT)
    assert await one.wake("attic", "k1", boot_seconds=BOOT)
    assert not await other.wake("attic", "k2", boot_seconds=BOOT)
    await scene.pass_time(2 * BOOT - 5)
    await one.report("attic", SILENT)
    assert not await other.wake("attic", "k3", boot_seconds=BOOT)
    power, now_ms = await power_of(one)
    assert (power.wakings, power.woken_by) == (1, "w1")
    assert 2 * BOOT * 1000 - 7000 < now_ms - power.woken_ms <= power.boots_until_ms - power.woken_ms
    assert await one.wake("cellar", "k4", boot_seconds=BOOT), "it is another box"


async def test_box_that_does_not_come_is_woken_less_and_less_often(scene: Scene) -> None:
    """After twice a boot it is down; the pause doubles, up to a bound; it is forgotten when it answers."""
    boxes = await scene.boxes()
    pauses = []
    for number in range(7):
        assert await boxes.wake("attic", f"k{number}", boot_seconds=BOOT)
        power, _ = await power_of(boxes)
        pauses.append((power.wake_after_ms - power.boots_until_ms) / 1000)
        await scene.pass_time(2 * BOOT + pauses[-1] - 5)
        assert not await boxes.wake("attic", "early", boot_seconds=BOOT)
        await scene.pass_time(6)
    assert pauses == [BOOT, 2 * BOOT, 4 * BOOT, 8 * BOOT, *[MOST_PAUSE_SECONDS] * 3]
    await boxes.report("attic", UP)
    await boxes.report("attic", SILENT)
    assert await boxes.wake("attic", "again", boot_seconds=BOOT)
    power, _ = await power_of(boxes)
    assert power.wakings == 1


async def test_box_that_answers_is_not_woken(scene: Scene) -> None:
    """Whoever asks has an old picture; of one that has been idle nobody knows."""
    boxes = await scene.boxes()
    await boxes.report("attic", UP)
    assert not await boxes.wake("attic", "k1", boot_seconds=BOOT)
    power, now_ms = await power_of(boxes)
    assert power.is_awake(now_ms)
    await scene.pass_time(AWAKE_SECONDS + 1)
    power, now_ms = await power_of(boxes)
    assert not power.is_awake(now_ms)
    assert await boxes.wake("attic", "k2", boot_seconds=BOOT)


async def test_silence_from_before_it_answered_another_says_nothing(scene: Scene) -> None:
    """Two workers look while it boots: the one that asked too early is the last to hear."""
    boxes = await scene.boxes()
    assert await boxes.wake("attic", "k1", boot_seconds=BOOT)
    await scene.pass_time(30)
    await boxes.report("attic", UP)
    await scene.pass_time(1)
    await boxes.report("attic", BoxReport(down_seconds=5.0, age_seconds=2.5))
    picture = await boxes.look()
    assert picture.boxes["attic"].power.is_awake(picture.now_ms)
    assert picture.boxes["attic"].down_until_ms is None
    assert not await boxes.wake("attic", "k2", boot_seconds=BOOT)
    await boxes.report("attic", BoxReport(down_seconds=5.0, age_seconds=0.1))
    assert await boxes.wake("attic", "k3", boot_seconds=BOOT)


async def test_what_a_boot_takes_is_learnt(scene: Scene) -> None:
    """From the packet to the first answer, the newest counting half; not of one that came when it was given up."""
    boxes = await scene.boxes()
    for seconds, learnt in ((40, 40.0), (60, 50.0), (400, 50.0)):
        assert await boxes.wake("attic", f"k{seconds}", boot_seconds=BOOT)
        await scene.pass_time(seconds)
        await boxes.report("attic", UP)
        power, _ = await power_of(boxes)
        assert power.boot_seconds == pytest.approx(learnt, abs=2.0)
        assert power.woken_ms == 0
        await boxes.report("attic", UP)
        await boxes.report("attic", SILENT)


async def test_box_is_put_to_sleep_when_nobody_has_used_it_for_long_enough(scene: Scene) -> None:
    """By one alone; of a box whose use nobody has seen the time begins now."""
    one, other = await scene.boxes("w1"), await scene.boxes("w2")
    await one.report("attic", UP)
    assert not await rest(one, "k0"), "nobody has seen since when"
    await scene.pass_time(590)
    assert not await rest(other, "k1")
    await scene.pass_time(20)
    assert not await rest(other, "k2", idle=5), "this worker has used it"
    await scene.pass_time(590)
    assert not await rest(one, "k3")
    await scene.pass_time(20)
    assert await rest(one, "k4")
    assert await rest(one, "k4")
    assert not await rest(other, "k5")
    power, _ = await power_of(one)
    assert power.asleep_ms
    await one.slept("attic", "k4", is_asleep=True, pause_seconds=20)
    await scene.pass_time(5000)
    assert not await rest(other, "k6"), "it sleeps already"


async def test_box_on_which_a_call_runs_or_for_which_one_waits_is_not_put_to_sleep(scene: Scene) -> None:
    """Of any worker, also where it waits for another one too; and the time begins again."""
    one, other = await scene.boxes("w1"), await scene.boxes("w2")
    await idle_since(scene, one, 3000)
    await other.occupy("t1", call(), slots=1)
    assert not await rest(one, "k1")
    await other.release("t1")
    assert not await rest(one, "k2")
    await scene.pass_time(650)
    details = WaitingDetails(lane="low", candidates=(Candidate("desk", "m"), Candidate("attic", "m")))
    await other.wait([Waits(token="t2", details=details)])
    assert not await rest(one, "k3")
    await other.release("t2")
    await scene.pass_time(650)
    assert await rest(one, "k4")


async def test_no_call_begins_on_a_box_that_is_put_to_sleep(scene: Scene) -> None:
    """From the moment on in which a worker is to; nor, without a look, on one that may be asleep by itself."""
    one, other = await scene.boxes("w1"), await scene.boxes("w2")
    await idle_since(scene, one, 3000)
    assert (await other.occupy("t0", call(), slots=1, sleeps=True, quiet="any")).verdict == "granted"
    await other.release("t0")
    await scene.pass_time(3000)
    assert (await other.occupy("t1", call(), slots=1, sleeps=True, quiet="any")).verdict == "contended"
    assert await rest(one, "k1")
    assert (await other.occupy("t1", call(), slots=1, sleeps=True)).verdict == "asleep"
    assert (await other.occupy("t1", call("desk"), slots=1, sleeps=True)).verdict == "granted"
    await one.slept("attic", "k1", is_asleep=False, pause_seconds=300)
    assert (await other.occupy("t2", call(), slots=1, sleeps=True)).verdict == "granted"


async def test_box_that_goes_to_sleep_is_woken_once_it_is_off(scene: Scene) -> None:
    """Until then its answers say nothing, and a packet would be lost."""
    boxes = await scene.boxes()
    await idle_since(scene, boxes, 3000)
    assert await rest(boxes, "k1")
    await boxes.report("attic", UP)
    assert not await boxes.wake("attic", "k2", boot_seconds=BOOT)
    await boxes.slept("attic", "k1", is_asleep=True, pause_seconds=20)
    await boxes.report("attic", UP)
    power, now_ms = await power_of(boxes)
    assert (power.is_awake(now_ms), bool(power.asleep_ms)) == (False, True)
    assert not await boxes.wake("attic", "k3", boot_seconds=BOOT)
    await scene.pass_time(21)
    assert await boxes.wake("attic", "k4", boot_seconds=BOOT)
    await scene.pass_time(30)
    await boxes.report("attic", UP)
    power, now_ms = await power_of(boxes)
    assert power.is_awake(now_ms)
    assert now_ms - power.used_ms < 2000, "else it would be put to sleep again at once"


async def test_box_that_could_not_be_put_to_sleep_is_up_and_left_alone_for_a_while(scene: Scene) -> None:
    """Another time it is tried again; what the last one says whose turn is over changes nothing."""
    boxes = await scene.boxes()
    await idle_since(scene, boxes, 3000)
    assert await rest(boxes, "k1")
    await boxes.slept("attic", "k1", is_asleep=False, pause_seconds=900)
    await boxes.report("attic", UP)
    await boxes.slept("attic", "k1", is_asleep=True, pause_seconds=20)
    power, now_ms = await power_of(boxes)
    assert power.is_awake(now_ms)
    await scene.pass_time(700)
    assert not await rest(boxes, "k2")
    await scene.pass_time(210)
    assert await rest(boxes, "k3")


async def test_box_whose_worker_died_while_it_put_it_to_sleep_is_as_it_is(scene: Scene) -> None:
    """If it answers after that time it is up, else it sleeps, and can be woken."""
    boxes = await scene.boxes()
    await idle_since(scene, boxes, 3000)
    assert await rest(boxes, "k1")
    await scene.pass_time(71)
    assert not await rest(boxes, "k2")
    assert (await boxes.occupy("t1", call(), slots=1, sleeps=True)).verdict == "asleep"
    await boxes.report("attic", UP)
    assert (await boxes.occupy("t1", call(), slots=1, sleeps=True)).verdict == "granted"


async def test_reports_and_power_leave_each_other_alone(scene: Scene) -> None:
    """What was learnt of a box survives that it is woken, and the other way round."""
    boxes = await scene.boxes()
    report = BoxReport(resident={"m": 5}, loading=("n",), load_seconds={"m": 4.5}, tokens_per_second={"m": 20.5})
    await boxes.report("attic", report)
    before = (await boxes.look()).boxes["attic"]
    assert await boxes.wake("attic", "k1", boot_seconds=BOOT)
    after = (await boxes.look()).boxes["attic"]
    assert (after.resident, after.loading, after.load_seconds) == (before.resident, before.loading, before.load_seconds)
    assert after.tokens_per_second == before.tokens_per_second
    await boxes.report("attic", BoxReport(load_seconds={"m": 9.0}))
    power, _ = await power_of(boxes)
    assert power == after.power


async def test_limits_of_who_waits_are_told(scene: Scene) -> None:
    """So that all workers know who may wait for a boot."""
    boxes = await scene.boxes()
    await boxes.wait([waits("t1", begin_within=60.5, end_within=120.0), waits("t2", end_within=float("nan"))])
    told = {each.token: (each.begin_within, each.end_within) for each in (await boxes.look()).waiting}
    assert told == {"t1": (60.5, 120.0), "t2": (0.0, 0.0)}


async def test_of_many_workers_one_wakes_and_one_puts_to_sleep(shared: SharedScene) -> None:
    """At the same moment, each with a connection of its own."""
    workers = [await shared.boxes(f"w{number}") for number in range(6)]
    asked = (each.wake("desk", f"k{number}", boot_seconds=BOOT) for number, each in enumerate(workers))
    assert sum(await asyncio.gather(*asked)) == 1
    await idle_since(shared, workers[0], 3000)
    assert sum(await asyncio.gather(*(rest(each, f"r{number}") for number, each in enumerate(workers)))) == 1


async def test_power_that_nobody_can_have_written_is_none(shared: SharedScene) -> None:
    """Times that lie far ahead, and what is no number: it is woken and put to sleep as if it were not there."""
    boxes = await shared.boxes()
    seconds, _ = await shared.client.time()
    junk = {"until_ms": seconds * 1000 + 20_000, "fresh_until_ms": 0, "down_until_ms": 0}
    powers: list[object] = [
        {"wake_after_ms": 9e13, "awake_ms": "x", "wakings": -1, "token": []},
        [],
        "x",
        {"asleep_ms": True},
    ]
    for power in powers:
        await shared.client.hset(KEYS.boxes, "attic", json.dumps({**junk, "power": power}))
        await boxes.look()
        assert await boxes.wake("attic", "k1", boot_seconds=BOOT)
        assert (await power_of(boxes))[0].wakings == 1
        await shared.client.hset(KEYS.boxes, "attic", json.dumps({**junk, "power": power}))
        assert await boxes.rest("attic", "k2", idle_seconds=9, after_seconds=0, claim_seconds=9)
        assert (await power_of(boxes))[0].asleep_ms
