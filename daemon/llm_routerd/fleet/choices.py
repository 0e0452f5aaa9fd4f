"""What all boxes are for a call, kept until one of them changes: hundreds of calls ask for the same few."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct

from llm_routerd.fleet.affinity import within_bound
from llm_routerd.fleet.options import Asked, Kind, Option, option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_routerd.fleet.estimates import Reckoning
    from llm_routerd.fleet.picture import Place, Rules, Waiting
    from llm_routerd.fleet.standing import Standing


Row = tuple[Option, str, float | None, float, float, float, list[float] | None]


class Choice(Struct, frozen=True, kw_only=True):
    """What there is for calls of the same candidates.

    Attributes:
        options: those boxes left out that are down, or cannot serve it as things are.
        asleep: boxes that would have to be woken, or are being.
        rows: the same, as a plan goes through them for each call: the option, its box's name, tokens/s of answer and
            prompt, `fixed_seconds`, `ready`, and `ends`, or None if a call may begin there at once.
        passable: where others may begin before them.
        within_bound: names of the boxes that have less than their share to do.
    """

    options: list[Option]
    asleep: list[Option]
    rows: list[Row]
    passable: list[Option]
    within_bound: frozenset[str]


class Choices:
    """Of one plan.

    Args:
        boxes: by name.
    """

    def __init__(self, boxes: Mapping[str, Standing], reckoning: Reckoning, rules: Rules, now: float) -> None:
        self._boxes = boxes
        self._reckoning = reckoning
        self._rules = rules
        self._now = now
        self._wanted: Counter[tuple[str, str]] = Counter()
        self._rank = 0
        self._known: dict[tuple[Place, ...], Choice] = {}
        self._options: dict[tuple[str, str], tuple[int, Option | None]] = {}

    def enter(self, rank: int, waiting: Iterable[Waiting]) -> None:
        """The calls of the next lane are to be looked at, in which so many wait."""
        self._rank = rank
        for candidates, number in Counter(call.candidates for call in waiting).items():
            for place in candidates:
                self._wanted[place.box, place.model] += number
        self._known.clear()
        self._options.clear()

    def changed(self) -> None:
        """Something has been planned on a box."""
        self._known.clear()

    def satisfied(self, call: Waiting) -> None:
        """The call waits no more."""
        self._wanted.subtract((place.box, place.model) for place in call.candidates)
        self._known.clear()

    def look(self, call: Waiting, patience: float) -> Choice:
        """What there is for the call."""
        if call.turn is not None:  # what others want may hold less for it
            return self._choice([self.ask(place.box, place.model, patience) for place in call.candidates])
        known = self._known.get(call.candidates)
        if known is None:
            known = self._choice([self._ask_known(place.box, place.model, patience) for place in call.candidates])
            self._known[call.candidates] = known
        return known

    def ask(self, box: str, model: str, patience: float, *, heeds_plans: bool = True) -> Option | None:
        """What the box is for a call that lets others go first for so many seconds more; None: it cannot serve it.

        `heeds_plans`: what is only planned counts: a load, or that the box is woken.
        """
        standing = self._boxes.get(box)
        if standing is None or not (standing.is_up or heeds_plans):
            return None
        asked = Asked(
            rank=self._rank,
            now=self._now,
            rules=self._rules,
            reckoning=self._reckoning,
            patience=patience,
            heeds_plans=heeds_plans,
            wanted=self._wanted,
        )
        return option(standing, model, asked)

    def _ask_known(self, box: str, model: str, patience: float) -> Option | None:
        standing = self._boxes.get(box)
        if standing is None:
            return None
        version, known = self._options.get((box, model), (-1, None))
        if version != standing.version:
            known = self.ask(box, model, patience)
            self._options[box, model] = standing.version, known
        return known

    @staticmethod
    def _choice(found: list[Option | None]) -> Choice:
        every = [each for each in found if each is not None]
        every.sort(key=lambda each: (each.kind, each.standing.name, each.model))
        options = [each for each in every if each.kind is not Kind.ASLEEP]
        among = [each.standing for each in options]
        return Choice(
            options=options,
            asleep=every[len(options) :],  # the last of the kinds
            rows=[_row(each) for each in options],
            passable=[each for each in options if each.kind not in (Kind.QUEUED, Kind.COMING)],
            within_bound=within_bound(among),
        )


def _row(each: Option) -> Row:
    ends = None if each.kind in (Kind.OPEN, Kind.LOAD) else each.ends
    return each, each.standing.name, each.speed, each.reading_speed, each.fixed_seconds, each.ready, ends
