"""From the fields of an entry to a request that may be run, under one configuration.  Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.worker.gates import GATES, Asked

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.parsing import RequestParser
    from llm_routerd.protocol.request import Request, RequestError
    from llm_routerd.queue.deliveries import Delivery
    from llm_routerd.running.resources import Resources
    from llm_routerd.worker.gates import Refusal
    from llm_routerd.worker.placement import Placement


class Admission:
    """What decides on entries; a reload puts another in its place, and what has been admitted keeps its `resources`.

    Attributes:
        resources: for the requests that pass.
    """

    def __init__(self, parser: RequestParser, resources: Resources) -> None:
        self._parser = parser
        self.resources = resources

    @property
    def config(self) -> Config:
        """The tree in force."""
        return self.resources.config

    def read(self, delivery: Delivery) -> Request | RequestError:
        """The request in an entry, or why it is none."""
        return self._parser.parse(delivery.entry, delivery.fields)

    def refusal_of(self, request: Request, delivery: Delivery, placement: Placement) -> Refusal | None:
        """Why it may not be run, from where it stands; None: it may."""
        asked = Asked(request, delivery.entry, delivery.deliveries, placement, self.config)
        return next((refusal for gate in GATES if (refusal := gate(asked)) is not None), None)
