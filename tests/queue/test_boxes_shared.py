"""The picture of the boxes in Redis: replies that are lost, races, junk, keys and users that are not what they should be."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.queue import scripts
from llm_routerd.queue.picture import BoxReport
from tests.queue.boxes_scene import HASHES, KEYS, LEASE_SECONDS, call, shared_scene, tokens_of, waits
from tests.support.processes import ROOT
from tests.support.proxy import open_proxy
from tests.support.servers import running_valkey
from tests.support.wire import eventually_true

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.protocol.keys import Lane
    from llm_routerd.queue.boxes import SharedBoxes
    from llm_routerd.queue.scripts.binding import Call
    from tests.queue.boxes_scene import SharedScene

SLOTS = 3
REPORT = BoxReport(resident={"m": 5}, loading=("n",), load_seconds={"m": 4.5}, tokens_per_second={"m": 20.5})


@pytest.fixture
async def scene(broker_url: str) -> AsyncIterator[SharedScene]:
    """On fakeredis, and on a server."""
    async with shared_scene(broker_url) as it:
        yield it


async def fill(boxes: SharedBoxes) -> None:
    """Something of each kind."""
    await boxes.occupy("t1", call(), slots=1)
    await boxes.wait([waits("t2")])
    await boxes.report("attic", REPORT)


# ---------------------------------------------------------------------- replies that are lost


async def test_every_script_may_be_repeated(scene: SharedScene) -> None:
    """The second time nothing changes but when leases end, and the same is said."""
    boxes = await scene.boxes()
    sent: list[Call] = []
    pipe, run = scene.pipes[0], scene.pipes[0].run_script

    def twice(call: Call, *, is_whole: bool = False) -> Any:
        sent.append(call)
        return run(call, is_whole=is_whole)

    pipe.run_script = twice  # type: ignore[method-assign]  # each is sent again by hand
    for verb in (
        lambda: boxes.wait([waits("t1", waited_seconds=9), waits("t2")]),
        lambda: boxes.pass_over(["t2", "t9"]),
        lambda: boxes.occupy("t1", call(), slots=1),
        lambda: boxes.occupy("t3", call(), slots=1),
        lambda: boxes.occupy("t1", call("cellar"), slots=1),
        lambda: boxes.renew(["t1", "t2", "t3"]),
        lambda: boxes.report("attic", REPORT),
        lambda: boxes.wake("attic", "k1", boot_seconds=60),
        lambda: boxes.wake("attic", "k2", boot_seconds=60),
        lambda: boxes.rest("cellar", "k1", idle_seconds=60, after_seconds=0, claim_seconds=30),
        lambda: boxes.rest("cellar", "k2", idle_seconds=60, after_seconds=0, claim_seconds=30),
        lambda: boxes.slept("cellar", "k1", is_asleep=False, pause_seconds=20),
        boxes.look,
        lambda: boxes.release("t1"),
        boxes.leave,
    ):
        await verb()
        stood = await scene.everything()
        first = await run(sent[-1])
        assert await scene.everything() == stood
        second = await run(sent[-1])
        if sent[-1].script is not scripts.boxes_look:  # which tells what time it is
            assert first == second
    assert {each.script.name for each in sent} == {name for name in vars(scripts) if name.startswith("boxes_")}


async def test_lost_reply_is_a_slot_that_is_held_once() -> None:
    """The connection breaks after the server has done it: the pipe sends it again."""
    with running_valkey(tcp=True) as server:
        async with shared_scene(server.url) as scene, open_proxy(server.port) as proxy, asyncio.timeout(10):
            boxes = await scene.boxes(url=proxy.url)
            await boxes.look()
            proxy.loses_replies = True
            asked = [asyncio.create_task(boxes.occupy(f"t{number}", call(), slots=2)) for number in range(4)]
            await eventually_true(lambda: holds(scene, 2))
            proxy.loses_replies = False
            await proxy.drop()
            assert [(await each).verdict for each in asked] == ["granted", "granted", "full", "full"]
            assert tokens_of(await boxes.look())[0] == ["t0", "t1"]


async def holds(scene: SharedScene, count: int) -> bool:
    """Whether so many calls hold a slot."""
    return bool(await scene.client.hlen(KEYS.box_calls) == count)


async def test_who_is_cancelled_while_it_asks_holds_nothing(scene: SharedScene) -> None:
    """The slot would be taken until its lease is over."""
    boxes = await scene.boxes()
    await boxes.wait([waits("t1")])
    asked = asyncio.create_task(boxes.occupy("t1", call(), slots=1))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert tokens_of(await boxes.look()) == ([], [])


# ---------------------------------------------------------------------- races


async def test_two_workers_never_both_take_the_last_slot(scene: SharedScene) -> None:
    """Eighty calls of two workers race for three slots, of which one is reserved; all have their turn."""
    now, most = {"high": 0, "low": 0}, {"high": 0, "low": 0, "all": 0}
    done = 0

    async def serve(boxes: SharedBoxes, number: int) -> None:
        nonlocal done
        lane: Lane = "high" if number % 4 == 0 else "low"
        while (await boxes.occupy(f"t{number}", call(lane=lane), slots=SLOTS, reserve=1)).verdict != "granted":
            pass
        now[lane] += 1
        most[lane] = max(most[lane], now[lane])
        most["all"] = max(most["all"], sum(now.values()))
        await asyncio.sleep(0.001)
        now[lane] -= 1
        done += 1
        await boxes.release(f"t{number}")

    workers = [await scene.boxes("w1"), await scene.boxes("w2")]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for number in range(80):
            group.create_task(serve(workers[number % 2], number))
    assert done == 80
    assert most["all"] <= SLOTS
    assert most["low"] <= SLOTS - 1
    assert tokens_of(await workers[0].look()) == ([], [])


async def test_where_workers_disagree_each_ones_slots_hold_for_its_own_calls(scene: SharedScene) -> None:
    """A configuration is rolled out: who knows of fewer slots takes none beyond those."""
    one, other = await scene.boxes("w1"), await scene.boxes("w2")
    assert (await one.occupy("a", call(), slots=3)).verdict == "granted"
    assert (await other.occupy("b", call(), slots=1)).verdict == "full"
    assert (await one.occupy("c", call(), slots=3)).verdict == "granted"
    assert (await other.occupy("b", call(), slots=2)).verdict == "full"
    assert (await one.occupy("d", call(), slots=3)).verdict == "granted"


async def test_worker_that_leaves_takes_nothing_of_others(scene: SharedScene) -> None:
    """What it has is gone for all."""
    one, other = await scene.boxes("w1"), await scene.boxes("w2")
    await one.occupy("a", call(), slots=2)
    await other.occupy("b", call(), slots=2)
    await one.wait([waits("c")])
    await other.wait([waits("d")])
    await one.leave()
    assert tokens_of(await other.look()) == (["b"], ["d"])


# ---------------------------------------------------------------------- time


@pytest.mark.parametrize("offset", [-(10**9), 10**9])
async def test_clock_of_a_worker_means_nothing(valkey_url: str, monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    """Thirty years off: its calls hold their slots for a lease, as everybody's."""
    async with shared_scene(valkey_url) as scene:
        boxes = await scene.boxes()
        seconds, _ = await scene.client.time()
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + offset)  # the lease would be over, or never be
        await fill(boxes)
        picture = await boxes.look()
        assert tokens_of(picture) == (["t1"], ["t2"])
        for until_ms in (picture.calls[0].until_ms, picture.waiting[0].until_ms):
            assert 0 <= until_ms - (seconds + LEASE_SECONDS) * 1000 < 5_000
        await scene.pass_time(LEASE_SECONDS + 1)
        assert tokens_of(await boxes.look()) == ([], [])


