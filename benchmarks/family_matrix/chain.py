# SPDX-License-Identifier: Apache-2.0
"""All stages of one family; the numbers of each stage are saved as soon as they are measured."""

import resource
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import tfq
from family_matrix import zoo
from family_matrix.settings import Settings
from family_matrix.stock import first_line, identity_difference
from family_matrix.verdict import FINAL_SPARSITY
from tfq.artifacts import write_bytes, write_json
from tfq.compression.parity.compare import qat_parity
from tfq.compression.preflight import preflight
from tfq.compression.pruning.prune import pruning_plan
from tfq.compression.training import predict
from tfq.config import CompressionConfig
from tfq.errors import remembered_warnings
from tfq.keras_bridge import import_keras
from tfq.keras_bridge.bridge import to_tf_keras

# Fraction of the learning rate of the float training.
PRUNE_RATE, QAT_RATE = 0.5, 0.2

_IDENTITY_IMAGES = 16
_MAX_NAMED = 5


class Chain:
    """One family with its data and its models so far. Each stage returns its record."""

    def __init__(self, name: str, settings: Settings, folder: Path) -> None:
        self.name, self.settings, self.folder = name, settings, folder
        self.family = zoo.FAMILIES[name]
        self.train_split = self._images(
            "train", max(settings.train_steps * zoo.BATCH_SIZE, settings.tune_steps * zoo.BATCH_SIZE, 256)
        )
        self.test_split = self._images("test", settings.limit)
        self.config = CompressionConfig(
            prune=tfq.PruneConfig(final_sparsity=FINAL_SPARSITY, frequency=max(1, settings.tune_steps // 10))
        )
        self.model: Any = None
        self.bridged: Any = None
        self.promised: set[str] = set()
        self.plan: Any = None
        self.pruned: Any = None
        self.quantized: Any = None
        self.flatbuffer = b""

    def train(self) -> dict[str, Any]:
        """Train from scratch with Keras 3, or load the model that was trained before a kill."""
        path, keras = self.folder / "trained.keras", import_keras()
        if path.exists():
            self.model = tfq.load_model(path)
        else:
            settings = self.settings
            self.model = zoo.trained(keras, self.name, self.train_split, settings.size, settings.train_steps)
            self.model.save(self.folder / "training.keras")
            (self.folder / "training.keras").replace(path)
        return {"accuracy": self._accuracy(self.model), "parameters": self.model.count_params()}

    def bridge(self) -> dict[str, Any]:
        """Convert Keras 3 to tf_keras."""
        self.bridged = to_tf_keras(self.model, data=self._first(_IDENTITY_IMAGES))
        return {"max_difference": self.bridged.max_difference, "notes": list(self.bridged.notes)}

    def preflight(self) -> dict[str, Any]:
        """Report what could be done to which layer, before doing it."""
        result = preflight(self.bridged, self.config)
        rows = result.layers
        self.promised = {row.name for row in rows if row.prunable}
        return {
            "ok": result.ok,
            "layers": len(rows),
            "prunable": sum(row.prunable for row in rows),
            **{kind: sum(row.qat == kind for row in rows) for kind in ("qat", "ptq_only", "unsupported")},
            "not_trained": {row.name: row.reason for row in rows if row.qat != "qat"},
        }

    def prune(self) -> dict[str, Any]:
        """Prune half of the weights of all prunable layers."""
        self.plan = pruning_plan(self.bridged.model, self.config.prune)
        self.pruned = tfq.prune(self.bridged.model, self._fit(self.settings.tune_steps, PRUNE_RATE), self.config.prune)
        pruned = {self.bridged.origins[layer] for layer in self.plan.pruned}
        return {
            "accuracy": self._accuracy(self.pruned),
            "layers": list(self.plan.pruned),
            "not_as_promised": sorted(pruned ^ self.promised),
        }

    def qat(self) -> dict[str, Any]:
        """Train with selective QAT, after the identity gate."""
        fit = self._fit(self.settings.tune_steps, QAT_RATE)
        messages: dict[str, float] = {}

        def gated_fit(model: Any, callbacks: list[Any]) -> None:
            messages.setdefault("identity", identity_difference(self.pruned, model, self._first(_IDENTITY_IMAGES)))
            messages.setdefault("untrained_accuracy", self._accuracy(model))
            fit(model, callbacks)

        self.quantized = tfq.qat(self.pruned, gated_fit, self.config.qat, calibration=self.train_split)
        return {**messages, "accuracy": self._accuracy(self.quantized)}

    def convert(self) -> dict[str, Any]:
        """Convert to full int8, audit, and count the zeros in the file."""
        self.flatbuffer = tfq.convert(self.quantized, self.train_split)
        write_bytes(self.folder / "int8.tflite", self.flatbuffer)
        report = tfq.audit(self.flatbuffer, tfq.AuditConfig(require="full_int8"))
        failures = [finding.message for finding in report.failures]
        return {
            "audit_ok": report.ok,
            "audit_failures": failures[:_MAX_NAMED],
            "ops": report.ops_visited,
            "model_bytes": len(self.flatbuffer),
            "sparsity": zeros_by_layer(report.weights, self.plan.pruned),
        }

    def parity(self) -> dict[str, Any]:
        """Compare the flatbuffer's outputs with those of the QAT model."""
        result = qat_parity(self.quantized, self.flatbuffer, self.test_split, limit=self.settings.limit)
        evaluated = tfq.evaluate(self.flatbuffer, self.test_split, tfq.EvaluationConfig(num_runs=0))
        return {**result.to_dict(), "text": result.to_text(), "accuracy": evaluated.accuracy}

    def _images(self, split: str, limit: int) -> Any:
        return zoo.images(self.settings.data, split, self.name, self.settings.size, limit)

    def _first(self, count: int) -> np.ndarray:
        [pixels] = self.test_split.inputs.values()
        return pixels[:count]

    def _fit(self, steps: int, rate_fraction: float) -> Any:
        def fit(model: Any, callbacks: list[Any]) -> None:
            zoo.train(model, self.train_split, max(1, steps), rate_fraction * self.family.learning_rate, callbacks)

        return fit

    def _accuracy(self, model: Any) -> float:
        return float(np.mean(predict(model, self.test_split)[0].argmax(axis=-1) == self.test_split.labels))


STAGES = ("train", "bridge", "preflight", "prune", "qat", "convert", "parity")


def measure(name: str, settings: Settings, folder: Path) -> None:
    """Run all stages of one family and save `folder`/chain.json after each stage; a failed stage is the last."""
    record: dict[str, Any] = {"stages": {}}
    stage = STAGES[0]
    try:
        chain = Chain(name, settings, folder)
        for stage in STAGES:
            start = time.monotonic()
            with remembered_warnings() as message:
                numbers = getattr(chain, stage)()
            secs = round(time.monotonic() - start, 1)
            record["stages"][stage] = {**numbers, "secs": secs, "warnings": message}
            record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            write_json(folder / "chain.json", record)
            print(f"  {stage:9} {secs:7.1f} s  {_summary(numbers)}", flush=True)
    except Exception as error:  # any exception is the result
        record["error"] = {"stage": stage, "type": type(error).__name__}
        record["stages"].pop(stage, None)  # a stage that cannot be written has no result
        record["error"] |= {"message": str(error)[:4000], "traceback": traceback.format_exc()[-8000:]}
        write_json(folder / "chain.json", record)
        print(f"  {record['error']['stage']:9} FAILED: {type(error).__name__}: {first_line(error)}", flush=True)


def zeros_by_layer(weights: Any, pruned: Any) -> dict[str, Any]:
    """Return {"layers": {pruned layer: {"zeros": n, "values": n}}, "missing": [pruned layers that the file lacks]}.

    If a layer has several weights, its least sparse one counts. Depthwise kernels are left out: tfmot does not prune
    them, and of a separable convolution it prunes the other kernel. Stock's separable convolution is two layers in a
    QAT model.
    """
    results: dict[str, dict[str, int]] = {}
    for weight in weights:
        layer = _pruned_layer(weight.keras_layer or "", pruned)
        if layer is None or weight.zeros is None or weight.op == "DEPTHWISE_CONV_2D":
            continue
        fraction = {"zeros": weight.zeros, "values": weight.values}
        if (
            layer not in results
            or fraction["zeros"] / fraction["values"] < results[layer]["zeros"] / results[layer]["values"]
        ):
            results[layer] = fraction
    return {"layers": results, "missing": [layer for layer in pruned if layer not in results]}


def _pruned_layer(layer: str, pruned: Any) -> str | None:
    for name in (layer, layer.removesuffix("_pointwise")):
        if name in pruned:
            return name
    return None


def _summary(numbers: dict[str, Any]) -> str:
    """Return the numbers of a stage that its progress line shows."""
    plain = {key: value for key, value in numbers.items() if isinstance(value, (int, float)) and key != "secs"}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in plain.items()
    )
