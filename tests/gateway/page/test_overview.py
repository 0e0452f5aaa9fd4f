"""What the page shows, made of what Redis tells."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from llm_routerd.client import LaneState, Running, Survey
from llm_routerd.config.tree import Chain, Config, Deployment
from llm_routerd.gateway.admission import Caller
from llm_routerd.gateway.overview import Overview, Today, overview
from llm_routerd.gateway.tally import RECENT, Sums, Tally
from llm_routerd.protocol.examples import METRICS_EVENTS
from llm_routerd.protocol.keys import LANES

ANYBODY = Caller()
MIDNIGHT, NOW_MS = 1_000_000.0, 1_000_060_000
CONFIG = Config(
    deployments={
        "local": Deployment(name="local", model="ollama/tiny", local=True),
        "cloud": Deployment(name="cloud", model="anthropic/big"),
        "keyless": Deployment(name="keyless", model="openai/big", key_missing="OPENAI_API_KEY"),
    },
    chains={"default": Chain(name="default", deployments=("local", "cloud"))},
)


def lanes(running: int = 0) -> tuple[LaneState, ...]:
    """All of them, with as many running in each."""
    return tuple(
        LaneState(lane=lane, has_group=True, waiting=0, running=running, workers=frozenset()) for lane in LANES
    )


def attempt(deployment: str = "local", code: str | None = None, latency_ms: int = 100) -> dict[str, Any]:
    """Of a metrics event."""
    outcome = "rejected" if code else "success"
    return {"deployment": deployment, "model": "m", "outcome": outcome, "code": code, "latency_ms": latency_ms}


def event(*attempts: dict[str, Any], at: float = 1, **more: Any) -> bytes:
    """A metrics event so many seconds after midnight."""
    return json.dumps({"timestamp": MIDNIGHT + at, "type": "result", "attempts": attempts, **more}).encode()


def survey(**told: Any) -> Survey:
    """One look."""
    return Survey(**{"server_ms": NOW_MS, "letters": 0, "workers": {}, "oldest": {}, "running": (), **told})


def running(request_id: str, **told: Any) -> Running:
    """A request that runs."""
    usual = {"entry": "1000050000-0", "lane": "normal", "worker": "w1", "idle_ms": 1, "deliveries": 1}
    return Running(
        **{**usual, "deployment": "local", "model": "m", "last": "token", "calls": (), **told}, request_id=request_id
    )


def tally_of(*events: bytes) -> Tally:
    """Of these."""
    tally = Tally(tuple(CONFIG.deployments), MIDNIGHT)
    for each in events:
        tally.feed(each)
    return tally


def seen(*surveys: Survey, tally: Tally | None = None, caller: Caller = ANYBODY, busy: int = 0) -> Overview:
    """What a caller sees."""
    return overview(surveys or (survey(),), lanes(busy), tally or tally_of(), CONFIG, caller)


def states(*events: bytes) -> dict[str, str]:
    """By deployment."""
    return {each.name: each.state for each in seen(tally=tally_of(*events)).deployments}


def test_a_deployment_without_calls_says_so() -> None:
    """And one whose key is missing that."""
    assert states() == {"local": "none", "cloud": "none", "keyless": "disabled"}


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (None, "answering"),
        ("connect", "failing"),
        ("timeout", "failing"),
        ("refusal", "rejected"),
        ("schema_violation", "rejected"),
        ("cooldown", "cooling"),
        ("busy", "none"),
        ("of another version", "failing"),
    ],
)
def test_the_last_call_says_how_a_deployment_does(code: str | None, state: str) -> None:
    """By whose fault it was that it came to nothing."""
    assert states(event(attempt(code=code)))["local"] == state


def test_a_state_has_lasted_since_its_first_call() -> None:
    """Of those in a row, also of more than are kept."""
    tally = tally_of(event(attempt(code="connect"), at=1))
    for second in range(2, RECENT + 9):
        tally.feed(event(attempt(latency_ms=second), at=second))
    local = seen(tally=tally).deployments[0]
    assert (local.state, local.since) == ("answering", MIDNIGHT + 2)
    assert (local.answers, len(local.recent), local.code) == (RECENT, RECENT, None)


def test_what_a_deployment_is_left_alone_for_stays_told() -> None:
    """It is no call of its own."""
    local = seen(tally=tally_of(event(attempt(code="connect")), event(attempt(code="cooldown")))).deployments[0]
    assert (local.state, local.code, local.recent) == ("cooling", "connect", ("connect",))


def test_the_median_is_that_of_answers() -> None:
    """What failed took as long as it was waited for."""
    told = [attempt(latency_ms=ms) for ms in (10, 20, 900)] + [attempt(code="timeout", latency_ms=99_999)]
    assert seen(tally=tally_of(event(*told))).deployments[0].median_ms == 20


def test_sums_are_of_today() -> None:
    """Whatever else is known; what is no event is passed over."""
    used = {"local": {"prompt_tokens": 10, "completion_tokens": 5, "cost_usd": 0.0, "unpriced_calls": 0}}
    paid = {"cloud": {"prompt_tokens": 1, "completion_tokens": 2, "cost_usd": 0.5, "unpriced_calls": 1}}
    sums = tally_of(
        event(at=-1, usage_by_deployment=used),
        event(usage_by_deployment=used, saved_usd=0.25),
        event(usage_by_deployment={**used, **paid}, type="error"),
        event(type="cancelled"),
        b"no event",
        b'{"timestamp": "no"}',
        b"",
    ).sums(ANYBODY)
    assert msgspec.to_builtins(sums) == {
        "requests": 3,
        "answered": 1,
        "failed": 1,
        "cancelled": 1,
        "prompt_tokens": 21,
        "completion_tokens": 12,
        "cost_usd": 0.5,
        "unpriced_calls": 1,
        "saved_usd": 0.25,
    }


def test_a_new_day_begins_at_nothing() -> None:
    """The deployments are as they were."""
    tally = tally_of(event(attempt()))
    tally.known_since = MIDNIGHT + 1
    tally.begin_day(MIDNIGHT)
    assert seen(tally=tally).today == Today(
        midnight=MIDNIGHT, known_since=MIDNIGHT + 1, sums=Sums(requests=1, answered=1)
    )
    tally.begin_day(MIDNIGHT + 86_400)
    assert seen(tally=tally).today == Today(midnight=MIDNIGHT + 86_400, known_since=None, sums=Sums())
    assert tally.courses["local"].state == "answering"


def test_the_protocols_own_example_is_read() -> None:
    """Whatever else a metrics event holds."""
    example = METRICS_EVENTS[0]
    tally = Tally(tuple(each["deployment"] for each in example["attempts"]), example["timestamp"])
    tally.feed(msgspec.json.encode(example))
    assert tally.sums(ANYBODY).requests == 1
    assert all(course.state != "none" for course in tally.courses.values())


def test_a_tenant_sees_his_own_beside_lanes_and_deployments() -> None:
    """Ids say whose a request is; a name that another's begins with is not his."""
    surveys = (
        survey(letters=3, workers={"w1": b'{"lease_ms":1,"until_ms":9000000000,"models":["m"]}'}),
        survey(running=(running("ada:1"), running("adam:2"), running("3"), running("ada:4", deployment=""))),
    )
    tally = tally_of(event(attempt(), tenant_id="ada", saved_usd=1), event(attempt(), tenant_id="adam", saved_usd=2))
    ada = seen(*surveys, tally=tally, caller=Caller(tenant="ada"))
    assert [each.id for each in ada.running] == ["ada:1", "ada:4"]
    assert (ada.workers, ada.dead_letters, ada.more_running) == (None, None, 0)
    assert (ada.today.sums.requests, ada.today.sums.saved_usd) == (1, 1)
    assert ada.deployments[0].answers == 2
    assert seen(*surveys, tally=tally, caller=Caller(tenant="nobody")).today.sums.requests == 0
    everybody = seen(*surveys, tally=tally)
    assert (len(everybody.running), everybody.dead_letters, everybody.today.sums.saved_usd) == (4, 3, 3)