async def test_all_keys_go_with_the_last_worker(scene: SharedScene) -> None:
    """Leases with the leases, reports a day later; renewing keeps them."""
    boxes = await scene.boxes()
    await fill(boxes)
    for key in HASHES:
        assert 0 < await scene.client.pttl(key) <= (86_400 if key == KEYS.boxes else LEASE_SECONDS) * 1000
    for key in (KEYS.box_calls, KEYS.box_waiting):
        await scene.client.pexpire(key, 5_000)
    assert await boxes.renew(["t1", "t2"]) == []
    for key in (KEYS.box_calls, KEYS.box_waiting):
        assert await scene.client.pttl(key) > 5_000


async def test_what_has_ended_is_removed_when_it_is_met(scene: SharedScene) -> None:
    """Nothing is gathered there."""
    boxes = await scene.boxes()
    await fill(boxes)
    await scene.pass_time(86_401)
    await boxes.look()
    assert await scene.client.exists(*HASHES) == 0


async def test_full_server_still_renews(valkey_url: str) -> None:
    """Else slots of living workers would be given away where memory is short."""
    async with shared_scene(valkey_url) as scene:
        boxes = await scene.boxes()
        await fill(boxes)
        await scene.pass_time(LEASE_SECONDS - 10)
        await scene.client.config_set("maxmemory", "1")
        try:
            async with asyncio.timeout(5):
                assert await boxes.renew(["t1", "t2"]) == []
                await scene.client.config_set("maxmemory", "0")
        finally:
            await scene.client.config_set("maxmemory", "0")
        await scene.pass_time(LEASE_SECONDS - 10)
        assert tokens_of(await boxes.look()) == (["t1"], ["t2"])


