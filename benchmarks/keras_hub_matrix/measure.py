# SPDX-License-Identifier: Apache-2.0
"""The measurements of one model of KerasHub; the record is saved after each stage."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from family_matrix.stock import first_line, identity_difference

import tfq
from keras_hub_matrix import zoo
from tfq.artifacts import write_bytes, write_json
from tfq.conversion.convert import convert_with_record
from tfq.keras_bridge import import_keras

CALIBRATION, TEST, TRAINING = 64, 64, 16
# Models below this are also converted to int16x8, to show how much 8 bits cost.
LOW_SQNR = 20.0


class Measurement:
    """One model with its data. Each stage returns its numbers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.model = zoo.model_of(name)
        self.head: Any = None
        self.calibration = zoo.examples(name, self.model, CALIBRATION, seed=2)
        self.test, self.labels = zoo.labeled_examples(self.model, TEST, seed=3)
        self.bridged: Any = None
        self.quantized: Any = None

    def weights(self) -> dict[str, Any]:
        """Train a convolutional model; measure its accuracy, and check that outputs differ between examples."""
        if zoo.MODELS[self.name].trained:
            self.head = zoo.train(self.model)
        outputs = _flat(self.model, self.test)
        spread = min(float(np.std(array, axis=0).mean() / np.std(array)) for array in outputs.values())
        record = {"parameters": self.model.count_params(), "spread": spread, "accuracy": self._accuracy(outputs)}
        masks = [key for key in self.test if key.endswith("padding_mask")]
        if masks:
            unmasked = {**self.test, **{key: np.ones_like(self.test[key]) for key in masks}}
            changed = _flat(self.model, unmasked)
            record["mask_changes"] = max(_relative(outputs[key], changed[key]) for key in outputs)
        return record

    def _accuracy(self, outputs: dict[str, np.ndarray]) -> float | None:
        """Return the fraction of test examples whose class the trained head recognizes; None without a head."""
        if self.head is None:
            return None
        predicted = np.asarray(self.head(zoo.pooled([array.astype(np.float32) for array in outputs.values()])))
        return float((predicted.argmax(-1) == self.labels).mean())

    def ptq(self) -> dict[str, Any]:
        """Convert to int8 with tfq's verification, and compare the file with the Keras model."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = convert_with_record(self.model, self.calibration)
        write_bytes(self.folder / "ptq.tflite", result.content)
        verification = result.verification
        expected, got = _flat(self.model, self.test), run_flatbuffer(result.content, self.test)
        sqnr, wide = _sqnr(expected, got), {}
        if sqnr < LOW_SQNR:
            content = tfq.convert(self.model, self.calibration, tfq.ConversionConfig(scheme="int16x8"))
            wide["sqnr_int16x8"] = _sqnr(expected, run_flatbuffer(content, self.test))
        return {
            "verified": verification is not None and verification.ok and verification.compared,
            "problems": [problem.message[:300] for problem in verification.collapsed] if verification else [],
            "sqnr": sqnr,
            "accuracy": self._accuracy(
                {name: b.reshape(a.shape) for (name, a), b in zip(expected.items(), got.values(), strict=True)}
            ),
            **wide,
            **_audited(result.content),
            "warnings": [str(item.message)[:300] for item in caught if issubclass(item.category, tfq.TfqWarning)],
        }

    def bridge(self) -> dict[str, Any]:
        """Translate to tf_keras, and compare on the test data independently."""
        self.bridged = tfq.to_tf_keras(self.model, data=self.test)
        expected, got = _flat(self.model, self.test), _flat(self.bridged.model, self.test)
        difference = max(_relative(a, b) for a, b in zip(expected.values(), got.values(), strict=True))
        mean_square = max(float(np.mean((a - b) ** 2)) for a, b in zip(expected.values(), got.values(), strict=True))
        return {
            "max_difference": max(self.bridged.max_difference, difference),
            "mean_square": mean_square,
            "layers": len(self.bridged.model.layers),
            "notes": list(self.bridged.notes),
        }

    def qat(self) -> dict[str, Any]:
        """Train two steps with fake quantization towards the float outputs."""
        data = zoo.examples(self.name, self.model, TRAINING, seed=4)
        inputs = next(iter(data.values()))
        targets = list(_flat(self.bridged.model, data).values())
        record: dict[str, Any] = {}

        def fit(model: Any, callbacks: list[Any]) -> None:
            record["identity"] = identity_difference(self.bridged.model, model, next(iter(self.test.values())))
            model.compile("sgd", "mse")
            history = model.fit(
                inputs, targets, batch_size=TRAINING // 2, epochs=1, shuffle=False, verbose=0, callbacks=callbacks
            )
            record["loss"] = float(history.history["loss"][-1])

        self.quantized = tfq.qat(self.bridged.model, fit, tfq.QATConfig(), calibration=self.calibration)
        return record

    def convert(self) -> dict[str, Any]:
        """Convert the QAT model to full int8, and compare the file with the QAT model and with the float model."""
        content = tfq.convert(self.quantized, self.calibration)
        write_bytes(self.folder / "qat.tflite", content)
        got = run_flatbuffer(content, self.test)
        return {
            "sqnr_qat": _sqnr(_flat(self.quantized, self.test), got),
            "sqnr_float": _sqnr(_flat(self.model, self.test), got),
            **_audited(content),
        }


def measure(name: str, folder: Path) -> None:
    """Run the stages of one model and save `folder`/record.json after each; a failed stage is the last."""
    record: dict[str, Any] = {"stages": {}}
    stages = ("weights", "ptq", "bridge", *(("qat", "convert") if zoo.MODELS[name].trained else ()))
    stage = "build"
    try:
        measurement = Measurement(name, folder)
        for stage in stages:
            start = time.monotonic()
            numbers = getattr(measurement, stage)()
            record["stages"][stage] = {**numbers, "secs": round(time.monotonic() - start, 1)}
            write_json(folder / "stages.json", record)
            print(f"  {stage:8} {json.dumps(numbers)[:600]}", flush=True)
    except Exception as error:  # any exception is the result
        record["error"] = {"stage": stage, "type": type(error).__name__, "message": str(error)[:3000]}
        write_json(folder / "stages.json", record)
        print(f"  {stage:8} FAILED: {type(error).__name__}: {first_line(error)}", flush=True)


def run_flatbuffer(content: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a flatbuffer example by example with LiteRT's interpreter; return the dequantized outputs by name."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    runner = interpreter.get_signature_runner()
    details, count = runner.get_input_details(), len(next(iter(inputs.values())))
    results: list[dict[str, np.ndarray]] = []
    keys = {name: name if name in details else next(iter(details)) for name in inputs}
    for index in range(count):
        fed = {keys[name]: _quantized(array[index : index + 1], details[keys[name]]) for name, array in inputs.items()}
        outputs = runner(**fed)
        described = runner.get_output_details()
        results.append({name: _dequantized(array, described[name]) for name, array in outputs.items()})
    return {name: np.concatenate([result[name] for result in results]) for name in sorted(results[0])}


def _quantized(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if not scale:
        return array.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(array / scale) + zero_point, limits.min, limits.max).astype(detail["dtype"])


def _dequantized(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    return (array.astype(np.float64) - zero_point) * scale if scale else array.astype(np.float64)


def _flat(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of a model of either Keras by name, sorted."""
    provided = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    outputs = model(provided, training=False)
    named = (
        outputs
        if isinstance(outputs, dict)
        else {str(i): x for i, x in enumerate(import_keras().tree.flatten(outputs))}
    )
    return {name: np.asarray(named[name], np.float64) for name in sorted(named)}


def _sqnr(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> float:
    """Return the signal-to-quantization-noise ratio of the worst output in dB."""
    values = []
    for a, b in zip(expected.values(), got.values(), strict=True):
        noise = float(np.mean((a - b.reshape(a.shape)) ** 2))
        values.append(10 * np.log10(float(np.var(a)) / noise) if noise else float("inf"))
    return min(values)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.ptp(a))


def _audited(content: bytes) -> dict[str, Any]:
    report = tfq.audit(content, tfq.AuditConfig(require="full_int8"))
    return {
        "full_int8": report.ok,
        "ops": report.ops_visited,
        "failures": [finding.message[:200] for finding in report.failures][:5],
        "bytes": len(content),
    }
