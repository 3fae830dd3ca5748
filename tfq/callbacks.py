# SPDX-License-Identifier: Apache-2.0
"""Callbacks for `fit`: evaluate or export the int8 flatbuffer during training. They work in both versions of Keras.

Both versions call the same methods, but each checks for its own base class and stores `model` differently. A callback
therefore has both base classes. It is defined on first access, because its base classes need TensorFlow.
"""

import functools
import hashlib
import math
import os
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfq import artifacts, progress
from tfq.config import AuditConfig, ConversionConfig, EvaluationConfig
from tfq.errors import InputError, did_you_mean, warn
from tfq.provenance import provenance
from tfq.typing import JSON, Data, KerasModel

if TYPE_CHECKING:
    from tfq.conversion.quantize import Conversion
    from tfq.evaluation import EvaluationRecord, MetricChoice

# Examples that the training model predicts at a time.
_BATCH = 256
# The direction of Keras' own losses and metrics, by the end of their names; `tfq.evaluation` has those of tfq.
_KERAS_MODES = {
    **dict.fromkeys(("acc", "accuracy", "auc", "precision", "recall", "f1_score", "fbeta_score", "r2_score"), "max"),
    **dict.fromkeys(("iou", "io_u", "cosine_similarity", "at_recall", "at_specificity", "at_sensitivity"), "max"),
    **dict.fromkeys(("loss", "mse", "mae", "mape", "msle", "rmse", "squared_error", "absolute_error"), "min"),
    **dict.fromkeys(("percentage_error", "logarithmic_error", "crossentropy", "hinge", "divergence"), "min"),
    **dict.fromkeys(("poisson", "log_cosh", "logcosh", "huber"), "min"),
}
# What Int8Evaluation adds to `logs` in addition to the metric.
_INT8_MODES = {"accuracy": "max", "agreement": "max", "sqnr_db": "max", "bytes": "min", "collapsed": "min"}


def mode_of(monitor: str) -> str:
    """Return "max" if a higher value of a key of `logs` is better, "min" if a lower one is.

    The key is a name, or ends in "_" and a name: of a registered metric of tfq, of what `Int8Evaluation` adds, or of a
    loss or metric of Keras. Numbers that Keras adds to repeated names ("auc_1") do not count.

    Raises:
        InputError: The name is none of these, or its metric declares no direction.
    """
    from tfq import registry
    from tfq.evaluation import Metric

    known_modes: dict[str, str | None] = {
        **_KERAS_MODES,
        **{f"int8_{name}": mode for name, mode in _INT8_MODES.items()},
    }
    modes = {"higher": "max", "lower": "min", None: None}
    known_modes |= {metric.name: modes[metric.direction] for metric in registry.entries(Metric).values()}
    name = re.sub(r"_\d+$", "", monitor)
    matches = [item for item in known_modes if name == item or name.endswith(f"_{item}")]
    mode = known_modes[max(matches, key=len)] if matches else None
    if mode is None:
        plain = name.removeprefix("val_").removeprefix("int8_")
        raise InputError(
            f"TFLiteExport: it is not known whether a higher or a lower {monitor!r} is better: set mode='max' or "
            f"'min', or register a tfq.Metric with a direction ({did_you_mean(plain, known_modes)})",
            field="mode",
            expected=("max", "min"),
            got="auto",
        )
    return mode


@dataclass(kw_only=True, eq=False)
class _Exported:
    """A conversion in an epoch, with what it was converted from."""

    epoch: int | None
    weights: str
    dataset: Data
    config: ConversionConfig
    conversion: "Conversion"
    is_measured: bool = False


