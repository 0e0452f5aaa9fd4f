"""The ways to recognise a refusal, of which the configuration names one; see `refusal`."""

from __future__ import annotations

from typing import Literal

RefusalMode = Literal["structured", "anchored", "substring", "off"]
