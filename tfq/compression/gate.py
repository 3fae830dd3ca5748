# SPDX-License-Identifier: Apache-2.0
"""Check that a transformed model still computes the same function as the original."""

from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.graph import cloned
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import model_kind
from tfq.keras_bridge.copies import keep_class
from tfq.keras_bridge.precision import compute_in_float32, warn_of_float32
from tfq.keras_bridge.untranslatable import reason_of

_INCOMPLETE = "layers are copied by get_config() and their weights, so get_config() of custom layers must be complete"
NO_QAT = "quantize after training instead (compression.qat.enabled=False), and report the model's layers to tfq"
_EXAMPLES = 16
# Fraction of the sum, because the order of summation in float32 may differ.
_LOSS_TOLERANCE = 1e-4


def check_same_function(
    before: Any, after: Any, tolerance: float = 0.0, *, context: str = "tfmot", advice: str = NO_QAT
) -> None:
    """Raise TfqError unless two models compute the same function, with fake quantization replaced by the identity.

    tfmot rebuilds the graph, and has silently reordered the inputs of layers with several inputs. Both models run
    eagerly on the same 16 random examples. Wrapping, annotating and stripping layers do not change any arithmetic, so
    that outputs must be bitwise equal by default.

    Args:
        before: The original model.
        after: The transformed model.
        tolerance: Permitted difference of an output, as a fraction of its largest absolute value (at least 1). Use
            1e-4 if the arithmetic changes, as it does when BatchNormalization is folded into weights.
        context: What changed the model, for the error message.
        advice: What the user can do, for the error message.
    """
    import tensorflow as tf

    inputs = random_inputs(before)
    fed = inputs if len(inputs) > 1 else inputs[0]
    with tfmot_symbols.fake_quant_as_identity():
        expected = [np.asarray(output) for output in tf.nest.flatten(before(fed, training=False))]
        got = [np.asarray(output) for output in tf.nest.flatten(after(fed, training=False))]
        losses = _added_losses(before), _added_losses(after)
    if [output.shape for output in expected] != [output.shape for output in got]:
        raise TfqError(
            f"{context} changed the function of {before.name!r}: expected outputs of shape "
            f"{[output.shape for output in expected]}, got {[output.shape for output in got]}",
            field="model",
            expected=[output.shape for output in expected],
            got=[output.shape for output in got],
        )
    _check_losses(before, losses, context, advice)
    for index, (old, new) in enumerate(zip(expected, got, strict=True)):
        error = float(np.max(np.abs(old.astype(np.float64) - new), initial=0.0))
        scale = max(1.0, float(np.max(np.abs(old), initial=0.0)))
        # Not `>`, which a NaN would pass.
        if not error <= tolerance * scale:
            raise TfqError(
                f"{context} changed the function of {before.name!r}: with fake quantization as identity, output "
                f"{index} differs by {error:.3g} (of {scale:.3g}), expected at most {tolerance * scale:.3g}: {advice}",
                field="model",
                expected=tolerance * scale,
                got=error,
            )


def _check_losses(before: Any, losses: tuple[list[float], list[float]], context: str, advice: str) -> None:
    """Raise TfqError if regularizers, or losses that layers add, were lost, which would change the training."""
    expected, got = losses
    tolerance = _LOSS_TOLERANCE * max(1.0, abs(sum(expected)))
    if len(expected) != len(got) or not (abs(sum(expected) - sum(got)) <= tolerance or not np.isfinite(sum(expected))):
        raise TfqError(
            f"{context} changed the losses that the layers of {before.name!r} add (regularizers, add_loss): expected "
            f"{len(expected)} losses with a sum of {sum(expected):.6g}, got {len(got)} with a sum of {sum(got):.6g}: "
            f"{advice}",
            field="model",
            expected=tuple(expected),
            got=tuple(got),
        )


def _added_losses(model: Any) -> list[float]:
    """Return the regularization losses, and the losses that layers added in the last (eager) call of the model."""
    return [float(loss.numpy()) for loss in model.losses if hasattr(loss, "numpy")]


def random_inputs(model: Any) -> list[np.ndarray]:
    """Return 16 random examples for each input of a model.

    Half of the examples are normally distributed, and half are uniform from 0 to 255, because a model may expect
    either. Dimensions that the model leaves open are 32. Integers are valid indices of all Embedding layers.
    """
    rng = np.random.default_rng(0)
    limits = [
        layer.input_dim
        for layer in model.submodules
        if type(layer).__name__ == "Embedding" and isinstance(getattr(layer, "input_dim", None), int)
    ]
    return [_random_input(tensor, rng, min(limits, default=2)) for tensor in model.inputs]


def _random_input(tensor: Any, rng: np.random.Generator, limit: int) -> np.ndarray:
    shape = [_EXAMPLES, *(32 if size is None else size for size in tensor.shape[1:])]
    dtype = np.dtype(tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.as_numpy_dtype)
    if dtype.kind != "f":
        return rng.integers(0, limit, size=shape).astype(dtype)
    half = [_EXAMPLES // 2, *shape[1:]]
    return np.concatenate([rng.normal(size=half), rng.uniform(0, 255, size=half)]).astype(dtype)


def in_float32(model: Any, step: str) -> Any:
    """Return a tf_keras model that a compression step can train: a float32 copy of a model in another precision.

    A float32 model is returned as it is, and so is anything else that the step refuses.

    Args:
        model: The model. It is not changed.
        step: The compression step, for error messages.

    Raises:
        InputError: The model cannot be copied in float32.
        TfqError: The copy does not compute the same function.
    """
    if model_kind(model) != "tf_keras" or not tfmot_symbols.is_graph_model(model) or not warn_of_float32(model):
        return model
    import tensorflow as tf

    try:
        copy, pairs = cloned(model, float32=True)
        keep_class(model, copy, {id(old): new for old, new in pairs}, step)
        with compute_in_float32(model):
            check_same_function(model, copy, 1e-4, context=f"{step}: the copy in float32", advice=_INCOMPLETE)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise InputError(
            f"{step}: the model {model.name!r} cannot be copied in float32 ({reason_of(error)}). Remove casts and "
            "constants of other float types from it, or build it with the dtype policy float32",
            field="model",
            expected="float32",
            got=model.name,
            limit="float64-casts",
        ) from error
    return copy


def copy_for_training(model: Any, step: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """Copy a model for training, and check that the copy computes the same function.

    Args:
        model: The model.
        step: The compression step, for error messages.

    Returns:
        (copy, pairs of a layer and its copy).
    """
    trained, pairs = cloned(model)
    keep_class(model, trained, {id(old): new for old, new in pairs}, step)
    check_same_function(model, trained, context=f"{step}: the copy for training", advice=_INCOMPLETE)
    return trained, pairs


def copy_after_training(model: Any, trained: Any, pairs: list[tuple[Any, Any]], step: str) -> Any:
    """Return a copy of `model` with the weights of `trained`, without anything else that training added.

    Args:
        model: The original model.
        trained: The copy from `copy_for_training`, after training.
        pairs: The pairs from `copy_for_training`.
        step: The compression step, for error messages.
    """
    trained_layers = {id(old): new for old, new in pairs}
    stripped, stripped_pairs = cloned(model)
    for old, new in stripped_pairs:
        new.set_weights(trained_layers[id(old)].get_weights())
    keep_class(trained, stripped, {id(trained_layers[id(old)]): new for old, new in stripped_pairs}, step)
    check_same_function(trained, stripped, context=f"{step}: the copy after training", advice=_INCOMPLETE)
    return stripped
