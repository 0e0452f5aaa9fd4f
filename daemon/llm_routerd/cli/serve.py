"""`llm-routerd serve`: from the arguments to the daemon."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from llm_routerd.cli.settings import read_config

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop.

    Raises:
        ConfigError: the configuration is unsound.
        BrokerError: Redis refuses what no worker can do without.
    """
    # What is imported and made until the daemon works stays: looking for garbage in it took 15 ms.
    gc.disable()
    from llm_routerd.service import daemon  # noqa: PLC0415 - see above

    return daemon.serve(
        read_config(arguments),
        config_path=arguments.config,
        embedded=arguments.embedded,
        state_directory=arguments.state_directory,
        gateway=arguments.gateway,
    )
