# SPDX-License-Identifier: Apache-2.0
"""A plain training loop for classifiers of either Keras, the same to the bit for the same seed."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import TrainConfig
from tfq.data import Split, bind_inputs
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras, model_kind

__all__ = ["deterministic", "train_model"]

# Layers that pass their input on, as far as telling probabilities from logits goes.
_TRANSPARENT = frozenset(("Flatten", "Reshape", "Dropout", "QuantizeLayer", "Identity", "Permute"))


def train_model(
    model: Any,
    train: Split,
    val: Split | None = None,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Compile `model` and train it in place; gives Keras' history with the loss that was used.

    model: tf_keras or Keras 3, one output (n, classes) or (n, 1). train, val: labels (n,), integers below the number
        of classes (0 or 1 for one unit). callbacks: of the model's own Keras.
    Adam with a cosine decay to 0; sparse categorical cross-entropy, binary for one unit. Whether the outputs are
    probabilities or logits is told by the model's last activation: softmax (sigmoid for one unit) or none.
    Keras' progress bars appear on a terminal only. The same seed, data and initial weights give the same weights to
    the bit on the same machine; random states are put back after.
    Returns {"loss_function": "...", "loss": [...], "accuracy": [...], and "val_..." of both}, a value an epoch.
    Raises InputError on labels or inputs that do not fit the model, TfqError when the loss becomes NaN or infinite.
    """
    config = config or TrainConfig()
    keras = import_tf_keras() if model_kind(model) == "tf_keras" else import_keras()
    x, y = _arrays(model, train)
    validation = None if val is None else _arrays(model, val)
    steps = math.ceil(len(y) / config.batch_size) * config.epochs
    loss = _loss(keras, model)
    with deterministic(seed):
        schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, max(steps, 1))
        # Without XLA: it compiles for longer than a small model trains.
        model.compile(keras.optimizers.Adam(schedule), loss=loss, metrics=["accuracy"], jit_compile=False)
        history = model.fit(
            x,
            y,
            batch_size=config.batch_size,
            epochs=config.epochs,
            validation_data=validation,
            callbacks=[*callbacks, _stop_at_nan(keras)],
            verbose=1 if sys.stdout.isatty() else 0,
        )
    values = {name: [float(value) for value in series] for name, series in history.history.items()}
    for name, series in values.items():
        if not np.isfinite(series).all():
            raise TfqError(f"training of {model.name!r}: {name} became {series}: lower --train.learning_rate")
    return {"loss_function": _described(loss), **values}


def num_classes(model: Any) -> int:
    """The classes that a model with one output (n, classes) tells apart: 2 for (n, 1). Raises InputError otherwise."""
    if len(model.outputs) != 1:
        raise InputError(f"{model.name!r} has {len(model.outputs)} outputs: train_model wants one: bring your own loop")
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or not shape[1]:
        raise InputError(f"{model.name!r} gives {shape}: train_model wants (n, classes): bring your own loop")
    return max(2, int(shape[1]))


def gives_probabilities(model: Any) -> bool:
    """Whether the model's one output went through softmax (for one unit, sigmoid); otherwise it gives logits."""
    wanted = "sigmoid" if model.outputs[0].shape[-1] == 1 else "softmax"
    tensor = model.outputs[0]
    while True:
        history = tensor._keras_history
        layer = getattr(history, "operation", None) or history[0]
        layer = getattr(layer, "layer", layer)
        if type(layer).__name__ == "Softmax":
            return wanted == "softmax"
        activation = getattr(layer, "activation", None)
        # QAT wraps the function in an object that keeps it as its own `activation`.
        name = getattr(getattr(activation, "activation", activation), "__name__", None)
        if name in ("softmax", "sigmoid"):
            return name == wanted
        passes_on = type(layer).__name__ in _TRANSPARENT or (type(layer).__name__ == "Activation" and name == "linear")
        if not passes_on or not hasattr(layer, "input") or isinstance(layer.input, (list, tuple, dict)):
            return False
        tensor = layer.input


def _loss(keras: Any, model: Any) -> Any:
    from_logits = not gives_probabilities(model)
    if model.outputs[0].shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _described(loss: Any) -> str:
    return f"{loss.name} from {'logits' if loss.get_config()['from_logits'] else 'probabilities'}"


def _arrays(model: Any, split: Split) -> tuple[Any, NDArray]:
    where = f"{split.source}, split {split.name}"
    classes = num_classes(model)
    arrays = bind_inputs(split.inputs, list(model.input_names) if hasattr(model, "input_names") else _names(model))
    for tensor, array in zip(model.inputs, arrays, strict=True):
        _check_input(array, tuple(tensor.shape), f"{where}: input {tensor.name.split(':')[0]!r}")
    labels = split.labels
    if labels is None:
        raise InputError(f"{where}: has no labels, and training needs them")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {labels.dtype} {labels.shape}: wanted integers, one an example")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{where}: labels run from {labels.min()} to {labels.max()}, and {model.name!r} tells {classes} classes "
            f"apart: wanted 0 to {classes - 1}"
        )
    return arrays if len(arrays) > 1 else arrays[0], labels


def _names(model: Any) -> list[str]:
    return [tensor.name.split(":")[0] for tensor in model.inputs]


def _check_input(array: NDArray, shape: tuple[int | None, ...], where: str) -> None:
    fits = len(array.shape) == len(shape) and all(
        wanted is None or wanted == got for wanted, got in zip(shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise InputError(f"{where}: examples have shape {array.shape[1:]}, the model wants {shape[1:]}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{where}: holds NaN or infinity: clean the data first")


def _stop_at_nan(keras: Any) -> Any:
    class StopAtNaN(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                raise TfqError(
                    f"training of {self.model.name!r}: the loss became {loss} at batch {batch}: lower "
                    "--train.learning_rate, or look at the scale of the inputs"
                )

    return StopAtNaN()
