# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers without their loop, for the time of a trace: TensorFlow's calibrator knows no WHILE."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tfq.errors import InputError

# What keeps a recurrent layer of either Keras in a loop, and the value that takes it out of it.
_UNROLLED = {"unroll": True, "use_cudnn": False, "_could_use_gpu_kernel": False}


@contextlib.contextmanager
def unrolled(model: Any) -> Iterator[None]:
    """Within it, the model's recurrent layers call their cell step by step: the same function, a graph without loops.

    ConvLSTM layers of tf_keras stay loops, for they know no other way.
    """
    layers = [layer for layer in _recurrent(model) if not layer.unroll]
    before = [{name: getattr(layer, name) for name in _UNROLLED if hasattr(layer, name)} for layer in layers]
    try:
        for layer, attributes in zip(layers, before, strict=True):
            for name in attributes:
                setattr(layer, name, _UNROLLED[name])
        yield
    finally:
        for layer, attributes in zip(layers, before, strict=True):
            for name, value in attributes.items():
                setattr(layer, name, value)


def refuse_stateful(model: Any) -> None:
    """Raises InputError where a recurrent layer keeps its state between calls, which a flatbuffer of ours does not."""
    names = [layer.name for layer in _recurrent(model) if layer.stateful]
    if names:
        raise InputError(
            f"stateful recurrent layers cannot be converted: {', '.join(names)}: build them with stateful=False, and "
            "make the state an input and an output of the model (initial_state, return_state=True)"
        )


def _recurrent(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if hasattr(layer, "cell") and hasattr(layer, "unroll")]
