# SPDX-License-Identifier: Apache-2.0
"""Records of a run for the tests of the report."""

import copy
from typing import Any

TOP1 = {"title": "top-1", "direction": "higher", "unit": "fraction", "interval": None}


def difference(value: float, low: float, high: float) -> dict[str, Any]:
    """Return a PairedDifference as plain JSON."""
    return {"difference": value, "low": low, "high": high, "confidence": 0.95, "is_noise": low <= 0 <= high}


def evaluation(**changes: Any) -> dict[str, Any]:
    """Return an EvaluationRecord as plain JSON."""
    values: dict[str, Any] = {
        "accuracy": 0.98310,
        "accuracy_reason": None,
        "metric": "top1",
        "metrics": {"top1": TOP1},
        "agreement": 1.0,
        "agreement_reason": None,
        "output_sqnr_db": 31.42,
        "output_sqnr_db_reason": None,
        "reference_accuracy": 0.98310,
        "accuracy_drop": 0.0,
        "num_examples": 355,
        "compared": 355,
        "missing": 0,
        "skipped": {},
        "model_bytes": 48_320,
        "gzip_bytes": 44_870,
        "latency_p50_ms": 0.0421,
        "latency_p90_ms": 0.0467,
        "latency_p99_ms": 0.0712,
        "latency_reason": None,
        "num_threads": 1,
        "backend": "local",
        "how": "measured",
        "xnnpack": True,
        "total_ops": 9,
        "delegated_ops": 8,
        "clipped_input_fraction": 0.0,
        "unused_range_fraction": 0.012,
        "warnings": [],
        "machine": {"machine": "x86_64"},
    }
    return {**values, **changes}


def parity(backend: str, **changes: Any) -> dict[str, Any]:
    """Return a ParityRecord as plain JSON."""
    values = {
        "backend_a": "local",
        "backend_b": backend,
        "max_abs_error_lsb": 0,
        "num_different": 0,
        "compared": 2560,
        "num_examples": 256,
        "skipped": {},
    }
    return {**values, **changes}


def backend_row(backend: str, **changes: Any) -> dict[str, Any]:
    """Return a BackendRow as plain JSON; `changes` are of its difference."""
    return {
        "backend": backend,
        "how": "emulated",
        "status": "ran",
        "reason": None,
        "evaluation": evaluation(),
        "fully_accelerated": False,
        "difference": parity(backend, **changes),
        "difference_reason": None,
        "agreement": 0.9961,
        "agreement_reason": None,
        "instructions": None,
        "instructions_reason": None,
    }


def not_run(backend: str, reason: str, status: str = "not run") -> dict[str, Any]:
    """Return the row of a backend that did not run the model."""
    missing = {"evaluation": None, "difference": None, "agreement": None, "instructions_reason": None}
    return {**backend_row(backend), **missing, "status": status, "reason": reason}


def portability(*rows: dict[str, Any]) -> dict[str, Any]:
    """Return a PortabilityTable as plain JSON."""
    return {
        "rows": {row["backend"]: row for row in rows},
        "num_examples": 256,
        "yardstick": parity("local (builtin)", max_abs_error_lsb=2, num_different=51),
        "yardstick_reason": None,
        "not_available": {},
    }


def audit(ok: bool = True, scheme: str = "full_int8", findings: tuple = (), **op_counts: int) -> dict[str, Any]:
    """Return an AuditReport as plain JSON."""
    return {
        "ok": ok,
        "granularity": "per_channel" if ok else None,
        "scheme": scheme,
        "findings": list(findings),
        "op_counts": op_counts or {"CONV_2D": 4, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1},
        "input_types": ["int8" if ok else "float32"],
        "output_types": ["int8" if ok else "float32"],
    }


def verification(**changes: Any) -> dict[str, Any]:
    """Return a Verification as plain JSON; `changes` apply to its one output."""
    output = {
        "name": "probabilities",
        "dtype": "int8",
        "sqnr_db": 31.5,
        "ideal_db": 44.0,
        "steps": 255.0,
        "agreement": 1.0,
        "num_slices": 10,
        "worst_slice": {"axis": 2, "index": 3, "sqnr_db": 24.5},
        "constant_slices": 0,
        "constant_slice_indices": [],
        "values_used": 201,
        "fixed_scale": True,
        "finite": True,
        "exact": False,
    }
    return {
        "ok": True,
        "execution": {"state": "runs", "reason": None, "op_index": None, "op": None},
        "num_samples": 20,
        "outputs": [{**output, **changes}],
        "collapsed": [],
        "notes": [],
    }


def weight(layer: str, values: int, zeros: int, dtype: str = "int8", **changes: Any) -> dict[str, Any]:
    """Return a weight of an AuditReport as plain JSON."""
    values_of_a_weight = {
        "tensor": f"model/{layer}/Conv2D",
        "keras_layer": layer,
        "op": "CONV_2D",
        "dtype": dtype,
        "bytes": values * (4 if dtype == "float32" else 1),
        "values": values,
        "zeros": zeros,
        "channels": 8,
    }
    return {**values_of_a_weight, **changes}


