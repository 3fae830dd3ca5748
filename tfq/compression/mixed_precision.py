# SPDX-License-Identifier: Apache-2.0
"""Train a float32 model in mixed precision: layers compute in float16 or bfloat16, variables stay float32.

The layers of the outputs compute in float32, as Keras recommends, because the loss needs its range. With
`mixed_float16`, Keras scales the loss, so that small gradients are not rounded to zero. Normalization layers stay in
float32, because those of tf_keras contain float32 constants.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from tfq.errors import InputError, warn
from tfq.keras_bridge import model_kind
from tfq.keras_bridge.precision import computing_in
from tfq.keras_bridge.walk import all_layers, is_model, layer_of

FLOAT32 = "float32"
_FLOAT32_LAYERS = ("InputLayer", "Normalization")
_HALF_TYPES = ("float16", "bfloat16", "half")


@contextlib.contextmanager
def trained_in(model: Any, policy: str) -> Iterator[dict[str, Any]]:
    """Make a float32 model compute in a dtype policy inside of the context, which compiles and trains it.

    Args:
        model: A functional or sequential model of either Keras.
        policy: "float32", "mixed_float16" or "mixed_bfloat16".

    Yields:
        What the record says, complete at the end of the context: `dtype_policy` as it was used, and `loss_scale`, by
        which the loss was last multiplied; None if it is not scaled. Empty if `policy` is float32.

    Raises:
        InputError: A layer cannot compute in the policy.
    """
    if policy == FLOAT32:
        yield {}
        return
    record: dict[str, Any] = {"dtype_policy": policy, "loss_scale": None}
    if _has_fake_quantization(model):
        warn(
            f"dtype_policy={policy}: quantization-aware training of {model.name!r} computes in float32, as "
            "TensorFlow's fake quantization does"
        )
        record["dtype_policy"] = FLOAT32
        yield record
        return
    fixed = {id(layer) for layer in _output_layers(model)}
    layers = [
        layer
        for layer in all_layers(model)
        if getattr(layer, "compute_dtype", None) == FLOAT32
        and type(layer).__name__ not in _FLOAT32_LAYERS
        and id(layer) not in fixed
    ]
    try:
        with computing_in(layers, dict.fromkeys(map(id, layers), policy), model_kind(model) == "keras"):
            yield record
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError) or not any(name in str(error) for name in _HALF_TYPES):
            raise
        raise InputError(
            f"dtype_policy: a layer of {model.name!r} does not compute in {policy}. Use float32, or create "
            f"its constants in the dtype of its inputs. TensorFlow says: {error}",
            field="training.dtype_policy",
            expected=FLOAT32,
            got=policy,
            limit="policy-constants",
        ) from error
    finally:
        # They were traced in the policy.
        model.train_function = model.test_function = model.predict_function = None
    record["loss_scale"] = _without_loss_scaling(model)


def _has_fake_quantization(model: Any) -> bool:
    return any(hasattr(layer, "quantize_config") or type(layer).__name__ == "QuantizeLayer" for layer in model.layers)


def _output_layers(model: Any) -> list[Any]:
    """Return the layers that compute the outputs of a model, with their inner layers."""
    import tensorflow as tf

    results: list[Any] = []
    for tensor in tf.nest.flatten(model.outputs):
        layer = layer_of(tensor)
        if is_model(layer):
            results += _output_layers(layer)
        elif hasattr(layer, "_flatten_layers"):
            results += all_layers(layer)
    return results


def _without_loss_scaling(model: Any) -> float | None:
    """Replace the optimizer that Keras wrapped by the original one; return the last scale of the loss."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is None:
        return None
    scale = optimizer.loss_scale if hasattr(optimizer, "loss_scale") else optimizer.dynamic_scale
    model.optimizer = inner
    return float(scale)
