# SPDX-License-Identifier: Apache-2.0
"""Compress a Keras model (structured pruning, pruning, clustering, QAT) after checking what each layer supports."""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfq import auditing, data, progress
from tfq.config import (
    AuditConfig,
    ClusterConfig,
    CompressionConfig,
    ConversionConfig,
    PruneConfig,
    QATConfig,
    RunConfig,
    StructuredPruningConfig,
)
from tfq.errors import InputError, TfqError
from tfq.workflows.models import data_notes, hashes, load_split
from tfq.workflows.teachers import distillation_of, load_teachers


def preflight(model: Any, config: RunConfig) -> Any:
    """Return the table of what each layer of a Keras model supports of config.compression.

    Raises:
        InputError: `model` is a .tflite.
    """
    from tfq import compression

    if isinstance(model, bytes):
        raise InputError(
            f"model={config.model} is a .tflite, which cannot be trained: give the Keras model",
            field="model",
            expected="a Keras model",
            got=config.model,
            limit="tflite-training",
        )
    return compression.preflight(model, config.compression)


def preflight_with_flatbuffer(model: Any, config: RunConfig) -> Any:
    """Return the table of `preflight`, and for each layer its ops that stay float in an int8 flatbuffer.

    These ops are found by converting the model without compression, calibrated on random data. If the bridge or the
    converter refuses the model, a row or a note of the table says so.
    """
    from tfq.keras_bridge import to_tf_keras

    try:
        bridged = to_tf_keras(model)
    except TfqError:
        return preflight(model, config)
    table = preflight(bridged, config)
    try:
        with progress.stage("converting the model as it is"):
            floating = _float_ops(bridged)
    except TfqError as error:
        message = f"the conversion failed: {str(error).splitlines()[0]}"
        return dataclasses.replace(table, notes=(*table.notes, message))
    return table.with_float_ops(floating)


