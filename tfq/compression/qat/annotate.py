# SPDX-License-Identifier: Apache-2.0
"""Selective quantization-aware training: fake quantization wherever it can stand, the rest left to the converter."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tfq.compression._tfmot import tfmot_fixes, tfmot_symbols
from tfq.compression.gate import check_same_function
from tfq.compression.graph import cloned, require_graph_model
from tfq.compression.qat import placement
from tfq.config import QATConfig
from tfq.errors import InputError
from tfq.keras_bridge import import_tf_keras, import_tfmot
from tfq.keras_bridge.quantize_configs import quantize_config_classes
from tfq.patterns import check_fits, fits


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A model with fake quantization in it, and what has none.

    model: layer `x` is `quant_x` in it, or `x` where it is skipped, or has neither weights nor fake quantization.
    skipped: layer -> why the converter alone quantizes it, by the representative dataset.
    """

    model: Any
    skipped: dict[str, str]


def quantized(model: Any, config: QATConfig | None = None) -> Annotated:
    """A copy of `model` with fake quantization; `model` stays as it is. Not compiled, ranges not yet observed.

    model: flat functional or sequential tf_keras model (as keras_bridge.to_tf_keras gives it).
    config.layers: name patterns of the layers that get fake quantization, of those that can.
    A kernel's quantization is symmetric: its zeros are zeros behind fake quantization too. That training keeps them
    is the work of `sparsity.keep_zeros`, of no layer here.
    Without its rounding the result computes what `model` does, to the bit.
    Raises InputError on a model that holds models, a pattern that fits no layer, or nothing that can be quantized;
    TfqError when tfmot changed the function all the same.
    """
    config = config or QATConfig()
    require_graph_model(model, "quantization-aware training")
    clone, _ = cloned(model)
    placements = chosen(clone, config)
    configs = {name: place for name, place in placements.items() if isinstance(place, placement.Placement)}
    if not any(place.config for place in configs.values()):
        raise InputError(f"{model.name!r} has no layer for quantization-aware training: quantize after it (--noqat)")
    with _scope(clone), tfmot_fixes.repaired(), _errors(model):
        avoid = [layer.name for layer in clone.layers]
        with tfmot_symbols.automatic_names_from_zero(avoid=avoid):
            annotated = _annotated(clone, configs)
            scheme = tfmot_fixes.selective_scheme(placement.quantized_inputs(clone, placements))
            apply = import_tfmot().quantization.keras.quantize_apply
            result = tfmot_symbols.without_autograph(apply, clone.layers)(annotated, scheme)
    for layer in result.layers:
        if tfmot_symbols.wrapped(layer) is not layer:
            layer.call = tfmot_symbols.without_autograph(layer.call, [layer])
    check_same_function(model, result)
    return Annotated(
        model=result,
        skipped={name: place for name, place in placements.items() if isinstance(place, str)},
    )


def chosen(model: Any, config: QATConfig) -> dict[str, placement.Placement | str]:
    """Layer name -> where its fake quantization stands, or why it has none, as config.layers wants it."""
    placements = placement.placements(model)
    reasons = {name: place if isinstance(place, str) else None for name, place in placements.items()}
    for pattern in config.layers:
        if pattern != "*":
            check_fits(f"qat: the pattern {pattern!r} in layers", pattern, reasons)
    return {
        name: place if isinstance(place, str) or fits(name, config.layers) else "no pattern in layers fits its name"
        for name, place in placements.items()
    }


def _annotated(clone: Any, configs: dict[str, placement.Placement]) -> Any:
    annotate = import_tfmot().quantization.keras.quantize_annotate_layer
    classes = quantize_config_classes()

    def wrap(old: Any, new: Any) -> Any:
        place = configs.get(old.name)
        # What has weights is wrapped in any case: they are then found under the one name, quant_NAME.
        if place is None or not (place.config or place.stand_in or old.weights):
            return new
        if place.stand_in:
            new = classes[place.stand_in].from_config(new.get_config())
        return annotate(new, classes["LayerQuantizeConfig"](**(place.config or {})))

    annotated, _ = cloned(clone, wrap)
    return annotated


@contextlib.contextmanager
def _scope(model: Any) -> Iterator[None]:
    """tfmot's classes, ours, and those of the model's own layers and activations are found by name."""
    own: dict[str, Any] = dict(quantize_config_classes())
    for layer in model.layers:
        own.setdefault(type(layer).__name__, type(layer))
        activation = getattr(layer, "activation", None)
        if callable(activation) and hasattr(activation, "__name__"):
            own.setdefault(activation.__name__, activation)
    with import_tfmot().quantization.keras.quantize_scope(), import_tf_keras().utils.custom_object_scope(own):
        yield


@contextlib.contextmanager
def _errors(model: Any) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"tfmot cannot make {model.name!r} ready for QAT: {error}") from error
