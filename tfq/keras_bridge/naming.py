# SPDX-License-Identifier: Apache-2.0
"""Names for the layers of a rebuilt model: the user's own where they can be, unique and fit for tf_keras and tfmot."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

from tfq.keras_bridge.walk import layer_of

# What TensorFlow takes as a name scope, without the slash: tf_keras builds variable names of it, and .h5 groups.
_UNFIT = re.compile(r"[^A-Za-z0-9_.>-]")


class Names:
    """Hands out each name once. Those of the outermost model are kept for its own layers."""

    def __init__(self, graph: Any) -> None:
        self._reserved = {fit(call.operation.name) for call in graph.calls}
        self._reserved |= {fit(layer_of(tensor).name) for tensor in graph.inputs}
        self._taken: set[str] = set()

    def take(self, name: str, path: str) -> str:
        """The name for the user's layer `name` that stands at `path` ("" at the top, "outer/" inside the model outer).

        The layer's own when no other has it, else with the models around it, else numbered.
        """
        own = fit(name)
        long = fit(f"{path}{name}".replace("/", "_"))
        candidates = itertools.chain([own, long], (f"{long}_{number}" for number in itertools.count(1)))
        # Inside a nested model the names of the outermost model's layers are not to be had.
        return self._first_free(candidates, self._taken | self._reserved if path else self._taken)

    def part(self, whole: str, part: str) -> str:
        """The name for a part of the user's layer that was given the name `whole`."""
        own = fit(f"{whole}_{part}")
        candidates = itertools.chain([own], (f"{own}_{number}" for number in itertools.count(1)))
        return self._first_free(candidates, self._taken | self._reserved)

    def _first_free(self, candidates: Iterable[str], refused: set[str]) -> str:
        chosen = next(candidate for candidate in candidates if candidate not in refused)
        self._taken.add(chosen)
        return chosen

    def model_name(self, name: str) -> str:
        """The model's own name, made fit."""
        return fit(name)


def fit(name: str) -> str:
    """The name with every character that TensorFlow does not take in a scope replaced by an underscore."""
    name = _UNFIT.sub("_", name)
    return name if name[:1].isalnum() or name[:1] == "." else f"layer{name}"
