# SPDX-License-Identifier: Apache-2.0
"""What sits inside fit. One object serves the fit of either Keras.

The two Kerases ask a callback the same questions, but each wants to see its own base class, and each keeps `model`
its own way; so the class has both bases, and is made when it is asked for, because its bases need TensorFlow.
"""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tfq.config import ConversionConfig, EvaluationConfig
from tfq.errors import InputError

# Examples that the model itself answers at a time.
_BATCH = 256


class _Int8EvaluationLogic:
    """Every `every` epochs: convert the model in memory as it is, run the int8 flatbuffer, tell `logs` the result.

    representative_dataset: calibration data, as for `tfq.convert`; None for a model in quantization-aware
        training, which carries its ranges.
    validation_data: (x, y) arrays, or a `Split`, to evaluate the flatbuffer on.
    every: epochs between two evaluations; the last epoch is always one.
    limit: evaluate on the first so many examples; 0 is all.

    Adds to `logs`: `val_int8_accuracy` (a fraction), `val_int8_agreement` (the share of examples on which the int8
    top-1 is the training model's own) and `val_int8_bytes`. Place it before the callbacks that are to see them
    (ModelCheckpoint(monitor="val_int8_accuracy", mode="max"), EarlyStopping, TensorBoard). An epoch without evaluation
    adds nothing.
    `flatbuffer` holds the newest export.
    """

    def __init__(
        self,
        validation_data: Any,
        representative_dataset: Any = None,
        *,
        every: int = 1,
        limit: int = 0,
        config: ConversionConfig | None = None,
        evaluation: EvaluationConfig | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"Int8Evaluation: every wants at least 1, got {every}")
        from tfq.data import as_split

        self._evaluation = evaluation or EvaluationConfig(num_runs=0)
        if limit and self._evaluation.limit:
            raise InputError("Int8Evaluation: limit and evaluation.limit: give one of them")
        self._split = as_split(validation_data, limit=limit or self._evaluation.limit)
        self._representative_dataset = representative_dataset
        self._every = every
        self._conversion = config or ConversionConfig()
        self._trace: Any = None
        self.flatbuffer: bytes | None = None
        self.params: dict[str, Any] = {}
        self._model: Any = None
        # What tf_keras' own base class sets in its __init__ (read in 2.21), which cannot be called: it assigns `model`.
        self.validation_data = None
        self._chief_worker_only = None
        self._supports_tf_logs = False

    @property
    def model(self) -> Any:
        return self._model

    def set_model(self, model: Any) -> None:
        if model is not self._model:
            self._trace = None
        self._model = model

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        last = epoch + 1 == self.params.get("epochs")
        if (epoch + 1) % self._every and not last:
            return
        record = self.evaluate()
        if logs is not None:
            if record.accuracy is not None:
                logs["val_int8_accuracy"] = record.accuracy
            if record.agreement is not None:
                logs["val_int8_agreement"] = record.agreement
            logs["val_int8_bytes"] = record.model_bytes

    def evaluate(self) -> Any:
        """The EvaluationRecord of the model as it is now; the flatbuffer stays in `flatbuffer`."""
        from tfq.evaluation import evaluate_model

        self.flatbuffer = self.export()
        return evaluate_model(self.flatbuffer, self._split, self._evaluation, reference=self._reference())

    def export(self) -> bytes:
        """The model as it is now as an int8 flatbuffer; traces it only the first time."""
        from tfq.conversion import convert_model

        return convert_model(self._traced(), self._representative_dataset, self._conversion)

    def _reference(self) -> Any:
        """What the model itself answers, in batches: `predict` would replace the history that fit is writing."""
        import tensorflow as tf

        from tfq.conversion import input_structure
        from tfq.data import bind_inputs
        from tfq.evaluation import ReferenceOutputs

        traced = self._traced()
        arrays = bind_inputs(self._split.inputs, traced.input_names)
        batches = []
        for start in range(0, self._split.num_examples, _BATCH):
            batch = tf.nest.pack_sequence_as(
                input_structure(self._model), [array[start : start + _BATCH] for array in arrays]
            )
            batches.append(tf.nest.flatten(self._model.predict_on_batch(batch)))
        outputs = tuple(np.concatenate(pieces) for pieces in zip(*batches, strict=True))
        return ReferenceOutputs(data=self._split, names=traced.output_names, outputs=outputs)

    def _traced(self) -> Any:
        from tfq.conversion import trace

        if self._trace is None:
            self._trace = trace(self._model, self._conversion.batch_size)
        return self._trace


@functools.cache
def _class_for_both(logic: type) -> type:
    from tfq.keras_bridge import import_keras, import_tf_keras

    name = logic.__name__.strip("_").removesuffix("Logic")
    bases = (logic, import_keras().callbacks.Callback, import_tf_keras().callbacks.Callback)
    return type(name, bases, {"__doc__": logic.__doc__, "__module__": __name__})


if TYPE_CHECKING:
    Int8Evaluation = _Int8EvaluationLogic


def __getattr__(name: str) -> Any:
    if name == "Int8Evaluation":
        return _class_for_both(_Int8EvaluationLogic)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