# ---------------------------------------------------------------------- junk


def text(until_ms: Any, **more: Any) -> str:
    """A field as others may have written it."""
    return f'{{"until_ms":{until_ms},' + json.dumps(more)[1:]


def junk_at(now_ms: int) -> dict[str, str | bytes]:
    """What no worker has written, by name."""
    holds = now_ms + 20_000
    whole = {"lane": "low", "box": "attic", "began_ms": now_ms, "since_ms": now_ms}
    return {
        "empty": "", "no json": "x", "no object": "[]", "binary": b"\xff\x00", "null": "null", "endless": text(10**15, **whole),
        "beyond all numbers": text("9" * 400, **whole), "negative": text(-5, **whole), "fraction": text(f"{holds}.5", **whole),
        "text": text(f'"{holds}"', **whole), "ended": text(now_ms - 1, **whole), "another order": json.dumps({**whole, "until_ms": holds}),
        "half": text(holds, **whole)[:-9], "deep": f'{{"until_ms":{holds},"box":' + "[" * 20_000,
        "long": text(holds, **whole, note="x" * 100_000), "no box": text(holds, lane="low", began_ms=1),
        "box of another type": text(holds, lane="low", began_ms=1, box=7), "lane that is none": text(holds, **{**whole, "box": "z", "lane": "fast"}),
        "no utf-8": text(holds, **{**whole, "box": "z"}).encode() + b"\xff", "resident": text(holds, resident=7, fresh_until_ms="x"),
        "endless numbers": text(holds, load_seconds={"m": 1, "n": 2})[:-2] + "e999}}",
    }  # fmt: skip


async def test_junk_is_nobodys_and_in_nobodys_way(scene: SharedScene) -> None:
    """In all three hashes at once: no verb raises, no slot is taken by it, nothing of it is told."""
    boxes = await scene.boxes()
    seconds, _ = await scene.client.time()
    junk = junk_at(seconds * 1000)
    await fill(boxes)
    for key in HASHES:
        await scene.client.hset(key, mapping=junk)
    picture = await boxes.look()
    assert tokens_of(picture) == (["t1"], ["t2"])
    assert set(picture.boxes) == {"attic"}
    gone = {
        b"empty",
        b"no json",
        b"endless",
        b"beyond all numbers",
        b"negative",
        b"fraction",
        b"text",
        b"ended",
        b"long",
    }
    for key in (KEYS.box_calls, KEYS.box_waiting):
        assert not gone & set(await scene.client.hkeys(key))
    for key in HASHES:
        await scene.client.hset(key, mapping=junk)
    assert (await boxes.occupy("t3", call(), slots=2)).verdict == "granted"
    assert (await boxes.occupy("t4", call(), slots=2)).verdict == "full"
    assert await boxes.renew(["t1", "ended", "empty", "binary"]) == ["ended", "empty", "binary"]
    await boxes.wait([waits("ended"), waits("empty")])
    await boxes.release("no json", "binary")
    for name in junk:
        await boxes.report(name, REPORT)
    await boxes.leave()
    picture = await boxes.look()
    assert tokens_of(picture) == ([], [])
    assert all((picture.boxes[name].resident or {})["m"].bytes == 5 for name in junk)


async def test_report_is_merged_with_whatever_stands_there(scene: SharedScene) -> None:
    """Of numbers that are none, and of tables that are none, nothing is left."""
    boxes = await scene.boxes()
    seconds, _ = await scene.client.time()
    known = {"a": 1.5, "b": "x", "c": -1, "d": None, "e": [1], "f" * 300: 2}
    stands = text(
        seconds * 1000 + 50_000, fresh_until_ms=seconds * 1000 + 50_000, down_until_ms="x", resident={"m": 7, "n": {}},
        loading=[1, 2], load_seconds=known, tokens_per_second="fast",
    )  # fmt: skip
    await scene.client.hset(KEYS.boxes, "attic", stands)
    await boxes.report("attic", REPORT)
    seen = (await boxes.look()).boxes["attic"]
    assert seen.load_seconds.keys() - {"f" * 300} == {"a", "m"}
    assert (seen.tokens_per_second, set(seen.loading), set(seen.resident or {})) == ({"m": 20.5}, {"n"}, {"m"})


