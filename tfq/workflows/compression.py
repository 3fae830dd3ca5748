# SPDX-License-Identifier: Apache-2.0
"""A Keras model, made smaller: filters taken out, weights pruned and clustered, quantization-aware trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfq import data
from tfq.config import ClusterConfig, FiltersConfig, PruneConfig, QATConfig, RunConfig
from tfq.errors import InputError, TfqError
from tfq.workflows.preflight import preflight
from tfq.workflows.splits import hashes, load_split

# Examples of the training data on which the bridged model is compared with the user's own.
BRIDGE_CHECK_EXAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What came out of `compress`.

    model: the tf_keras model to convert. user_model: the user's own Keras 3 model with the trained weights in it, None
    where there is none, or where filters were taken out. details: for the record.
    """

    model: Any
    user_model: Any
    details: dict[str, Any]


def compression_suffix(config: RunConfig) -> str:
    """filtered, pruned, clustered, qat, joined by "_": what `compress` is to do. InputError when that is nothing."""
    if not is_compressed(config):
        raise InputError("--nofilters, --noprune, --nocluster and --noqat: there is nothing to do")
    return "_".join(word for word, step in _steps(config).items() if step.enabled)


def is_compressed(config: RunConfig) -> bool:
    """Whether any compression is asked for."""
    return any(step.enabled for step in _steps(config).values())


def _steps(config: RunConfig) -> dict[str, FiltersConfig | PruneConfig | ClusterConfig | QATConfig]:
    """By what a model is called that has been through it, in the order of the work."""
    asked = config.compression
    return {"filtered": asked.filters, "pruned": asked.prune, "clustered": asked.cluster, "qat": asked.qat}


def check_compressible(model: Any, config: RunConfig) -> None:
    """Raises InputError, before any work, where config asks for a compression that this model cannot have."""
    if isinstance(model, bytes) or not is_compressed(config):
        return
    _compressible(model, config)


def _compressible(model: Any, config: RunConfig) -> Any:
    """The table of `preflight`; model: of either Keras, or bridged already. Raises InputError where it is not ok."""
    table = preflight(model, config)
    if not table.ok:
        raise InputError(table.to_text())
    return table


def compress(model: Any, config: RunConfig) -> Compressed:
    """`model` made smaller on --data, as config.compression says: filters out, weights pruned, clustered, then QAT.

    model: functional or sequential, of either Keras; a Keras 3 one is rebuilt of tf_keras layers first.
    """
    from tfq import compression
    from tfq.compression.training import deterministic
    from tfq.keras_bridge import return_weights

    compression_suffix(config)
    settings = config.compression
    histories: dict[str, Any] = {}
    details: dict[str, Any] = {}

    with deterministic(config.seed):
        # A few of them: a model that cannot be taken is refused before the others are read.
        bridged = _bridged(model, config, load_split(config.data, "train", limit=BRIDGE_CHECK_EXAMPLES))
        with deterministic(config.seed):  # the table's own draws leave those of the training as they are
            details["preflight"] = _compressible(bridged, config).to_dict()
        details["bridge"] = bridged.to_dict()
        training, validation = load_split(config.data, "train"), load_split(config.data, "val")
        result, fit = bridged.model, _loop(config, training, validation, histories)
        if settings.cluster.enabled:
            compression.clustering_plan(result, settings.cluster)  # what it refuses, it refuses before any work
        if settings.filters.enabled:
            filtered = compression.prune_filters(result, fit("filters"), settings.filters, data=training)
            result, details["filters"] = filtered.model, filtered.to_dict()
        if settings.prune.enabled:
            plan = compression.pruning_plan(result, settings.prune, training)
            details["pruning_plan"] = plan.to_dict()
            teacher = _teacher(bridged, settings.prune)
            result = compression.prune_model(result, fit("prune"), settings.prune, plan=plan, teacher=teacher)
        if settings.cluster.enabled:
            details["clustering_plan"] = compression.clustering_plan(result, settings.cluster).to_dict()
            teacher = _teacher(bridged, settings.cluster)
            result = compression.cluster_model(result, fit("cluster"), settings.cluster, teacher=teacher)
        if settings.qat.enabled:
            teacher = _teacher(bridged, settings.qat)
            result = compression.qat_model(result, fit("qat"), settings.qat, calibration=training, teacher=teacher)
    user_model = None
    if bridged.model is not model and not settings.filters.enabled:
        return_weights(bridged, result)
        user_model = model
    return Compressed(
        model=result,
        user_model=user_model,
        details={
            **details,
            "history": histories,
            "sparsity": compression.measure_sparsity(result),
            "clusters": compression.measure_clusters(result),
            "preprocessing": data.preprocessing_record(config.data),
            "sha256": hashes(config, train=training, val=validation),
        },
    )


def _teacher(bridged: Any, step: PruneConfig | ClusterConfig | QATConfig) -> Any:
    """The model before all compression, where the step learns from one."""
    return bridged.model if step.distillation.enabled else None


def _bridged(model: Any, config: RunConfig, examples: data.AnySplit) -> Any:
    """The BridgeResult of `model`, compared on `examples` too. InputError with the table where there is none."""
    from tfq.keras_bridge import to_tf_keras

    try:
        return to_tf_keras(model, data=examples)
    except TfqError:
        check_compressible(model, config)
        raise  # it is not the model, but how the data fits it


def _loop(
    config: RunConfig, training: data.AnySplit, validation: data.AnySplit, histories: dict[str, Any]
) -> Callable[[str], Callable[[Any, list[Any]], None]]:
    """step -> the training loop of that step, which leaves its history in `histories`."""
    from tfq.compression.training import train_model

    def fit(step: str) -> Callable[[Any, list[Any]], None]:
        def loop(stepped: Any, callbacks: list[Any]) -> None:
            histories[step] = train_model(
                stepped, training, validation, config.compression.train, seed=config.seed, callbacks=callbacks
            )

        return loop

    return fit
