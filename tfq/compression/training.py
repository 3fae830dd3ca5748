# SPDX-License-Identifier: Apache-2.0
"""Train models of either Keras, and feed data to them."""

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import progress
from tfq.compression.distillation import labels_with, outputs_kept
from tfq.compression.mixed_precision import trained_in
from tfq.compression.output_losses import OutputLosses, first_examples
from tfq.compression.teacher_outputs import TeacherOutputs, numbered
from tfq.config import TrainConfig
from tfq.data import AnySplit, Split, SplitStream, as_split, bind_inputs, shape_fits
from tfq.data.split import batches_in_order, shuffled_batches
from tfq.errors import InputError, TfqError
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


__all__ = ["deterministic", "predict", "train_model"]


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
    """Compile a model and train it in place.

    The optimizer is Adam with a cosine decay of the learning rate to 0. The loss is the sum of the losses of all
    outputs. `config.loss` chooses them. By default, the labels do: the sparse categorical cross-entropy for class
    numbers and one-hot rows, the binary cross-entropy for one unit or for 0 and 1 of each unit of a sigmoid, and the
    mean squared error for values. A cross-entropy is computed from probabilities if the output ends in softmax or
    sigmoid, and from logits otherwise. A model that `reconstructs` its input is trained with the mean squared error to
    its input, and its labels are ignored.

    The same seed, data and initial weights give bitwise equal weights on the same machine. Random states are restored
    afterwards. A stream is shuffled by seed and epoch as described in `tfq.data.split`, in different batches than data
    in memory. Keras' progress bars appear on a terminal only.

    Args:
        model: A functional or sequential model of either Keras.
        train: Training data. Labels of classes are integers below the number of classes (0 or 1 for one unit), shape
            (n,), or (n, height, width) for maps; or one-hot rows (n, classes). Those of several outputs have the names
            of the outputs.
        val: Validation data, as `train`.
        config: Epochs, batch size, learning rate and losses.
        seed: Seed of all random generators.
        callbacks: Callbacks of the model's Keras.

    Returns:
        {"loss_function": description, "loss": [...], "accuracy" (of classes) or "mae" (of values): [...],
        "val_loss": [...], ...}, with one value per epoch. For several outputs, "loss_function" has a description of
        each, and the other names start with those of the outputs: "boxes_loss", "boxes_mae". In mixed precision also
        "dtype_policy", as it was used, and "loss_scale", the last factor of the loss or None. With a teacher also
        "teacher_outputs": whether its outputs were computed once or in every epoch, and why.

    Raises:
        InputError: Labels or inputs do not match the model, or a layer cannot compute in `config.dtype_policy`.
        TfqError: The loss becomes NaN or infinite.
    """
    config = config or TrainConfig()
    keras = import_tf_keras() if model_kind(model) == "tf_keras" else import_keras()
    losses = OutputLosses(model, config, first_examples(train))
    streamed = _Streamed(model, losses, config.batch_size)
    x, y = _arrays(model, losses, train) if isinstance(train, Split) else (None, None)
    validation = None
    if val is not None:
        validation = _arrays(model, losses, val) if isinstance(val, Split) else streamed.dataset(val)
    steps = math.ceil(train.num_examples / config.batch_size) * config.epochs
    with (
        outputs_kept(model, train, config, seed=seed) as (outputs, teacher_facts),
        deterministic(seed),
        streamed.errors(),
        trained_in(model, config.dtype_policy) as precision,
    ):
        if isinstance(train, SplitStream):
            x = streamed.dataset(train, seed, outputs)
        elif outputs is not None:
            y = labels_with(y, outputs.arrays)
        schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, max(steps, 1))
        # Without XLA, because compiling takes longer than the training of a small model.
        model.compile(keras.optimizers.Adam(schedule), **losses.compile_arguments(keras), jit_compile=False)
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
    return {
        "loss_function": losses.describe(keras),
        **teacher_facts,
        **precision,
        **losses.named_history(values),
    }


@in_strategy
def predict(model: Any, split: AnySplit) -> tuple[NDArray, ...]:
    """Return each output of a model for all examples, shape (n, ...), in their order."""
    import tensorflow as tf

    pieces = []
    for piece in split.pieces():
        inputs = bind_inputs(piece.inputs, _names(model))
        pieces.append(tf.nest.flatten(model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)))
    return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))


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

    def __init__(self, model: Any, losses: OutputLosses, batch_size: int) -> None:
        self._model, self._losses, self._batch_size = model, losses, batch_size
        self._errors: list[Exception] = []

    def dataset(self, stream: SplitStream, seed: int | None = None, outputs: TeacherOutputs | None = None) -> Any:
        """Return a tf.data.Dataset of batches (x, y).

        Args:
            stream: The data.
            seed: Seed of the order, which differs between passes; None keeps the stream's order.
            outputs: The outputs of teachers for the examples of the stream, which become part of y.
        """
        stream = stream if outputs is None else numbered(stream)
        like = self._batch(stream.first(), outputs)
        epochs = itertools.count()

        def batches() -> Iterator[Any]:
            try:
                order = batches_in_order(stream, self._batch_size)
                if seed is not None:
                    order = shuffled_batches(stream, self._batch_size, seed, next(epochs))
                for batch in order:
                    yield self._batch(batch, outputs)
            except Exception as error:
                self._errors.append(error)
                raise

        return dataset_of(batches, like, math.ceil(stream.num_examples / self._batch_size))

    def _batch(self, split: Split, outputs: TeacherOutputs | None) -> tuple[Any, Any]:
        """Return (x, y) with tuples instead of lists, which tf.data needs."""
        if outputs is None:
            return _without_lists(_arrays(self._model, self._losses, split))
        split, arrays = outputs.of(split)
        x, y = _arrays(self._model, self._losses, split)
        return _without_lists((x, labels_with(y, arrays)))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the original error of a stream instead of TensorFlow's error about it."""
        try:
            yield
        except Exception:
            if self._errors:
                raise self._errors[0] from None
            raise


def _without_lists(structure: Any) -> Any:
    if isinstance(structure, dict):
        return {name: _without_lists(value) for name, value in structure.items()}
    return tuple(map(_without_lists, structure)) if isinstance(structure, (list, tuple)) else structure


def _arrays(model: Any, losses: OutputLosses, split: Split) -> tuple[Any, Any]:
    """Return checked (x, y) for `fit`."""
    where = f"{split.source}, split {split.name}"
    arrays = bind_inputs(split.inputs, _names(model))
    for tensor, array in zip(model.inputs, arrays, strict=True):
        _check_input(array, tuple(tensor.shape), f"{where}: input {tensor.name.split(':')[0]!r}")
    return arrays if len(arrays) > 1 else arrays[0], losses.targets(split, arrays)


def _names(model: Any) -> list[str]:
    if hasattr(model, "input_names"):
        return list(model.input_names)
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
