# SPDX-License-Identifier: Apache-2.0
"""Training loop of the CIFAR-10 benchmarks: the same for every variant, and bit-identical for the same seed."""

import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tfq.artifacts import read_json
from tfq.compression.training import dataset_of
from tfq.errors import InputError, TfqError


class Augmented:
    """Shuffled batches of images, randomly flipped and shifted by up to `shift` pixels, depending on seed and epoch."""

    def __init__(self, split: Any, batch_size: int, seed: int, shift: int) -> None:
        self._images, self._labels = np.ascontiguousarray(split.inputs["x"]), split.labels
        self._batch_size, self._seed, self._shift = batch_size, seed, shift

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._batch_size)

    def epochs(self) -> Any:
        """Return a tf.data.Dataset of batches (images, labels). Each iteration over it yields the next epoch."""
        passes = itertools.count()

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            epoch = next(passes)
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._images))
            for index in range(len(self)):
                yield self._batch(epoch, index, order)

        return dataset_of(batches, (self._images, self._labels), len(self))

    def _batch(self, epoch: int, index: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self._seed, epoch, index))
        chosen = order[index * self._batch_size :][: self._batch_size]
        images = self._images[chosen]
        flipped = rng.random(len(images)) < 0.5
        images[flipped] = images[flipped, :, ::-1]
        height, width = images.shape[1:3]
        padded = np.pad(images, ((0, 0), (self._shift,) * 2, (self._shift,) * 2, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (1, 2))
        top, left = rng.integers(0, 2 * self._shift + 1, (2, len(images)))
        return np.moveaxis(windows[np.arange(len(images)), top, left], 1, -1), self._labels[chosen]


def fit_for(
    splits: dict[str, Any],
    phase: "Phase",
    seed: int,
    best_from: int | None,
    record: dict[str, Any],
    *,
    keras: Any = None,
) -> Callable:
    """Return the `fit` function for prune_model, qat_model and prune_structured; every variant uses it.

    best_from: after training, restore the weights of the epoch with the best validation accuracy among the epochs from
        this one on; 0 is the state before training. None: keep the last epoch.
    keras: the Keras module of the models; None is tf_keras.
    """
    from tfq.compression.output_losses import outputs_probabilities
    from tfq.keras_bridge import import_tf_keras

    keras = keras or import_tf_keras()
    augmented = Augmented(splits["train"], phase.batch_size, seed, phase.shift)
    validation = splits["val"].inputs["x"], splits["val"].labels

    class KeepsBest(keras.callbacks.Callback):
        """Restores the weights of the best epoch after training."""

        best, weights, epoch = -1.0, None, 0

        def on_train_begin(self, logs: Any = None) -> None:
            if best_from == 0:
                _, accuracy = self.model.evaluate(*validation, batch_size=500, verbose=0)
                record["val_accuracy_before"] = float(accuracy)
                self._consider(0, accuracy)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            print(f"    epoch {epoch + 1}/{phase.epochs}: {_formatted(logs)}", flush=True)
            record.setdefault("val_accuracy", []).append(float(logs["val_accuracy"]))
            if best_from is not None and epoch + 1 >= best_from:
                self._consider(epoch + 1, logs["val_accuracy"])

        def _consider(self, epoch: int, accuracy: float) -> None:
            if accuracy > self.best:
                self.best, self.epoch, self.weights = accuracy, epoch, self.model.get_weights()

        def on_train_end(self, logs: Any = None) -> None:
            if self.weights is not None:
                self.model.set_weights(self.weights)
                record["epoch"] = self.epoch

    def fit(model: Any, callbacks: list[Any]) -> None:
        steps = len(augmented) * phase.epochs
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(phase.learning_rate, steps))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not outputs_probabilities(model))
        accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
        model.compile(optimizer, loss=loss, metrics=[accuracy], jit_compile=False)
        # Before fit: a first step that creates variables is traced twice.
        model.optimizer.build(model.trainable_variables)
        begin = time.monotonic()
        model.fit(
            augmented.epochs(),
            epochs=phase.epochs,
            validation_data=validation,
            validation_batch_size=500,
            callbacks=[*callbacks, KeepsBest()],
            verbose=0,
        )
        record["secs"] = round(time.monotonic() - begin, 1)

    return fit


@dataclass(frozen=True)
class Phase:
    """How a phase trains. shift: the maximum shift of images in pixels."""

    epochs: int
    batch_size: int
    learning_rate: float
    shift: int = 4


def copied(model: Any) -> Any:
    """Return a separate model with the same weights."""
    from tfq.keras_bridge import import_tf_keras

    clone = import_tf_keras().models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def kept_record(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result that an earlier run saved, or None. Raise InputError if it has other settings."""
    if not path.exists():
        return None
    record = read_json(path)
    if record["settings"] != settings:
        raise InputError(f"{path} is of other settings, {json.dumps(record['settings'])}: give another --out")
    return record


def exit_with(main: Callable[[], int], script: str) -> NoReturn:
    """Exit with the return code of `main`; print tfq's errors in one line."""
    try:
        sys.exit(main())
    except TfqError as error:
        print(f"{Path(script).name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def save_model(model: Any, path: Path) -> None:
    """Save the model atomically."""
    scratch = path.with_name(f"half_{path.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.save(scratch, include_optimizer=False)
    scratch.replace(path)


def _formatted(logs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.4f}" for name, value in logs.items())
