"""How a conversion is to be done, whatever it converts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from equimod.pipelines.conversion.check import Encoding, Shrink

OnError = Literal["fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    workers: int
    """Processes that decode and write."""
    on_error: OnError = "fail"
    """What a damaged image does: stop the conversion, or be left out and listed."""
    shard_size: int = 1000
    """Source positions a shard, of tar records."""
    shrink: Shrink | None = None
    """Store smaller copies of large images."""
    raw: bool = False
    """Store pixels, in a .beton file."""
    overwrite: bool = False
    """Remove an earlier conversion in the output."""

    @property
    def encoding(self) -> Encoding:
        """What becomes of images that are not stored as they are; what ends as pixels loses nothing on the way."""
        return Encoding(self.shrink, lossless=self.raw)
