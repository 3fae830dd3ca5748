# SPDX-License-Identifier: Apache-2.0
"""The gate behind every transformation of a model: does it still compute what it did?"""

from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.graph import cloned
from tfq.errors import TfqError
from tfq.keras_bridge.copies import keep_class

_INCOMPLETE = "a copy is made of each layer's get_config() and weights: custom layers must tell there all that they use"
NO_QAT = "quantize after training instead (compression.qat.enabled=False), and report the model's layers to tfq"
_EXAMPLES = 16
# A share of the sum; float32 sums in another order.
_LOSS_TOLERANCE = 1e-4


def check_same_function(
    before: Any, after: Any, tolerance: float = 0.0, *, what: str = "tfmot", advice: str = NO_QAT
) -> None:
    """Raises TfqError unless `after`, its fake quantization taken as identity, computes what `before` does.

    tfmot rebuilds the graph, and for layers with several inputs it has put them in another order without a word.
    Both run eagerly on the same 16 random examples. Wrapping, annotating and stripping leave every product and sum
    as it was, so the outputs must be equal to the bit: tolerance 0.0.
    tolerance: of the difference, as a share of the largest output, where arithmetic is another one: BatchNormalization
        folded into weights rounds otherwise (1e-4).
    what, advice: who has changed the model and what to do, for the message.
    """
    import tensorflow as tf

    inputs = random_inputs(before)
    fed = inputs if len(inputs) > 1 else inputs[0]
    with tfmot_symbols.fake_quant_as_identity():
        wanted = [np.asarray(output) for output in tf.nest.flatten(before(fed, training=False))]
        got = [np.asarray(output) for output in tf.nest.flatten(after(fed, training=False))]
        losses = _own_losses(before), _own_losses(after)
    if [output.shape for output in wanted] != [output.shape for output in got]:
        raise TfqError(
            f"{what} changed the function of {before.name!r}: its outputs had the shapes "
            f"{[output.shape for output in wanted]}, and have {[output.shape for output in got]}",
            field="model",
            expected=[output.shape for output in wanted],
            got=[output.shape for output in got],
        )
    _check_losses(before, losses, what, advice)
    for index, (old, new) in enumerate(zip(wanted, got, strict=True)):
        error = float(np.max(np.abs(old.astype(np.float64) - new), initial=0.0))
        scale = max(1.0, float(np.max(np.abs(old), initial=0.0)))
        # Not `>`, which a NaN would pass.
        if not error <= tolerance * scale:
            raise TfqError(
                f"{what} changed the function of {before.name!r}: with fake quantization as identity, output {index} "
                f"differs by {error:.3g} (of {scale:.3g}), expected at most {tolerance * scale:.3g}: {advice}",
                field="model",
                expected=tolerance * scale,
                got=error,
            )


def _check_losses(before: Any, losses: tuple[list[float], list[float]], what: str, advice: str) -> None:
    """Raise TfqError where regularizers, or losses that layers add, were lost: training would be another one."""
    wanted, got = losses
    tolerance = _LOSS_TOLERANCE * max(1.0, abs(sum(wanted)))
    if len(wanted) != len(got) or not (abs(sum(wanted) - sum(got)) <= tolerance or not np.isfinite(sum(wanted))):
        raise TfqError(
            f"{what} changed the losses that the layers of {before.name!r} add (regularizers, add_loss): there were "
            f"{len(wanted)}, {sum(wanted):.6g} in sum, and there are {len(got)}, {sum(got):.6g} in sum: {advice}",
            field="model",
            expected=tuple(wanted),
            got=tuple(got),
        )


def _own_losses(model: Any) -> list[float]:
    """The losses that the model's layers added in its last call, an eager one, and those of its weights."""
    return [float(loss.numpy()) for loss in model.losses if hasattr(loss, "numpy")]


def random_inputs(model: Any) -> list[np.ndarray]:
    """Sixteen examples for each input: half of them near 1, half in the range of pixels, for the model may want either.

    Dimensions left open are 32. Whole numbers are such that every Embedding that reads them knows them.
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


def copy_for_training(model: Any, step: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """A copy of `model` that computes the same, and each of its layers with the copy's; `step` begins an error."""
    trained, pairs = cloned(model)
    keep_class(model, trained, {id(old): new for old, new in pairs}, step)
    check_same_function(model, trained, what=f"{step}: the copy for training", advice=_INCOMPLETE)
    return trained, pairs


def copy_after_training(model: Any, trained: Any, pairs: list[tuple[Any, Any]], step: str) -> Any:
    """A copy of `model`, as it was given, with the weights of `trained` alone; `pairs`: from `copy_for_training`."""
    weights_of = {id(old): new for old, new in pairs}
    stripped, fresh = cloned(model)
    for old, new in fresh:
        new.set_weights(weights_of[id(old)].get_weights())
    keep_class(trained, stripped, {id(weights_of[id(old)]): new for old, new in fresh}, step)
    check_same_function(trained, stripped, what=f"{step}: the copy after training", advice=_INCOMPLETE)
    return stripped
