# SPDX-License-Identifier: Apache-2.0
"""Train classifiers and autoencoders of either Keras, and feed data to models."""

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import progress
from tfq.compression.mixed_precision import trained_in
from tfq.config import TrainConfig
from tfq.data import AnySplit, Split, SplitStream, as_split, bind_inputs, shape_fits
from tfq.data.split import batches_in_order, check_width, shuffled_batches, without_one_hot
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras, model_kind
from tfq.keras_bridge.strategies import in_strategy
from tfq.native_stderr import captured_stderr

_BATCH_SIZE = 32


def batches_of(model: Any, data: Any, limit: int, context: str) -> Iterator[list[NDArray]]:
    """Yield the first `limit` examples in batches.

    Args:
        model: tf_keras model.
        data: Inputs in the model's real units, in any form that `tfq.data.as_split` accepts.
        limit: Number of examples.
        context: Start of the error message.

    Yields:
        An array (n, ...) for each input, in the model's order.

    Raises:
        InputError: The shapes of the data do not match the model's inputs.
    """
    split = as_split(data, split="train", limit=limit)
    for piece in split.pieces():
        arrays = bind_inputs(piece.inputs, list(model.input_names))
        for array, tensor in zip(arrays, model.inputs, strict=True):
            expected = tuple(tensor.shape)[1:]
            if not array.ndim or not shape_fits(array.shape[1:], expected):
                raise InputError(
                    f"{context} examples of input {tensor.name!r} have shape {array.shape[1:]}, but the model expects "
                    f"{expected}: pass an array (n, ...) of model inputs",
                    field="data",
                    expected=tuple(expected),
                    got=array.shape[1:],
                )
        for start in range(0, len(arrays[0]), _BATCH_SIZE):
            yield [array[start : start + _BATCH_SIZE] for array in arrays]


__all__ = ["deterministic", "predict", "reconstructs", "train_model"]

# Layers that do not change whether their input is probabilities or logits.
_PASS_THROUGH = frozenset(("Flatten", "Reshape", "Dropout", "QuantizeLayer", "Identity", "Permute"))


@in_strategy
def train_model(
    model: Any,
    train: AnySplit,
    val: AnySplit | None = None,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Compile a classifier or autoencoder and train it in place.

    The optimizer is Adam with a cosine decay of the learning rate to 0. The loss is the sparse categorical
    cross-entropy, or the binary cross-entropy for one output unit. It is computed from probabilities if the model ends
    in softmax (sigmoid for one unit), and from logits otherwise. A model that `reconstructs` its input is trained with
    the mean squared error to its input, and its labels are ignored.

    The same seed, data and initial weights give bitwise equal weights on the same machine. Random states are restored
    afterwards. A stream is shuffled by seed and epoch as described in `tfq.data.split`, in different batches than data
    in memory. Keras' progress bars appear on a terminal only.

    Args:
        model: tf_keras or Keras 3 model with one output (n, classes) or (n, 1), or an autoencoder.
        train: Training data. Labels have shape (n,) with integers below the number of classes (0 or 1 for one unit),
            or are one-hot rows (n, classes).
        val: Validation data, as `train`.
        config: Epochs, batch size and learning rate.
        seed: Seed of all random generators.
        callbacks: Callbacks of the model's Keras.

    Returns:
        {"loss_function": description, "loss": [...], "accuracy": [...] (of classifiers), "val_loss": [...], ...}, with
        one value per epoch. In mixed precision also "dtype_policy", as it was used, and "loss_scale", the last factor
        of the loss or None.

    Raises:
        InputError: Labels or inputs do not match the model, or a layer cannot compute in `config.dtype_policy`.
        TfqError: The loss becomes NaN or infinite.
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
    with deterministic(seed), streamed.errors(), trained_in(model, config.dtype_policy) as precision:
        schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, max(steps, 1))
        # Without XLA, because compiling takes longer than the training of a small model.
        model.compile(keras.optimizers.Adam(schedule), loss=loss, metrics=_metrics(keras, model), jit_compile=False)
        # A first step that creates variables is traced twice, which is most of the time of a short fit.
        model.optimizer.build(model.trainable_variables)
        stage = progress.stage(f"training {config.epochs} epoch{'' if config.epochs == 1 else 's'}")
        with stage, progress.hidden(), _quiet_iterators(keras) as quiet:
            history = model.fit(
                x,
                y,
                batch_size=None if y is None else config.batch_size,
                epochs=config.epochs,
                validation_data=validation,
                validation_batch_size=config.batch_size if isinstance(validation, tuple) else None,
                callbacks=[*callbacks, _stop_at_nan(keras), quiet],
                verbose=1 if sys.stdout.isatty() else 0,
            )
    values = {name: [float(value) for value in series] for name, series in history.history.items()}
    for name, series in values.items():
        if not np.isfinite(series).all():
            raise TfqError(
                f"training of {model.name!r}: {name} became NaN or infinite ({series}): lower the learning rate",
                field="training.learning_rate",
                expected="a finite loss",
                got=series,
            )
    return {"loss_function": _describe_loss(loss), **precision, **values}


