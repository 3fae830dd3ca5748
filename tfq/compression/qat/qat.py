# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training, which starts from calibrated ranges and preserves sparsity and clusters."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tfq.compression._tfmot import tfmot_fixes, tfmot_symbols
from tfq.compression.clustering.cluster import cluster_preserving_callback, measure_clusters
from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.gate import check_same_function, in_float32
from tfq.compression.graph import check_finite, cloned, reconnected, require_graph_model, run_fit
from tfq.compression.pruning.sparsity import measure_sparsity, sparsity_preserving_callback
from tfq.compression.qat import placement, resume
from tfq.compression.qat.batch_norm import frozen_from_step
from tfq.compression.qat.grids import round_to_flatbuffer
from tfq.compression.qat.narrow_ranges import widen_ranges
from tfq.compression.qat.ranges import calibrate_ranges, ema_ranges, lsq_ranges, measure_weights
from tfq.compression.qat.weight_start import reconstruct_weights
from tfq.compression.qat.weight_steps import initialize_steps, lsq_steps
from tfq.config import CalibrationConfig, QATConfig
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge import import_tf_keras, import_tfmot
from tfq.keras_bridge.copies import check_own_training, keep_class, keep_names, own_name
from tfq.keras_bridge.quantize_configs import quantize_config_classes
from tfq.keras_bridge.strategies import in_strategy
from tfq.keras_bridge.wrapped import QUANTIZED, without_wrappers
from tfq.patterns import check_selection, fits
from tfq.progress import stage
from tfq.typing import Data, Fit, KerasModel, Teacher


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A model with fake quantization, and its layers without fake quantization.

    Attributes:
        model: The model. A layer "x" is named "quant_x", or "x" if it is skipped, or has neither weights nor fake
            quantization.
        skipped: Layer -> why only the converter quantizes it, with the representative dataset.
    """

    model: Any
    skipped: dict[str, str]


@in_strategy
def quantized(model: Any, config: QATConfig | None = None) -> Annotated:
    """Return a copy of a model with fake quantization, not compiled, and without observed ranges.

    Without the rounding of fake quantization, the copy computes bitwise the same function. Fake quantization of kernels
    is symmetric, so that zeros remain zeros. It does not keep weights at zero during training; see
    `sparsity.sparsity_preserving_callback`.

    Args:
        model: Functional or sequential tf_keras model without nested models, as returned by `keras_bridge.to_tf_keras`.
            It is not modified.
        config: `config.layers` are the name patterns of the layers to fake-quantize, among those that can be.

    Raises:
        InputError: The model has nested models or no layer that can be fake-quantized, or a pattern matches no layer.
        TfqError: tfmot changed the function of the model.
    """
    config = config or QATConfig()
    require_graph_model(model, "quantization-aware training")
    _check_no_added_terms(model)
    sequential = import_tf_keras().Sequential
    with _scope(model), _translate_errors(model):
        clone = tfmot_symbols.without_autograph(_copied, model.layers)(model)
    placements = selected_placements(clone, config)
    configs = {name: place for name, place in placements.items() if isinstance(place, placement.Placement)}
    if not any(place.config for place in configs.values()):
        reasons = "".join(f"\n  {name}: {place}" for name, place in placements.items() if isinstance(place, str))
        raise InputError(
            f"{model.name!r} has no layer that supports quantization-aware training: replace its layers, or use "
            f"post-training quantization (compression.qat.enabled=False){reasons}",
            field="model",
            expected="a layer for quantization-aware training",
            got=model.name,
            limit="nothing-to-compress",
        )
    inputs = placement.quantized_inputs(clone, placements)
    with _scope(clone), _translate_errors(model):
        result = tfmot_symbols.without_autograph(_wrapped, clone.layers)(clone, configs, inputs)
        if isinstance(model, sequential) and type(model) is not sequential:  # it must stay one, for its own training
            result = sequential(result.layers, name=result.name)
    keep_names(model, result)
    _prepare_for_training(result)
    initialize_steps(result)
    check_same_function(model, result)
    return Annotated(
        model=result,
        skipped={name: place for name, place in placements.items() if isinstance(place, str)},
    )


def _prepare_for_training(model: Any) -> None:
    tfmot_fixes.leave_frozen_weights()
    tfmot_fixes.regularize_activities(model)
    for layer in model.layers:
        if tfmot_symbols.wrapped(layer) is not layer:
            layer.call = tfmot_symbols.without_autograph(layer.call, [layer])


def _check_no_added_terms(model: Any) -> None:
    """Raise InputError if model.add_loss or model.add_metric added tensors, which tfmot drops from the graph."""
    added = [layer.name for layer in model.layers if type(layer).__name__ in ("AddLoss", "AddMetric")]
    if added:
        raise InputError(
            f"qat: tfmot drops the terms that model.add_loss or model.add_metric added to {model.name!r} "
            f"({', '.join(added)}): call self.add_loss in a layer, or compile the model with a loss for an output",
            field="model",
            expected="no terms added by model.add_loss or model.add_metric",
            got=tuple(added),
            limit="added-losses",
        )


def selected_placements(model: Any, config: QATConfig) -> dict[str, placement.Placement | str]:
    """Return, for each layer, its fake quantization, or why it has none, with the selection by `config.layers`."""
    placements = placement.placements(model)
    reasons = {name: place if isinstance(place, str) else None for name, place in placements.items()}
    named = [pattern for pattern in config.layers if pattern != "*"]
    check_selection("qat: layers", named, reasons, field="compression.qat.layers")
    chosen = {
        name: place if isinstance(place, str) or fits(name, config.layers) else "no pattern in layers matches its name"
        for name, place in placements.items()
    }
    return {**chosen, **_with_int4_weights(model, chosen, config)}


# Layers whose ops have kernels for int4 weights.
_INT4_LAYERS = ("Conv2D", "DepthwiseConv2D", "Dense")


def _with_int4_weights(
    model: Any, placements: dict[str, placement.Placement | str], config: QATConfig
) -> dict[str, placement.Placement]:
    """Return the placements of the layers in config.int4_layers, with 4-bit weights.

    Raises:
        InputError: A pattern matches no layer that can have 4-bit weights.
    """
    if not config.int4_layers:
        return {}
    possible: dict[str, placement.Placement] = {}
    reasons: dict[str, str | None] = {}
    for layer in model.layers:
        place = placements.get(layer.name)
        if not isinstance(place, placement.Placement) or not (place.config or {}).get("weights"):
            continue
        is_grouped = getattr(layer, "groups", 1) > 1
        if type(layer).__name__ not in _INT4_LAYERS or len(layer.inbound_nodes) > 1 or is_grouped:
            reasons[layer.name] = "only convolutions, depthwise convolutions and dense layers with one call have int4"
            continue
        reasons[layer.name] = None
        possible[layer.name] = dataclasses.replace(place, config={**(place.config or {}), "int4": True})
    check_selection("qat: int4_layers", config.int4_layers, reasons, field="compression.qat.int4_layers")
    return {name: place for name, place in possible.items() if fits(name, config.int4_layers)}


def _copied(model: Any) -> Any:
    """Return a functional copy of a model, whose layers are not connected to any other model."""
    copy, _ = cloned(model)
    if isinstance(copy, import_tf_keras().Sequential):
        copy = import_tf_keras().Model(copy.inputs, copy.outputs, name=copy.name)
    return copy


def _wrapped(clone: Any, configs: dict[str, placement.Placement], quantized_inputs: frozenset[str]) -> Any:
    """Return the model with tfmot's wrappers around the layers of `clone`, and a QuantizeLayer after each named input.

    tfmot's quantize_apply returns the same model from an annotated one. It copies the model four times for that, which
    takes three times as long. Its graph transforms are not needed, because `placement` decides from the graph where
    fake quantization is placed.
    """
    classes = quantize_config_classes()

    def replace(layer: Any) -> list[Any]:
        if isinstance(layer, import_tf_keras().layers.InputLayer):
            return [tfmot_symbols.quantize_layer()] if layer.name in quantized_inputs else []
        place = configs.get(layer.name)
        # All layers with weights are wrapped, so that all of them are named quant_NAME.
        if place is None or not (place.config or place.stand_in or layer.weights):
            return [layer]
        if place.stand_in:
            layer = _exchanged(layer, classes[place.stand_in])
        return [tfmot_symbols.quantize_wrapper(layer, classes["LayerQuantizeConfig"](**(place.config or {})))]

    avoid = [layer.name for layer in clone.layers]
    with tfmot_symbols.automatic_names_from_zero(avoid=avoid), tfmot_symbols.shapes_of_wrapped_layers():
        return reconnected(clone, replace)


def _exchanged(layer: Any, stand_in: Any) -> Any:
    """Return a layer of the class `stand_in`, with the config, weights and inputs of `layer`."""
    new = stand_in.from_config(layer.get_config())
    for node in list(layer.inbound_nodes):
        new(*node.call_args, **node.call_kwargs)
    new.set_weights(layer.get_weights())
    return new


@contextlib.contextmanager
def _scope(model: Any) -> Iterator[None]:
    """Register the classes of tfmot, of tfq, and of the model's layers and activations for loading by name."""
    own: dict[str, Any] = dict(quantize_config_classes())
    for layer in map(tfmot_symbols.wrapped, model.layers):
        own.setdefault(type(layer).__name__, type(layer))
        activation = getattr(layer, "activation", None)
        if callable(activation) and hasattr(activation, "__name__"):
            own.setdefault(activation.__name__, activation)
    with import_tfmot().quantization.keras.quantize_scope(), import_tf_keras().utils.custom_object_scope(own):
        yield


