"""What a worker is doing at the moment of a scrape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.routing.health import DeploymentHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What the worker knows at the moment of a scrape.

    Attributes:
        in_flight: requests.
        held_up: calls that wait for what this process lacks.
        runs_waiting_tool, runs_waiting_person: runs that wait for a tool's answer; for a person's word.
        lag_by_lane: entries that no worker has read yet; a lane whose lag Redis cannot tell is left out.
        handed_back_by_lane: entries that wait for another worker than the one that was given them.
        loop_lag_seconds: how late the event loop runs.
        deployments: from `Health.states`.
        chains: by name, whether any deployment of it can answer under this configuration.
    """

    in_flight: int = 0
    held_up: int = 0
    runs_waiting_tool: int = 0
    runs_waiting_person: int = 0
    lag_by_lane: Mapping[str, int] | None = None
    handed_back_by_lane: Mapping[str, int] | None = None
    loop_lag_seconds: float | None = None
    deployments: Mapping[str, DeploymentHealth] | None = None
    chains: Mapping[str, bool] | None = None