@in_strategy
def predict(model: Any, split: AnySplit) -> NDArray:
    """Return the model's one output for all examples, shape (n, ...), in their order."""
    outputs = []
    for piece in split.pieces():
        inputs = list(piece.inputs.values())
        outputs.append(model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0))
    return np.concatenate(outputs)


def num_classes(model: Any) -> int:
    """Return the number of classes of a classifier with one output (n, classes), or 2 for (n, 1).

    Raises:
        InputError: The model has several outputs, or an output of another shape.
    """
    if len(model.outputs) != 1:
        raise InputError(
            f"{model.name!r} has {len(model.outputs)} outputs: train_model supports one output. Use a custom training "
            "function",
            field="model",
            expected=1,
            got=len(model.outputs),
        )
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or not shape[1]:
        raise InputError(
            f"{model.name!r} has an output of shape {shape}: train_model expects (n, classes). Use a custom training "
            "function",
            field="model",
            expected="(n, classes)",
            got=shape,
        )
    return max(2, int(shape[1]))


def reconstructs(model: Any) -> bool:
    """Check whether a model is an autoencoder: its one output has the shape of its one float input.

    Models whose output is probabilities are not autoencoders.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1 or "float" not in str(model.inputs[0].dtype):
        return False
    shape = tuple(model.outputs[0].shape)
    several = any(size is None or size > 1 for size in shape[1:])
    return several and shape[1:] == tuple(model.inputs[0].shape)[1:] and not outputs_probabilities(model)


def outputs_probabilities(model: Any) -> bool:
    """Check whether the model's one output ends in softmax (sigmoid for one unit). Otherwise it is logits."""
    return output_kind(model.outputs[0]) == ("sigmoid" if model.outputs[0].shape[-1] == 1 else "softmax")


def output_kind(tensor: Any) -> str:
    """Return the last activation before a Keras model's output: "softmax", "sigmoid", "linear", or "values" (other)."""
    while True:
        history = tensor._keras_history
        layer = getattr(history, "operation", None) or history[0]
        layer = getattr(layer, "layer", layer)
        if type(layer).__name__ == "Softmax":
            return "softmax"
        activation = getattr(layer, "activation", None)
        # QAT wraps the function in an object with an attribute `activation`.
        name = getattr(getattr(activation, "activation", activation), "__name__", None)
        if name in ("softmax", "sigmoid"):
            return name
        is_pass_through = type(layer).__name__ in _PASS_THROUGH or (
            type(layer).__name__ == "Activation" and name == "linear"
        )
        if not is_pass_through:
            return "linear" if name in (None, "linear") else "values"
        if not hasattr(layer, "input") or isinstance(layer.input, (list, tuple, dict)):
            return "linear"
        tensor = layer.input


def _loss(keras: Any, model: Any) -> Any:
    if reconstructs(model):
        return keras.losses.MeanSquaredError()
    from_logits = not outputs_probabilities(model)
    if model.outputs[0].shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _metrics(keras: Any, model: Any) -> list[Any]:
    """Return the metric that "accuracy" stands for. As an object, it creates its variables before the first step."""
    if reconstructs(model):
        return []
    if model.outputs[0].shape[-1] == 1:
        return [keras.metrics.BinaryAccuracy(name="accuracy")]
    return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


def _describe_loss(loss: Any) -> str:
    if "from_logits" not in loss.get_config():
        return f"{loss.name} of the reconstruction"
    return f"{loss.name} from {'logits' if loss.get_config()['from_logits'] else 'probabilities'}"


