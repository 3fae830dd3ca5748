# SPDX-License-Identifier: Apache-2.0
"""The rungs: ways to an int8 flatbuffer, each costing more than the one before."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from tfq.config import CalibrationConfig, ConversionConfig, SearchConfig


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way. kind: what it adds to those before.

    layers: how many have another scheme, by sensitivity: "float" or "int16" activations.
    """

    name: str
    kind: str
    method: str
    repair: tuple[str, ...] = ()
    layers: int = 0
    scheme: str = "float"

    def conversion(self, base: ConversionConfig, layers: tuple[str, ...]) -> ConversionConfig:
        """`base` with this rung's settings; `layers`: those that have its scheme."""
        calibration = dataclasses.replace(base.calibration, method=self.method)
        rung = dataclasses.replace(base, calibration=calibration, repair=self.repair)
        if self.scheme == "int16":
            return dataclasses.replace(rung, int16_layers=(*base.int16_layers, *layers))
        return dataclasses.replace(rung, float_layers=(*base.float_layers, *layers))


REPAIRS = (("bias",), ("equalize", "bias"), ("rounding", "bias"), ("equalize", "rounding", "bias"))


def methods(config: SearchConfig) -> Iterator[Rung]:
    """The first rungs: calibration alone."""
    for method in dict.fromkeys((CalibrationConfig().method, *config.methods)):
        yield Rung(name=method, kind="calibration", method=method)


def repairs(method: str) -> Iterator[Rung]:
    """The next: repairs on top of the best method."""
    for repair in REPAIRS:
        yield Rung(name=f"{method}, {', '.join(repair)}", kind="repair", method=method, repair=repair)


def mixed(best: Rung, config: SearchConfig, layers: int, backend: str) -> Iterator[Rung]:
    """The last: one, two, four ... of `layers` layers in another scheme, on top of the best so far.

    int16 and then float, where the backend has int16; float where it has not.
    """
    count = 1
    while count <= min(config.most_mixed_layers, layers):
        for scheme in ("int16", "float") if backend == "litert" else ("float",):
            yield Rung(
                name=f"{best.name}, {count} in {scheme}",
                kind="mixed",
                method=best.method,
                repair=best.repair,
                layers=count,
                scheme=scheme,
            )
        count *= 2