class _Exports:
    """The conversions of one model. The callbacks of a fit share them: each is computed once per epoch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._traces: dict[tuple[int, tuple[str, ...]], Any] = {}
        self._latest: list[_Exported] = []

    def forget(self) -> None:
        """Delete all conversions, because a new fit counts its epochs from 0."""
        self._latest = []

    def convert(self, dataset: Data, config: ConversionConfig, epoch: int | None) -> _Exported:
        """Return the model as a flatbuffer, computed once per epoch, config and calibration data.

        Args:
            dataset: Calibration data. Two are the same if they are one object or arrays of equal values.
            config: How to convert.
            epoch: The epoch that ends. None means outside of an epoch: a conversion is then reused only if the weights
                did not change.
        """
        from tfq.conversion import convert_with_record

        weights = self._fingerprint()
        for item in self._latest:
            in_epoch = epoch is not None and item.epoch == epoch
            if (in_epoch or item.weights == weights) and item.config == config and _same_data(item.dataset, dataset):
                if item.weights != weights:
                    warn(
                        "the weights changed between two callbacks of an epoch, and the flatbuffer has the earlier "
                        "weights: place Int8Evaluation and TFLiteExport next to each other"
                    )
                return item
        result = _Exported(
            epoch=epoch,
            weights=weights,
            dataset=dataset,
            config=config,
            # Remedies are not measured: each needs a conversion, in every epoch.
            conversion=convert_with_record(self.trace(config, dataset), dataset, config, remedies=False),
        )
        self._latest = [*(item for item in self._latest if item.epoch == epoch), result]
        return result

    def is_measured_otherwise(self, exported: _Exported) -> bool:
        """Return whether another conversion of the same epoch was measured, but not this one."""
        others = [item for item in self._latest if item is not exported and item.epoch == exported.epoch]
        return not exported.is_measured and any(item.is_measured for item in others)

    def trace(self, config: ConversionConfig, dataset: Data) -> Any:
        """Return a trace of the model for `config`, computed once per batch size, shapes and form of recurrent layers.

        Args:
            config: The settings of the conversion.
            dataset: The representative data, read only if the shape of an input is open.
        """
        from tfq.conversion import trace_for
        from tfq.keras_bridge.wrapped import QUANTIZED, wrapper_kinds

        key = (config.batch_size, config.input_shapes)
        # The trace of a model in wrappers of pruning or clustering is that of a copy with the current weights.
        is_copied = bool(wrapper_kinds(self.model) - {QUANTIZED})
        source = self.model if is_copied else self._traces.get(key, self.model)
        self._traces[key] = trace_for(source, config, dataset)
        return self._traces[key]

    @functools.cached_property
    def infer_in_float32(self) -> Callable[..., list[Any]]:
        """The function from the arguments of the model's call to its outputs in inference, in float32."""
        from tfq.conversion import inference_function

        return inference_function(self.model)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in self.model.get_weights():
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


# By the id of the model; an entry exists as long as a callback uses it.
_EXPORTS: "weakref.WeakValueDictionary[int, _Exports]" = weakref.WeakValueDictionary()


def _exports_of(model: Any) -> _Exports:
    exports = _EXPORTS.get(id(model))
    if exports is None or exports.model is not model:
        exports = _EXPORTS[id(model)] = _Exports(model)
    return exports


def _same_data(first: Any, second: Any) -> bool:
    """Return whether two calibration data sets are one object, or arrays (in tuples, dicts, Splits) of equal values."""
    from tfq.data import Split

    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, Split):
        return _same_data(dict(first.inputs), dict(second.inputs))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same_data(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same_data, first, second))
    return False


class _ExportLogic:
    """The base of both callbacks: converts the model in fit, and traces it only the first time."""

    def __init__(self, representative_dataset: Data, config: ConversionConfig | None) -> None:
        self._representative_dataset = representative_dataset
        self._conversion = config or ConversionConfig()
        self._exports: Any = None
        self.params: JSON = {}
        self._model: Any = None
        # Set by the __init__ of tf_keras' base class (2.21), which cannot be called because it assigns `model`.
        self.validation_data = None
        self._chief_worker_only = None
        self._supports_tf_logs = False

    @property
    def model(self) -> KerasModel | None:
        return self._model

    def set_model(self, model: KerasModel) -> None:
        if model is not self._model:
            self._exports = _exports_of(model)
        self._model = model

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        from tfq.keras_bridge.strategies import refuse_multi_worker

        refuse_multi_worker(self._model)  # before the first epoch, not after it
        self._exports.forget()

    def export(self) -> bytes:
        """Return the model as it is now as a flatbuffer."""
        return self._exported(None).conversion.content

    def _exported(self, epoch: int | None) -> _Exported:
        with progress.hidden():  # Keras shows the progress of fit
            result: _Exported = self._exports.convert(self._representative_dataset, self._conversion, epoch)
        return result


