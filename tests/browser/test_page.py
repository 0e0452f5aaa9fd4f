"""The page in a real Chromium, with a gateway that tells what each test has it tell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.gateway.overview import Today, WorkerView
from llm_routerd.gateway.tally import Sums
from llm_routerd.protocol.events import Queued
from tests.browser.gateway import confirmation, deployment, lane, overview, running
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

if TYPE_CHECKING:
    from tests.browser.conftest import Visit, Visits
    from tests.browser.gateway import FakeGateway

HOSTILE = (
    '<img src=x onerror="alert(1)"><script>alert(2)</script><svg onload=alert(3)>'
    '</textarea><a href="javascript:alert(4)">x</a>&lt;b&gt;'
)
RESULT: dict[str, Any] = {
    "deployment": "cloud", "model_used": "anthropic/big", "usage": {"prompt_tokens": 12, "completion_tokens": 7},
    "cost_usd": 0.0021, "latency_ms": 1730, "ttft_ms": 1100, "queue_ms": 3, "attempts": [], "attempt": 2,
}  # fmt: skip


def attempt(number: int, deployment: str, **more: Any) -> tuple[str, str, Any]:
    """The event with which one begins."""
    return f"{number}-0", "attempt", {"deployment": deployment, "model": f"x/{deployment}", **more}


def token(number: int, k: int, text: str) -> tuple[str, str, Any]:
    """Text of one."""
    return f"{number}-{k}", "token", {"text": text}


def rejected(number: int, k: int, code: str, reason: str) -> tuple[str, str, Any]:
    """It is no answer."""
    return f"{number}-{k}", "rejected", {"code": code, "reason": reason, "outcome": "rejected", "latency_ms": 840}


async def ask(seen: Visit, prompt: str) -> None:
    """Try a prompt."""
    await seen.page.get_by_role("textbox", name="Prompt").fill(prompt)
    await seen.page.get_by_role("button", name="Ask").click()


async def test_a_prompt_is_asked_and_its_discarded_attempt_is_seen(visit: Visits, gateway: FakeGateway) -> None:
    """Tokens as they come; what is discarded is struck through with the reason, and folded away at the end."""
    seen = await visit(gateway.url)
    await ask(seen, "How warm is it in Oslo?")
    await seen.page.get_by_role("button", name="Stop").wait_for()
    body = {"prompt": "How warm is it in Oslo?", "model": "default", "stream": "live"}
    assert gateway.asked == [("POST", "/v1/requests", body)]
    await gateway.tell("tried", attempt(1, "local"), token(1, 1, "I cannot "), token(1, 2, "help."))
    await seen.until("#answer .attempt", "I cannot help.")
    await gateway.tell("tried", rejected(1, 3, "refusal", "it begins as a refusal does"), attempt(2, "cloud"))
    await seen.until("#answer .discarded .fate", "refusal, it begins as a refusal does")
    assert await seen.text("#answer .discarded del") == "I cannot help."
    await gateway.tell("tried", token(2, 1, "Minus "), token(2, 2, "three."))
    await seen.until("#answer .attempt:not(.discarded) .text", "Minus three.")
    await gateway.end("tried", "result", content="Minus three.", raw_text="Minus three.", **RESULT)
    await seen.until("#answer [role=status]", "cloud in 1.7 s")
    assert "12 + 7 tokens · $0.0021" in await seen.text("#answer .end")
    assert not await seen.page.locator("#answer .discarded del").is_visible()
    await seen.page.locator("#answer .discarded summary").click()
    assert await seen.page.locator("#answer .discarded del").is_visible()
    await seen.page.get_by_role("button", name="Ask").wait_for()


async def test_text_of_another_attempt_than_the_answers_is_discarded(visit: Visits, gateway: FakeGateway) -> None:
    """A worker that was thought dead may answer, and an attempt begun anew takes the place of the one before."""
    seen = await visit(gateway.url)
    await ask(seen, "x")
    await gateway.tell(
        "tried", attempt(1, "local"), token(1, 1, "first"), attempt(2, "local", delivery=2), token(2, 1, "second")
    )
    await seen.until("#answer .discarded", "another worker began anew")
    await gateway.end(
        "tried", "result", content="first", raw_text="first", **{**RESULT, "attempt": 1, "deployment": "local"}
    )
    await seen.until("#answer .end", "local in")
    await seen.until("#answer .answer > .text", "first")


async def test_an_answer_that_was_not_streamed_is_shown_from_its_end(visit: Visits, gateway: FakeGateway) -> None:
    """Tool calls included."""
    seen = await visit(gateway.url)
    await ask(seen, "x")
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    await gateway.end("tried", "result", content="whole", raw_text="whole", tool_calls=[call], **RESULT)
    await seen.until("#answer .answer > .text", "whole")
    await seen.until("#answer .answer .note", 'weather({"city":"Oslo"})')


async def test_text_that_goes_out_late_may_be_asked_for(visit: Visits, gateway: FakeGateway) -> None:
    """The beginning of an answer is then held back until it has been judged."""
    seen = await visit(gateway.url)
    await seen.page.get_by_label("show text before it is judged").uncheck()
    await seen.page.get_by_label("Model").select_option("fast")
    await ask(seen, "x")
    await eventually(lambda: bool(gateway.asked))
    assert gateway.asked[0][2] == {"prompt": "x", "model": "fast", "stream": True}


async def test_stop_cancels(visit: Visits, gateway: FakeGateway) -> None:
    """And what there is stays to be read."""
    seen = await visit(gateway.url)
    await ask(seen, "x")
    await gateway.tell("tried", attempt(1, "local"), token(1, 1, "half an answer"))
    await seen.until("#answer .text", "half an answer")
    await seen.page.get_by_role("button", name="Stop").click()
    await seen.until("#answer .end", "stopped: cancelled over HTTP")
    assert gateway.asked[-1] == ("DELETE", "/v1/requests/tried", None)
    await seen.page.get_by_role("button", name="Ask").wait_for()
    assert "half an answer" in await seen.text("#answer")


async def test_a_refusal_and_a_failure_are_told(visit: Visits, gateway: FakeGateway) -> None:
    """In the gateway's words."""
    seen = await visit(gateway.url)
    gateway.refusal = (413, "the request is too long")
    await ask(seen, "x")
    await seen.until("#answer [role=alert]", "the request is too long")
    gateway.refusal = None
    await seen.page.get_by_role("button", name="Ask").click()
    await gateway.end("tried", "error", code="chain_exhausted", message="nobody could answer")
    await seen.until("#answer .end.bad", "chain_exhausted: nobody could answer")


