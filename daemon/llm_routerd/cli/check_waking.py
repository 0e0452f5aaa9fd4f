"""The part of `check` that looks at boxes that sleep: what can be told of them without waking one."""

from __future__ import annotations

import asyncio
import shutil
import socket
from typing import TYPE_CHECKING

from llm_routerd.cli.findings import Finding, warn

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config


async def check_waking(config: Config) -> list[Finding]:
    """What keeps boxes from being woken, or put to sleep."""
    findings = []
    for name, box in config.boxes.items():
        host, port = box.wake_at
        try:
            if box.wake:
                await asyncio.get_running_loop().getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_DGRAM)
        except OSError as error:
            told = f"it cannot be woken: wake_address has no IPv4 address ({error.strerror or error})"
            findings.append(warn(f"box {name}", told, f"correct [boxes.{name}] wake_address"))
        if box.sleep_command and shutil.which(box.sleep_command[0]) is None:
            told = "it cannot be put to sleep: there is no program of the name that sleep_command begins with"
            findings.append(warn(f"box {name}", told, f"correct [boxes.{name}] sleep_command, or install it"))
    return findings


def may_sleep(subject: str, detail: str) -> Finding:
    """Of a deployment on a box that can be woken, at which nobody is."""
    told = f"{detail}; its box may be asleep, and whether a packet wakes it cannot be told from here"
    return warn(subject, told, "wake it, and check again")
