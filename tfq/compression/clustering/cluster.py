# SPDX-License-Identifier: Apache-2.0
"""Weight clustering: each layer's weights become a few values, and training continues with those."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.clustering.codebook import FEWEST_CLUSTERS, MOST_CLUSTERS, Codebook, count_codes
from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.gate import copy_after_training, copy_for_training
from tfq.compression.graph import (
    check_finite,
    fit_with,
    named_layers,
    reasons_by_layer,
    require_graph_model,
    steps_of_training,
)
from tfq.compression.pruning.prunable import prunable_weights
from tfq.compression.pruning.sparsity import kernels_of, stored_weights, unwrapped_name
from tfq.config import ClusterConfig
from tfq.errors import InputError, warn
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.copies import check_own_training
from tfq.patterns import check_fits, fits
from tfq.tflite import constant_values
from tfq.typing import Fit, KerasModel, Teacher


def codes_in_flatbuffer(model: bytes) -> dict[str, int]:
    """Keras layer -> how many different integers its weights have in a quantized `.tflite`, all channels together.

    A layer inside a model goes by its own name, and a weight that no layer is known of by its tensor's; of a layer with
    several kernels the most. Left out: float weights, and what is stored sparse.
    """
    results: dict[str, int] = {}
    for weight, tensor in stored_weights(model):
        if weight.dtype.startswith("int"):
            name = weight.keras_layer or weight.tensor
            results[name] = max(results.get(name, 0), int(np.unique(constant_values(model, tensor)).size))
    return results


# Of fewer weights a cluster, on average, the codebook would be as large as what it saves.
_FEWEST_IN_CLUSTER = 4


@dataclass(frozen=True, kw_only=True)
class ClusteringPlan:
    """Which layers are clustered, and of every other one why not. Names as in `measure_sparsity`."""

    clustered: tuple[str, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"clustered": list(self.clustered), "skipped": dict(self.skipped)}


def clustering_plan(model: Any, config: ClusterConfig | None = None) -> ClusteringPlan:
    """What `cluster_model` would cluster in a functional or sequential tf_keras model.

    Raises InputError where that is nothing, and on a pattern in layers that fits no layer that can be clustered.
    """
    config = config or ClusterConfig()
    require_graph_model(model, "clustering")
    if not config.layers:
        raise InputError(
            "compression.cluster.layers is empty: name patterns of the layers to cluster, or switch clustering "
            "off (compression.cluster.enabled=False)",
            field="compression.cluster.layers",
            expected="name patterns",
            got=(),
        )
    reasons = reasons_by_layer(model, lambda layer: _why_not(layer, config))
    if None not in reasons.values():
        message = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise InputError(
            f"cluster: no layer of {model.name!r} can be clustered: {message}",
            field="model",
            expected="a layer that can be clustered",
            got=model.name,
        )
    for pattern in config.layers:
        check_fits(f"cluster: the pattern {pattern!r} in layers", pattern, reasons, field="compression.cluster.layers")
    chosen = tuple(name for name, reason in reasons.items() if reason is None and fits(name, config.layers))
    return ClusteringPlan(
        clustered=chosen,
        skipped={
            name: reason or "no pattern in layers fits its name"
            for name, reason in reasons.items()
            if name not in chosen
        },
    )


def cluster_model(
    model: KerasModel, fit: Fit, config: ClusterConfig | None = None, *, teacher: Teacher | None = None
) -> KerasModel:
    """Return a trained copy of `model` in which each layer's weights have only a few distinct values.

    After each training step, k-means continues from its current state: a weight that training moved closer to another
    value is assigned to that value, and the values follow their weights. From `config.end_step` on, the assignment is
    fixed and only the values are trained. `model` itself does not change, and the result is not compiled.

    Examples:
        >>> def fit(model, callbacks):
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        ...     model.fit(x, y, epochs=10, callbacks=callbacks)

        clustered = tfq.cluster(model, fit, tfq.ClusterConfig(number_of_clusters=16))

    Args:
        model: A functional or sequential tf_keras model with trained weights. Zeros of a pruned model stay zero.
        fit: Called as `fit(model, callbacks)`. It compiles the model that it receives and trains it in place with
            `model.fit(..., callbacks=callbacks)`; it may append callbacks.
        config: Settings of the clustering; None means `ClusterConfig()`. `number_of_clusters` counts the distinct
            quantized values that a layer's kernels have in the int8 flatbuffer. `end_step=-1` is half of the first call
            of `model.fit`.
        teacher: One or several models (an ensemble) whose outputs `config.distillation` trains towards; None means
            `model` itself. The result does not contain them.

    Returns:
        The clustered model, a tf_keras model with the layers of `model`.

    Raises:
        InputError: The model cannot be clustered, or the settings contradict each other.
        TfqError: `fit` did not train the model or did not pass on the callbacks, weights became NaN, or the copy
            computes a different function.
    """
    config = config or ClusterConfig()
    refuse_unused_teacher(teacher, config.distillation, "cluster")
    check_own_training(model, "cluster")
    plan = clustering_plan(model, config)
    trained, pairs = copy_for_training(model, "cluster")
    layers = dict(named_layers(trained))
    books = {
        name: [
            Codebook(kernel, channel_axis(layers[name]), config.number_of_clusters)
            for kernel in prunable_weights(layers[name]) or []
        ]
        for name in plan.clustered
    }
    callback = _clustering_callback([book for item in books.values() for book in item], config.end_step)
    with contextlib.ExitStack() as around:
        student = trained
        if config.distillation.enabled:
            student = around.enter_context(distilled(trained, teacher or model, config.distillation, "cluster"))
        fit_with(fit, student, callback, "cluster")
    check_finite(trained, "clustering")
    _cluster_again(books, config.number_of_clusters)
    return copy_after_training(model, trained, pairs, "cluster")


def measure_clusters(model: Any) -> dict[str, int]:
    """Layer name, as in `measure_sparsity` -> how many codes its kernels have in int8; of clustered layers alone."""
    results = {}
    for name, layer in named_layers(model):
        counts = [count for kernel in kernels_of(layer) if (count := _clusters(kernel, layer))]
        if counts:
            results[unwrapped_name(name, layer)] = max(counts)
    return results


def keep_clusters(model: Any) -> Any:
    """A tf_keras callback that keeps the weights of `model` in the clusters that they are in now, after every step.

    The values of the clusters are trained.
    """
    books = [
        Codebook(kernel, channel_axis(layer))
        for _, layer in named_layers(model)
        for kernel in kernels_of(layer)
        if _clusters(kernel, layer)
    ]
    return _clustering_callback(books, end_step=0)


def channel_axis(layer: Any) -> int | None:
    """The axis of a layer's kernels whose channels have a scale each in an int8 flatbuffer; None where all have one."""
    layers = import_tf_keras().layers
    layer = tfmot_symbols.wrapped(layer)
    if isinstance(layer, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)):
        return -2
    by_channel = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.SeparableConv2D)
    return -1 if isinstance(layer, by_channel) else None


