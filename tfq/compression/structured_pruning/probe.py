# SPDX-License-Identifier: Apache-2.0
"""Whether a layer without weights takes each channel by itself: found out by asking it, not from a list of names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# For dimensions that the model leaves open.
_OPEN_DIMENSION = 16


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a layer does with channels, the last axis of its tensors.

    reason: why it cannot be followed; None: channel i of the output is made of channel i of the inputs alone.
    zero_if_all: whether a channel is zero where it is zero in all inputs; zero_if_any[i]: where it is in input i.
    """

    reason: str | None = None
    zero_if_all: bool = False
    zero_if_any: tuple[bool, ...] = ()


def asked(call: Callable[[Sequence[Any]], Any], shapes: Sequence[tuple[int | None, ...]], after: Any) -> Answer:
    """What `call` does with tensors of these shapes: it is called on random ones, on some of their channels, on zeros.

    call: a list of float32 tensors (1, ...) -> a tensor. shapes: of its inputs, batch first; those with one channel are
    left whole (they are broadcast). after: the shape of its output.
    """
    wide = max((shape[-1] or 0) for shape in shapes)
    if wide < 2 or after[-1] != wide or any(shape[-1] not in (1, wide) for shape in shapes):
        told = f"{', '.join(map(str, shapes))} to {tuple(after)}"
        return Answer(reason=f"makes other channels of those that come in ({told})")
    random = np.random.default_rng(0)
    inputs = [
        random.normal(size=(1, *(size or _OPEN_DIMENSION for size in shape[1:]))).astype(np.float32) for shape in shapes
    ]
    # A lopsided choice, so that neighbours, halves and mirror images do not look alike.
    some = np.flatnonzero(random.random(wide) < 0.6)
    some = some if 0 < len(some) < wide else np.array([wide - 1])
    try:
        whole = np.asarray(call(inputs))
        part = np.asarray(call([x if x.shape[-1] == 1 else x[..., some] for x in inputs]))
        zero = not np.any(call([x if x.shape[-1] == 1 < wide else np.zeros_like(x) for x in inputs]))
        without = tuple(
            not np.any(call([np.zeros_like(x) if at == other else x for other, x in enumerate(inputs)]))
            for at in range(len(inputs))
        )
    except Exception as error:  # whatever a layer of the user's raises on such tensors
        return Answer(reason=f"could not be tried on some of its channels ({type(error).__name__}: {error})"[:300])
    if part.shape != (*whole.shape[:-1], len(some)) or not np.allclose(part, whole[..., some], rtol=1e-5, atol=1e-6):
        return Answer(reason="computes a channel from others as well")
    return Answer(zero_if_all=zero, zero_if_any=without)
