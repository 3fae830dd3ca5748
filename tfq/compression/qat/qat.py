# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: starts from the post-training ranges, keeps the zeros of a pruned model."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tfq.compression._tfmot import tfmot_fixes, tfmot_symbols
from tfq.compression.clustering.cluster import cluster_preserving_callback, measure_clusters
from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.gate import check_same_function
from tfq.compression.graph import check_finite, cloned, require_graph_model, run_fit
from tfq.compression.pruning.sparsity import measure_sparsity, sparsity_preserving_callback
from tfq.compression.qat import placement
from tfq.compression.qat.batch_norm import frozen_from_step
from tfq.compression.qat.grids import round_to_flatbuffer
from tfq.compression.qat.narrow_ranges import widen_ranges
from tfq.compression.qat.ranges import calibrate_ranges, debiased_ranges, learned_ranges, measure_weights
from tfq.config import QATConfig
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge import import_tf_keras, import_tfmot
from tfq.keras_bridge.copies import check_own_training, keep_class, keep_names, own_name
from tfq.keras_bridge.quantize_configs import quantize_config_classes
from tfq.patterns import check_fits, fits
from tfq.progress import stage
from tfq.typing import Data, Fit, KerasModel, Teacher


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A model with fake quantization in it, and what has none.

    model: layer `x` is `quant_x` in it, or `x` where it is skipped, or has neither weights nor fake quantization.
    skipped: layer -> why the converter alone quantizes it, by the representative dataset.
    """

    model: Any
    skipped: dict[str, str]


def quantized(model: Any, config: QATConfig | None = None) -> Annotated:
    """A copy of `model` with fake quantization; `model` stays as it is. Not compiled, ranges not yet observed.

    model: flat functional or sequential tf_keras model (as keras_bridge.to_tf_keras gives it).
    config.layers: name patterns of the layers that get fake quantization, of those that can.
    A kernel's quantization is symmetric: its zeros are zeros behind fake quantization too. That training keeps them
    is the work of `sparsity.sparsity_preserving_callback`, of no layer here.
    Without its rounding the result computes what `model` does, to the bit.
    Raises InputError on a model that holds models, a pattern that fits no layer, or nothing that can be quantized;
    TfqError when tfmot changed the function all the same.
    """
    config = config or QATConfig()
    require_graph_model(model, "quantization-aware training")
    _refuse_added_terms(model)
    clone, _ = cloned(model)
    placements = chosen(clone, config)
    configs = {name: place for name, place in placements.items() if isinstance(place, placement.Placement)}
    if not any(place.config for place in configs.values()):
        reasons = "".join(f"\n  {name}: {place}" for name, place in placements.items() if isinstance(place, str))
        raise InputError(
            f"{model.name!r} has no layer for quantization-aware training: replace them, or quantize after training "
            f"(compression.qat.enabled=False){reasons}",
            field="model",
            expected="a layer for quantization-aware training",
            got=model.name,
        )
    with _scope(clone), tfmot_fixes.repaired(), _errors(model):
        avoid = [layer.name for layer in clone.layers]
        with tfmot_symbols.automatic_names_from_zero(avoid=avoid):
            annotated = _annotated(clone, configs)
            scheme = tfmot_fixes.selective_scheme(placement.quantized_inputs(clone, placements))
            apply = import_tfmot().quantization.keras.quantize_apply
            result = tfmot_symbols.without_autograph(apply, clone.layers)(annotated, scheme)
    keep_names(model, result)
    tfmot_fixes.leave_frozen_weights()
    tfmot_fixes.regularize_activities(result)
    for layer in result.layers:
        if tfmot_symbols.wrapped(layer) is not layer:
            layer.call = tfmot_symbols.without_autograph(layer.call, [layer])
    check_same_function(model, result)
    return Annotated(
        model=result,
        skipped={name: place for name, place in placements.items() if isinstance(place, str)},
    )


def _refuse_added_terms(model: Any) -> None:
    """Raise InputError where model.add_loss or model.add_metric added tensors, which tfmot's rebuilding drops."""
    added = [layer.name for layer in model.layers if type(layer).__name__ in ("AddLoss", "AddMetric")]
    if added:
        raise InputError(
            f"qat: tfmot drops what {model.name!r} was given by model.add_loss or model.add_metric "
            f"({', '.join(added)}): call self.add_loss in a layer, or give compile a loss for an output",
            field="model",
            expected="no terms added by model.add_loss or model.add_metric",
            got=tuple(added),
        )


def chosen(model: Any, config: QATConfig) -> dict[str, placement.Placement | str]:
    """Layer name -> where its fake quantization stands, or why it has none, as config.layers wants it."""
    placements = placement.placements(model)
    reasons = {name: place if isinstance(place, str) else None for name, place in placements.items()}
    for pattern in config.layers:
        if pattern != "*":
            check_fits(f"qat: the pattern {pattern!r} in layers", pattern, reasons, field="compression.qat.layers")
    return {
        name: place if isinstance(place, str) or fits(name, config.layers) else "no pattern in layers fits its name"
        for name, place in placements.items()
    }


def _annotated(clone: Any, configs: dict[str, placement.Placement]) -> Any:
    annotate = import_tfmot().quantization.keras.quantize_annotate_layer
    classes = quantize_config_classes()

    def wrap(old: Any, new: Any) -> Any:
        place = configs.get(old.name)
        # What has weights is wrapped in any case: they are then found under the one name, quant_NAME.
        if place is None or not (place.config or place.stand_in or old.weights):
            return new
        if place.stand_in:
            new = classes[place.stand_in].from_config(new.get_config())
        return annotate(new, classes["LayerQuantizeConfig"](**(place.config or {})))

    annotated, _ = cloned(clone, wrap)
    return annotated


