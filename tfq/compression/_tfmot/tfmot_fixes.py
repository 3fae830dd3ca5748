# SPDX-License-Identifier: Apache-2.0
"""Fixes of bugs in tfmot's wrappers of layers, by replacing their methods and attributes.

The wrappers `QuantizeWrapper` and `QuantizeWrapperV2` were read in tensorflow-model-optimization 0.8.1. Tests check
that they exist, and that unmodified tfmot fails.
"""

import importlib
from typing import Any

from tfq.keras_bridge import import_tfmot

_KERAS = "tensorflow_model_optimization.python.core.quantization.keras"


def _module(name: str) -> Any:
    import_tfmot()
    return importlib.import_module(f"{_KERAS}.{name}")


def leave_frozen_weights() -> None:
    """Patch tfmot's wrapper, so that it has no trainable weights if its layer is frozen (trainable=False).

    In unmodified tfmot, `QuantizeWrapperV2.trainable_weights` contains the kernel of a frozen layer, and training
    changes it. The patch stays for the life of the process.
    """
    wrapper: Any = _module("quantize_wrapper").QuantizeWrapperV2
    if isinstance(vars(wrapper)["trainable_weights"], _FixedProperty):
        return
    trainable, frozen = wrapper.trainable_weights, wrapper.non_trainable_weights

    def all_weights(self: Any) -> list[Any]:
        return [] if self.layer.trainable else list(trainable.fget(self))

    def frozen_weights(self: Any) -> list[Any]:
        return list(self._dedup_weights([*all_weights(self), *frozen.fget(self)]))

    wrapper.trainable_weights = _FixedProperty(lambda self: trainable.fget(self) if self.layer.trainable else [])
    wrapper.non_trainable_weights = _FixedProperty(frozen_weights)


class _FixedProperty(property):
    """A property with which `leave_frozen_weights` replaced one of tfmot."""


def regularize_activities(model: Any) -> None:
    """Set the activity regularizers of wrapped layers on their wrappers in a QAT model.

    In unmodified tfmot, the wrapper calls the layer's `call` instead of Keras' `__call__`, which applies them.
    """
    wrapper: Any = _module("quantize_wrapper").QuantizeWrapper
    for layer in model.layers:
        regularizer = getattr(layer.layer, "_activity_regularizer", None) if isinstance(layer, wrapper) else None
        if regularizer is not None:
            layer._activity_regularizer = regularizer
            layer.layer._losses = []  # symbolic losses of the graph before tfmot's rewrite
