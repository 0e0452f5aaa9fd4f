"""Python's collector of cycles, told when there is nothing to be found."""

from __future__ import annotations

import gc

_THRESHOLDS = (10_000, 20, 20)


def calm_garbage_collector() -> None:
    """Look for cycles less often, and never among what stays.

    In `make bench` that saves 17 % of the CPU of a short request (2.34 to 1.94 x floor) and 6 % of a streamed token's.

    Requests in flight are long-lived to it, and free of cycles; the default thresholds look at them again and again.
    """
    gc.enable()  # it was off while everything was imported and made
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
