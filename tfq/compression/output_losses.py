# SPDX-License-Identifier: Apache-2.0
"""Choose the loss of each output of a model, and check that the labels fit it.

The loss of a training is the sum of the losses of the outputs, each multiplied by its weight. Labels of several outputs
have the names of the outputs (see `tfq.data.output_labels`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import LOSSES, TrainConfig
from tfq.data import AnySplit, Split, check_output_names, is_one_hot, labeled_outputs, labels_of_output, shape_fits
from tfq.data.label_maps import IGNORED
from tfq.data.split import check_width, without_one_hot
from tfq.errors import InputError, did_you_mean, warn
from tfq.keras_bridge import model_kind
from tfq.keras_bridge.copies import output_names

# Layers that do not change whether their input is probabilities or logits.
_PASS_THROUGH = frozenset(("Flatten", "Reshape", "Dropout", "QuantizeLayer", "Identity", "Permute"))
_NO_LOSS = "none"
# Labels of an output, per kind of loss (see `LOSSES`), for messages.
_EXPECTED = {
    "classes": "one integer label for each example",
    "rows": "class numbers, or a row of class probabilities for each example",
    "units": "0 or 1 for each unit",
    "values": "values of the output's shape",
}


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


@dataclass(frozen=True, kw_only=True)
class OutputLoss:
    """The loss of one output.

    Args:
        output: The name of the output; "" if it is the only one.
        loss: A name of `LOSSES`, or "none".
        shape: The shape of one example of the output.
        kind: As `output_kind` returns it.
        weight: The factor of the loss in the sum.
        reconstructs: Whether the labels are the input of the model.
    """

    output: str
    loss: str
    shape: tuple[int | None, ...]
    kind: str
    weight: float = 1.0
    reconstructs: bool = False

    @property
    def classes(self) -> int:
        """The number of classes: 2 for one unit."""
        return max(2, self.shape[-1] or 0) if self.shape else 2

    @property
    def ignores_labels(self) -> bool:
        """Whether labels may be `IGNORED`: those of a class for each of several positions."""
        return self.loss == "sparse_categorical_crossentropy" and len(self.shape) > 1

    def of_keras(self, keras: Any) -> Any:
        """Return the loss as an object of a Keras; None for "none"."""
        if self.loss == _NO_LOSS:
            return None
        loss = getattr(keras.losses, "".join(word.capitalize() for word in self.loss.split("_")))
        if "crossentropy" not in self.loss:
            return loss()
        from_logits = self.kind not in ("softmax", "sigmoid")
        if self.ignores_labels:
            return loss(from_logits=from_logits, ignore_class=IGNORED)
        return loss(from_logits=from_logits)

    def metrics(self, keras: Any) -> list[Any]:
        """Return the metric "accuracy" of classes or "mae" of values, as a list. There is none of a reconstruction."""
        if self.loss == _NO_LOSS or self.reconstructs:
            return []
        metrics = {
            "classes": keras.metrics.SparseCategoricalAccuracy,
            "rows": keras.metrics.CategoricalAccuracy,
            "units": keras.metrics.BinaryAccuracy,
        }
        # As an object, it creates its variables before the first step.
        metric = metrics.get(LOSSES[self.loss])
        if self.ignores_labels:
            metric = without_ignored(metric)
        return [keras.metrics.MeanAbsoluteError(name="mae") if metric is None else metric(name="accuracy")]

    def describe(self, keras: Any) -> str:
        """Return the loss for a record, such as "binary_crossentropy from logits"."""
        if self.loss == _NO_LOSS:
            return _NO_LOSS
        settings = self.of_keras(keras).get_config()
        text = self.loss
        if "from_logits" in settings:
            text += f" from {'logits' if settings['from_logits'] else 'probabilities'}"
        text += " of the reconstruction" if self.reconstructs else ""
        return text if self.weight == 1 else f"{text}, weight {self.weight:g}"

    def targets(self, labels: NDArray, where: str) -> NDArray:
        """Return the labels as the loss expects them.

        Raises:
            InputError: They have another shape or type, or a class that the output does not have.
        """
        where = f"{where}: output {self.output!r}" if self.output else where
        kind = LOSSES[self.loss]
        if kind == "values":
            return self._values(labels, where)
        if kind == "classes":
            return self._class_numbers(labels, where)
        if kind == "units":
            return self._units(labels, where)
        if shape_fits(labels.shape[1:], self.shape) and labels.dtype.kind in "fiub":
            return labels.astype(np.float32)
        return np.eye(self.classes, dtype=np.float32)[self._class_numbers(labels, where)]

    def _class_numbers(self, labels: NDArray, where: str) -> NDArray:
        if len(self.shape) == 1:
            check_width(labels, self.classes, where)
        labels = _without_one_hot_rows(labels, len(self.shape))
        shape = self.shape[:-1]
        if shape and shape_fits(labels.shape[1:], (*shape, 1)):
            labels = labels[..., 0]
        if not shape_fits(labels.shape[1:], shape) or labels.dtype.kind not in "iu":
            raise self._misfit(labels, where)
        self._check_range(labels, where)
        return labels

    def _check_range(self, labels: NDArray, where: str) -> None:
        lowest = IGNORED if self.ignores_labels else 0
        if labels.size and (labels.min() < lowest or labels.max() >= self.classes):
            advice = f"For values that are not classes, {self._set_loss()}"
            if self.ignores_labels:
                advice = f"If {labels.max()} marks positions without a label, set data.ignore_label={labels.max()}"
            elif labels.min() == IGNORED and len(self.shape) > 1:
                advice = "Positions to ignore need an output with a softmax over two or more classes"
            raise InputError(
                f"{where}: labels range from {labels.min()} to {labels.max()}, but the output has {self.classes} "
                f"classes: expected 0 to {self.classes - 1}. {advice}",
                field="data",
                expected=(0, self.classes - 1),
                got=(int(labels.min()), int(labels.max())),
            )

    def _units(self, labels: NDArray, where: str) -> NDArray:
        is_single = self.shape[-1:] == (1,)
        if is_single and len(self.shape) == 1:
            check_width(labels, 2, where)
            labels = without_one_hot(labels)
        fits = shape_fits(labels.shape[1:], self.shape) or (is_single and shape_fits(labels.shape[1:], self.shape[:-1]))
        if not fits or labels.dtype.kind not in "fiub":
            raise self._misfit(labels, where)
        if labels.dtype.kind in "iu" and is_single:
            self._check_range(labels, where)
        elif labels.dtype.kind != "b" and labels.size and not (labels.min() >= 0 and labels.max() <= 1):
            raise self._misfit(labels, where)
        return labels if labels.dtype.kind in "iu" else labels.astype(np.float32)

    def _values(self, labels: NDArray, where: str) -> NDArray:
        if labels.dtype.kind not in "fiub":
            raise self._misfit(labels, where)
        if self.shape[-1:] == (1,) and shape_fits(labels.shape[1:], self.shape[:-1]):
            labels = labels[..., None]
        if not shape_fits(labels.shape[1:], self.shape):
            raise self._misfit(labels, where)
        if not np.isfinite(labels).all():
            raise InputError(
                f"{where}: the labels contain NaN or infinity: clean the data first",
                field="data",
                expected="finite values",
            )
        return labels.astype(np.float32)

    def _misfit(self, labels: NDArray, where: str) -> InputError:
        expected = _EXPECTED[LOSSES[self.loss]]
        return InputError(
            f"{where}: labels have dtype {labels.dtype} and shape {labels.shape}, expected {expected} for an output of "
            f"shape (n, {', '.join(map(str, self.shape))}) and the loss {self.loss}. Change the labels, or "
            f"{self._set_loss()}",
            field="data",
            expected=expected,
            got=str(labels.dtype),
        )

    def _set_loss(self) -> str:
        return f"set training.loss to {self.output + '=' if self.output else ''}LOSS, such as mean_squared_error"


def without_ignored(metric: Any) -> Any:
    """Return a subclass of a Keras metric of class numbers that leaves out the positions labeled `IGNORED`."""

    def update_state(self: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        import tensorflow as tf

        is_counted = tf.cast(tf.greater_equal(y_true, tf.zeros((), y_true.dtype)), tf.float32)
        weight = is_counted if sample_weight is None else is_counted * tf.cast(sample_weight, tf.float32)
        return metric.update_state(self, y_true, y_pred, sample_weight=weight)

    return type(metric.__name__, (metric,), {"update_state": update_state})


def _without_one_hot_rows(labels: NDArray, rank: int) -> NDArray:
    """Return one-hot rows along the last of `rank` axes of an example as class numbers; other labels unchanged."""
    if labels.ndim != rank + 1 or labels.ndim < 2:
        return labels
    rows = labels.reshape(-1, labels.shape[-1])
    return labels.argmax(axis=-1).astype(np.int64) if is_one_hot(rows) else labels


def default_loss(output: OutputLoss, labels: NDArray, where: str) -> str:
    """Return the loss that the labels of an output fit, see `TrainConfig.loss`.

    Args:
        output: The output; its `loss` is ignored.
        labels: The first of its labels.
        where: Start of messages.

    Raises:
        InputError: The labels fit several losses.
    """
    shape, is_integer = output.shape, labels.dtype.kind in "iub"
    if shape[-1:] == (1,) and (is_integer or is_one_hot(labels)):
        return "binary_crossentropy"
    if not shape_fits(labels.shape[1:], shape) and not (shape == (1,) and labels.ndim == 1):
        return "sparse_categorical_crossentropy"
    rows = labels.reshape(-1, labels.shape[-1]) if labels.ndim > 1 else labels[:, None]
    binary = bool(((labels == 0) | (labels == 1)).all())
    if binary and output.kind == "sigmoid":
        return "binary_crossentropy"
    if labels.ndim > 1 and is_one_hot(rows):
        return "sparse_categorical_crossentropy"
    is_distribution = labels.ndim > 1 and rows.shape[1] > 1 and bool((rows >= 0).all())
    is_distribution = is_distribution and bool(np.allclose(rows.sum(axis=1), 1, atol=1e-3))
    if output.kind in ("softmax", "sigmoid") or is_integer or binary or is_distribution:
        name = f"{output.output}=" if output.output else ""
        raise InputError(
            f"{where}: the labels of output {output.output or 'of the model'!r} ({labels.dtype}, shape {labels.shape}) "
            f"may be classes or values. Set training.loss, such as {name}categorical_crossentropy, "
            f"{name}binary_crossentropy or {name}mean_squared_error",
            field="training.loss",
            expected=tuple(LOSSES),
            got=None,
            limit="ambiguous-labels",
        )
    return "mean_squared_error"


class OutputLosses:
    """The losses of all outputs of a model, in its order, and the labels in the structure of its outputs."""

    def __init__(self, model: Any, config: TrainConfig, examples: Split) -> None:
        """Choose the losses.

        Args:
            model: A functional or sequential model of either Keras.
            config: `loss` and `loss_weights`.
            examples: Training examples, whose labels decide the losses that `config` leaves open.

        Raises:
            InputError: The settings or the labels do not fit the outputs.
        """
        self._model = model
        self.names = output_names(model, list(model.outputs))
        settings = _parsed_losses(config, self.names)
        weights = _parsed_weights(config, self.names)
        where = f"{examples.source}, split {examples.name}"
        rebuilds = reconstructs(model) and LOSSES.get(settings.get(self.names[0], ""), "values") == "values"
        single = len(self.names) == 1
        self._outputs: list[OutputLoss] = []
        self._trained = [name for name in self.names if settings.get(name) != _NO_LOSS]
        labels = {} if rebuilds else self._labels(examples, where)
        for name, tensor in zip(self.names, model.outputs, strict=True):
            output = OutputLoss(
                output="" if single else name,
                loss=settings.get(name, "mean_squared_error"),
                shape=tuple(tensor.shape)[1:],
                kind=output_kind(tensor),
                weight=weights.get(name, 1.0),
                reconstructs=rebuilds,
            )
            if name not in settings and not rebuilds:
                loss = default_loss(output, labels[name], where)
                output = OutputLoss(**{**vars(output), "loss": loss})
            self._outputs.append(output)
        if not self._trained:
            raise InputError(
                "training.loss is none for every output: choose a loss for one of them",
                field="training.loss",
                expected=tuple(LOSSES),
                got=config.loss,
            )
        if rebuilds:
            _warn_of_unused_classes(model, examples.labels)

    def compile_arguments(self, keras: Any) -> dict[str, Any]:
        """Return the arguments `loss`, `metrics` and `loss_weights` of `compile`."""
        arguments: dict[str, Any] = {
            "loss": self._packed([output.of_keras(keras) for output in self._outputs]),
            "metrics": self._packed([output.metrics(keras) for output in self._outputs]),
        }
        weights = [output.weight for output in self._outputs]
        return arguments if weights == [1] else {**arguments, "loss_weights": self._packed(weights)}

    def total(self, keras: Any) -> Callable[[Any, Any], Any]:
        """Return a function (targets of `targets`, outputs of the model) -> the sum of the losses, a scalar tensor."""
        import tensorflow as tf

        losses = [output.of_keras(keras) for output in self._outputs]

        def total(targets: Any, outputs: Any) -> Any:
            pairs = zip(self._outputs, losses, tf.nest.flatten(targets), tf.nest.flatten(outputs), strict=True)
            terms = [output.weight * loss(target, value) for output, loss, target, value in pairs if loss is not None]
            return tf.add_n(terms)

        return total

    def describe(self, keras: Any) -> str | dict[str, str]:
        """Return the loss for a record; of several outputs, {name: loss}."""
        if len(self.names) == 1:
            return self._outputs[0].describe(keras)
        return {name: output.describe(keras) for name, output in zip(self.names, self._outputs, strict=True)}

    def targets(self, split: Split, inputs: Sequence[NDArray]) -> Any:
        """Return the labels of examples for `fit`: an array, or arrays in the structure of the model's outputs.

        Raises:
            InputError: Labels are missing, or do not fit the losses.
        """
        if self._outputs[0].reconstructs:
            return self._packed([inputs[0]])
        where = f"{split.source}, split {split.name}"
        labels = self._labels(split, where)
        # Keras compares structures, so an output without a loss needs an array too.
        unused = np.zeros(split.num_examples, np.float32)
        return self._packed(
            [
                output.targets(labels[name], where) if name in labels else unused
                for name, output in zip(self.names, self._outputs, strict=True)
            ]
        )

    def named_history(self, history: dict[str, list[float]]) -> dict[str, list[float]]:
        """Return the history of `fit` with the names of the outputs. In tf_keras they are those of layers."""
        if len(self.names) == 1 or model_kind(self._model) != "tf_keras":
            return history
        own = dict(zip(self._model.output_names, self.names, strict=True))
        results = {}
        for key, values in history.items():
            prefix = "val_" if key.startswith("val_") else ""
            name, _, quantity = key.removeprefix(prefix).rpartition("_")
            results[f"{prefix}{own.get(name, name)}_{quantity}" if name in own else key] = values
        return results

    def _packed(self, values: list[Any]) -> Any:
        """Return the values in the structure of the model's outputs, with lists instead of tuples."""
        structure = getattr(self._model, "output", None)  # a Sequential of Keras 3 may lack it
        if not isinstance(structure, (list, tuple, dict)):
            return values[0]
        if isinstance(structure, dict) and len(structure) == len(values):
            return dict(zip(sorted(structure), values, strict=True))
        if len(structure) == len(values):
            return values
        import tensorflow as tf

        return tf.nest.pack_sequence_as(structure, values)

    def _labels(self, split: Split, where: str) -> dict[str, NDArray]:
        """Return {output with a loss: its labels}. Raises InputError if one has no labels."""
        if split.labels is None:
            raise InputError(
                f"{where}: training needs labels, but the data have none",
                field="data",
                expected="labels",
                limit="training-labels",
            )
        named = labeled_outputs(split.labels)
        if not named and len(self._trained) > 1:
            raise InputError(
                f"{where}: the model has the outputs {', '.join(self.names)}, but the labels do not name one. Pass a "
                f"dict by output name (y_{split.name}.{self.names[0]} in an .npz file), or set training.loss to "
                "OUTPUT=none for all outputs but one",
                field="data",
                expected=self.names,
                got=(),
                limit="output-labels",
            )
        check_output_names(split.labels, self.names)
        results = {name: labels_of_output(split.labels, name) for name in self._trained}
        missing = next((name for name, labels in results.items() if labels is None), None)
        if missing is not None:
            raise InputError(
                f"{where}: output {missing!r} has no labels; there are labels for {', '.join(named)}. Add them, or set "
                f"training.loss to {missing}=none to leave this output out of the loss",
                field="data",
                expected=tuple(self._trained),
                got=named,
                limit="output-labels",
            )
        return {name: labels for name, labels in results.items() if labels is not None}