def _why_not(layer: Any, config: ClusterConfig) -> str | None:
    layers = import_tf_keras().layers
    kind, kernels = type(layer).__name__, prunable_weights(layer) or []
    if isinstance(layer, (layers.DepthwiseConv2D, layers.DepthwiseConv1D)):
        return f"{kind} has few weights and loses much by it"
    if not kernels:
        return f"{kind} has no kernel"
    size = min(int(np.prod(kernel.shape)) for kernel in kernels)
    if size < _FEWEST_IN_CLUSTER * config.number_of_clusters:
        return f"it has {size} weights, expected {_FEWEST_IN_CLUSTER} for each of {config.number_of_clusters} clusters"
    return None


def _clusters(kernel: Any, layer: Any) -> int | None:
    """How many codes a clustered kernel has; None where it is not clustered.

    As little is a kernel that is as it was initialized, zeros or ones all over, or so small that nobody can tell.
    """
    values = kernel.numpy()
    count = count_codes(values, channel_axis(layer))
    most = min(MOST_CLUSTERS, values.size // _FEWEST_IN_CLUSTER)
    return count if count and FEWEST_CLUSTERS <= count <= most else None


def _clustering_callback(books: list[Codebook], end_step: int) -> Any:
    """A tf_keras callback that takes a step of every codebook after each of the training; `steps` counts them.

    end_step: the first in which weights stay in their clusters, as ClusterConfig has it.
    """
    import tensorflow as tf

    @tf.function
    def step(reassign: bool) -> None:
        for book in books:
            book.step(reassign=reassign)

    class ClusteringSteps(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps, self._end = 0, end_step

        def on_train_begin(self, logs: Any = None) -> None:
            if self._end == -1:
                self._end = max(1, steps_of_training(self.params or {}, "cluster", "end_step", "half") // 2)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            step(reassign=self.steps < self._end)

    return ClusteringSteps()


def _cluster_again(books: Mapping[str, list[Codebook]], clusters: int) -> None:
    """Weights of an earlier epoch stay as they are: clustered. Others (averages of several) are clustered once more."""
    moved = []
    for name, item in books.items():
        for book in item:
            if (count := book.codes()) is None or count > clusters:
                book.step(reassign=True)
                moved.append(name)
    if moved:
        warn(
            f"cluster: after the last training step, {', '.join(dict.fromkeys(moved))} had other weights than those of "
            "clusters (an average of several steps?); they are clustered again, and no training came after that"
        )