async def test_a_dropped_connection_goes_on_where_it_was(visit: Visits, gateway: FakeGateway) -> None:
    """Nothing twice, nothing missed."""
    seen = await visit(gateway.url)
    await ask(seen, "x")
    await gateway.tell("tried", attempt(1, "local"), token(1, 1, "one "))
    await seen.until("#answer .text", "one")
    await gateway.drop()
    await gateway.tell("tried", token(1, 2, "two "), token(1, 3, "three"))
    await seen.until("#answer .text", "three")
    assert await seen.text("#answer .attempt > .text") == "one two three"


async def test_a_run_is_shown_turn_by_turn(visit: Visits, gateway: FakeGateway) -> None:
    """What each says, calls and gets; a turn that stands is discarded by none after it."""
    seen = await visit(gateway.url)
    await ask(seen, "Is it dark?")
    await gateway.tell(
        "tried",
        attempt(1, "local"),
        token(1, 1, "Let me see."),
        ("1-2", "tool_call", {"call_id": "c1", "name": "weather", "arguments": {"city": "Oslo"}}),
        ("1-3", "tool_call", {"call_id": "c2", "name": "lights.on", "arguments": {"room": "hall"}, "confirm": True}),
        ("1-4", "turn", {"turn": 1, "message": {"content": "Let me see."}}),
        ("1-5", "tool_result", {"call_id": "c1", "name": "weather", "result": {"celsius": -3}}),
    )
    await seen.until("#answer .note", 'calls weather {"city":"Oslo"}')
    await seen.until("#answer .note", 'calls lights.on {"room":"hall"}, which a person is to allow')
    await seen.until("#answer .note", 'weather answered {"celsius":-3}')
    await seen.until("#answer .fate", "turn 1 is done")
    await gateway.tell(
        "tried",
        ("1-6", "confirmed", {"call_id": "c2", "by": "ada", "arguments": {"room": "attic"}, "always": True}),
        ("1-7", "tool_result", {"call_id": "c2", "name": "lights.on", "error": "no bulb"}),
        attempt(2, "cloud"),
        token(2, 1, "It is."),
    )
    await seen.until("#answer .note", 'lights.on is allowed by ada, for {"room":"attic"}, for the rest of the run')
    await seen.until("#answer .note", "lights.on failed: no bulb")
    await gateway.end("tried", "result", content="It is.", raw_text="It is.", **RESULT)
    await seen.until("#answer .answer > .text", "It is.")
    assert await seen.text("#answer .attempt:first-child > .text") == "Let me see."
    assert await seen.page.locator("#answer .discarded").count() == 0