def test_who_has_no_key_sees_nothing_of_those_who_have_one() -> None:
    """Their tenants are others'."""
    anonymous = Caller(others=frozenset({"ada"}))
    surveys = survey(running=(running("ada:1"), running("adam:2"), running("3")))
    tally = tally_of(event(tenant_id="ada"), event(tenant_id="adam"), event())
    found = seen(surveys, tally=tally, caller=anonymous)
    assert [each.id for each in found.running] == ["adam:2", "3"]
    assert found.today.sums.requests == 2


def test_tenants_without_a_key_are_kept_apart_up_to_a_bound() -> None:
    """A request may name any: all together are counted, and who can ask for his own still can."""
    tally = Tally((), MIDNIGHT, tenants=("ada",))
    for number in range(3_000):
        tally.feed(event(tenant_id=f"made-up-{number}"))
    tally.feed(event(tenant_id="ada"))
    assert len(tally._by_tenant) < 1_010
    assert tally.sums(ANYBODY).requests == 3_001
    assert tally.sums(Caller(tenant="ada")).requests == 1
    assert tally.sums(Caller(others=frozenset({"ada"}))).requests == 3_000


def test_what_a_request_may_name_is_told() -> None:
    """Chains and deployments."""
    assert seen().models == ("default", "local", "cloud", "keyless")


def test_the_oldest_of_all_shards_is_told() -> None:
    """Each by its own server's clock."""
    found = seen(
        survey(oldest={"normal": "1000055000-0"}), survey(server_ms=NOW_MS + 900, oldest={"normal": "1000054000-7"})
    )
    assert [lane.oldest_ms for lane in found.lanes] == [None, 6900, None]


def test_what_is_beyond_the_list_is_counted() -> None:
    """What was handed back counts as running in a lane, and is not listed: of a short list nothing is said."""
    many = tuple(running(str(number)) for number in range(Survey.most_running))
    assert seen(survey(running=many), busy=60).more_running == 10
    assert seen(survey(running=many[:3]), busy=60).more_running == 0


def test_a_call_that_waits_for_a_person_shows_its_arguments_as_they_stand() -> None:
    """Digits beyond a float's are what the person agrees to."""
    call = b'{"call_id":"c1","name":"pay","turn":2,"arguments":{"cents": 90071992547409931},"args_sha256":"ab"}'
    cut = b'{"call_id":"c2"}'
    found = seen(survey(running=(running("r1", calls=(call, b"{}", b"nonsense", cut)),)))
    assert [(each.id, each.call_id, each.arguments) for each in found.confirmations] == [
        ("r1", "c1", '{"cents": 90071992547409931}'),
        ("r1", "c2", None),
    ]
    assert found.confirmations[0].args_sha256 == "ab"
    assert [each.calls_waiting for each in found.running] == [2]


def test_workers_that_live_are_told() -> None:
    """With what runs there; nonsense in the registry is passed over."""
    lives = json.dumps({"lease_ms": 1, "until_ms": NOW_MS, "models": ["b", "a"]}).encode()
    gone = json.dumps({"lease_ms": 1, "until_ms": NOW_MS - 1, "models": []}).encode()
    found = seen(
        survey(workers={"w1": lives, "w2": gone, "w3": b"x"}, running=(running("r1"),)), survey(workers={"w1": lives})
    )
    assert found.workers is not None
    assert [(each.name, each.models, each.running) for each in found.workers] == [("w1", ("a", "b"), 1)]