@contextlib.contextmanager
def _translate_errors(model: Any) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"tfmot cannot prepare {model.name!r} for QAT: {error}",
            field="model",
            got=model.name,
        ) from error


@in_strategy
def qat_model(
    model: KerasModel,
    fit: Fit,
    config: QATConfig | None = None,
    *,
    calibration: Data = None,
    teacher: Teacher | None = None,
) -> KerasModel:
    """Return a copy of `model` trained with fake quantization (quantization-aware training).

    Layer `x` becomes `quant_x`. A layer that cannot be fake-quantized keeps its name, and a TfqWarning names it; the
    conversion then needs a representative dataset for its range. After training, the ranges of weights are measured
    again, and ranges and biases are rounded to values that the flatbuffer can represent. `model` itself does not
    change.

    Examples:
        >>> def fit(model, callbacks):
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        ...     model.fit(x, y, epochs=3, callbacks=callbacks)

        >>> quantized = tfq.qat(model, fit, calibration=x)
        >>> flatbuffer = tfq.convert(quantized)

    Args:
        model: A functional or sequential tf_keras model without nested models. If it is a quantization-aware model (of
            tfq, or of unmodified tfmot), its training continues with its fake quantization, ranges and weights;
            `config.layers` and `calibration` are then ignored, with a TfqWarning.
        fit: Called as `fit(model, callbacks)`. It compiles the model that it receives and trains it in place with
            `model.fit(..., callbacks=callbacks)`; it may append callbacks. The passed callbacks keep zeros at zero and
            freeze BatchNormalization.
        config: Settings of the training; None means `QATConfig()`. With `preserve_sparsity`, zeros in kernels stay
            zero. With `preserve_clusters`, weights of a clustered layer that are equal before training are equal after
            it. `range_estimator="lsq"` trains the activation ranges together with the weights. From
            `freeze_batch_norm_step` on, BatchNormalization computes as it does in the flatbuffer.
        calibration: Inputs of the model (a Split or SplitStream, an array, or a dict of arrays by input name).
            Activation ranges start at those of the first `config.num_calibration_samples` examples, so that training
            starts from the post-training quantized model. With None, or 0 samples, they start at those of the first
            batch.
        teacher: One or several models (an ensemble) whose outputs `config.distillation` trains towards; None means
            `model` itself. The result does not contain them.

    Returns:
        The quantization-aware trained tf_keras model. `convert` turns it into an int8 flatbuffer.

    Raises:
        InputError: The model cannot be quantized, or an argument cannot be used.
        TfqError: tfmot changed the function of the model, `fit` did not train it or did not pass on the callbacks,
            weights became NaN, or zeros were lost.
    """
    config = config or QATConfig()
    refuse_unused_teacher(teacher, config.distillation, "qat")
    check_own_training(model, "qat")
    require_graph_model(model, "quantization-aware training")
    model = without_wrappers(model, "qat", keep=frozenset((QUANTIZED,)))
    model = in_float32(model, "qat")
    _check_start(model, config, calibration, teacher)
    start = _start(model, config, calibration)
    quantized = start.model
    by_name = {own_name(layer): layer for layer in quantized.layers}
    keep_class(model, quantized, {id(layer): by_name[own_name(layer)] for layer in model.layers}, "qat")
    with contextlib.ExitStack() as stack:
        callbacks = stack.enter_context(frozen_from_step(quantized, config.freeze_batch_norm_step))
        trained = quantized
        if config.distillation.enabled:
            trained = stack.enter_context(distilled(quantized, teacher or model, config.distillation))
        if config.range_estimator == "lsq":
            steps_seen = stack.enter_context(lsq_ranges(quantized, trained))
        else:
            steps_seen = stack.enter_context(ema_ranges(quantized, start.batches))
        preserving = [sparsity_preserving_callback(quantized, start.zeros)] if start.zeros else []
        preserving += [cluster_preserving_callback(quantized)] if start.clusters else []
        stack.enter_context(lsq_steps(quantized, trained))
        run_fit(fit, trained, [*callbacks, *preserving])
        if steps_seen() < 1:
            raise TfqError(
                "qat: fit did not train the model that it received: it must compile that model and call its fit, for "
                "at least one step",
                field="fit",
                expected="a fit that trains the model",
            )
    check_finite(quantized, "quantization-aware training")
    measure_weights(quantized)
    widen_ranges(quantized, start.widened)
    round_to_flatbuffer(quantized)
    _check_zeros(start.zeros, quantized)
    _check_clusters(start.clusters, quantized)
    return quantized


