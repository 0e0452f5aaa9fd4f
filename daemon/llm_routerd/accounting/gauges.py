"""What a worker is doing at the moment of a scrape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_routerd.accounting.exposition import Family
from llm_routerd.routing.circuit import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_routerd.routing.health import DeploymentHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What the worker knows at the moment of a scrape.

    Attributes:
        in_flight: requests.
        held_up: calls that wait for what this process lacks.
        lag_by_lane: entries that no worker has read yet; a lane whose lag Redis cannot tell is left out.
        handed_back_by_lane: entries that wait for another worker than the one that was given them.
        loop_lag_seconds: how late the event loop runs.
        deployments: from `Health.states`.
        chains: by name, whether any deployment of it can answer under this configuration.
    """

    in_flight: int = 0
    held_up: int = 0
    lag_by_lane: Mapping[str, int] | None = None
    handed_back_by_lane: Mapping[str, int] | None = None
    loop_lag_seconds: float | None = None
    deployments: Mapping[str, DeploymentHealth] | None = None
    chains: Mapping[str, bool] | None = None


def gauge_families(gauges: Gauges) -> Iterator[Family]:
    """The gauges as metrics."""
    in_flight = Family("in_flight", "gauge", "Requests being worked on.")
    in_flight.add(gauges.in_flight)
    held_up = Family("calls_held_up", "gauge", "Calls that wait for files or memory that llm-routerd lacks.")
    held_up.add(gauges.held_up)
    lag = Family("lane_lag", "gauge", "Entries of a lane that no worker has read yet.")
    for lane, entries in (gauges.lag_by_lane or {}).items():
        lag.add(entries, lane=lane)
    handed_back = Family(
        "lane_handed_back", "gauge", "Entries of a lane that a worker has handed back and that none has taken up yet."
    )
    for lane, entries in (gauges.handed_back_by_lane or {}).items():
        handed_back.add(entries, lane=lane)
    loop_lag = Family("loop_lag_seconds", "gauge", "How late the event loop runs.")
    if gauges.loop_lag_seconds is not None:
        loop_lag.add(gauges.loop_lag_seconds)
    state = Family("deployment_state", "gauge", "1 for the state that a deployment is in, 0 for the others.")
    calls = Family("deployment_in_flight", "gauge", "Calls to a deployment, waiting for their turn included.")
    ttft = Family("deployment_ttft_seconds", "gauge", "Moving average of a deployment's time to first token.")
    kept_away = Family(
        "deployment_tenants_kept_away", "gauge", "Tenants whose own failures alone keep them from a deployment."
    )
    for name, health in (gauges.deployments or {}).items():
        for each in State:
            state.add(int(health.state is each), deployment=name, state=each.value)
        calls.add(health.in_flight, deployment=name)
        kept_away.add(health.tenants_kept_away, deployment=name)
        if health.ttft_seconds is not None:
            ttft.add(health.ttft_seconds, deployment=name)
    usable = Family("chain_usable", "gauge", "0 for a chain of which no deployment can ever answer (keys, providers).")
    for name, is_usable in (gauges.chains or {}).items():
        usable.add(int(is_usable), chain=name)
    yield from (in_flight, held_up, lag, handed_back, loop_lag, state, calls, kept_away, ttft, usable)
