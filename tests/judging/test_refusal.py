from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from llm_routerd.judging.refusal import INHERITED_PATTERNS, RefusalDetector
from llm_routerd.protocol.codes import AttemptCode
from tests.judging.refusals.measure import Reply, matches_prefix, measure, read_corpus

if TYPE_CHECKING:
    from llm_routerd.judging.refusal_mode import RefusalMode

CORPUS = read_corpus()
ANCHORED = RefusalDetector("anchored")


def streamed(detector: RefusalDetector, text: str, size: int) -> bool:
    """Judge a reply as a stream does."""
    watch = detector.watch()
    assert watch is not None
    for position in range(0, len(text), size):
        if watch.feed(text[position : position + size]) is not None:
            return True
        if watch.done:
            return False
    return watch.finish() is not None


def test_corpus_is_judged_well() -> None:
    """The project's own replies, most of them picked to be hard, and better than the prefix matcher does."""
    found = measure(ANCHORED.is_refusal, CORPUS)
    prefix = measure(matches_prefix, CORPUS)
    assert found.precision >= 0.97
    assert found.recall >= 0.97
    assert found.precision > prefix.precision
    assert found.recall > prefix.recall


@pytest.mark.parametrize("language", ["en", "pl", "de"])
def test_corpus_holds_both_kinds_in_each_language(language: str) -> None:
    """Figures mean something only where there are refusals and answers."""
    labels = [reply.refuses for reply in CORPUS if reply.group == language]
    assert labels.count(True) >= 5
    assert labels.count(False) >= 5


@pytest.mark.parametrize("size", [1, 4, 30])
@pytest.mark.parametrize("mode", ["anchored", "substring"])
def test_stream_and_whole_reply_get_the_same_verdict(mode: RefusalMode, size: int) -> None:
    """However a reply is cut, and whatever follows it, nothing changes."""
    detector = RefusalDetector(mode)
    for reply in CORPUS:
        for text in (reply.text, f"{reply.text}\n\nMore on that is in the books. And so on."):
            assert streamed(detector, text, size) == detector.is_refusal(text), text


@pytest.mark.parametrize("pattern", INHERITED_PATTERNS)
def test_substring_finds_each_inherited_phrase_anywhere(pattern: str) -> None:
    """In any case, in the middle of a long reply, split over pieces."""
    detector = RefusalDetector("substring")
    text = "All is well. " * 50 + f"Then he said: {pattern.upper()} and went. " + "The end. " * 50
    assert detector.is_refusal(text)
    assert streamed(detector, text, 3)
    assert not streamed(detector, text.replace(pattern.upper(), "nothing"), 3)


@pytest.mark.parametrize("mode", ["structured", "off"])
def test_text_is_never_a_refusal_in_the_other_modes(mode: RefusalMode) -> None:
    """There is nothing to watch."""
    detector = RefusalDetector(mode, ["no way"])
    assert detector.watch() is None
    assert not detector.is_refusal("I cannot help with that.")


def test_patterns_of_the_operator_are_added() -> None:
    """Anchored ones open a sentence near the start, after an apology too; substrings stand anywhere."""
    anchored = RefusalDetector("anchored", ["Quoth the Raven"])
    assert anchored.is_refusal("Sorry, quoth the raven. Nevermore.")
    assert anchored.is_refusal("I can't help with that.")
    assert not anchored.is_refusal("It is a poem. In it, quoth the raven nevermore.")
    assert RefusalDetector("substring", ["Quoth the Raven"]).is_refusal("In it, QUOTH THE RAVEN nevermore.")


def test_verdict_comes_before_the_reply_ends() -> None:
    """A refusal ends the attempt when its sentence and the beginning of the next have passed."""
    watch = ANCHORED.watch()
    assert watch is not None
    rejection = watch.feed("I can't help with that. " + "Please talk to a professional about it. ")
    assert rejection is not None
    assert rejection.code is AttemptCode.REFUSAL
    assert rejection.early


def test_answer_is_recognised_by_its_first_word() -> None:
    """Most answers are through at once and cost nothing after that."""
    watch = ANCHORED.watch()
    assert watch is not None
    assert watch.feed("The capital ") is None
    assert watch.done


@pytest.mark.parametrize(
    "text",
    [
        "while " * 5000,
        "i am " + "very " * 5000,
        "it is important to note that " * 500,
        '"' * 5000,
        "as an a " * 2000,
        "i " + "\n" * 9000,
        "nie mogę " * 900,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """Repetition cannot make the expressions run away."""
    begin = time.process_time()
    ANCHORED.is_refusal(text)
    streamed(ANCHORED, text, 5)
    assert time.process_time() - begin < 1.0


def test_figures_count_what_they_say() -> None:
    """Precision, recall and partial refusals by hand."""
    replies = [
        Reply(group="", text="no", refuses=True),
        Reply(group="", text="yes", refuses=True),
        Reply(group="", text="no", refuses=False),
        Reply(group="", text="no", refuses=None),
    ]
    found = measure(lambda text: text == "no", replies)
    assert (found.right, found.wrong, found.missed, found.partial) == (1, 1, 1, 1)
    assert found.precision == found.recall == 0.5