async def test_a_run_that_waits_for_a_person_says_so(visit: Visits, gateway: FakeGateway) -> None:
    """And one that waits for a tool."""
    waiting, working = running("r1", last="turn", calls_waiting=2), running("r2", last="turn")
    gateway.seen = overview(running=(waiting, working))
    seen = await visit(gateway.url)
    await seen.until("#running .facts", "local, waits for a person")
    await seen.until("#running .facts", "local, waits for its tools")


async def test_a_confirmation_is_answered(visit: Visits, gateway: FakeGateway) -> None:
    """For the arguments that were shown."""
    until = int((time.time() + 540) * 1000)
    waiting = (confirmation("ada:evening", "call/1", expires_at_ms=until), confirmation("r2", "c2", name="door.open"))
    gateway.seen = overview(confirmations=waiting)
    seen = await visit(gateway.url)
    await seen.until("#confirmations h2", "2 tool calls wait for your word")
    await seen.until("#confirmations .call", '{"room":"hall"}')
    await seen.until("#confirmations .left", "for another 8 min")
    await seen.page.get_by_role("button", name="Allow lights.off").click()
    await seen.until("#confirmations .note", "allowed")
    gateway.seen = overview(confirmations=waiting[1:])
    await seen.page.get_by_role("button", name="Deny door.open").click()
    gateway.seen = overview()
    await seen.until_gone("#confirmations")
    assert gateway.asked == [
        ("POST", "/v1/requests/ada:evening/confirmations/call/1", {"confirm": True, "args_sha256": "ab12"}),
        ("POST", "/v1/requests/r2/confirmations/c2", {"confirm": False, "args_sha256": "ab12"}),
    ]


async def test_a_confirmation_that_does_not_count_says_why(visit: Visits, gateway: FakeGateway) -> None:
    """And may be given again; what cannot be shown cannot be agreed to."""
    gateway.seen = overview(confirmations=(confirmation("r1"), confirmation("r2", name="long", arguments=None)))
    gateway.refusal = (410, "the time is over")
    seen = await visit(gateway.url)
    await seen.page.get_by_role("button", name="Allow lights.off").click()
    await seen.until("#confirmations [role=alert]", "the time is over")
    assert await seen.page.get_by_role("button", name="Allow lights.off").is_enabled()
    assert await seen.page.get_by_role("button", name="Allow long").is_disabled()
    assert await seen.page.get_by_role("button", name="Deny long").is_enabled()