def _float_ops(bridged: Any) -> dict[str, tuple[str, ...]]:
    """Return {layer of the user: its ops that stay float in int8}; an op without a layer is under its own name."""
    from tfq.conversion import convert_model
    from tfq.keras_bridge.verification import random_inputs

    # Random data is enough: the type of an op does not depend on its range.
    inputs = dict(zip(bridged.model.input_names, random_inputs(bridged.model)[0], strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data is known to be noise
        content = convert_model(bridged.model, inputs, ConversionConfig())
    results: dict[str, dict[str, None]] = {}
    for finding in auditing.audit_model(content, AuditConfig(require="full_int8")).failures:
        if finding.kind in ("qdq", "io_type") or finding.op is None:
            continue  # these follow from a float op, which is a finding too
        layer = bridged.origins.get(finding.keras_layer, finding.keras_layer) or finding.op
        results.setdefault(layer, {})[finding.op] = None
    return {layer: tuple(ops) for layer, ops in results.items()}


# Training examples on which the tf_keras model is compared with the user's own.
BRIDGE_CHECK_EXAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The result of `compress`.

    Attributes:
        model: The tf_keras model, to convert.
        user_model: The user's Keras 3 model with the trained weights; None if the user's model is a tf_keras one, or
            if filters were removed.
        details: What the record says of the compression.
    """

    model: Any
    user_model: Any
    details: dict[str, Any]


def compression_suffix(config: RunConfig) -> str:
    """Return the enabled steps of `compress` as part of a file's name, such as "pruned_qat".

    Raises:
        InputError: No step is enabled.
    """
    if not is_compressed(config):
        raise InputError(
            "no step of compression is enabled: enable one (compression.qat.enabled=True)",
            field="compression",
            expected="an enabled step",
        )
    return "_".join(word for word, step in _steps(config).items() if step.enabled)


def is_compressed(config: RunConfig) -> bool:
    """Return whether a step of compression is enabled."""
    return any(step.enabled for step in _steps(config).values())


def _steps(config: RunConfig) -> dict[str, StructuredPruningConfig | PruneConfig | ClusterConfig | QATConfig]:
    """Return {word for the names of files: the settings of the step}, in the order in which the steps run."""
    asked = config.compression
    return {"filtered": asked.structured_pruning, "pruned": asked.prune, "clustered": asked.cluster, "qat": asked.qat}


def check_compressible(model: Any, config: RunConfig) -> None:
    """Check, before any work, that the model supports the compression that `config` enables.

    Raises:
        InputError: A layer does not; the message is the table of `preflight`.
    """
    if is_compressed(config) and not why_no_layers(model):
        _compressible(model, config)


def why_no_layers(model: Any) -> str:
    """Return why a model that can be converted has no layers that could be trained; "" if it has layers."""
    from tfq.keras_bridge import SavedModel, why_no_graph

    if isinstance(model, bytes):
        return "a .tflite cannot be trained: pruning and QAT need the Keras model"
    if isinstance(model, SavedModel):
        return "an exported SavedModel has no layers: pruning and QAT need the Keras model that it was exported from"
    reason = why_no_graph(model)
    return f"pruning and QAT need the graph of the model, but it {reason}" if reason else ""


def _zero_blocks(model: Any, config: PruneConfig) -> dict[str, Any]:
    """Return the entry of the record that counts the blocks of `block_size`, if there are any."""
    from tfq import compression

    if not config.enabled or not config.block_size:
        return {}
    return {"zero_blocks": compression.measure_zero_blocks(model, *config.block_size)}


def _compressible(model: Any, config: RunConfig) -> Any:
    """Return the table of `preflight` for a model of either Keras, or a bridged one. Raises InputError if not ok."""
    table = preflight(model, config)
    if not table.ok:
        raise InputError(
            table.to_text(),
            field="model",
            expected="layers that can be compressed",
            got=tuple(layer.name for layer in table.layers if layer.qat == "unsupported"),
        )
    return table


def compress(model: Any, config: RunConfig, *, allow_code: bool = False) -> Compressed:
    """Compress a model by config.compression: remove filters, prune, cluster, then train quantization-aware.

    Args:
        model: A functional or sequential model of either Keras. A Keras 3 model is rebuilt in tf_keras first.
        config: The settings: config.compression, config.data and config.seed.
        allow_code: Whether code inside the files of teachers may run.

    Raises:
        InputError: The model, a teacher or the data cannot be used, or no step is enabled.
    """
    from tfq import compression
    from tfq.compression.training import deterministic
    from tfq.keras_bridge import return_weights
    from tfq.keras_bridge.strategies import named_strategy

    compression_suffix(config)
    settings = _with_teachers(config.compression)
    histories: dict[str, Any] = {}
    details: dict[str, Any] = {}

    with deterministic(config.seed), named_strategy(settings.train.strategy) as replicas:
        # A few examples: a model that is not supported is refused before all of them are read.
        bridged = _bridged(model, config, load_split(config.data, "train", limit=BRIDGE_CHECK_EXAMPLES))
        with deterministic(config.seed):  # random numbers drawn here do not change those of the training
            details["preflight"] = _compressible(bridged, config).to_dict()
        details["bridge"] = bridged.to_dict()
        training, validation = load_split(config.data, "train"), load_split(config.data, "val")
        teachers, details["teachers"] = load_teachers(
            settings.teacher,
            config,
            bridged.model,
            validation,
            field="compression.teacher",
            allow_code=allow_code,
        )
        result, fit = bridged.model, _loop(config, training, validation, histories)
        if settings.cluster.enabled:
            compression.clustering_plan(result, settings.cluster)  # raises what it raises before any work
        result, steps = _compressed_in_steps(bridged.model, settings, fit, training, teachers)
        details |= steps
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
            "replicas": replicas,
            "sparsity": compression.measure_sparsity(result),
            **_zero_blocks(result, settings.prune),
            "clusters": compression.measure_clusters(result),
            "preprocessing": data.preprocessing_record(config.data),
            "data_notes": data_notes(training, validation),
            "sha256": hashes(config, train=training, val=validation),
        },
    )


def _compressed_in_steps(
    model: Any, settings: CompressionConfig, fit: Callable[[str], Any], training: data.AnySplit, teachers: list[Any]
) -> tuple[Any, dict[str, Any]]:
    """Run the enabled steps in order; return the model and what the record says of each.

    Args:
        model: The float tf_keras model.
        settings: The steps.
        fit: Name of a step -> its training loop.
        training: The train split.
        teachers: Models that all steps learn from; [] lets a step learn from `model`, if it distills.
    """
    from tfq import compression

    result, details = model, {}
    if settings.structured_pruning.enabled:
        with progress.stage("structured pruning"):
            filtered = compression.prune_structured(
                result,
                fit("structured_pruning"),
                settings.structured_pruning,
                data=training,
                teacher=teachers or None,
            )
        result, details["structured_pruning"] = filtered.model, filtered.to_dict()
    if settings.prune.enabled:
        teacher = teachers or (model if settings.prune.distillation.enabled else None)
        with progress.stage("pruning"):
            plan = compression.pruning_plan(result, settings.prune, training)
            result = compression.prune_model(result, fit("prune"), settings.prune, training, plan=plan, teacher=teacher)
        details["pruning_plan"] = plan.to_dict()
    if settings.cluster.enabled:
        details["clustering_plan"] = compression.clustering_plan(result, settings.cluster).to_dict()
        teacher = teachers or (model if settings.cluster.distillation.enabled else None)
        with progress.stage("clustering weights"):
            result = compression.cluster_model(result, fit("cluster"), settings.cluster, teacher=teacher)
    if settings.qat.enabled:
        teacher = teachers or (model if settings.qat.distillation.enabled else None)
        with progress.stage("quantization-aware training"):
            result = compression.qat_model(result, fit("qat"), settings.qat, calibration=training, teacher=teacher)
    return result, details


def _with_teachers(settings: CompressionConfig) -> CompressionConfig:
    """Return the settings with distillation from `settings.teacher` in all enabled steps, if it names files.

    Raises:
        InputError: A step is set to learn from the model before it, too.
    """
    if not settings.teacher.files:
        return settings
    names = ("structured_pruning", "prune", "cluster", "qat")
    steps = {name: step for name in names if (step := getattr(settings, name)).enabled}
    own = next((name for name, step in steps.items() if step.distillation.enabled), None)
    if own is not None:
        raise InputError(
            f"compression.{own}.distillation.enabled and compression.teacher are both set, but a step learns from one "
            "of them: from the model before it, or from other models. Remove one of the two",
            field=f"compression.{own}.distillation.enabled",
            expected=False,
            got=True,
        )
    distillation = distillation_of(settings.teacher)
    return dataclasses.replace(
        settings, **{name: dataclasses.replace(step, distillation=distillation) for name, step in steps.items()}
    )


def _bridged(model: Any, config: RunConfig, examples: data.AnySplit) -> Any:
    """Return the BridgeResult of `model`, compared on `examples` too.

    Raises:
        InputError: It cannot be rebuilt, or lacks an output that config.compression.train names.
    """
    from tfq.compression.output_losses import check_losses
    from tfq.keras_bridge import to_tf_keras

    try:
        with progress.stage("rebuilding the model in tf_keras"):
            bridged = to_tf_keras(model, data=examples)
    except TfqError:
        check_compressible(model, config)
        raise  # the model is supported, so the data does not fit it
    check_losses(bridged.model, config.compression.train)
    return bridged


def _loop(
    config: RunConfig, training: data.AnySplit, validation: data.AnySplit, histories: dict[str, Any]
) -> Callable[[str], Callable[[Any, list[Any]], None]]:
    """Return a function step -> training loop of that step, which stores its history in `histories`."""
    from tfq.compression.training import train_model

    def fit(step: str) -> Callable[[Any, list[Any]], None]:
        def loop(adapted: Any, callbacks: list[Any]) -> None:
            histories[step] = train_model(
                adapted, training, validation, config.compression.train, seed=config.seed, callbacks=callbacks
            )

        return loop

    return fit
