# SPDX-License-Identifier: Apache-2.0
"""Layers that have another scheme than the model: which tensors the user's patterns mean."""

from collections.abc import Sequence

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError
from tfq.patterns import check_fits, fits

# What only litert-quantizer can do.
_OF_LITERT = ("int16_layers", "per_tensor_layers")


def layer_outputs(model: bytes, setting: str, patterns: Sequence[str]) -> list[str]:
    """Names of what the layers that fit `patterns` give out: of all ops of each, where it is more than one.

    Both quantizers know ops by these. Raises InputError on a pattern that fits no layer, with the nearest name.
    """
    if not patterns:
        return []
    graph = tflite.read(model).main_subgraph
    named = [(op.keras_layer or graph.tensors[op.outputs[0]].name, op.outputs) for op in graph.ops if op.outputs]
    for pattern in patterns:
        check_fits(f"{setting}: the pattern {pattern!r}", pattern, dict.fromkeys(name for name, _ in named))
    return [graph.tensors[index].name for name, outputs in named if fits(name, patterns) for index in outputs]


def check_mixed(config: ConversionConfig, *, trained: bool) -> None:
    """Raises InputError where settings of single layers, or the backend, contradict the scheme or each other."""
    if config.backend == "litert":
        if trained:
            raise InputError(
                "backend=litert: the model is quantization-aware trained, for the scales of TensorFlow's quantizer: "
                "leave it out"
            )
        if not config.needs_ranges:
            raise InputError(
                f"backend=litert with scheme={config.scheme}: it is for int8 and int16x8: leave it out, or convert to "
                "one of these"
            )
    for name in ("float_layers", *_OF_LITERT):
        if getattr(config, name) and config.scheme != "int8":
            raise InputError(
                f"{name} with scheme={config.scheme}: a model in which some layers have a scheme of their own is int8"
            )
    for name in _OF_LITERT:
        if getattr(config, name) and config.backend != "litert":
            raise InputError(
                f"{name}={','.join(getattr(config, name))}: TensorFlow's quantizer has one scheme for all layers: set "
                "backend=litert (pip install 'tfq[litert]')"
            )