class _Int8EvaluationLogic(_ExportLogic):
    """Convert the model in memory every few epochs, run the int8 flatbuffer, and add the results to `logs`.

    It adds these keys to `logs`. An epoch without evaluation adds none, and a metric that cannot be computed is a
    warning:

    - `val_int8_<metric>` of each metric, such as `val_int8_mae`; top-1 is `val_int8_accuracy`, its name in Keras, if
      it is the main metric.
    - `val_int8_agreement`: the fraction of examples with the training model's class, for a classifier.
    - `val_int8_sqnr_db`: the SQNR of the worst output, compared with the training model's.
    - `val_int8_bytes`: the size of the flatbuffer.
    - `val_int8_collapsed`: the number of outputs that lost their information (docs/verification.md).

    Place it before the callbacks that read these values (ModelCheckpoint(monitor="val_int8_accuracy", mode="max"),
    EarlyStopping, TensorBoard). A `TFLiteExport` in the same fit, with the same config and calibration data, writes the
    bytes that were measured here.

    Args:
        validation_data: (x, y) arrays, or a `Split`, to evaluate the flatbuffer on. Labels are class numbers or one-hot
            rows.
        representative_dataset: Calibration data, as for `tfq.convert`; None for a model in quantization-aware training,
            which contains its ranges.
        every: Epochs between two evaluations; the last epoch is always evaluated.
        limit: Number of examples to evaluate on; 0 is all.
        config: How to convert; int8 by default.
        evaluation: How to evaluate.
        metric: Replaces evaluation.metric, in any form that `tfq.evaluate` accepts, functions included.

    Attributes:
        flatbuffer: The newest flatbuffer, None before the first evaluation.
    """

    def __init__(
        self,
        validation_data: Data,
        representative_dataset: Data = None,
        *,
        every: int = 1,
        limit: int = 0,
        config: ConversionConfig | None = None,
        evaluation: EvaluationConfig | None = None,
        metric: "MetricChoice" = None,
    ) -> None:
        super().__init__(representative_dataset, config)
        if every < 1:
            raise InputError(
                f"Int8Evaluation: every={every}: expected at least 1", field="every", expected="at least 1", got=every
            )
        from tfq.data import as_split

        self._evaluation = evaluation or EvaluationConfig(num_runs=0)
        if limit and self._evaluation.limit:
            raise InputError(
                "Int8Evaluation: limit and evaluation.limit are both set: set one of them",
                field="limit",
                expected=0,
                got=limit,
            )
        self._split = as_split(validation_data, limit=limit or self._evaluation.limit)
        self._every = every
        self._metric = metric
        from tfq.evaluation import as_metrics

        chosen = as_metrics(self._evaluation.metric if metric is None else metric)
        self._other_metrics = tuple(item.name for item in chosen[1:])
        self._has_warned = False
        self._collapsed: int | None = None
        self.flatbuffer: bytes | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        last = epoch + 1 == self.params.get("epochs")
        if (epoch + 1) % self._every and not last:
            return
        record = self._evaluated(epoch)
        if logs is not None:
            values = {
                **{name: record.scores.get(name) for name in self._other_metrics},
                "accuracy" if record.metric == "top1" else record.metric: record.accuracy,
                "agreement": record.agreement,
                "sqnr_db": record.output_sqnr_db,
                "bytes": record.model_bytes,
                "collapsed": self._collapsed,
            }
            logs.update({f"val_int8_{name}": value for name, value in values.items() if value is not None})
        self._warn_of_missing(record)

    def _warn_of_missing(self, record: "EvaluationRecord") -> None:
        """Warn once if `logs` lack the metric although there are labels, or agreement if there are none."""
        has_labels = self._split.all_labels() is not None
        value = record.accuracy if has_labels else record.agreement
        if value is not None or self._has_warned:
            return
        self._has_warned = True
        name, reason = (record.metric, record.accuracy_reason) if has_labels else ("agreement", record.agreement_reason)
        warn(f"Int8Evaluation: {name} is missing in logs: {reason}")

    def evaluate(self) -> "EvaluationRecord":
        """Return the EvaluationRecord of the model as it is now; the flatbuffer stays in `flatbuffer`."""
        return self._evaluated(None)

    def _evaluated(self, epoch: int | None) -> "EvaluationRecord":
        from tfq import tflite
        from tfq.evaluation import evaluate_model
        from tfq.evaluation.inputs import Feed

        exported = self._exported(epoch)
        self.flatbuffer, verification = exported.conversion.content, exported.conversion.verification
        self._collapsed = None if verification is None else len(verification.collapsed)
        # For data that does not fit, this raises an InputError before the model fails on it.
        Feed(tflite.read(self.flatbuffer), self._split.take(1))
        reference = self._reference()
        with progress.hidden():
            record = evaluate_model(
                self.flatbuffer, self._split, self._evaluation, reference=reference, metric=self._metric
            )
        exported.is_measured = True
        return record

    def _reference(self) -> Any:
        """Return the outputs of the training model, in batches: `predict` would replace the history of the fit.

        A model in mixed precision computes them in float32, as the conversion does.
        """
        import tensorflow as tf

        from tfq.data import bind_inputs
        from tfq.evaluation import ReferenceOutputs

        traced = self._exports.trace(self._conversion, self._representative_dataset)
        batches = []
        for piece in self._split.pieces():
            arrays = bind_inputs(piece.inputs, traced.input_names)
            for start in range(0, piece.num_examples, _BATCH):
                inputs, others = traced.arguments([array[start : start + _BATCH] for array in arrays])
                outputs = self._outputs(traced, inputs, others)
                # Keras 3 returns the outputs of every replica of a strategy, one after the other.
                size = min(_BATCH, piece.num_examples - start)
                batches.append([np.asarray(item)[:size] for item in tf.nest.flatten(outputs)])
        joined = tuple(np.concatenate(pieces) for pieces in zip(*batches, strict=True))
        return ReferenceOutputs(data=self._split, names=traced.output_names, outputs=joined)

    def _outputs(self, traced: Any, inputs: list[Any], others: dict[str, Any]) -> Any:
        if traced.has_other_floats:
            return self._exports.infer_in_float32(inputs, others)
        return self._model(*inputs, **others, training=False) if others else self._model.predict_on_batch(*inputs)


