# SPDX-License-Identifier: Apache-2.0
"""Train tf_keras models: data as they are fed it, epochs, best weights."""

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import progress
from tfq.config import TrainConfig
from tfq.data import AnySplit, Split, SplitStream, as_split, bind_inputs, shape_fits
from tfq.data.split import batches_in_order, check_width, shuffled_batches, without_one_hot
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras, model_kind

_BATCH_SIZE = 32


def batches_of(model: Any, data: Any, limit: int, what: str) -> Iterator[list[NDArray]]:
    """The first `limit` examples, an array (n, ...) for each input in the model's order, a batch at a time.

    data: inputs in the model's real units, whatever `tfq.data.as_split` takes. what: begins the error.
    Raises InputError where their shapes are not those of the model's inputs.
    """
    split = as_split(data, split="train", limit=limit)
    for piece in split.pieces():
        arrays = bind_inputs(piece.inputs, list(model.input_names))
        for array, tensor in zip(arrays, model.inputs, strict=True):
            wanted = tuple(tensor.shape)[1:]
            if not array.ndim or not shape_fits(array.shape[1:], wanted):
                raise InputError(
                    f"{what} examples of input {tensor.name!r} have shape {array.shape[1:]}, the model wants "
                    f"{wanted}: give an array (n, ...) of what the model is fed",
                    field="data",
                    expected=tuple(wanted),
                    got=array.shape[1:],
                )
        for start in range(0, len(arrays[0]), _BATCH_SIZE):
            yield [array[start : start + _BATCH_SIZE] for array in arrays]


__all__ = ["deterministic", "predict", "reconstructs", "train_model"]

# Layers that pass their input on, as far as telling probabilities from logits goes.
_TRANSPARENT = frozenset(("Flatten", "Reshape", "Dropout", "QuantizeLayer", "Identity", "Permute"))


def train_model(
    model: Any,
    train: AnySplit,
    val: AnySplit | None = None,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Compile `model` and train it in place; gives Keras' history with the loss that was used.

    model: tf_keras or Keras 3, one output (n, classes) or (n, 1). train, val: labels (n,), integers below the number
        of classes (0 or 1 for one unit), or one-hot rows (n, classes). callbacks: of the model's own Keras.
    Adam with a cosine decay to 0; sparse categorical cross-entropy, binary for one unit. Whether the outputs are
    probabilities or logits is told by the model's last activation: softmax (sigmoid for one unit) or none.
    A stream is shuffled as `tfq.data.split` says, by the seed and the epoch: in other batches than in memory.
    A model that `reconstructs` its input learns that input by its mean squared error, whatever the labels.
    Keras' progress bars appear on a terminal only. The same seed, data and initial weights give the same weights to
    the bit on the same machine; random states are put back after.
    Returns {"loss_function": "...", "loss": [...], "accuracy": [...] of a classifier, and "val_..." of each}, a value
    an epoch.
    Raises InputError on labels or inputs that do not fit the model, TfqError when the loss becomes NaN or infinite.
    """
    config = config or TrainConfig()
    keras = import_tf_keras() if model_kind(model) == "tf_keras" else import_keras()
    streamed = _Streamed(model, config.batch_size)
    x, y = _arrays(model, train) if isinstance(train, Split) else (streamed.dataset(train, seed), None)
    validation = None
    if val is not None:
        validation = _arrays(model, val) if isinstance(val, Split) else streamed.dataset(val)
    steps = math.ceil(train.num_examples / config.batch_size) * config.epochs
    loss = _loss(keras, model)
    with deterministic(seed), streamed.errors():
        schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, max(steps, 1))
        # Without XLA: it compiles for longer than a small model trains.
        model.compile(keras.optimizers.Adam(schedule), loss=loss, metrics=_metrics(keras, model), jit_compile=False)
        # Before fit: a first step that creates variables is traced twice, which is most of what a short fit costs.
        model.optimizer.build(model.trainable_variables)
        with progress.stage(f"training {config.epochs} epochs"), progress.hidden():
            history = model.fit(
                x,
                y,
                batch_size=None if y is None else config.batch_size,
                epochs=config.epochs,
                validation_data=validation,
                validation_batch_size=config.batch_size if isinstance(validation, tuple) else None,
                callbacks=[*callbacks, _stop_at_nan(keras)],
                verbose=1 if sys.stdout.isatty() else 0,
            )
    values = {name: [float(value) for value in series] for name, series in history.history.items()}
    for name, series in values.items():
        if not np.isfinite(series).all():
            raise TfqError(
                f"training of {model.name!r}: {name} became {series}: lower the learning rate",
                field="training.learning_rate",
                expected="a finite loss",
                got=series,
            )
    return {"loss_function": _described(loss), **values}


def predict(model: Any, split: AnySplit) -> NDArray:
    """(n, ...) what the model's one output gives on the examples, in their order."""
    provided = []
    for piece in split.pieces():
        inputs = list(piece.inputs.values())
        provided.append(model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0))
    return np.concatenate(provided)


