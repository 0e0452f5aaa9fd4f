"""The part of `check` that looks at deployments and chains: who answers, and what is left of each chain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from llm_routerd.backends.factory import Backends
from llm_routerd.cli.check_waking import check_waking, may_sleep
from llm_routerd.cli.findings import Finding, fail, fine, warn
from llm_routerd.protocol.call import ProbeReport
from llm_routerd.routing.chains import deployments_of
from llm_routerd.service.limits import shortage_of_files

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from llm_routerd.config.fleet import Box
    from llm_routerd.config.tree import Chain, Config, Deployment

_PROBE_SECONDS = 6.0
_PROBES_AT_ONCE = 16


class Probe(Protocol):
    """Asks a deployment whether it answers and knows its model."""

    async def __call__(self, name: str) -> ProbeReport:
        """Ask the deployment of this name."""
        ...


async def check_models(config: Config) -> list[Finding]:
    """Every deployment and every chain, in the order of the configuration; takes a few seconds at most."""
    usable = {name: deployment for name, deployment in config.deployments.items() if not deployment.key_missing}
    backends = Backends(usable)
    try:
        unusable = await backends.preload()  # first: what it imports would hold up the probes
        return await judge_models(config, lambda name: backends.get(name).probe(), unusable)
    finally:
        await backends.aclose()


async def judge_models(config: Config, probe: Probe, unusable: Mapping[str, str] | None = None) -> list[Finding]:
    """The findings, by a probe of each deployment that has its key and is not known to be unusable."""
    slots = asyncio.Semaphore(_PROBES_AT_ONCE)

    async def ask(deployment: Deployment) -> tuple[Finding, bool]:
        if unusable and deployment.name in unusable:
            told = f"{deployment.model}: {unusable[deployment.name]}"
            return warn(f"deployment {deployment.name}", told, f"correct [deployments.{deployment.name}]"), False
        async with slots:
            return await _check_deployment(deployment, probe, config.boxes.get(deployment.box or ""))

    asked = await asyncio.gather(*map(ask, config.deployments.values()))
    findings = [finding for finding, _ in asked]
    if (shortage := shortage_of_files(config)) is not None:
        findings.append(warn("open files", shortage, "raise LimitNOFILE= (ulimit -n), or lower daemon.concurrency"))
    findings += _check_boxes(config)
    findings += await check_waking(config)
    working = {name for name, (_, works) in zip(config.deployments, asked, strict=True) if works}
    return findings + [_check_chain(chain, config, working) for chain in config.chains.values()]


def _check_boxes(config: Config) -> list[Finding]:
    """Boxes of which too little is said."""
    findings = []
    for name, box in config.boxes.items():
        there = [each for each in config.deployments.values() if each.box == name]
        if not there:
            findings.append(warn(f"box {name}", "no deployment names it", "add it to `boxes` of one"))
        elif not box.memory_gb and any(each.pin for each in there) and not all(each.pin for each in there):
            told = "how much memory it has is not known, so that beside a model with `pin` no other is ever loaded"
            findings.append(warn(f"box {name}", told, f"give [boxes.{name}] memory_gb"))
    return findings


async def _check_deployment(deployment: Deployment, probe: Probe, box: Box | None) -> tuple[Finding, bool]:
    """What there is to say about a deployment, on its box if it has one, and whether a chain can count on it."""
    subject = f"deployment {deployment.name}"
    if deployment.key_missing:
        missing = f"disabled: its key is missing ({deployment.key_missing})"
        return warn(subject, missing, f"set {deployment.key_missing}, or do without it"), False
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            report = await probe(deployment.name)
    except TimeoutError:
        report = ProbeReport(ok=False, detail=f"no answer within {_PROBE_SECONDS:g} s", is_silent=True)
    if report.is_silent and box is not None and box.wake:
        return may_sleep(subject, f"{deployment.model}: {report.detail}"), True
    if not report.ok:
        place = f"[deployments.{deployment.name}]" if deployment.box is None else f"[boxes.{deployment.box}]"
        remedy = f"start it, or correct {place}"
        # The chain goes on to the next one; a chain with none left is what fails.
        return warn(subject, f"{deployment.model}: {report.detail}", remedy), False
    cold = ", not loaded: the first request waits for that" if report.loaded is False else ""
    return fine(subject, f"{deployment.model}: {report.detail}{cold}"), True


def _check_chain(chain: Chain, config: Config, working: Collection[str]) -> Finding:
    subject = f"chain {chain.name}"
    names = [each.name for each in deployments_of(config, chain)]
    usable = [name for name in names if name in working]
    if not usable:
        return fail(subject, f"nothing usable left of {', '.join(names)}", "see the deployments above")
    left_out = [name for name in names if name not in working]
    return fine(subject, ", ".join(usable) + (f" (without {', '.join(left_out)})" if left_out else ""))
