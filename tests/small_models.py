"""Every method and its encoder at a size that a test takes milliseconds for."""

from __future__ import annotations

from typing import Any

from equimod.models.settings import (
    BarlowTwinsSettings,
    BYOLSettings,
    EncoderSettings,
    NoneSettings,
    SimCLRSettings,
    SimSiamSettings,
    VICRegSettings,
)

ENCODER = EncoderSettings("resnet10", width=8)
SETTINGS: dict[str, Any] = {
    "simclr": SimCLRSettings((16,), 8),
    "byol": BYOLSettings(16, 8, 0.9),
    "barlow_twins": BarlowTwinsSettings((16,), 8),
    "simsiam": SimSiamSettings((16,), 8, 4),
    "vicreg": VICRegSettings((16,), 8),
    "none": NoneSettings(),
}
