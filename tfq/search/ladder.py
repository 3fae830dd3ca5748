# SPDX-License-Identifier: Apache-2.0
"""The rungs: ways to an int8 flatbuffer, each costing more than the one before."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from tfq.config import CalibrationConfig, ConversionConfig, SearchConfig


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way. kind: what it adds to those before. float_layers: how many layers stay float, by sensitivity."""

    name: str
    kind: str
    method: str
    repair: tuple[str, ...] = ()
    float_layers: int = 0

    def conversion(self, base: ConversionConfig, float_layers: tuple[str, ...]) -> ConversionConfig:
        """`base` with this rung's settings."""
        calibration = dataclasses.replace(base.calibration, method=self.method)
        return dataclasses.replace(
            base, calibration=calibration, repair=self.repair, float_layers=(*base.float_layers, *float_layers)
        )


REPAIRS = (("bias",), ("equalize", "bias"), ("rounding", "bias"), ("equalize", "rounding", "bias"))


def methods(config: SearchConfig) -> Iterator[Rung]:
    """The first rungs: calibration alone."""
    for method in dict.fromkeys((CalibrationConfig().method, *config.methods)):
        yield Rung(name=method, kind="calibration", method=method)


def repairs(method: str) -> Iterator[Rung]:
    """The next: repairs on top of the best method."""
    for repair in REPAIRS:
        yield Rung(name=f"{method}, {', '.join(repair)}", kind="repair", method=method, repair=repair)


def mixed(best: Rung, config: SearchConfig, layers: int) -> Iterator[Rung]:
    """The last: one, two, four ... of `layers` layers stay float, on top of the best so far."""
    count = 1
    while count <= min(config.most_float_layers, layers):
        yield Rung(
            name=f"{best.name}, {count} in float",
            kind="mixed",
            method=best.method,
            repair=best.repair,
            float_layers=count,
        )
        count *= 2
