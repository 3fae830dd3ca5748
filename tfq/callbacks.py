# SPDX-License-Identifier: Apache-2.0
"""What sits inside fit. One object serves the fit of either Keras.

The two Kerases ask a callback the same questions, but each wants to see its own base class, and each keeps `model`
its own way; so the class has both bases, and is made when it is asked for, because its bases need TensorFlow.
"""

import functools
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfq import artifacts
from tfq.config import AuditConfig, ConversionConfig, EvaluationConfig
from tfq.errors import InputError, TfqWarning, did_you_mean
from tfq.provenance import provenance
from tfq.typing import JSON, Data, KerasModel

if TYPE_CHECKING:
    from tfq.evaluation import EvaluationRecord

# Examples that the model itself answers at a time.
_BATCH = 256
# Words in the name of a value that is the better the higher it is.
_RISING = ("acc", "agreement", "auc", "precision", "recall", "sqnr")


def _is_better_higher(monitor: str) -> bool:
    """Return whether a value of `logs` is the better the higher it is, by its name."""
    from tfq import registry
    from tfq.evaluation import Metric

    for metric in registry.entries(Metric).values():
        if monitor == metric.name or monitor.endswith(f"_{metric.name}"):
            return metric.direction == "higher"
    return any(word in monitor.lower() for word in _RISING)


class _ExportLogic:
    """Knows the model in fit, and turns it into a flatbuffer; traces it only the first time."""

    def __init__(self, representative_dataset: Data, config: ConversionConfig | None) -> None:
        self._representative_dataset = representative_dataset
        self._conversion = config or ConversionConfig()
        self._trace: Any = None
        self.params: JSON = {}
        self._model: Any = None
        # What tf_keras' own base class sets in its __init__ (read in 2.21), which cannot be called: it assigns `model`.
        self.validation_data = None
        self._chief_worker_only = None
        self._supports_tf_logs = False

    @property
    def model(self) -> KerasModel | None:
        return self._model

    def set_model(self, model: KerasModel) -> None:
        if model is not self._model:
            self._trace = None
        self._model = model

    def export(self) -> bytes:
        """The model as it is now as a flatbuffer."""
        from tfq.conversion import convert_model

        return convert_model(self._traced(), self._representative_dataset, self._conversion)

    def _traced(self) -> Any:
        from tfq.conversion import trace

        if self._trace is None:
            self._trace = trace(self._model, self._conversion.batch_size)
        return self._trace


