# SPDX-License-Identifier: Apache-2.0
"""Compress a Keras model (structured pruning, pruning, clustering, QAT), after a check of what each layer can take."""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfq import auditing, data
from tfq.config import (
    AuditConfig,
    ClusterConfig,
    ConversionConfig,
    PruneConfig,
    QATConfig,
    RunConfig,
    StructuredPruningConfig,
)
from tfq.errors import InputError, TfqError
from tfq.workflows.training import data_notes, hashes, load_split


def preflight(model: Any, config: RunConfig) -> Any:
    """The table of what each layer of a Keras model can take, as config.compression asks. InputError for a .tflite."""
    from tfq import compression

    if isinstance(model, bytes):
        raise InputError(
            f"model={config.model}: a .tflite cannot be trained: give the Keras model",
            field="model",
            expected="a Keras model",
            got=config.model,
        )
    return compression.preflight(model, config.compression)


def preflight_with_flatbuffer(model: Any, config: RunConfig) -> Any:
    """The same, and for each layer its ops that stay float, by a conversion of the model as it is on random data.

    Where the bridge or the converter refuses the model, a row or a note tells it.
    """
    from tfq.keras_bridge import to_tf_keras

    try:
        bridged = to_tf_keras(model)
    except TfqError:
        return preflight(model, config)
    table = preflight(bridged, config)
    try:
        floating = _float_ops(bridged)
    except TfqError as error:
        message = f"conversion was tried and failed: {str(error).splitlines()[0]}"
        return dataclasses.replace(table, notes=(*table.notes, message))
    return table.with_float_ops(floating)


def _float_ops(bridged: Any) -> dict[str, tuple[str, ...]]:
    """User's layer -> its ops that conversion to int8 leaves in float; an op without a layer is under its own name."""
    from tfq.conversion import convert_model
    from tfq.keras_bridge.verification import random_inputs

    # Random: an op's type does not depend on its range.
    inputs = dict(zip(bridged.model.input_names, random_inputs(bridged.model)[0], strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these data are noise, we know
        content = convert_model(bridged.model, inputs, ConversionConfig())
    results: dict[str, dict[str, None]] = {}
    for finding in auditing.audit_model(content, AuditConfig(require="full_int8")).failures:
        if finding.kind in ("qdq", "io_type") or finding.op is None:
            continue  # these follow from a float op, which is told itself
        layer = bridged.origins.get(finding.keras_layer, finding.keras_layer) or finding.op
        results.setdefault(layer, {})[finding.op] = None
    return {layer: tuple(ops) for layer, ops in results.items()}


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
        raise InputError(
            "every step of compression is switched off: enable one (compression.qat.enabled=True)",
            field="compression",
            expected="a step that is on",
        )
    return "_".join(word for word, step in _steps(config).items() if step.enabled)


def is_compressed(config: RunConfig) -> bool:
    """Whether any compression is asked for."""
    return any(step.enabled for step in _steps(config).values())


def _steps(config: RunConfig) -> dict[str, StructuredPruningConfig | PruneConfig | ClusterConfig | QATConfig]:
    """By what a model is called that has been through it, in the order of the work."""
    asked = config.compression
    return {"filtered": asked.structured_pruning, "pruned": asked.prune, "clustered": asked.cluster, "qat": asked.qat}


def check_compressible(model: Any, config: RunConfig) -> None:
    """Raises InputError, before any work, where config asks for a compression that this model cannot have."""
    if isinstance(model, bytes) or not is_compressed(config):
        return
    _compressible(model, config)


def _compressible(model: Any, config: RunConfig) -> Any:
    """The table of `preflight`; model: of either Keras, or bridged already. Raises InputError where it is not ok."""
    table = preflight(model, config)
    if not table.ok:
        raise InputError(
            table.to_text(),
            field="model",
            expected="layers that can be compressed",
            got=tuple(layer.name for layer in table.layers if layer.qat == "unsupported"),
        )
    return table


def compress(model: Any, config: RunConfig) -> Compressed:
    """`model` made smaller on its data, as config.compression says: filters out, weights pruned, clustered, then QAT.

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
        if settings.structured_pruning.enabled:
            filtered = compression.prune_structured(
                result, fit("structured_pruning"), settings.structured_pruning, data=training
            )
            result, details["structured_pruning"] = filtered.model, filtered.to_dict()
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
    if bridged.model is not model and not settings.structured_pruning.enabled:
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
            "data_notes": data_notes(training, validation),
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