@pytest.mark.parametrize("key", HASHES)
async def test_key_of_another_type_is_told_and_left_alone(scene: SharedScene, key: str) -> None:
    """What needs it is not kept, and says so; the rest is as ever; and all is well when it is gone."""
    boxes = await scene.boxes()
    await scene.client.set(key, "mine")
    verdict = (await boxes.occupy("t1", call(), slots=1)).verdict
    assert verdict == ("unkept" if key == KEYS.box_calls else "granted")
    assert ("WRONGTYPE" in str(boxes.refusal) or "type" in str(boxes.refusal)) is (verdict == "unkept")
    await boxes.wait([waits("t2")])
    assert (boxes.refusal is not None) is (key == KEYS.box_waiting)
    await boxes.report("attic", REPORT)
    assert (boxes.refusal is not None) is (key == KEYS.boxes)
    picture = await boxes.look()
    assert boxes.refusal is None
    assert tokens_of(picture) == ([] if key == KEYS.box_calls else ["t1"], [] if key == KEYS.box_waiting else ["t2"])
    assert set(picture.boxes) == (set() if key == KEYS.boxes else {"attic"})
    await boxes.wait([waits("t1")])
    await boxes.renew(["t1", "t2"])
    await boxes.release("t1", "t2")
    await boxes.leave()
    assert (await scene.client.get(key), await scene.client.pttl(key)) == (b"mine", -1)
    await scene.client.delete(key)
    await fill(boxes)
    assert tokens_of(await boxes.look()) == (["t1"], ["t2"])


async def test_what_is_kept_of_waiting_calls_and_boxes_is_bounded(scene: SharedScene) -> None:
    """Those that are known are refreshed; a further one is kept as soon as another has ended."""
    boxes = await scene.boxes()
    await boxes.look()
    pipe = scene.pipes[0]

    async def wait(*tokens: str) -> Any:
        entries = [part for token in tokens for part in (token, 0, '{"lane":"low"}')]
        call = scripts.boxes_wait(
            calls=KEYS.box_calls, waiting=KEYS.box_waiting, lease_ms=30_000, most=2, entries=entries
        )
        return await pipe.run_script(call)

    async def report(box: str) -> Any:
        call = scripts.boxes_report(
            boxes=KEYS.boxes, box=box, fresh_ms=1000, keep_ms=60_000, most=5, most_boxes=2, details=b"{}"
        )
        return await pipe.run_script(call)

    assert [await wait("a", "b", "c"), await wait("a", "b")] == [2, 2]
    assert [await report("a"), await report("b"), await report("c"), await report("a")] == [1, 1, 0, 1]
    await scene.pass_time(61)
    assert [await wait("c", "d", "e"), await report("c"), await report("d"), await report("e")] == [2, 1, 1, 0]


# ---------------------------------------------------------------------- rights


RULES = next(
    line for line in (ROOT / "systemd" / "users.acl").read_text("utf-8").splitlines() if line.startswith("user daemon ")
).split()[2:]


async def test_daemon_may_do_all_of_it_and_needs_its_keys(valkey_url: str) -> None:
    """With the rights that we ship; with an ACL of before, nothing is kept, which is told, and nothing raises."""
    before = [rule for rule in RULES if not rule.startswith("~llm:boxes")]
    assert len(RULES) - len(before) == len(HASHES)
    async with shared_scene(valkey_url) as scene:
        await scene.client.execute_command("ACL", "SETUSER", "daemon", *RULES, ">pw")
        try:
            boxes = await scene.boxes(url=valkey_url.replace("unix://", "unix://daemon:pw@"))
            await fill(boxes)
            assert await boxes.renew(["t1", "t2"]) == []
            assert boxes.refusal is None
            await boxes.release("t1")
            await scene.client.execute_command("ACL", "SETUSER", "daemon", "resetkeys", *before)
            assert (await boxes.occupy("t3", call(), slots=1)).verdict == "unkept"
            assert boxes.refusal is not None
            picture = await boxes.look()
            assert (tokens_of(picture), picture.boxes) == (([], []), {})
            await fill(boxes)
            assert await boxes.renew(["t1"]) == []
            await boxes.release("t1")
            await boxes.leave()
            await scene.client.execute_command("ACL", "SETUSER", "daemon", *RULES)
            assert (await boxes.occupy("t3", call(), slots=1)).verdict == "granted"
            assert boxes.refusal is None
        finally:
            await scene.client.execute_command("ACL", "DELUSER", "daemon")