def num_classes(model: Any) -> int:
    """The classes that a model with one output (n, classes) tells apart: 2 for (n, 1). Raises InputError otherwise."""
    if len(model.outputs) != 1:
        raise InputError(
            f"{model.name!r} has {len(model.outputs)} outputs: train_model wants one: bring your own loop",
            field="model",
            expected=1,
            got=len(model.outputs),
        )
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or not shape[1]:
        raise InputError(
            f"{model.name!r} gives {shape}: train_model wants (n, classes): bring your own loop",
            field="model",
            expected="(n, classes)",
            got=shape,
        )
    return max(2, int(shape[1]))


def reconstructs(model: Any) -> bool:
    """Whether the model's one output has the shape of its one float input, and is no distribution over classes."""
    if len(model.inputs) != 1 or len(model.outputs) != 1 or "float" not in str(model.inputs[0].dtype):
        return False
    shape = tuple(model.outputs[0].shape)
    several = any(size is None or size > 1 for size in shape[1:])
    return several and shape[1:] == tuple(model.inputs[0].shape)[1:] and not gives_probabilities(model)


def gives_probabilities(model: Any) -> bool:
    """Whether the model's one output went through softmax (for one unit, sigmoid); otherwise it gives logits."""
    return output_kind(model.outputs[0]) == ("sigmoid" if model.outputs[0].shape[-1] == 1 else "softmax")


def output_kind(tensor: Any) -> str:
    """What a Keras model's output went through last: "softmax", "sigmoid", "linear" (nothing) or "values" (else)."""
    while True:
        history = tensor._keras_history
        layer = getattr(history, "operation", None) or history[0]
        layer = getattr(layer, "layer", layer)
        if type(layer).__name__ == "Softmax":
            return "softmax"
        activation = getattr(layer, "activation", None)
        # QAT wraps the function in an object that keeps it as its own `activation`.
        name = getattr(getattr(activation, "activation", activation), "__name__", None)
        if name in ("softmax", "sigmoid"):
            return name
        passes_on = type(layer).__name__ in _TRANSPARENT or (type(layer).__name__ == "Activation" and name == "linear")
        if not passes_on:
            return "linear" if name in (None, "linear") else "values"
        if not hasattr(layer, "input") or isinstance(layer.input, (list, tuple, dict)):
            return "linear"
        tensor = layer.input


def _loss(keras: Any, model: Any) -> Any:
    if reconstructs(model):
        return keras.losses.MeanSquaredError()
    from_logits = not gives_probabilities(model)
    if model.outputs[0].shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _metrics(keras: Any, model: Any) -> list[Any]:
    """What Keras makes of "accuracy"; as an object it has its variables from the beginning."""
    if reconstructs(model):
        return []
    if model.outputs[0].shape[-1] == 1:
        return [keras.metrics.BinaryAccuracy(name="accuracy")]
    return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


def _described(loss: Any) -> str:
    if "from_logits" not in loss.get_config():
        return f"{loss.name} of the reconstruction"
    return f"{loss.name} from {'logits' if loss.get_config()['from_logits'] else 'probabilities'}"


