# SPDX-License-Identifier: Apache-2.0
"""Pruning criteria: how much a weight or a set of coupled channels matters. The least important ones are removed.

- `magnitude`: the size of the weights (Han et al. 2015; Li et al. 2017, "Pruning Filters for Efficient ConvNets").
- `taylor`: the first-order estimate of the change of the loss, (gradient * weight)^2, for single weights or for the sum
  over all weights of a channel (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning").
- `obs`: the squared error of a layer's output after the removal, if the remaining weights compensate it as well as they
  can (Hassibi and Stork 1993, "Optimal Brain Surgeon"; Frantar and Alistarh 2023, "SparseGPT"). With the Gram matrix H
  of the layer's inputs and the removed weights S of one output channel, it is w_S^T ((H^-1)_SS)^-1 w_S.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.compression.structured_pruning.channels import Channels, Graph, Site, magnitude_scores
from tfq.errors import InputError, warn
from tfq.registry import register
from tfq.typing import Data, KerasModel

# Examples of one gradient. Squares are summed over these small batches, in which the signs of single examples cancel.
_BATCH = 16
# Added to the diagonal of a Gram matrix, relative to its mean.
_DAMPING = 1e-3

# Rows of a Gram matrix taken from one batch.
_GRAM_ROWS = 4096

# Why obs has no scores for some weights and channels.
_OBS_LIMITS = (
    "it knows the inputs of Conv2D and Dense layers only, which are called once and are not part of another layer"
)


class Variable(Protocol):
    """A weight variable of tf_keras."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""

    @property
    def numpy(self) -> "Callable[[], NDArray]":
        """Returns the current values."""


Kernels = Mapping[str, Sequence[Variable]]
# Returns layer -> the current score of each weight of each of its variables.
Scores = Callable[[], Mapping[str, Sequence[NDArray]]]