def _check_start(model: Any, config: QATConfig, calibration: Any, teacher: Any) -> None:
    """Raise InputError if the training lacks a teacher or calibration data that its settings need."""
    is_resumed = resume.is_quantization_aware(model)
    has_ranges = is_resumed and resume.has_ranges(model)
    if is_resumed and config.distillation.enabled and teacher is None:
        raise InputError(
            f"qat: {model.name!r} is a quantization-aware model, and distillation from itself has no effect: pass the "
            "float model as teacher",
            field="teacher",
            expected="the float model",
            got=None,
        )
    needs_calibration = config.range_estimator == "lsq" and not has_ranges
    if needs_calibration and (calibration is None or not config.num_calibration_samples):
        raise InputError(
            "qat: range_estimator=lsq starts from calibrated ranges: pass calibration, with num_calibration_samples "
            "above 0",
            field="compression.qat.range_estimator",
            expected="calibration data",
            got=config.range_estimator,
        )


@in_strategy
def untrained_qat_model(model: Any, calibration: Any, config: QATConfig | None = None) -> Any:
    """Return the model that the training of `qat_model` starts from: fake quantization with calibrated ranges.

    Its int8 conversion agrees with the result of post-training quantization.

    Args:
        model: Functional or sequential tf_keras model without nested models.
        calibration: Representative inputs, in any form that `tfq.data.as_split` accepts.
        config: The QAT settings; None means `QATConfig()`.

    Raises:
        InputError: The model cannot be quantized, or `config.num_calibration_samples` is 0.
    """
    config = config or QATConfig()
    if not config.num_calibration_samples:
        raise InputError(
            "qat: num_calibration_samples is 0, but without training, ranges can only come from calibration data: "
            "expected at least 1",
            field="compression.qat.num_calibration_samples",
            expected="at least 1",
            got=0,
        )
    quantized = _start(in_float32(model, "qat"), config, calibration).model
    round_to_flatbuffer(quantized)
    return quantized


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The model before quantization-aware training.

    Attributes:
        model: The model with fake quantization.
        batches: Number of batches that its ranges were calibrated on; 0 if they are not calibrated.
        zeros: Layer -> fraction of zeros that must stay zero.
        clusters: Layer -> number of clusters that must be preserved.
        widened: Layers whose ranges were too narrow.
    """

    model: Any
    batches: int
    zeros: dict[str, float]
    clusters: dict[str, int]
    widened: frozenset[str]


@stage("inserting fake quantization")
def _start(model: Any, config: QATConfig, calibration: Any) -> _Start:
    require_graph_model(model, "quantization-aware training")
    batches, widened = 0, frozenset[str]()
    if resume.is_quantization_aware(model):
        start = _resumed(model, config, calibration)
        batches = resume.UPDATES if resume.has_ranges(start) else 0
    else:
        annotated = quantized(model, config)
        _warn_of_skipped(annotated.skipped, config)
        start = annotated.model
    clusters = measure_clusters(start) if config.preserve_clusters else {}
    if not batches and calibration is not None and config.num_calibration_samples:
        # Moving averages forget the start soon. Learned ranges stay near it at a low learning rate.
        percentile = CalibrationConfig().percentile if config.range_estimator == "lsq" else 100.0
        batches = calibrate_ranges(start, calibration, config.num_calibration_samples, percentile=percentile)
        if not resume.is_quantization_aware(model):
            reconstruct_weights(start, model, calibration, config.num_calibration_samples, leave_out=clusters)
        widened = widen_ranges(start)
    return _Start(
        model=start,
        batches=batches,
        zeros=_sparsities(start) if config.preserve_sparsity else {},
        clusters=clusters,
        widened=widened,
    )


def _resumed(model: Any, config: QATConfig, calibration: Any) -> Any:
    """Return a copy of a quantization-aware model, and warn of arguments that have no effect."""
    ignored = ["compression.qat.layers"] if tuple(config.layers) != ("*",) else []
    ignored += ["calibration"] if calibration is not None and resume.has_ranges(model) else []
    if ignored:
        warn(
            f"qat: {model.name!r} is a quantization-aware model, whose training continues with its own fake "
            f"quantization and ranges: {' and '.join(ignored)} has no effect"
        )
    with _scope(model), _translate_errors(model):
        result = resume.copied(model)
    _prepare_for_training(result)
    return result


def _sparsities(model: Any) -> dict[str, float]:
    """Return layer -> fraction of zeros, for layers that have any.

    A layer of zeros only was initialized like that. It is left out, so that it can be trained.
    """
    return {name: fraction for name, fraction in measure_sparsity(model).items() if 0 < fraction < 1}


def _warn_of_skipped(skipped: dict[str, str], config: QATConfig) -> None:
    """Warn of layers without fake quantization, except those that `config.layers` does not select."""
    messages = [f"{name} ({reason})" for name, reason in skipped.items() if fits(name, config.layers)]
    if messages:
        warn(f"qat: only the converter quantizes these layers: {'; '.join(messages)}")


def _check_zeros(before: dict[str, float], model: Any) -> None:
    after = measure_sparsity(model)
    lost = {name: f"{fraction:.1%} -> {after[name]:.1%}" for name, fraction in before.items() if after[name] < fraction}
    listed = ", ".join(f"{name} {change}" for name, change in lost.items())
    if lost:
        raise TfqError(
            f"qat: zeros of the pruned model were lost in {listed}: check that fit passes on the callbacks that it "
            "receives: model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
            got=tuple(lost),
        )


def _check_clusters(before: dict[str, int], model: Any) -> None:
    after = measure_clusters(model)
    lost = [name for name, count in before.items() if after.get(name, count + 1) > count]
    if lost:
        raise TfqError(
            f"qat: the weights of {', '.join(lost)} are not clustered any more: check that fit passes on the callbacks "
            "that it receives: model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
            got=tuple(lost),
        )
