# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training with tfmot's default 8-bit scheme, which keeps the zeros of a pruned model."""

import warnings
from typing import Any

import numpy as np

from tfq.compression import tfmot_private
from tfq.compression.fold import fold_quantized
from tfq.compression.graph import Fit, check_finite, cloned, require_graph_model
from tfq.compression.ranges import ranges_from_first_batch
from tfq.compression.sparsity import keep_zeros, measure_sparsity
from tfq.config import QATConfig
from tfq.errors import InputError, TfqError, TfqWarning
from tfq.keras_bridge import import_tf_keras, import_tfmot

_NORMALIZATIONS = ("BatchNormalization", "SyncBatchNormalization")
_BEFORE_NORMALIZATION = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")


def qat_model(model: Any, fit: Fit, config: QATConfig | None = None) -> Any:
    """A copy of `model` with fake quantization in it, trained by `fit`; `model` stays as it is.

    model: functional or sequential tf_keras model without models inside. Layer `x` becomes `quant_x`; a
        BatchNormalization behind a Dense becomes part of it after the training: the converter would leave both float.
    fit: fit(model, callbacks) compiles the model that it is given and trains it in place with
        `model.fit(..., callbacks=callbacks)`; the callbacks keep zeros where tfmot does not.
    config.preserve_sparsity: where the model has zeros in its kernels, they stay zero.
    Activation ranges start at the first batch's, so that a short training has right ones.
    Raises InputError that lists every layer that tfmot cannot quantize; TfqError when tfmot changed the function of
    the model, fit did not train it, weights became NaN, or zeros were lost.
    """
    config = config or QATConfig()
    require_graph_model(model, "quantization-aware training")
    before = measure_sparsity(model)
    preserve = config.preserve_sparsity and any(before.values())
    check_quantizable(model, preserve_sparsity=preserve)
    quantized = _quantized(model, preserve)
    check_same_function(model, quantized)
    with ranges_from_first_batch(quantized) as steps_seen:
        fit(quantized, [keep_zeros(quantized)] if preserve else [])
        if steps_seen() < 1:
            raise TfqError(
                "qat: fit did not train the model that it was given: it must compile that model and call its fit, for "
                "at least one step"
            )
    check_finite(quantized, "quantization-aware training")
    trained, quantized = quantized, fold_quantized(quantized, model, lambda folded: _quantized(folded, preserve))
    if quantized is not trained:
        check_same_function(trained, quantized, tolerance=1e-4)
    after = measure_sparsity(quantized)
    if preserve:
        unseen = [name for name in before if before[name] and name not in after]
        if unseen:
            told = f"qat: tfmot replaced {', '.join(unseen)}: whether their zeros were kept was not measured"
            warnings.warn(told, TfqWarning, stacklevel=2)
        lost = [
            f"{name} {before[name]:.1%} -> {after[name]:.1%}" for name in after if after[name] < before.get(name, 0)
        ]
        if lost:
            raise TfqError(
                f"qat: zeros of the pruned model were lost in {', '.join(lost)}: did fit pass on the callbacks that it "
                "was given? model.fit(..., callbacks=callbacks)"
            )
    return quantized


def check_quantizable(model: Any, preserve_sparsity: bool = False) -> None:
    """Raises InputError that lists every layer that quantization-aware training cannot take."""
    reasons = unsupported_layers(model, preserve_sparsity=preserve_sparsity)
    if reasons:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        raise InputError(
            f"quantization-aware training cannot take {len(reasons)} layer(s) of {model.name!r}:\n{listed}\n"
            "Replace them, or quantize after training instead (--noqat)"
        )