def dataset_of(batches: Callable[[], Iterator[Any]], like: Any, steps: int) -> Any:
    """A tf.data.Dataset for fit, each pass of which is `steps` batches of a new `batches()`.

    like: arrays of the batches' shapes, dtypes and structure, with any number of examples.
    It does without tf.data's search for parallelism. What searches (TensorFlow 2.21) sleeps for up to a minute at a
    time, twice as long each time, and an iterator waits for it to wake before it ends: half a minute at the end of each
    epoch of a long training.
    """
    import tensorflow as tf

    signature = tf.nest.map_structure(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), like)
    result = tf.data.Dataset.from_generator(batches, output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    return result.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(1).with_options(options)


class _Streamed:
    """Streams as what both Kerases' fit takes, and the errors that come up while they are read."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._errors: list[Exception] = []

    def dataset(self, stream: SplitStream, seed: int | None = None) -> Any:
        """A tf.data.Dataset of batches (x, y), each pass in another order by the seed; in the stream's without one."""
        x, y = _arrays(self._model, stream.first())
        like = (tuple(x) if isinstance(x, list) else x, y)
        epochs = itertools.count()

        def batches() -> Iterator[Any]:
            try:
                order = batches_in_order(stream, self._batch_size)
                if seed is not None:
                    order = shuffled_batches(stream, self._batch_size, seed, next(epochs))
                for batch in order:
                    x, y = _arrays(self._model, batch, warn=False)
                    yield tuple(x) if isinstance(x, list) else x, y
            except Exception as error:
                self._errors.append(error)
                raise

        return dataset_of(batches, like, math.ceil(stream.num_examples / self._batch_size))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises what came up in a stream in place of what TensorFlow makes of it."""
        try:
            yield
        except Exception:
            if self._errors:
                raise self._errors[0] from None
            raise


def _arrays(model: Any, split: Split, *, warn: bool = True) -> tuple[Any, NDArray]:
    where = f"{split.source}, split {split.name}"
    classes = 0 if reconstructs(model) else num_classes(model)
    arrays = bind_inputs(split.inputs, list(model.input_names) if hasattr(model, "input_names") else _names(model))
    for tensor, array in zip(model.inputs, arrays, strict=True):
        _check_input(array, tuple(tensor.shape), f"{where}: input {tensor.name.split(':')[0]!r}")
    labels = split.labels
    if not classes:
        if warn:
            _warn_of_unused_classes(model, labels)
        return arrays[0], arrays[0]
    if labels is None:
        raise InputError(f"{where}: has no labels, and training needs them", field="data", expected="labels")
    check_width(labels, classes, where)
    labels = without_one_hot(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{where}: labels are {labels.dtype} {labels.shape}: expected a class number or a one-hot row for each "
            "example",
            field="data",
            expected="one integer label for each example",
            got=str(labels.dtype),
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{where}: labels run from {labels.min()} to {labels.max()}, and {model.name!r} tells {classes} classes "
            f"apart: expected 0 to {classes - 1}",
            field="data",
            expected=(0, classes - 1),
            got=(int(labels.min()), int(labels.max())),
        )
    return arrays if len(arrays) > 1 else arrays[0], labels


def _warn_of_unused_classes(model: Any, labels: NDArray | None) -> None:
    """Labels normal and anomalous, 0 and 1, are for a test; more of them look as if a classifier was meant."""
    if labels is not None and labels.dtype.kind in "iu" and labels.max() > 1:
        warn(
            f"{model.name!r} gives values of its input's own shape, and is trained to reconstruct it: the labels (0 to "
            f"{labels.max()}) are not used; a classifier of as many classes as inputs wants a softmax at its end"
        )


def _names(model: Any) -> list[str]:
    return [tensor.name.split(":")[0] for tensor in model.inputs]


def _check_input(array: NDArray, shape: tuple[int | None, ...], where: str) -> None:
    if not array.ndim or not shape_fits(array.shape[1:], shape[1:]):
        raise InputError(
            f"{where}: examples have shape {array.shape[1:]}, the model wants {shape[1:]}",
            field="data",
            expected=shape[1:],
            got=array.shape[1:],
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"{where}: holds NaN or infinity: clean the data first", field="data", expected="finite values"
        )


def _stop_at_nan(keras: Any) -> Any:
    class StopAtNaN(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                raise TfqError(
                    f"training of {self.model.name!r}: the loss became {loss} at batch {batch}: lower "
                    "the learning rate, or look at the scale of the inputs",
                    field="training.learning_rate",
                    expected="a finite loss",
                    got=loss,
                )

    return StopAtNaN()