def timed(name: str, median: float, **changes: Any) -> dict[str, Any]:
    """Return a model of a BenchmarkRecord as plain JSON; its quantiles rise evenly, except the slowest run."""
    values: dict[str, Any] = {
        "name": name,
        "kernels": "xnnpack",
        "initialization_ms": 1.25,
        "first_ms": 0.5,
        "mean_ms": 1.01 * median,
        "std_ms": 0.1 * median,
        "p50_ms": median,
        "p90_ms": 1.16 * median,
        "p99_ms": 1.9 * median,
        "min_ms": 0.8 * median,
        "max_ms": 3 * median,
        "num_runs": 1234,
        "overhead_ms": 0.0077,
        "quantiles_ms": [*(median * (0.8 + 0.02 * step) for step in range(20)), 3 * median],
        "time_reason": None,
        "ops": [
            {"index": 0, "name": "CONV_2D", "keras_layer": "conv2d", "ms": 0.4 * median, "fraction": 0.4},
            {"index": 1, "name": "SOFTMAX", "keras_layer": "dense", "ms": 0.6 * median, "fraction": 0.6},
        ],
        "ops_by": "LiteRT's own profiler",
        "ops_reason": None,
    }
    return {**values, **changes}


def counted(cpu: str, instructions: int) -> dict[str, Any]:
    """Return an InstructionRecord as plain JSON."""
    return {
        "backend": f"qemu:{cpu}",
        "cpu": cpu,
        "instructions": instructions,
        "by": "a plugin of the emulator",
        "inferences": 3,
        "note": "a count, not a time",
    }


def layer_parity(layer: str, **changes: Any) -> dict[str, Any]:
    return {
        "layer": layer,
        "layers": [layer],
        "op": "CONV_2D",
        "agreement": 0.9987,
        "max_lsb": 2,
        "sqnr_db": 31.4,
        "local_max_lsb": 1.02,
        "local_sqnr_db": 58.2,
        "departs": None,
        **changes,
    }


def qat_parity(**changes: Any) -> dict[str, Any]:
    """Return the record of a run's comparison of a flatbuffer with its QAT model."""
    output = {"name": "dense", "logit_sqnr_db": 28.25, "logits_of": "input of SOFTMAX", "top1_agreement": 0.99609}
    return {
        "num_examples": 256,
        "layers": [layer_parity("conv2d"), layer_parity("conv2d_1", local_sqnr_db="inf")],
        "outputs": [output],
        "skipped": {"dropout": "it does nothing after training"},
        "notes": [],
        "missed": [],
        "departure_text": "no layer departs from the QAT model by more than 2 LSB by itself",
        **changes,
    }


def finding(**changes: Any) -> dict[str, Any]:
    """Return a Finding as plain JSON."""
    values = {
        "kind": "float_op",
        "severity": "fails",
        "message": "op #2 ADD computes in float32, expected int8",
        "subgraph": 0,
        "op_index": 2,
        "op": "ADD",
        "keras_layer": "add_1",
        "tensor": "model/add_1/add",
        "allowed": False,
    }
    return {**values, **changes}


_EMULATORS = ("qemu:cortex-a53", "qemu:cortex-a76")

_RECORD: dict[str, Any] = {
    "schema_version": 2,
    "command": "run",
    "config": {"model": "digits_cnn", "data": {"source": "digits", "scale": 1.0}, "out": "out/demo", "seed": 0},
    "config_hash": "a" * 64,
    "seed": 0,
    "python": "3.11.7",
    "packages": {"tfq": "0.1.0", "tensorflow": "2.21.0", "ai-edge-litert": None},
    "git_commit": None,
    "cpu": {"machine": "x86_64", "model": "Some CPU @ 2.00GHz", "isa": ["avx2", "fma"]},
    "sha256": {"model": None, "data": {"train": "b" * 64, "test": "c" * 64}},
    "stages": [
        {
            "name": "train",
            "seconds": 12.34,
            "skipped": None,
            "details": {
                "parameters": 11274,
                "history": {"loss": [2.1, 1.0, 0.5, 0.2, 0.1], "accuracy": [0.1, 0.5, 0.7, 0.9, 0.95]},
            },
        },
        {"name": "convert to int8", "seconds": 1.2, "skipped": None, "details": {}},
        {"name": "compress", "seconds": 0.0, "skipped": "neither pruning nor QAT is asked for", "details": {}},
        {"name": "evaluate", "seconds": 61.0, "skipped": None, "details": {}},
    ],
    "models": [
        {
            "name": "float",
            "file": "digits_cnn_float32.tflite",
            "evaluation": evaluation(output_sqnr_db=None, output_sqnr_db_reason="no noise: it is the reference"),
            "audit": audit(False, "float32", (finding(), finding(op_index=3))),
            "portability": {},
            "sha256": {"model": "d" * 64, "data": {}},
        },
        {
            "name": "ptq_int8",
            "file": "digits_cnn_int8.tflite",
            "evaluation": evaluation(
                accuracy=0.98028,
                agreement=0.99718,
                model_bytes=17_912,
                gzip_bytes=13_204,
                latency_p50_ms=0.0213,
                latency_p90_ms=0.0251,
            ),
            "audit": audit(),
            "verification": verification(),
            "portability": portability(*map(backend_row, _EMULATORS)),
        },
        {
            "name": "pruned_qat_int8",
            "file": "digits_cnn_pruned_qat_int8.tflite",
            "evaluation": evaluation(
                accuracy=0.98592,
                agreement=0.98873,
                model_bytes=18_104,
                gzip_bytes=9_811,
                latency_p50_ms=0.0215,
                latency_p90_ms=0.0262,
            ),
            "audit": audit(),
            "verification": verification(sqnr_db=27.25),
            "portability": portability(
                backend_row("qemu:cortex-a53", max_abs_error_lsb=1, num_different=4), backend_row("qemu:cortex-a76")
            ),
        },
    ],
    "sparsity": {"conv2d": 0.0, "conv2d_1": 0.5, "conv2d_2": 0.5, "dense": 0.498},
    "warnings": [],
}