class Examples:
    """The examples on which a criterion is computed."""

    def __init__(self, data: Data, limit: int, context: str) -> None:
        """Keep the first `limit` examples of data in any form that `tfq.data.as_split` accepts.

        Args:
            data: The data.
            limit: How many examples.
            context: The step, for error messages.
        """
        self._data, self._limit, self._context = data, limit, context

    def inputs(self, model: KerasModel) -> Iterator[list[NDArray]]:
        """Yield the inputs of the model in batches."""
        from tfq.compression.training import batches_of

        return batches_of(model, self._data, self._limit, f"{self._context}:")

    def gradients(
        self, model: KerasModel, variables: Sequence[Variable]
    ) -> Callable[[], Iterator[list[NDArray[np.float64]]]]:
        """Return a function that yields the gradients of the training loss for small batches, at the current weights.

        The labels decide the loss, as in `tfq.compression.training`. Rows of class probabilities are soft targets.

        Raises:
            InputError: Labels are missing or do not fit the model.
        """
        import tensorflow as tf

        from tfq.compression.output_losses import OutputLosses
        from tfq.config import TrainConfig
        from tfq.data import as_split, bind_inputs
        from tfq.keras_bridge import import_tf_keras

        trained: Any = model
        pieces = list(as_split(self._data, split="train", limit=self._limit).pieces())
        losses = OutputLosses(trained, TrainConfig(), pieces[0])
        loss = losses.total(import_tf_keras())
        batches = []
        for piece in pieces:
            arrays = bind_inputs(piece.inputs, list(trained.input_names))
            targets = losses.targets(piece, arrays)
            for start in range(0, piece.num_examples, _BATCH):
                part = slice(start, start + _BATCH)
                cut = tf.nest.map_structure(lambda array, part=part: array[part], (arrays, targets))
                batches.append(cut)

        @tf.function(reduce_retracing=True)
        def gradients(inputs: Any, targets: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                value = loss(targets, trained(inputs if len(inputs) > 1 else inputs[0], training=False))
            return tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        def compute() -> Iterator[list[NDArray]]:
            for inputs, targets in batches:
                by_variable = gradients([tf.convert_to_tensor(item) for item in inputs], targets)
                yield [np.asarray(tf.convert_to_tensor(item), np.float64) for item in by_variable]

        return compute


@registry.extension_point("pruning_criterion")
@dataclass(frozen=True, kw_only=True)
class PruningCriterion:
    """A criterion for the weights and channels to remove.

    Args:
        name: The name that users write: `compression.prune.criterion`, `compression.structured_pruning.criterion`.
        help: What it is, for `--help` and the documentation.
        needs: What it is computed from besides the weights: "nothing", "inputs" or "labels" (inputs and labels).
        of_weights: (model, layer -> variables to prune, examples) -> a function that returns layer -> the current score
            of each weight of each variable. Scores are compared within a layer.
        of_channels: (model, graph, channels, examples) -> the score of each set of coupled channels, by its root.
            Scores are compared within a group of layers. Sets that cannot be scored are left out; the groups that
            contain them are ranked by magnitude, with a warning.
        limits: Why weights or sets are left out, for this warning.
    """

    name: str
    help: str
    needs: str
    of_weights: Callable[[KerasModel, Kernels, Examples], Scores]
    of_channels: Callable[[KerasModel, Graph, Channels, Examples], Mapping[int, float]]
    limits: str = ""

    @property
    def columns(self) -> dict[str, str]:
        """The cells of the row in the documentation, besides the name and the help."""
        return {"needs": self.needs}

    def check_data(self, data: Data, context: str) -> None:
        """Raise InputError if the criterion needs data and there are none."""
        if self.needs != "nothing" and data is None:
            raise InputError(
                f"{context}: the criterion {self.name} is computed from examples"
                f"{' with labels' if self.needs == 'labels' else ''}: pass them, or choose criterion=magnitude",
                field=f"compression.{context}.criterion",
                expected="magnitude",
                got=self.name,
            )


def _magnitudes(model: Any, kernels: Kernels, examples: Examples) -> Scores:
    return lambda: {name: [np.abs(weight.numpy()) for weight in weights] for name, weights in kernels.items()}


def _taylor_of_weights(model: Any, kernels: Kernels, examples: Examples) -> Scores:
    variables = [weight for weights in kernels.values() for weight in weights]
    gradients = examples.gradients(model, variables)

    def scores() -> dict[str, list[NDArray]]:
        weights = [np.asarray(weight.numpy(), np.float64) for weight in variables]
        sums = [np.zeros(weight.shape) for weight in weights]
        for batch in gradients():
            for total, gradient, weight in zip(sums, batch, weights, strict=True):
                total += (gradient * weight) ** 2
        remaining = iter(sums)
        return {name: [next(remaining) for _ in items] for name, items in kernels.items()}

    return scores


def _taylor_of_channels(model: Any, graph: Graph, channels: Channels, examples: Examples) -> dict[int, float]:
    """Return the mean over batches of the squared sum of gradient * weight over all weights of each set of channels.

    The weights of a set are the gains and offsets of the normalizations that it passes, where a normalization removes
    the scale of the filters; otherwise its filters and their biases.
    """
    normalizations: list[tuple[Site, list[Any]]] = []
    filters: list[tuple[Site, list[Any]]] = []
    for site in graph.sites:
        layer = model.get_layer(site.layer)
        gains = [weight for name in ("gamma", "beta") if (weight := getattr(layer, name, None)) is not None]
        if site.makes_channels:
            bias = [layer.bias] if getattr(layer, "use_bias", False) else []
            filters.append((site, [filters_of(layer), *bias]))
        elif len(gains) == 2 and all(len(weight.shape) == 1 for weight in gains):
            normalizations.append((site, gains))
    normalized = {int(root) for site, _ in normalizations for root in channels.roots(site.outputs)}
    chosen = [*normalizations, *filters]
    variables = [weight for _, weights in chosen for weight in weights]
    result: defaultdict[int, float] = defaultdict(float)
    for batch in examples.gradients(model, variables)():
        sums: defaultdict[int, float] = defaultdict(float)
        gradients = iter(batch)
        for site, weights in chosen:
            terms = np.zeros(len(site.outputs))
            for weight in weights:
                product = next(gradients) * weight.numpy()
                terms += _by_output(product, len(terms), model.get_layer(site.layer))
            for root, term in zip(channels.roots(site.outputs), terms, strict=True):
                if not site.makes_channels or int(root) not in normalized:
                    sums[int(root)] += float(term)
        for root, value in sums.items():
            result[root] += value**2
    return dict(result)


def filters_of(layer: Any) -> Any:
    """Return the variable with the filters of a layer that makes channels."""
    return layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel


def _by_output(product: NDArray, outputs: int, layer: Any) -> NDArray:
    """Return the sums over all axes but that of the output channels, which is the last but one if transposed."""
    if product.ndim > 1 and "Transpose" in type(layer).__name__:
        product = np.moveaxis(product, -2, -1)
    return np.asarray(product.reshape(-1, outputs).sum(axis=0))


def obs_of_rows(weights: NDArray, gram: NDArray, sets: Sequence[NDArray]) -> NDArray[np.float64]:
    """Return the error of all outputs after the removal of each set of inputs, with the other weights updated.

    Args:
        weights: (K, outputs).
        gram: H: (K, K).
        sets: The indices of the rows of each set.
    """
    inverse = _inverse(gram)
    errors = []
    for rows in sets:
        removed = weights[rows]
        errors.append(float((removed * np.linalg.solve(inverse[np.ix_(rows, rows)], removed)).sum()))
    return np.array(errors)


def _inverse(gram: NDArray) -> NDArray[np.float64]:
    damping = _DAMPING * float(np.trace(gram)) / len(gram) or 1.0
    return np.asarray(np.linalg.inv(gram + damping * np.eye(len(gram))), np.float64)


def _gram(model: Any, layer: Any, examples: Examples) -> NDArray[np.float64]:
    from tfq.compression.layer_inputs import inputs_of, rows_of

    inputs, total, count = inputs_of(model, layer), np.zeros(()), 0
    for batch in examples.inputs(model):
        rows = rows_of(layer, inputs(batch), _GRAM_ROWS)
        total, count = total + rows.T @ rows, count + len(rows)
    return np.asarray(total / count)


def _obs_of_weights(model: Any, kernels: Kernels, examples: Examples) -> Scores:
    """Return the errors of the outputs after the removal of single weights, the others updated: w^2 / (H^-1)_kk."""
    from tfq.compression.layer_inputs import is_matrix_product

    layers = {layer.name: layer for layer in model.layers if is_matrix_product(layer) and len(layer.inbound_nodes) == 1}
    diagonals: dict[str, NDArray] = {}
    for name in kernels:
        if name in layers:
            layer = layers[name]
            diagonal = np.diag(_inverse(_gram(model, layer, examples)))
            diagonals[name] = diagonal[: -1 if layer.use_bias else None]
    others = [name for name in kernels if name not in diagonals]
    if others:
        warn(f"prune: the criterion obs ranks the weights of {', '.join(others)} by magnitude, because {_OBS_LIMITS}")

    def scores() -> dict[str, list[NDArray]]:
        result = {}
        for name, weights in kernels.items():
            values = [np.asarray(weight.numpy(), np.float64) for weight in weights]
            if name in diagonals:
                (value,) = values
                rows = value.reshape(-1, value.shape[-1])
                values = [(rows**2 / diagonals[name][:, None]).reshape(value.shape)]
            result[name] = [np.abs(value) for value in values]
        return result

    return scores


def _obs_of_channels(model: Any, graph: Graph, channels: Channels, examples: Examples) -> dict[int, float]:
    """Return the error of the layers that read each set of channels, as a fraction of the power of their outputs.

    Sets that a layer of another kind reads are left out: a sum over only some of their readers would be too low.
    """
    from tfq.compression.layer_inputs import is_matrix_product

    result: defaultdict[int, float] = defaultdict(float)
    unknown: set[int] = set()
    for site in graph.sites:
        if not site.makes_channels:
            continue
        layer, roots = model.get_layer(site.layer), channels.roots(site.inputs)
        if not is_matrix_product(layer) or len(layer.inbound_nodes) != 1:
            unknown.update(roots.tolist())
            continue
        gram = _gram(model, layer, examples)
        weights = np.asarray(layer.kernel.numpy(), np.float64)
        weights = weights.reshape(-1, weights.shape[-1])
        if layer.use_bias:
            mean = gram[-1, :-1]
            gram = gram[:-1, :-1] - np.outer(mean, mean)  # the bias corrects the mean
        power = float((weights * (gram @ weights)).sum()) or 1.0
        unique = np.unique(roots)
        by_row = np.tile(roots, len(weights) // len(roots))
        errors = obs_of_rows(weights, gram, [np.flatnonzero(by_row == root) for root in unique])
        for root, error in zip(unique, errors, strict=True):
            result[int(root)] += float(error) / power
    return {root: error for root, error in result.items() if root not in unknown}


register(
    PruningCriterion(
        name="magnitude",
        help="the magnitude of weights; for channels the norm of their filters (`norm`)",
        needs="nothing",
        of_weights=_magnitudes,
        of_channels=lambda model, graph, channels, examples: magnitude_scores(channels, graph.sites),
    )
)
register(
    PruningCriterion(
        name="taylor",
        help="the first-order estimate of the change of the loss: (gradient * weight)^2, summed over a channel first",
        needs="labels",
        of_weights=_taylor_of_weights,
        of_channels=_taylor_of_channels,
    )
)
register(
    PruningCriterion(
        name="obs",
        help="the error of the layer's output if the other weights compensate the removal (Optimal Brain Surgeon); for "
        "channels that of the layers that read them",
        needs="inputs",
        of_weights=_obs_of_weights,
        of_channels=_obs_of_channels,
        limits=_OBS_LIMITS,
    )
)