@contextlib.contextmanager
def _scope(model: Any) -> Iterator[None]:
    """tfmot's classes, ours, and those of the model's own layers and activations are found by name."""
    own: dict[str, Any] = dict(quantize_config_classes())
    for layer in model.layers:
        own.setdefault(type(layer).__name__, type(layer))
        activation = getattr(layer, "activation", None)
        if callable(activation) and hasattr(activation, "__name__"):
            own.setdefault(activation.__name__, activation)
    with import_tfmot().quantization.keras.quantize_scope(), import_tf_keras().utils.custom_object_scope(own):
        yield


@contextlib.contextmanager
def _errors(model: Any) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"tfmot cannot make {model.name!r} ready for QAT: {error}", field="model", got=model.name
        ) from error


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

        quantized = tfq.qat(model, fit, calibration=x)
        flatbuffer = tfq.convert(quantized)

    Args:
        model: A functional or sequential tf_keras model without nested models.
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
    if config.range_estimator == "lsq" and (calibration is None or not config.num_calibration_samples):
        raise InputError(
            "qat: range_estimator=lsq begins with those of calibration data: give calibration, and its steps",
            field="compression.qat.range_estimator",
            expected="calibration data",
            got=config.range_estimator,
        )
    start = _start(model, config, calibration)
    quantized = start.model
    by_name = {own_name(layer): layer for layer in quantized.layers}
    keep_class(model, quantized, {id(layer): by_name[layer.name] for layer in model.layers}, "qat")
    with contextlib.ExitStack() as around:
        callbacks = around.enter_context(frozen_from_step(quantized, config.freeze_batch_norm_step))
        trained = quantized
        if config.distillation.enabled:
            trained = around.enter_context(distilled(quantized, teacher or model, config.distillation))
        if config.range_estimator == "lsq":
            steps_seen = around.enter_context(learned_ranges(quantized, trained))
        else:
            steps_seen = around.enter_context(debiased_ranges(quantized, start.batches))
        keeping = [sparsity_preserving_callback(quantized, start.zeros)] if start.zeros else []
        keeping += [cluster_preserving_callback(quantized)] if start.clusters else []
        run_fit(fit, trained, [*callbacks, *keeping])
        if steps_seen() < 1:
            raise TfqError(
                "qat: fit did not train the model that it was given: it must compile that model and call its fit, for "
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


def untrained_qat_model(model: Any, calibration: Any, config: QATConfig | None = None) -> Any:
    """What the training of `qat_model` begins with: fake quantization with the ranges of calibration data.

    Converted, it is an int8 flatbuffer that agrees with the one of post-training quantization.
    """
    config = config or QATConfig()
    if not config.num_calibration_samples:
        raise InputError(
            "qat: num_calibration_samples is 0: without training, ranges come from calibration data alone",
            field="compression.qat.num_calibration_samples",
            expected="at least 1",
            got=0,
        )
    quantized = _start(model, config, calibration).model
    round_to_flatbuffer(quantized)
    return quantized


@dataclass(frozen=True, kw_only=True)
class _Start:
    """model: quantized, its ranges those of `batches` batches (0: still to be seen). zeros: what must stay zero.

    clusters: layers whose weights must stay in theirs. widened: layers whose range was too narrow.
    """

    model: Any
    batches: int
    zeros: dict[str, float]
    clusters: dict[str, int]
    widened: frozenset[str]


@stage("inserting fake quantization")
def _start(model: Any, config: QATConfig, calibration: Any) -> _Start:
    require_graph_model(model, "quantization-aware training")
    annotated = quantized(model, config)
    _tell_skipped(annotated.skipped, config)
    batches, widened = 0, frozenset[str]()
    if calibration is not None and config.num_calibration_samples:
        batches = calibrate_ranges(annotated.model, calibration, config.num_calibration_samples)
        widened = widen_ranges(annotated.model)
    return _Start(
        model=annotated.model,
        batches=batches,
        zeros=_zeros(annotated.model) if config.preserve_sparsity else {},
        clusters=measure_clusters(annotated.model) if config.preserve_clusters else {},
        widened=widened,
    )


def _zeros(model: Any) -> dict[str, float]:
    """Layer -> fraction of zeros, of those that have any. One that is zero all over was initialized so: it learns."""
    return {name: fraction for name, fraction in measure_sparsity(model).items() if 0 < fraction < 1}


def _tell_skipped(skipped: dict[str, str], config: QATConfig) -> None:
    """Warns of layers without fake quantization, but for those that the user has not chosen."""
    messages = [f"{name} ({reason})" for name, reason in skipped.items() if fits(name, config.layers)]
    if messages:
        warn(f"qat: left to the converter: {'; '.join(messages)}")


def _check_zeros(before: dict[str, float], model: Any) -> None:
    after = measure_sparsity(model)
    lost = {name: f"{fraction:.1%} -> {after[name]:.1%}" for name, fraction in before.items() if after[name] < fraction}
    listed = ", ".join(f"{name} {change}" for name, change in lost.items())
    if lost:
        raise TfqError(
            f"qat: zeros of the pruned model were lost in {listed}: did fit pass on the callbacks that it "
            "was given? model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
            got=tuple(lost),
        )


def _check_clusters(before: dict[str, int], model: Any) -> None:
    after = measure_clusters(model)
    lost = [name for name, count in before.items() if after.get(name, count + 1) > count]
    if lost:
        raise TfqError(
            f"qat: the weights of {', '.join(lost)} have left their clusters: did fit pass on the callbacks that it "
            "was given? model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
            got=tuple(lost),
        )
