# SPDX-License-Identifier: Apache-2.0
"""One call of an operation of Keras 3, and what can be asked of its arguments."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.operations.keras_operation import is_graph_tensor


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an operation. values: the operation's parameters and its call's arguments, by name."""

    values: dict[str, Any]
    name: str

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def layers(self) -> Any:
        return import_tf_keras().layers

    def is_float(self, name: str) -> bool:
        value = self.values[name]
        return is_graph_tensor(value) and value.dtype.is_floating

    def rank(self, name: str) -> int:
        """-1 where unknown."""
        rank = self.values[name].shape.rank
        return -1 if rank is None else rank

    def sizes(self, name: str) -> list[int | None]:
        return list(self.values[name].shape)


# What a translation gives: a tf_keras layer and what to call it with; None where no ordinary layer does it.
Made = tuple[Any, Any] | None


def number_of(value: Any) -> float | None:
    """A finite scalar constant; None for all else."""
    if isinstance(value, bool) or is_graph_tensor(value) or callable(getattr(value, "assign", None)):
        return None
    if isinstance(value, (int, float, np.ndarray, np.number)) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.ndim == 0 and array.dtype.kind in "iuf" and math.isfinite(array):
            return float(array)
    return None


def axes_of(axis: Any, rank: int) -> tuple[int, ...] | None:
    """Normalized axes; None for no number or an unknown rank."""
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if rank < 1 or not all(isinstance(item, (int, np.integer)) for item in axes):
        return None
    return tuple(int(item) % rank for item in axes)
