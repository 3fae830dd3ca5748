# SPDX-License-Identifier: Apache-2.0
"""The record of a run as the tests of the report want it, with everything that a run can tell."""

import copy
from typing import Any


def evaluation(**changes: Any) -> dict[str, Any]:
    """An EvaluationRecord as plain JSON."""
    values: dict[str, Any] = {
        "accuracy": 0.98310,
        "accuracy_reason": None,
        "metric": "top1",
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
        "runner": "local",
        "emulated": False,
        "xnnpack": True,
        "total_ops": 9,
        "delegated_ops": 8,
        "clipped_input_share": 0.0,
        "unused_range_share": 0.012,
        "warnings": [],
        "machine": {"machine": "x86_64"},
    }
    return {**values, **changes}


def parity(runner: str, **changes: Any) -> dict[str, Any]:
    """A ParityRecord as plain JSON."""
    values = {
        "runner_a": "local",
        "runner_b": runner,
        "max_abs_error_lsb": 0,
        "num_different": 0,
        "compared": 2560,
        "num_examples": 256,
        "skipped": {},
    }
    return {**values, **changes}


def audit(ok: bool = True, scheme: str = "full_int8", findings: tuple = (), **op_counts: int) -> dict[str, Any]:
    """An AuditReport as plain JSON."""
    return {
        "ok": ok,
        "granularity": "per_channel" if ok else None,
        "scheme": scheme,
        "findings": list(findings),
        "op_counts": op_counts or {"CONV_2D": 4, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1},
        "input_types": ["int8" if ok else "float32"],
        "output_types": ["int8" if ok else "float32"],
    }


def finding(**changes: Any) -> dict[str, Any]:
    """A Finding as plain JSON."""
    values = {
        "kind": "float_op",
        "severity": "fails",
        "message": "op #2 ADD computes in float32, wanted int8",
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
    "schema_version": 1,
    "script": "run",
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
            "details": {"parameters": 11274, "history": {"loss": [2.1, 1.0, 0.5, 0.2, 0.1]}},
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
            "parity": {},
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
            "parity": {runner: parity(runner) for runner in _EMULATORS},
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
            "parity": {
                "qemu:cortex-a53": parity("qemu:cortex-a53", max_abs_error_lsb=1, num_different=4),
                "qemu:cortex-a76": parity("qemu:cortex-a76"),
            },
        },
    ],
    "sparsity": {"conv2d": 0.0, "conv2d_1": 0.5, "conv2d_2": 0.5, "dense": 0.498},
    "warnings": [],
}


def full_record() -> dict[str, Any]:
    """A fresh copy, to be changed at will."""
    return copy.deepcopy(_RECORD)
