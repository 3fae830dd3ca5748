# SPDX-License-Identifier: Apache-2.0
"""Weight clustering: the weights of a layer share a few values, and training continues under this constraint."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.clustering.codebook import MAX_CLUSTERS, MIN_CLUSTERS, Codebook, count_quantized_values
from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.gate import copy_after_training, copy_for_training, in_float32
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
from tfq.keras_bridge.strategies import in_strategy
from tfq.keras_bridge.wrapped import without_wrappers
from tfq.patterns import check_selection, fits
from tfq.tflite import constant_values
from tfq.typing import Fit, KerasModel, Teacher


def unique_weights_in_flatbuffer(model: bytes) -> dict[str, int]:
    """Return the number of distinct integers in the weights of each Keras layer of a quantized `.tflite`.

    Args:
        model: Contents of a `.tflite` file.

    Returns:
        Layer -> number of distinct integers over all channels; the maximum if a layer has several kernels. A layer of
        a nested model has its own name, and a weight of an unknown layer the name of its tensor. Float weights and
        weights in a sparse format are left out.
    """
    results: dict[str, int] = {}
    for weight, tensor in stored_weights(model):
        if weight.dtype.startswith("int"):
            name = weight.keras_layer or weight.tensor
            results[name] = max(results.get(name, 0), int(np.unique(constant_values(model, tensor)).size))
    return results


# With fewer weights per cluster on average, the codebook would be as large as the savings.
_MIN_WEIGHTS_PER_CLUSTER = 4


@dataclass(frozen=True, kw_only=True)
class ClusteringPlan:
    """The layers to cluster, and the reason why each other layer is not clustered.

    Layers have their names of `measure_sparsity`.

    Attributes:
        clustered: The layers to cluster.
        skipped: Layer -> why it is not clustered.
    """

    clustered: tuple[str, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {"clustered": list(self.clustered), "skipped": dict(self.skipped)}


@in_strategy
def clustering_plan(model: Any, config: ClusterConfig | None = None) -> ClusteringPlan:
    """Return the layers that `cluster_model` would cluster.

    Args:
        model: Functional or sequential tf_keras model.
        config: The clustering settings.

    Raises:
        InputError: No layer can be clustered, or a pattern in `layers` matches no layer that can be clustered.
    """
    config = config or ClusterConfig()
    require_graph_model(model, "clustering")
    model = without_wrappers(model, "cluster")
    if not config.layers:
        raise InputError(
            "compression.cluster.layers is empty: expected name patterns of the layers to cluster. To switch "
            "clustering off, set compression.cluster.enabled=False",
            field="compression.cluster.layers",
            expected="name patterns",
            got=(),
        )
    reasons = reasons_by_layer(model, lambda layer: _reason_not_clusterable(layer, config))
    if None not in reasons.values():
        message = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise InputError(
            f"cluster: no layer of {model.name!r} can be clustered: {message}",
            field="model",
            expected="a layer that can be clustered",
            got=model.name,
            limit="nothing-to-compress",
        )
    check_selection("cluster: layers", config.layers, reasons, field="compression.cluster.layers")
    chosen = tuple(name for name, reason in reasons.items() if reason is None and fits(name, config.layers))
    return ClusteringPlan(
        clustered=chosen,
        skipped={
            name: reason or "no pattern in layers matches its name"
            for name, reason in reasons.items()
            if name not in chosen
        },
    )


@in_strategy
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

        >>> clustered = tfq.cluster(model, fit, tfq.ClusterConfig(number_of_clusters=16))

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
    require_graph_model(model, "clustering")
    model = without_wrappers(model, "cluster")
    model = in_float32(model, "cluster")
    plan = clustering_plan(model, config)
    trained, pairs = copy_for_training(model, "cluster")
    layers = dict(named_layers(trained))
    codebooks = {
        name: [
            Codebook(kernel, channel_axis(layers[name]), config.number_of_clusters)
            for kernel in prunable_weights(layers[name]) or []
        ]
        for name in plan.clustered
    }
    callback = _clustering_callback([codebook for item in codebooks.values() for codebook in item], config.end_step)
    with contextlib.ExitStack() as stack:
        student = trained
        if config.distillation.enabled:
            student = stack.enter_context(distilled(trained, teacher or model, config.distillation, "cluster"))
        fit_with(fit, student, callback, "cluster")
    check_finite(trained, "clustering")
    _restore_clusters(codebooks, config.number_of_clusters)
    return copy_after_training(model, trained, pairs, "cluster")


def measure_clusters(model: Any) -> dict[str, int]:
    """Return the number of clusters of each clustered layer: the distinct integers of its kernels in int8.

    Layers have their names of `measure_sparsity`. Layers that are not clustered are left out.
    """
    results = {}
    for name, layer in named_layers(model):
        counts = [count for kernel in kernels_of(layer) if (count := _num_clusters(kernel, layer))]
        if counts:
            results[unwrapped_name(name, layer)] = max(counts)
    return results


def cluster_preserving_callback(model: Any) -> Any:
    """Return a tf_keras callback that keeps each weight of clustered layers in its current cluster during training.

    The values of the clusters are trained.
    """
    codebooks = [
        Codebook(kernel, channel_axis(layer))
        for _, layer in named_layers(model)
        for kernel in kernels_of(layer)
        if _num_clusters(kernel, layer)
    ]
    return _clustering_callback(codebooks, end_step=0)


def channel_axis(layer: Any) -> int | None:
    """Return the axis of a layer's kernels that is quantized per channel in int8; None if quantized per tensor."""
    layers = import_tf_keras().layers
    layer = tfmot_symbols.wrapped(layer)
    if isinstance(layer, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)):
        return -2
    per_channel = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.SeparableConv2D)
    return -1 if isinstance(layer, per_channel) else None


