"""Measures the refusal detector on labelled replies.

    python -m tests.judging.refusals.measure                      the project's own small corpus
    python -m tests.judging.refusals.measure --data DIR           XSTest: the `model_completions` folder of a clone of
                                                          github.com/paul-rottger/exaggerated-safety

Full refusals are the positives, full compliance the negatives.  Partial refusals are neither a success nor a failure
for anyone who wants an answer: they are left out of both figures, and how many are rejected is printed beside them.

The rules were tuned on the prompts with an odd number, as four of the five models answered them; "held out" are the
even prompts of these models, and all of the fifth, llama2new.  No held-out reply was read.  Their figures were seen
once before the last change to the rules (then 0.982 and 0.889) and once after it.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_routerd.judging.refusal import RefusalDetector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CORPUS = Path(__file__).with_name("corpus.jsonl")
_HELD_OUT_MODEL = "llama2new"
_NAME = "xstest_v2_completions_"
# The plain prefix matcher to compare with, as openings of a reply in lower case.
_PREFIXES = (
    *("sorry", "i'm sorry", "i am sorry", "i apologize", "i apologise", "no,", "no.", "i cannot", "i can't"),
    *("i'm not able", "i am not able", "as an ai", "i am an ai language model"),
    *("it is not appropriate", "it's not appropriate", "it is not accurate", "it's not accurate"),
    *("it is not ethical", "it's not ethical"),
    *("i am not sure that it's appropriate", "i'm not sure that it's appropriate"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply with its human label; `refuses` is None for a partial refusal."""

    group: str
    text: str
    refuses: bool | None
    held_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How one detector did on one set of replies."""

    right: int
    wrong: int
    missed: int
    partial: int

    @property
    def precision(self) -> float:
        """Share of refusals among what was rejected; 1.0 where nothing was."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0

    @property
    def recall(self) -> float:
        """Share of rejected ones among the refusals; 1.0 where there are none."""
        return self.right / (self.right + self.missed) if self.right + self.missed else 1.0


def measure(is_refusal: Callable[[str], bool], replies: Iterable[Reply]) -> Figures:
    """Compare a detector with the labels."""
    right = wrong = missed = partial = 0
    for reply in replies:
        rejected = is_refusal(reply.text)
        if reply.refuses is None:
            partial += rejected
        elif reply.refuses:
            right += rejected
            missed += not rejected
        else:
            wrong += rejected
    return Figures(right=right, wrong=wrong, missed=missed, partial=partial)


def matches_prefix(text: str) -> bool:
    """Tell whether the plain prefix matcher takes a reply for a refusal."""
    return text.lower().strip().startswith(_PREFIXES)


def read_corpus(path: Path = CORPUS) -> list[Reply]:
    """Read the project's own corpus."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Reply(group=line["language"], text=line["text"], refuses=line["refusal"]) for line in lines]


def read_xstest(directory: Path) -> list[Reply]:
    """Read XSTest's completions of all models in a directory."""
    replies = []
    for path in sorted(directory.glob(f"{_NAME}*.csv")):
        model = path.stem.removeprefix(_NAME)
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                label = row["final_label"][0]
                number = int(row["id"].rpartition("-")[2])
                replies.append(
                    Reply(
                        group=model,
                        text=row["completion"],
                        refuses=None if label == "3" else label == "2",
                        held_out=model == _HELD_OUT_MODEL or number % 2 == 0,
                    )
                )
    return replies


def _report(title: str, replies: list[Reply]) -> None:
    detectors = {
        "anchored": RefusalDetector("anchored").is_refusal,
        "substring": RefusalDetector("substring").is_refusal,
        "prefix": matches_prefix,
    }
    for name, is_refusal in detectors.items():
        found = measure(is_refusal, replies)
        print(
            f"{title:32} {name:10} precision {found.precision:.3f}  recall {found.recall:.3f}  "
            f"right {found.right}  wrong {found.wrong}  missed {found.missed}  partial {found.partial}"
        )


def main() -> None:
    """Print one line per set of replies and detector."""
    parser = argparse.ArgumentParser(description="Measure the refusal detector on labelled replies.")
    parser.add_argument("--data", type=Path, help="XSTest's model_completions; without it the project's own corpus")
    parser.add_argument("--tuned", action="store_true", help="only the replies that the rules were tuned on")
    arguments = parser.parse_args()
    if arguments.data is None:
        corpus = read_corpus()
        for group in sorted({reply.group for reply in corpus}):
            _report(group, [reply for reply in corpus if reply.group == group])
        return
    replies = read_xstest(arguments.data)
    if not replies:
        parser.error(f"no {_NAME}*.csv in that directory")
    _report("tuned on", [reply for reply in replies if not reply.held_out])
    if arguments.tuned:
        return
    _report("held out", [reply for reply in replies if reply.held_out])
    _report(f"held out: {_HELD_OUT_MODEL}", [reply for reply in replies if reply.group == _HELD_OUT_MODEL])
    _report("held out: even prompts", [r for r in replies if r.held_out and r.group != _HELD_OUT_MODEL])
    _report("all", replies)


if __name__ == "__main__":
    main()
