"""`llm-routerd gateway`: from the arguments to the gateway."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from llm_routerd.cli.settings import read_config

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop.

    Raises:
        ConfigError: the configuration is unsound, would let in whoever comes, or names an address that is taken.
        BrokerError: this Redis can never serve it.
    """
    gc.disable()  # as `serve`
    from llm_routerd.service.gateway import serve_gateway  # noqa: PLC0415 - as `serve`

    return serve_gateway(read_config(arguments), config_path=arguments.config, listen=arguments.listen)