async def test_hostile_text_is_shown_and_nothing_is_executed(visit: Visits, gateway: FakeGateway) -> None:
    """Wherever it stands; `visit` fails where a dialog opens, a script fails or the policy had to step in."""
    gateway.seen = overview(
        lanes=(lane("high"), lane("normal", waiting=1), lane("low")),
        running=(running("r1", deployment=HOSTILE, model=HOSTILE, worker=HOSTILE, last=HOSTILE),),
        confirmations=(confirmation("r1", HOSTILE, name=HOSTILE, arguments=HOSTILE),),
        workers=(WorkerView(name=HOSTILE, models=(HOSTILE,), running=1),),
        deployments=(deployment(HOSTILE, "failing", (HOSTILE, ""), model=HOSTILE, code=HOSTILE),),
        models=(HOSTILE, "default"),
        tenant=HOSTILE,
    )
    await gateway.tell(
        "r1",
        attempt(1, HOSTILE),
        token(1, 1, HOSTILE),
        ("1-2", "tool_call", {"name": HOSTILE, "arguments": {"x": HOSTILE}}),
    )
    seen = await visit(gateway.url)
    await seen.until("#running .text", HOSTILE)
    await ask(seen, HOSTILE)
    await gateway.tell(
        "tried",
        attempt(1, HOSTILE),
        token(1, 1, HOSTILE),
        rejected(1, 2, HOSTILE, HOSTILE),
        ("2-0", "reasoning", {"text": HOSTILE}),
    )
    await seen.until("#answer del", HOSTILE)
    await gateway.end("tried", "result", content=HOSTILE, raw_text=HOSTILE, **{**RESULT, "deployment": HOSTILE})
    await seen.until("#answer .answer > .text", HOSTILE)
    await seen.until("#confirmations pre", HOSTILE)
    assert gateway.asked[0][2]["prompt"] == HOSTILE
    assert await seen.page.locator("main :is(img, script, svg, a)").count() == 0


@pytest.mark.parametrize("data", [None, 3, "text", [], {"text": 3}, {"text": None}, {"deployment": {}, "code": []}])
async def test_events_that_others_have_written_badly_do_no_harm(visit: Visits, gateway: FakeGateway, data: Any) -> None:
    """The rest is shown."""
    seen = await visit(gateway.url)
    await ask(seen, "x")
    kinds = (
        "attempt",
        "token",
        "reasoning",
        "rejected",
        "tool_call",
        "tool_result",
        "confirmed",
        "turn",
        "queued",
        "unknown",
    )
    await gateway.tell("tried", *((f"1-{k}", kind, data) for k, kind in enumerate(kinds)))
    await gateway.tell("tried", attempt(2, "cloud"), token(2, 1, "all is well"))
    await seen.until("#answer .text", "all is well")
    await gateway.tell("tried", ("9007199254740991-0", "result", data))
    await seen.page.get_by_role("button", name="Ask").wait_for()


async def test_what_runs_is_followed_and_goes_when_it_has_ended(visit: Visits, gateway: FakeGateway) -> None:
    """No more at once than leaves the browser a connection for the rest."""
    gateway.seen = overview(running=tuple(running(f"r{number}") for number in range(5)))
    for number in range(5):
        await gateway.tell(f"r{number}", attempt(1, "local"), token(1, 1, f"words of {number}"))
    seen = await visit(gateway.url)
    for number in range(3):
        await seen.until("#running .text", f"words of {number}")
    await eventually(lambda: gateway.followers == 3)
    row = seen.page.locator("#running .request").nth(4)
    await row.get_by_role("button", name="Watch").click()
    await seen.until("#running .text", "words of 4")
    await eventually(lambda: gateway.followers == 3)
    await row.get_by_role("button", name="Hide").click()
    await eventually(lambda: gateway.followers == 2)
    await gateway.end("r1", "result", content="", raw_text="its answer", **RESULT)
    gateway.seen = replace(gateway.seen, running=gateway.seen.running[1:2])
    await seen.until("#running .gone", "r0")
    await seen.until("#running .text", "its answer")
    gateway.seen = overview()
    await seen.until("#running-none", "Nothing is running.")


async def test_cancelling_what_runs_asks_once_more(visit: Visits, gateway: FakeGateway) -> None:
    """It may be somebody else's."""
    gateway.seen = overview(running=(running("r1"),))
    seen = await visit(gateway.url)
    await seen.page.get_by_role("button", name="Cancel").click()
    assert gateway.asked == []
    await seen.page.get_by_role("button", name="Cancel it?").click()
    await eventually(lambda: gateway.asked == [("DELETE", "/v1/requests/r1", None)])