def full_record() -> dict[str, Any]:
    """Return a new copy of a record without the parts that newer versions of tfq add."""
    return copy.deepcopy(_RECORD)


def newest_record() -> dict[str, Any]:
    """Return a record with benchmark, intervals, instructions, weights by layer, diagnostics and further training."""
    record = full_record()
    counts = {
        "float": (5_651_234, 5_650_001),
        "ptq_int8": (6_284_000, 3_240_777),
        "pruned_qat_int8": (6_284_100, 3_241_000),
    }
    dtypes = {"float": "float32", "ptq_int8": "int8", "pruned_qat_int8": "int8"}
    for model in record["models"]:
        name = model["name"]
        a53, a76 = counts[name]
        zeros = 600 if name.startswith("pruned") else 0
        if not model["portability"]:
            model["portability"] = portability(*map(backend_row, _EMULATORS))
        for cpu, count in (("cortex-a53", a53), ("cortex-a76", a76)):
            model["portability"]["rows"][f"qemu:{cpu}"] |= {
                "instructions": counted(cpu, count),
                "instructions_reason": None,
            }
        model["audit"]["weights"] = [
            weight("conv2d", 72, 0, dtypes[name]),
            weight("conv2d_1", 1200, zeros, dtypes[name]),
        ]
        model["audit"]["model_bytes"] = model["evaluation"]["model_bytes"]
        model["audit"]["op_types"] = {"CONV_2D": {dtypes[name]: 4}, "SOFTMAX": {dtypes[name]: 1}}
        interval = [model["evaluation"]["accuracy"] - 0.02, model["evaluation"]["accuracy"] + 0.01]
        model["evaluation"]["metrics"] = {
            "top1": {**TOP1, "interval": interval},
            "top5": {**TOP1, "title": "top-5"},
        }
        model["evaluation"]["scores"] = {"top1": model["evaluation"]["accuracy"], "top5": 0.9999}
        model["evaluation"] |= {"latency_mean_ms": 0.0431, "latency_std_ms": 0.0009, "latency_first_ms": 0.0999}
    record["models"][1]["evaluation"]["accuracy_difference"] = difference(-0.00282, -0.016, 0.0077)
    record["models"][2]["evaluation"]["accuracy_difference"] = difference(0.00282, 0.0011, 0.02)
    record["models"][2]["qat_parity"] = qat_parity()
    pair = {"model": "float", "model_kernels": "xnnpack", "kernels": "xnnpack", "confidence": 0.95, "reason": None}
    record["benchmark"] = {
        "backend": "local",
        "num_threads": 1,
        "models": [
            timed("float", 0.042),
            timed("ptq_int8", 0.021, ops=None, ops_reason="the profiler is not available"),
            timed("pruned_qat_int8", 0.0211),
        ],
        "ratios": [
            {**pair, "against": "ptq_int8", "ratio": 0.5, "low": 0.48, "high": 0.52},
            {**pair, "against": "pruned_qat_int8", "ratio": 0.8, "low": 0.78125, "high": 0.82},
        ],
        "machine": {},
    }
    record["stages"][0] |= {"resumed": True}
    record["stages"][0]["details"]["data_notes"] = ["npz:x.npz has no val split"]
    record["stages"][2] = {"name": "compress (pruned, qat)", "seconds": 9.0, "skipped": None, "details": {}}
    record["stages"][2]["details"]["history"] = {
        "prune": {"loss": [0.3, 0.2, 0.1], "val_loss": [0.4, 0.3, 0.2]},
        "qat": {"loss": [0.09, 0.08], "val_loss": [0.3, 0.2]},
    }
    record["stages"][1]["details"] = {
        "preprocessing": {"resize": [], "scale": 1.0, "offset": 0.0},
        "representative_dataset": {"split": "train", "examples": 200},
        "diagnostics": {
            "num_examples": 200,
            "class_counts": {"0": 150, "1": 50},
            "class_counts_reason": None,
            "noise": {"is_noise": False, "image": "neighbours correlate by 0.7"},
            "findings": ["class 1 is a quarter of the examples"],
        },
    }
    return record