class _Int8EvaluationLogic(_ExportLogic):
    """Every `every` epochs: convert the model in memory as it is, run the int8 flatbuffer, tell `logs` the result.

    representative_dataset: calibration data, as for `tfq.convert`; None for a model in quantization-aware
        training, which carries its ranges.
    validation_data: (x, y) arrays, or a `Split`, to evaluate the flatbuffer on.
    every: epochs between two evaluations; the last epoch is always one.
    limit: evaluate on the first so many examples; 0 is all.

    Adds to `logs`: `val_int8_accuracy` (a fraction; `val_int8_<metric>` if the metric of `evaluation` is no fraction,
    such as `val_int8_mae`), `val_int8_agreement` (the share of examples on which the int8
    top-1 is the training model's own) and `val_int8_bytes`. Place it before the callbacks that are to see them
    (ModelCheckpoint(monitor="val_int8_accuracy", mode="max"), EarlyStopping, TensorBoard). An epoch without evaluation
    adds nothing.
    `flatbuffer` holds the newest export.
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
    ) -> None:
        super().__init__(representative_dataset, config)
        if every < 1:
            raise InputError(
                f"Int8Evaluation: every wants at least 1, got {every}", field="every", expected="at least 1", got=every
            )
        from tfq.data import as_split

        self._evaluation = evaluation or EvaluationConfig(num_runs=0)
        if limit and self._evaluation.limit:
            raise InputError(
                "Int8Evaluation: limit and evaluation.limit: give one of them", field="limit", expected=0, got=limit
            )
        self._split = as_split(validation_data, limit=limit or self._evaluation.limit)
        self._every = every
        self.flatbuffer: bytes | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        last = epoch + 1 == self.params.get("epochs")
        if (epoch + 1) % self._every and not last:
            return
        record = self.evaluate()
        if logs is not None:
            if record.accuracy is not None:
                unit = record.metrics[record.metric]["unit"]
                logs[f"val_int8_{'accuracy' if unit == 'fraction' else record.metric}"] = record.accuracy
            if record.agreement is not None:
                logs["val_int8_agreement"] = record.agreement
            logs["val_int8_bytes"] = record.model_bytes

    def evaluate(self) -> "EvaluationRecord":
        """The EvaluationRecord of the model as it is now; the flatbuffer stays in `flatbuffer`."""
        from tfq import tflite
        from tfq.evaluation import evaluate_model
        from tfq.evaluation.inputs import Feed

        self.flatbuffer = self.export()
        # What does not fit is told as everywhere in tfq, before the model itself fails on it.
        Feed(tflite.read(self.flatbuffer), self._split.take(1))
        return evaluate_model(self.flatbuffer, self._split, self._evaluation, reference=self._reference())

    def _reference(self) -> Any:
        """What the model itself answers, in batches: `predict` would replace the history that fit is writing."""
        import tensorflow as tf

        from tfq.conversion import input_structure
        from tfq.data import bind_inputs
        from tfq.evaluation import ReferenceOutputs

        traced = self._traced()
        batches = []
        for piece in self._split.pieces():
            arrays = bind_inputs(piece.inputs, traced.input_names)
            for start in range(0, piece.num_examples, _BATCH):
                batch = tf.nest.pack_sequence_as(
                    input_structure(self._model), [array[start : start + _BATCH] for array in arrays]
                )
                batches.append(tf.nest.flatten(self._model.predict_on_batch(batch)))
        outputs = tuple(np.concatenate(pieces) for pieces in zip(*batches, strict=True))
        return ReferenceOutputs(data=self._split, names=traced.output_names, outputs=outputs)


class _TFLiteExportLogic(_ExportLogic):
    """Writes the model to `path` as a `.tflite` whenever `monitor` is better than ever, and a record of it beside it.

    path: of the `.tflite`; `<path>.json` beside it holds the epoch, the value, all logs, the audit and the SHA-256.
        Each is written whole or not at all: what stands there is always the best so far. A process that is killed
        between the two leaves the record of the one before, whose SHA-256 is not the file's.
    representative_dataset: calibration data, as for `tfq.convert`; None for a model in quantization-aware training.
    monitor: a key of `logs`: one of Keras' own ("val_loss", "val_accuracy"), or what a callback before this one adds,
        such as Int8Evaluation's `val_int8_accuracy`. An epoch whose logs lack it, or where it is not finite, writes
        nothing.
    mode: "min", "max", or "auto": the direction of the metric of tfq whose name `monitor` ends in; else "max" if the
        name says accuracy, agreement, auc, precision or recall.
    config: what the flatbuffer is to be; full int8 by default.

    A fit in which `monitor` never came up ends with a warning and with the model as it is at the end: a training run is
    not lost to a typo. `best` and `best_epoch` (from 0) tell what was written; None before that.
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
                f"TFLiteExport: path {str(path)!r}: its directory cannot be made ({error})", field="path", got=path
            ) from error
        rising = _is_better_higher(monitor)
        self._sign = 1 if mode == "max" or (mode == "auto" and rising) else -1
        self._monitor = monitor
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._epoch, self._logs = -1, dict[str, float]()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._logs = {name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0}
        value = self._logs.get(self._monitor, math.nan)
        if math.isfinite(value) and value * self._sign > (-math.inf if self.best is None else self.best * self._sign):
            self._write(value)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.best_epoch is None and self._epoch >= 0:
            message = did_you_mean(self._monitor, self._logs)
            warnings.warn(
                f"TFLiteExport: no epoch's logs had a finite {self._monitor!r} ({message}): {self._path} is the "
                f"model as "
                "it is at the end",
                TfqWarning,
                stacklevel=2,
            )
            self._write(None)

    def _write(self, value: float | None) -> None:
        from tfq.auditing import audit_model

        content = self.export()
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
            "audit": audit_model(content, AuditConfig().for_conversion(self._conversion)).to_dict(),
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