async def test_the_house_is_seen_at_a_glance(visit: Visits, gateway: FakeGateway) -> None:
    """Queue, deployments, the day, workers, dead letters."""
    now = time.time()
    gateway.seen = overview(
        lanes=(lane("high"), lane("normal", 7, 2, 83_000), lane("low", 1204, 0, 4_000_000)),
        deployments=(
            deployment("qwen", "answering", ("",) * 39 + ("timeout",), since=now - 9000),
            deployment("llama", "failing", ("", "connect"), since=now - 75, code="connect"),
            deployment("claude", is_local=False),
            deployment("haiku", "disabled", is_local=False),
            deployment("gpt", "disabled", is_local=False),
        ),
        today=Today(
            midnight=now - 40_000,
            known_since=now - 8000,
            sums=Sums(requests=12_873, answered=12_801, failed=72, cost_usd=1.2345, saved_usd=23.9, prompt_tokens=5),
        ),
        dead_letters=1,
    )
    seen = await visit(gateway.url)
    await seen.until(
        "#summary", "0 running · 1,211 waiting, the oldest for 1 h 6 min · 1 worker · $1.23 today, $23.90 saved"
    )
    assert await seen.text("#lanes tr:nth-child(2)") == "normal\t7\t1 min 23 s\t2"
    await seen.until("#deployments li", "39 of 40, median 840 ms")
    await seen.until("#deployments li", "fails: connect, for 1 min")
    await seen.until("#deployments li", "no calls yet")
    await seen.until("#keyless", "Not asked, for their keys are missing: haiku, gpt.")
    await seen.until("#today", "12,801 answered, 72 failed")
    await seen.until("#today-hint", "what was before is no longer in the metrics stream")
    await seen.until("#dead", "1 dead letter for an operator to look at: llm-routerd dead")


async def test_redis_that_is_away_is_said_and_comes_back(visit: Visits, gateway: FakeGateway) -> None:
    """What was seen before stays, and says of when it is."""
    seen = await visit(gateway.url)
    await seen.until("#link", "live")
    gateway.seen = None
    await seen.until("#link.bad", "the queue cannot be reached now; what is shown is from")
    gateway.seen = overview(running=(running("r1"),))
    await seen.until("#link:not(.bad)", "live")
    await seen.until("#running .id", "r1")


async def test_a_gateway_with_keys_asks_for_one(visit: Visits, gateway: FakeGateway) -> None:
    """It stays in the tab, goes along with whatever is asked, and is forgotten when it is said."""
    gateway.key = "the right one"
    seen = await visit(gateway.url)
    await seen.until("#door", "This gateway wants a key")
    assert not await seen.page.locator("#board").is_visible()
    await seen.page.keyboard.type("a wrong one")
    await seen.page.keyboard.press("Enter")
    await seen.until("#door-hint", "none of this gateway's keys")
    await seen.page.locator("#key").fill("the right one")
    await seen.page.get_by_role("button", name="Enter").click()
    await seen.until("#link", "live")
    await ask(seen, "x")
    await gateway.tell("tried", attempt(1, "local"), token(1, 1, "with a key"))
    await seen.until("#answer .text", "with a key")
    stores = await seen.page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]")
    assert stores == [0, "", 1]
    await seen.page.reload()
    await seen.until("#link", "live")
    await seen.page.get_by_role("button", name="Forget the key").click()
    await seen.until("#door", "This gateway wants a key")
    assert await seen.page.evaluate("sessionStorage.length") == 0


async def test_a_tenant_is_told_whose_requests_are_seen(visit: Visits, gateway: FakeGateway) -> None:
    """Workers and dead letters are none of his business."""
    gateway.seen = overview(tenant="ada", workers=None, dead_letters=None)
    seen = await visit(gateway.url)
    await seen.until("#who", "You see the requests of ada.")
    assert not await seen.page.locator("#workers-section").is_visible()
    assert not await seen.page.locator("#dead").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 820, 1280])