class _TFLiteExportLogic(_ExportLogic):
    """Write the model as a `.tflite` whenever `monitor` improves, with a JSON record next to it.

    Each file is written completely or not at all, so `path` always contains the best model so far. A process that is
    killed between the two files leaves the previous record, whose SHA-256 differs from that of the file. If `monitor`
    never occurs in `logs`, fit ends with a warning and the final model is written: a typo does not lose a training run.

    Args:
        path: The `.tflite` to write; `<path>.json` has the epoch, the value, all logs, the audit and the SHA-256.
        representative_dataset: Calibration data, as for `tfq.convert`; None for a model in quantization-aware training.
        monitor: A key of `logs`: one of Keras ("val_loss", "val_accuracy"), or one that a callback before this one
            adds, such as Int8Evaluation's `val_int8_accuracy`. Epochs whose logs lack it, or where it is not finite,
            write nothing.
        mode: "min", "max", or "auto": the direction of the metric of tfq, or of the loss or metric of Keras, whose name
            `monitor` ends in. If it ends in no such name, "auto" is an error.
        config: How to convert; full int8 by default.

    Attributes:
        best: The value of `monitor` for the file that was written last; None before.
        best_epoch: Its epoch, from 0; None before.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        representative_dataset: Data = None,
        *,
        monitor: str = "val_loss",
        mode: str = "auto",
        config: ConversionConfig | None = None,
    ) -> None:
        super().__init__(representative_dataset, config)
        if mode not in ("auto", "min", "max"):
            raise InputError(
                f"TFLiteExport: mode {mode!r}: {did_you_mean(mode, ('auto', 'min', 'max'))}",
                field="mode",
                expected=("auto", "min", "max"),
                got=mode,
            )
        if not isinstance(path, (str, os.PathLike)) or Path(path).suffix != ".tflite" or Path(path).is_dir():
            raise InputError(
                f"TFLiteExport: path {path!r}: expected the name of a file that ends in .tflite",
                field="path",
                expected="a file that ends in .tflite",
                got=path,
            )
        self._path = Path(path)
        try:
            self._path.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"TFLiteExport: path {str(path)!r}: its directory cannot be created ({error})", field="path", got=path
            ) from error
        self._sign = 1 if (mode_of(monitor) if mode == "auto" else mode) == "max" else -1
        self._monitor = monitor
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._epoch, self._logs = -1, dict[str, float]()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._logs = {name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0}
        value = self._logs.get(self._monitor, math.nan)
        if math.isfinite(value) and value * self._sign > (-math.inf if self.best is None else self.best * self._sign):
            self._write(value, epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.best_epoch is None and self._epoch >= 0:
            message = did_you_mean(self._monitor, self._logs)
            warn(
                f"TFLiteExport: the logs of no epoch had a finite {self._monitor!r} ({message}): {self._path} is the "
                "final model"
            )
            self._write(None, None)

    def _write(self, value: float | None, epoch: int | None) -> None:
        from tfq.auditing import audit_model

        exported = self._exported(epoch)
        if "int8_" in self._monitor and self._exports.is_measured_otherwise(exported):
            warn(
                f"TFLiteExport: {self._monitor} was measured on another conversion than the one in {self._path}: pass "
                "the same config and representative_dataset to Int8Evaluation and TFLiteExport"
            )
        content, verification = exported.conversion.content, exported.conversion.verification
        audit = AuditConfig().for_conversion(self._conversion, exported.conversion.trained_int4)
        artifacts.write_bytes(self._path, content)
        self.best, self.best_epoch = value, self._epoch
        record = {
            **provenance(),
            "command": "TFLiteExport",
            "file": self._path.name,
            "sha256": {"model": artifacts.sha256(content)},
            "monitor": self._monitor,
            "mode": "max" if self._sign > 0 else "min",
            "value": value,
            "epoch": self._epoch,
            "logs": {name: number if math.isfinite(number) else None for name, number in self._logs.items()},
            "conversion": self._conversion.to_dict(),
            "model_bytes": len(content),
            "audit": audit_model(content, audit).to_dict(),
            "verification": None if verification is None else verification.to_dict(),
        }
        artifacts.write_json(self._path.with_name(f"{self._path.name}.json"), record)


@functools.cache
def _class_for_both(logic: type) -> type:
    from tfq.keras_bridge import import_keras, import_tf_keras

    name = logic.__name__.strip("_").removesuffix("Logic")
    bases = (logic, import_keras().callbacks.Callback, import_tf_keras().callbacks.Callback)
    return type(name, bases, {"__doc__": logic.__doc__, "__module__": __name__})


_CALLBACKS = {"Int8Evaluation": _Int8EvaluationLogic, "TFLiteExport": _TFLiteExportLogic}

if TYPE_CHECKING:
    Int8Evaluation = _Int8EvaluationLogic
    TFLiteExport = _TFLiteExportLogic


def __getattr__(name: str) -> Any:
    if name in _CALLBACKS:
        return _class_for_both(_CALLBACKS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