def check_losses(model: Any, config: TrainConfig) -> None:
    """Raise InputError if `config.loss` or `config.loss_weights` does not fit the outputs of a model."""
    names = output_names(model, list(model.outputs))
    _parsed_losses(config, names)
    _parsed_weights(config, names)


def _parsed_losses(config: TrainConfig, names: Sequence[str]) -> dict[str, str]:
    """Return {output: loss} of `config.loss`, without the outputs that it leaves open.

    Raises:
        InputError: There is no such output, or two entries concern the same outputs.
    """
    every = [entry for entry in config.loss if "=" not in entry]
    if len(every) > 1:
        raise InputError(
            f"training.loss has {len(every)} losses for all outputs ({', '.join(every)}): write OUTPUT=LOSS for each; "
            f"the outputs are {', '.join(names)}",
            field="training.loss",
            expected=tuple(names),
            got=tuple(every),
        )
    results = dict.fromkeys(names, every[0]) if every else {}
    return results | _parsed(tuple(entry for entry in config.loss if "=" in entry), "loss", names)


def _parsed_weights(config: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    results = {}
    for name, text in _parsed(config.loss_weights, "loss_weights", names).items():
        try:
            results[name] = float(text)
        except ValueError:
            results[name] = float("nan")
        if not 0 <= results[name] < float("inf"):
            raise InputError(
                f"training.loss_weights={name}={text}: expected a number from 0 on",
                field="training.loss_weights",
                expected="a number",
                got=text,
            )
    return results


def _parsed(entries: Sequence[str], field: str, names: Sequence[str]) -> dict[str, str]:
    """Return {output: value} of entries OUTPUT=VALUE."""
    results: dict[str, str] = {}
    for entry in entries:
        output, equals, value = entry.rpartition("=")
        if not equals or output not in names or output in results:
            problem = "has a second entry" if output in results else "is not an output of the model"
            raise InputError(
                f"training.{field}={entry}: {output!r} {problem}, expected OUTPUT=VALUE; {did_you_mean(output, names)}",
                field=f"training.{field}",
                expected=tuple(names),
                got=entry,
            )
        results[output] = value
    return results


def first_examples(split: AnySplit) -> Split:
    """Return the examples that decide the losses: all in memory, or the first piece of a stream."""
    return split if isinstance(split, Split) else split.first()


def _warn_of_unused_classes(model: Any, labels: NDArray | None) -> None:
    """Warn if an autoencoder's data have more labels than 0 and 1 (normal and anomalous), as a classifier's would."""
    if labels is not None and labels.dtype.kind in "iu" and labels.max() > 1:
        warn(
            f"{model.name!r} has an output of the same shape as its input, and is trained to reconstruct the input: "
            f"the labels (0 to {labels.max()}) are not used. If it is a classifier, end it with a softmax"
        )