async def test_nobody_scrolls_to_the_side(visit: Visits, gateway: FakeGateway, width: int, scheme: str) -> None:
    """However long the words; and text can be told from its ground."""
    word = "x" * 300
    gateway.seen = overview(
        running=(running(word, deployment=word, worker=word),),
        confirmations=(confirmation("r1", name=word, arguments=word),),
        deployments=(deployment(word, "failing", ("connect",) * 50, model=word, code=word),),
        workers=(WorkerView(name=word, models=(word,), running=1),),
        models=(word,),
    )
    await gateway.tell(word, attempt(1, word), token(1, 1, word), rejected(1, 2, word, word))
    seen = await visit(gateway.url, width=width, height=844, color_scheme=scheme)
    await seen.until("#running .discarded", word)
    await seen.until("#deployments", word)
    assert not await seen.overflows()
    luminance = """selector => {
      const [r, g, b] = getComputedStyle(document.querySelector(selector)).color.match(/[\\d.]+/g).map(Number);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""
    bright = [await seen.page.evaluate(luminance, selector) for selector in ("body", "#summary", "#running .facts")]
    assert all((each > 128) == (scheme == "dark") for each in bright)


async def test_the_keyboard_is_enough(visit: Visits, gateway: FakeGateway) -> None:
    """Everything is reached in the order in which it is read, and is seen to be."""
    gateway.seen = overview(running=(running("r1"),), confirmations=(confirmation("r2"),))
    seen = await visit(gateway.url)
    await seen.until("#running .id", "r1")
    names = []
    for _ in range(12):
        await seen.page.keyboard.press("Tab")
        name, outlined = await seen.page.evaluate(
            "[document.activeElement.id || document.activeElement.textContent, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        names.append(name)
        assert outlined != "none"
        if name == "Cancel":
            break
    assert names == ["Go to the prompt", "Allow", "Deny", "prompt", "model", "early", "ask", "Hide", "Cancel"]
    await seen.page.get_by_role("textbox", name="Prompt").focus()
    await seen.page.keyboard.type("by keyboard")
    await seen.page.keyboard.press("Control+Enter")
    await eventually(lambda: bool(gateway.asked))
    assert gateway.asked[0][2]["prompt"] == "by keyboard"


async def test_what_has_the_focus_keeps_it_when_there_is_news(visit: Visits, gateway: FakeGateway) -> None:
    """A look makes nothing anew that one is about to press."""
    gateway.seen = overview(running=(running("r1"),), confirmations=(confirmation("r2"),))
    seen = await visit(gateway.url)
    await seen.page.get_by_role("button", name="Deny").focus()
    gateway.seen = overview(
        running=(running("r0"), running("r1")), confirmations=(confirmation("r2"), confirmation("r3"))
    )
    await seen.until("#running .id", "r0")
    assert await seen.page.evaluate("document.activeElement.textContent") == "Deny"


async def test_everything_that_one_may_press_has_a_name(visit: Visits, gateway: FakeGateway) -> None:
    """For whoever does not see it."""
    gateway.seen = overview(running=(running("r1"),), confirmations=(confirmation("r2"),))
    seen = await visit(gateway.url)
    await seen.until("#running .id", "r1")
    unnamed = await seen.page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(each => "
        "!(each.textContent.trim() && each.tagName === 'BUTTON') && !each.labels?.length).map(each => each.outerHTML)"
    )
    assert unnamed == []


async def hide(seen: Visit, *, is_hidden: bool) -> None:
    """As if another tab were looked at; there is none in a headless browser."""
    await seen.page.evaluate(
        """isHidden => {
          Object.defineProperty(document, "hidden", {value: isHidden, configurable: true});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )


async def test_a_hidden_page_does_not_look(visit: Visits, gateway: FakeGateway) -> None:
    """It asks for nothing, and looks when it is seen again."""
    seen = await visit(gateway.url)
    await seen.until("#link", "live")
    await hide(seen, is_hidden=True)
    gateway.seen = overview(running=(running("r1"),))
    await seen.page.wait_for_timeout(2500)
    assert await seen.page.locator("#running .id").count() == 0
    await hide(seen, is_hidden=False)
    await seen.until("#running .id", "r1")


async def test_a_hidden_page_holds_no_connection(visit: Visits, gateway: FakeGateway) -> None:
    """All tabs of a browser share six; it goes on where it was when it is seen again."""
    seen = await visit(gateway.url)
    await ask(seen, "x")
    await gateway.tell("tried", attempt(1, "local"), token(1, 1, "one "))
    await seen.until("#answer .text", "one")
    await hide(seen, is_hidden=True)
    await eventually(lambda: gateway.followers == 0)
    await gateway.tell("tried", token(1, 2, "two"))
    await seen.page.wait_for_timeout(1500)
    assert gateway.followers == 0
    await hide(seen, is_hidden=False)
    await seen.until("#answer .text", "two")
    assert await seen.text("#answer .attempt > .text") == "one two"


async def test_a_gateway_that_lets_nobody_in_says_why(visit: Visits, gateway: FakeGateway) -> None:
    """A key would not help."""
    gateway.barred = (421, "this name is none of the gateway's")
    seen = await visit(gateway.url)
    await seen.until("#link.bad", "this name is none of the gateway's")
    assert not await seen.page.locator("#door").is_visible()


def queued(k: int, reason: str, estimated_wait_ms: int | None = None, number: int = 0) -> tuple[str, str, Any]:
    """What it waits for."""
    more = {} if estimated_wait_ms is None else {"estimated_wait_ms": estimated_wait_ms, "at_ms": 1_700_000_000_000}
    return f"{number}-{k}", "queued", {"position": 2, "reason": reason, **more}


async def test_who_waits_is_told_why_until_he_is_answered(visit: Visits, gateway: FakeGateway) -> None:
    """It is no attempt, and what it says is text."""
    seen = await visit(gateway.url)
    await ask(seen, "hi")
    await gateway.tell("tried", queued(1, "2 before you on attic", 20_000))
    await seen.until("#answer .waits", "2 before you on attic, about 20 s")
    await gateway.tell("tried", queued(2, HOSTILE))
    await seen.until("#answer .waits", HOSTILE)
    assert await seen.page.locator("#answer .attempt").count() == 0
    await gateway.tell("tried", attempt(1, "local"), token(1, 1, "Hello"))
    await seen.until("#answer .attempt .text", "Hello")
    waits = seen.page.locator("#answer .waits")
    assert not await waits.is_visible()
    await gateway.tell("tried", rejected(1, 2, "truncated", "cut"), queued(3, "next on attic", number=1))
    await seen.until("#answer .waits", "next on attic")
    assert await waits.is_visible()
    await gateway.end("tried", "error", code="busy", message="nobody")
    await seen.until("#answer .end", "nobody")
    assert not await waits.is_visible()
    assert await seen.page.locator("#answer .attempt").count() == 1


async def test_what_a_running_request_waits_for_is_seen_and_counts_down(visit: Visits, gateway: FakeGateway) -> None:
    """By the server's clock; where it takes longer than was told nobody knows."""
    at_ms = int(time.time() * 1000)
    told: dict[str, Any] = {"position": 2, "reason": "2 before you on attic", "at_ms": at_ms - 10_000}
    gateway.seen = overview(
        running=(
            running("a", last="queued", deployment="", queued=Queued(**told, estimated_wait_ms=600_000)),
            running("b", last="queued", deployment="", queued=Queued(**told, estimated_wait_ms=5_000)),
            running("c", last="queued", deployment=""),
        )
    )
    seen = await visit(gateway.url)
    await seen.until("#running li:nth-child(1) .facts", "2 before you on attic, about 9 min")
    assert (await seen.text("#running li:nth-child(2) .facts")).startswith("2 before you on attic · ")
    assert (await seen.text("#running li:nth-child(3) .facts")).startswith("waits for a box · ")