def dataset_of(batches: Callable[[], Iterator[Any]], like: Any, steps: int) -> Any:
    """Return a tf.data.Dataset for `fit` from a generator function.

    tf.data's autotuning is off. In TensorFlow 2.21, its thread sleeps for up to a minute, doubling the time with each
    sleep, and an iterator waits for the thread to wake up before it ends. This costs half a minute at the end of each
    epoch of a long training.

    Args:
        batches: Called for each pass over the data; returns an iterator of `steps` batches.
        like: Arrays with the shapes, dtypes and structure of a batch, with any number of examples.
        steps: Number of batches in one pass.
    """
    import tensorflow as tf

    signature = tf.nest.map_structure(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), like)
    result = tf.data.Dataset.from_generator(batches, output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    return result.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(1).with_options(options)


class _Streamed:
    """Converts streams to datasets for `fit` of either Keras, and collects the errors raised while reading them."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._errors: list[Exception] = []

    def dataset(self, stream: SplitStream, seed: int | None = None) -> Any:
        """Return a tf.data.Dataset of batches (x, y).

        Args:
            stream: The data.
            seed: Seed of the order, which differs between passes; None keeps the stream's order.
        """
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
        """Raise the original error of a stream instead of TensorFlow's error about it."""
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
        raise InputError(f"{where}: training needs labels, but the data have none", field="data", expected="labels")
    check_width(labels, classes, where)
    labels = without_one_hot(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{where}: labels have dtype {labels.dtype} and shape {labels.shape}: expected a class number or a one-hot "
            "row for each example",
            field="data",
            expected="one integer label for each example",
            got=str(labels.dtype),
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{where}: labels range from {labels.min()} to {labels.max()}, but {model.name!r} has {classes} classes: "
            f"expected 0 to {classes - 1}",
            field="data",
            expected=(0, classes - 1),
            got=(int(labels.min()), int(labels.max())),
        )
    return arrays if len(arrays) > 1 else arrays[0], labels


def _warn_of_unused_classes(model: Any, labels: NDArray | None) -> None:
    """Warn if an autoencoder's data have more labels than 0 and 1 (normal and anomalous), as a classifier's would."""
    if labels is not None and labels.dtype.kind in "iu" and labels.max() > 1:
        warn(
            f"{model.name!r} has an output of the same shape as its input, and is trained to reconstruct the input: "
            f"the labels (0 to {labels.max()}) are not used. If it is a classifier, end it with a softmax"
        )


def _names(model: Any) -> list[str]:
    return [tensor.name.split(":")[0] for tensor in model.inputs]


def _check_input(array: NDArray, shape: tuple[int | None, ...], where: str) -> None:
    if not array.ndim or not shape_fits(array.shape[1:], shape[1:]):
        raise InputError(
            f"{where}: examples have shape {array.shape[1:]}, but the model expects {shape[1:]}",
            field="data",
            expected=shape[1:],
            got=array.shape[1:],
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"{where}: contains NaN or infinity: clean the data first", field="data", expected="finite values"
        )


@contextlib.contextmanager
def _quiet_iterators(keras: Any) -> Iterator[Any]:
    """Yield a callback that captures stderr while fit creates an iterator over the data.

    If operations are deterministic, tf.data rewrites its graph at that point, and logs an error without consequences
    (2.21: "NodeDef mentions attribute use_unbounded_threadpool which is not in the op definition").
    """
    with contextlib.ExitStack() as stack:

        class QuietIterators(keras.callbacks.Callback):
            def _begin(self, *_: Any, **__: Any) -> None:
                stack.close()
                stack.enter_context(captured_stderr())

            def _end(self, *_: Any, **__: Any) -> None:
                stack.close()

            on_train_begin = on_epoch_begin = on_test_begin = _begin
            on_train_batch_begin = on_test_batch_begin = on_test_end = on_epoch_end = on_train_end = _end

        yield QuietIterators()


def _stop_at_nan(keras: Any) -> Any:
    class StopAtNaN(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                raise TfqError(
                    f"training of {self.model.name!r}: the loss became {loss} at batch {batch}: lower the learning "
                    "rate, or check the scale of the inputs",
                    field="training.learning_rate",
                    expected="a finite loss",
                    got=loss,
                )

    return StopAtNaN()