def _reason_not_clusterable(layer: Any, config: ClusterConfig) -> str | None:
    layers = import_tf_keras().layers
    kind, kernels = type(layer).__name__, prunable_weights(layer) or []
    if isinstance(layer, (layers.DepthwiseConv2D, layers.DepthwiseConv1D)):
        return f"{kind} has few weights and loses much accuracy by clustering"
    if not kernels:
        return f"{kind} has no kernel"
    size = min(int(np.prod(kernel.shape)) for kernel in kernels)
    if size < _MIN_WEIGHTS_PER_CLUSTER * config.number_of_clusters:
        minimum = f"{_MIN_WEIGHTS_PER_CLUSTER} for each of {config.number_of_clusters} clusters"
        return f"it has {size} weights, expected at least {minimum}"
    return None


def _num_clusters(kernel: Any, layer: Any) -> int | None:
    """Return the number of distinct int8 values of a clustered kernel; None if it is not clustered.

    A constant kernel (all zeros or all ones from initialization) does not count as clustered, and neither does a
    kernel that is too small to tell.
    """
    values = kernel.numpy()
    count = count_quantized_values(values, channel_axis(layer))
    maximum = min(MAX_CLUSTERS, values.size // _MIN_WEIGHTS_PER_CLUSTER)
    return count if count and MIN_CLUSTERS <= count <= maximum else None


def _clustering_callback(codebooks: list[Codebook], end_step: int) -> Any:
    """Return a tf_keras callback that updates every codebook after each training step.

    Args:
        codebooks: The codebooks of all clustered kernels.
        end_step: First step that keeps every weight in its cluster; -1 is half of the training.

    Returns:
        A callback. Its attribute `steps` counts the training steps.
    """
    import tensorflow as tf

    @tf.function
    def step(reassign: bool) -> None:
        for codebook in codebooks:
            codebook.step(reassign=reassign)

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


def _restore_clusters(codebooks: Mapping[str, list[Codebook]], clusters: int) -> None:
    """Cluster kernels again that are not clustered after training, such as averages over several steps.

    Restored weights of an earlier epoch are still clustered, and do not change.
    """
    changed = []
    for name, item in codebooks.items():
        for codebook in item:
            if (count := codebook.num_quantized_values()) is None or count > clusters:
                codebook.step(reassign=True)
                changed.append(name)
    if changed:
        warn(
            f"cluster: after the last training step, the weights of {', '.join(dict.fromkeys(changed))} were not "
            "clustered any more (possibly averaged over several steps). They are clustered again without further "
            "training"
        )
