# SPDX-License-Identifier: Apache-2.0
"""Check, before any training, which layers can be pruned and quantization-aware trained."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tfq.compression.graph import cloned, named_layers
from tfq.compression.pruning.prunable import reason_not_prunable
from tfq.compression.qat import placement, qat
from tfq.config import CompressionConfig, PruneConfig, QATConfig
from tfq.conversion.tracing import reject_stateful
from tfq.errors import TfqError
from tfq.keras_bridge import BridgeResult, import_tf_keras, model_kind
from tfq.keras_bridge.layers.bridged_layer import facts_of
from tfq.keras_bridge.strategies import in_strategy
from tfq.keras_bridge.wrapped import QUANTIZED, unwrapped, wrapper_kinds
from tfq.notebook import NotebookRecord
from tfq.text_table import aligned
from tfq.typing import KerasModel

# The note of a report on a quantization-aware model.
RESUMED = (
    "it is a quantization-aware model. The table is that of the model without fake quantization; tfq.qat keeps its "
    "fake quantization, and continues the training"
)
QAT, PTQ_ONLY, UNSUPPORTED = "qat", "ptq_only", "unsupported"


@dataclass(frozen=True, kw_only=True)
class LayerVerdict:
    """What compression can do with one layer of the user's model.

    Attributes:
        name: Name of the layer, "outer/inner" in a nested model.
        kind: Its class.
        prunable: Whether it has weights that pruning can set to zero.
        qat: "qat" (trained with fake quantization), "ptq_only" (quantized by the converter, as in post-training
            quantization), or "unsupported".
        reason: What is fake-quantized, or why nothing is.
        advice: What the user can do; empty if nothing needs to be done.
        float_ops: Its ops that stay float in an int8 conversion; None if no conversion was tried.
    """

    name: str
    kind: str
    prunable: bool
    qat: str
    reason: str
    advice: str = ""
    float_ops: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Preflight(NotebookRecord):
    """The verdicts on all layers of a model.

    Attributes:
        model: Name of the model.
        layers: One verdict per layer, in the model's order.
        notes: Remarks about the model as a whole.
    """

    model: str
    layers: tuple[LayerVerdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the model has layers and all of them are supported."""
        return bool(self.layers) and all(layer.qat != UNSUPPORTED for layer in self.layers)

    def with_float_ops(self, floating: Mapping[str, tuple[str, ...]]) -> "Preflight":
        """Return a copy with the float ops of a conversion.

        Args:
            floating: Layer -> its ops that stay float. Layers that are not in the report are mentioned in `notes`.
        """
        layers = tuple(replace(layer, float_ops=floating.get(layer.name, ())) for layer in self.layers)
        known = {layer.name for layer in layers}
        notes = [f"{name}: {', '.join(ops)} stays float" for name, ops in floating.items() if name not in known]
        return replace(self, layers=layers, notes=(*self.notes, *notes))

    def counts(self) -> dict[str, int]:
        """Return the number of layers, of prunable layers, and of layers with each value of `qat`."""
        return {
            "layers": len(self.layers),
            "prunable": sum(layer.prunable for layer in self.layers),
            **{verdict: sum(layer.qat == verdict for layer in self.layers) for verdict in (QAT, PTQ_ONLY, UNSUPPORTED)},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "model": self.model,
            "ok": self.ok,
            "counts": self.counts(),
            "layers": [asdict(layer) for layer in self.layers],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the report as text: a table with one row per layer, a summary, and the notes."""
        rows = [("layer", "kind", "prune", "QAT", "reason and advice")]
        rows += [
            (
                layer.name,
                layer.kind,
                "yes" if layer.prunable else "-",
                layer.qat.replace("_", " "),
                ". ".join(message for message in (layer.reason, _float_ops_text(layer), layer.advice) if message),
            )
            for layer in self.layers
        ]
        counts = self.counts()
        message = (
            f"{self.model}: {counts['layers']} layers: {counts['prunable']} prunable; {counts[QAT]} for QAT, "
            f"{counts[PTQ_ONLY]} for post-training quantization only, {counts[UNSUPPORTED]} unsupported"
        )
        converted = [layer for layer in self.layers if layer.float_ops is not None]
        if converted:
            floating = sum(bool(layer.float_ops) for layer in converted)
            message += f"; {floating or 'none'} with float ops in an int8 .tflite"
        return "\n".join([*aligned(rows, left=5), "", message, *self.notes])


def _float_ops_text(layer: LayerVerdict) -> str:
    ops = ", ".join(layer.float_ops or ())
    return f"STAYS FLOAT in an int8 .tflite: {ops} has no int8 kernel: replace the layer" if ops else ""


@in_strategy
def preflight(model: KerasModel | BridgeResult, config: CompressionConfig | None = None) -> Preflight:
    """Report what pruning and quantization-aware training can do with each layer, without training anything.

    `model` does not change. Layers have the names of the user's model. A layer that cannot be translated to tf_keras is
    a row of the report ("unsupported"), not an exception.

    Examples:
        >>> report = tfq.preflight(model)
        >>> print(report.to_text())

    Args:
        model: A built model of either Keras, or the `BridgeResult` of one.
        config: The compression to check for; None means `CompressionConfig()`. Only `qat.layers` and the pattern of
            zeros in `prune` (blocks, m:n) matter.

    Returns:
        One verdict per layer, in the model's order.

    Raises:
        InputError: `model` is not a Keras model, has a stateful recurrent layer, or a pattern in `qat.layers` matches
            no layer.
    """
    from tfq.keras_bridge.bridge import to_tf_keras

    config = config or CompressionConfig()
    if isinstance(model, BridgeResult):
        if QUANTIZED not in wrapper_kinds(model.model):
            return _preflight_bridged(model, config)
        model = model.model
    notes: tuple[str, ...] = ()
    float_model: KerasModel = model
    if model_kind(model) == "tf_keras" and QUANTIZED in wrapper_kinds(model):
        notes, float_model = (RESUMED,), unwrapped(model)
    reject_stateful(float_model)
    try:
        result = to_tf_keras(float_model)
    except TfqError as error:
        report = _preflight_unbridged(float_model, error)
    else:
        report = _preflight_bridged(result, config)
    return replace(report, notes=(*notes, *report.notes))


def _preflight_bridged(result: Any, config: CompressionConfig) -> Preflight:
    layers = {layer.name: layer for layer in result.model.layers}
    clone, _ = cloned(result.model)
    placed = qat.selected_placements(clone, config.qat if config.qat.enabled else QATConfig())
    form = config.prune if config.prune.enabled else None
    kinds = {name: type(layer).__name__ for name, layer in _named(result.source)}
    input_layer = import_tf_keras().layers.InputLayer
    verdicts = []
    for name, built in result.layer_map.items():
        known = [layers[item] for item in built if item in layers and not isinstance(layers[item], input_layer)]
        if not known and any(isinstance(layers.get(item), input_layer) for item in built):
            continue
        verdicts.append(_verdict(name, kinds.get(name, ""), known, placed, form))
    return Preflight(model=result.source.name, layers=tuple(verdicts), notes=tuple(result.notes))


def _verdict(
    name: str,
    kind: str,
    layers: list[Any],
    placed: dict[str, placement.Placement | str],
    form: PruneConfig | None,
) -> LayerVerdict:
    if not layers:
        return LayerVerdict(name=name, kind=kind, prunable=False, qat=QAT, reason="removed: it has no effect here")
    pruning = [reason_not_prunable(layer, form) for layer in layers]
    results = [placed[layer.name] for layer in layers]
    not_placed = [result for result in results if isinstance(result, str)]
    descriptions = dict.fromkeys(result.why for result in results if isinstance(result, placement.Placement))
    why_not = next((reason for reason, layer in zip(pruning, layers, strict=True) if reason and layer.weights), None)
    reason = (
        not_placed[0]
        if not_placed
        else "fake quantization of " + "; ".join(descriptions)
        if _any_config(results)
        else "; ".join(descriptions)
    )
    return LayerVerdict(
        name=name,
        kind=kind or type(layers[0]).__name__,
        prunable=None in pruning,
        qat=PTQ_ONLY if not_placed else QAT,
        reason=f"{reason}; not pruned: {why_not}" if why_not else reason,
        advice=_advice(not_placed[0], layers) if not_placed else "",
    )


def _any_config(results: list[placement.Placement | str]) -> bool:
    return any(isinstance(place, placement.Placement) and place.config for place in results)


def _advice(reason: str, layers: list[Any]) -> str:
    if "pattern" in reason:
        return "Add a pattern to qat.layers to train it with fake quantization"
    advice = (facts_of(layer).qat_advice for layer in layers)
    return next(filter(None, advice), "Convert with a representative dataset")


def _preflight_unbridged(model: Any, error: TfqError) -> Preflight:
    """Return the report on a model that cannot be translated to tf_keras.

    The problems of the bridge come first, including those of operations and of the whole model, then all other layers.
    """
    name = str(getattr(model, "name", "model"))
    first = str(error).splitlines()[0]
    problems = dict(getattr(error, "problems", {}) or {name: first})
    kinds = {layer_name: type(layer).__name__ for layer_name, layer in _named(model)}
    unsupported = [
        LayerVerdict(
            name=item,
            kind=kinds.get(item, type(model).__name__ if item == name else "operation"),
            prunable=False,
            qat=UNSUPPORTED,
            reason=reason,
            advice="Replace the layer, or register a tfq.BridgedLayer for it"
            if item in kinds
            else "Build it as a functional model of Keras' built-in layers",
        )
        for item, reason in problems.items()
    ]
    others = [
        LayerVerdict(
            name=item,
            kind=kind,
            prunable=False,
            qat=PTQ_ONLY,
            reason="the layer is supported, but the model is not",
        )
        for item, kind in kinds.items()
        if item not in problems
    ]
    return Preflight(model=name, layers=(*unsupported, *others), notes=(first,))


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    try:
        pairs = list(named_layers(model))
    except (AttributeError, ValueError):
        pairs = []
    return iter([(name, layer) for name, layer in pairs if type(layer).__name__ != "InputLayer"])