def unsupported_layers(model: Any, preserve_sparsity: bool = False) -> dict[str, str]:
    """Layer name -> why tfmot's default 8-bit scheme cannot take it; empty when it can take them all."""
    tf_keras = import_tf_keras()
    # A clone has no other graph than its own, so its nodes tell who feeds whom.
    clone, _ = cloned(model)
    reasons: dict[str, str] = {}
    for layer in clone.layers:
        kind = type(layer).__name__
        if isinstance(layer, tf_keras.layers.InputLayer):
            continue
        if isinstance(layer, tf_keras.Model):
            reasons[layer.name] = "it is a model inside the model, and tfmot takes flat ones"
        elif kind in _NORMALIZATIONS:
            if not _follows_linear_layer(layer):
                reasons[layer.name] = (
                    f"{kind} is taken only behind a Conv2D, DepthwiseConv2D, SeparableConv2D or Dense without "
                    "activation that feeds it alone"
                )
        elif kind != "SeparableConv2D" and not tfmot_private.quantizable(layer):
            reasons[layer.name] = f"tfmot's 8-bit scheme knows no {kind}"
        elif not _activation_taken(layer):
            reasons[layer.name] = f"tfmot's 8-bit scheme knows no activation {_activation_name(layer)}"
        elif preserve_sparsity and kind != "SeparableConv2D" and not tfmot_private.preserves_sparsity(layer):
            reasons[layer.name] = f"QAT that keeps zeros knows no {kind}: --noqat.preserve_sparsity gives them up"
    return reasons


def check_same_function(model: Any, quantized: Any, tolerance: float = 1e-6) -> None:
    """Raises TfqError unless `quantized`, without its rounding, computes what `model` does.

    tfmot rebuilds the graph, and for layers with several inputs it has put them in another order without a word.
    Both models run eagerly on the same 16 random examples; they must agree to float rounding.
    tolerance: of the difference, as a share of the largest output.
    """
    import tensorflow as tf

    rng = np.random.default_rng(0)
    inputs = [_random_input(tensor, rng) for tensor in model.inputs]
    with tfmot_private.fake_quant_as_identity():
        pairs = list(
            zip(
                tf.nest.flatten(model(inputs if len(inputs) > 1 else inputs[0], training=False)),
                tf.nest.flatten(quantized(inputs if len(inputs) > 1 else inputs[0], training=False)),
                strict=True,
            )
        )
    for wanted, got in pairs:
        error = float(tf.reduce_max(tf.abs(wanted - got)))
        # Not `>`, which a NaN would pass.
        if not error <= tolerance * max(1.0, float(tf.reduce_max(tf.abs(wanted)))):
            raise TfqError(
                f"tfmot changed the function of {model.name!r}: without rounding, outputs differ by {error:.3g}. It "
                "reorders the inputs of layers like Concatenate: quantize after training instead (--noqat)"
            )


def _quantized(model: Any, preserve_sparsity: bool) -> Any:
    quantization = import_tfmot().quantization.keras
    clone, _ = cloned(model)
    try:
        with tfmot_private.automatic_names_from_zero(avoid=[layer.name for layer in clone.layers]):
            annotated = quantization.quantize_annotate_model(clone)
            return quantization.quantize_apply(annotated, tfmot_private.quantize_scheme(preserve_sparsity))
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"tfmot cannot make {model.name!r} ready for QAT: {error}") from error


def _follows_linear_layer(layer: Any) -> bool:
    before = _only_input(layer)
    if type(before).__name__ == "Reshape" and len(before.outbound_nodes) == 1:
        before = _only_input(before)
    return (
        type(before).__name__ in _BEFORE_NORMALIZATION
        and len(before.outbound_nodes) == 1
        and _activation_name(before) == "linear"
    )


def _only_input(layer: Any) -> Any:
    if len(layer.inbound_nodes) != 1:
        return None
    inbound = layer.inbound_nodes[0].inbound_layers
    return None if isinstance(inbound, (list, tuple)) else inbound


def _activation_taken(layer: Any) -> bool:
    name = _activation_name(layer)
    if type(layer).__name__ == "Activation":
        return name in tfmot_private.LAYER_ACTIVATIONS
    return name is None or name in tfmot_private.FUSED_ACTIVATIONS


def _activation_name(layer: Any) -> str | None:
    activation = getattr(layer, "activation", None)
    if activation is None:
        return None
    return getattr(activation, "__name__", type(activation).__name__)


def _random_input(tensor: Any, rng: np.random.Generator) -> np.ndarray:
    """Sixteen examples: half of them near 1, half in the range of pixels, for the model may want either."""
    shape = [16, *(32 if size is None else size for size in tensor.shape[1:])]
    values = np.concatenate([rng.normal(size=[8, *shape[1:]]), rng.uniform(0, 255, size=[8, *shape[1:]])])
    return values.astype(tensor.dtype.as_numpy_dtype)
