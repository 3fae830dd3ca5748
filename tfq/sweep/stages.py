# SPDX-License-Identifier: Apache-2.0
"""The tasks of a sweep. An executor calls them in worker processes, so they import TensorFlow inside.

Each function gets the directory that it writes to, the directories of the tasks that it needs by their role, and JSON
values. It returns the details that are stored with its files.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfq import artifacts, data, registry, workflows
from tfq.config import EvaluationConfig, RunConfig
from tfq.errors import InputError

TRAINED, COMPRESSED, FLATBUFFER = "trained.keras", "compressed.h5", "model.tflite"
# The role of the task that made the model, and of the one that made the flatbuffer.
MODEL, CONVERTED = "model", "flatbuffer"


def _config(values: Mapping[str, Any], needs: Mapping[str, Path]) -> RunConfig:
    """Return the config of a task, whose model is that of the task that it needs, if any."""
    registry.load_plugins(values["plugin"])
    config = RunConfig.from_dict(values)
    if MODEL not in needs:
        return config
    path = next(needs[MODEL] / name for name in (COMPRESSED, TRAINED) if (needs[MODEL] / name).exists())
    return dataclasses.replace(config, model=str(path))


def train(directory: Path, needs: Mapping[str, Path], config: Mapping[str, Any], allow_code: bool) -> dict[str, Any]:
    """Train a model that tfq builds by name, or a model from a file further; write `TRAINED`."""
    model, details = workflows.train(_config(config, needs), allow_code=allow_code)
    workflows.save_keras(model, directory / TRAINED)
    return {name: details[name] for name in ("parameters", "history", "test_metric", "test_accuracy")}


def compress(directory: Path, needs: Mapping[str, Path], config: Mapping[str, Any], allow_code: bool) -> dict[str, Any]:
    """Compress a Keras model; write `COMPRESSED`, a tf_keras model."""
    settings = _config(config, needs)
    result = workflows.compress(workflows.load(settings, allow_code=allow_code), settings, allow_code=allow_code)
    workflows.save_keras(result.model, directory / COMPRESSED)
    return {name: result.details[name] for name in ("history", "sparsity", "clusters")}


def convert(directory: Path, needs: Mapping[str, Path], config: Mapping[str, Any], allow_code: bool) -> dict[str, Any]:
    """Convert a model; write `FLATBUFFER`."""
    settings = _config(config, needs)
    built, details = workflows.convert(workflows.load(settings, allow_code=allow_code), settings)
    artifacts.write_bytes(directory / FLATBUFFER, built.content)
    return {
        "sha256": artifacts.sha256(built.content),
        "representative_dataset": details["representative_dataset"],
        "verification": details["verification"],
    }


def evaluate(directory: Path, needs: Mapping[str, Path], config: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Evaluate a flatbuffer on a split. The latency is not measured here, and there is no reference."""
    settings = _config(config, needs)
    examples = workflows.load_split(settings.data, split, limit=settings.evaluation.limit)
    content = (needs[CONVERTED] / FLATBUFFER).read_bytes()
    record = workflows.evaluate(content, settings, test=examples).evaluation.to_dict()
    kept = ("metric", "metrics", "accuracy", "accuracy_reason", "num_examples", "scores", "per_example")
    return {**{name: record[name] for name in kept}, "model_bytes": len(content), "gzip_bytes": record["gzip_bytes"]}


def costs(directory: Path, needs: Mapping[str, Path], config: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """Measure the memory or count the instructions of a flatbuffer on one backend, on the first example."""
    from tfq.backends import kind_of
    from tfq.evaluation import count_instructions_or_reason, evaluate_model

    settings = _config(config, needs)
    first = _first_example(settings)
    content = (needs[CONVERTED] / FLATBUFFER).read_bytes()
    if kind_of(backend).counts_instructions:
        counted = count_instructions_or_reason(content, backend, first)
        if isinstance(counted, str):
            return {"instructions": None, "reason": counted}
        return {"instructions": counted.instructions, "how": "emulated"}
    record = evaluate_model(
        content, first, EvaluationConfig(backend=backend, num_runs=0, differing_examples=0, num_workers=1)
    )
    memory = record.memory_bytes
    arenas = [memory[name] for name in ("arena", "arena_minimum") if name in memory] if memory else []
    return {"arena_bytes": max(arenas, default=None), "how": record.how, "reason": record.memory_reason}


def latency(directory: Path, needs: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """Time a flatbuffer on the machine that runs the task, on evaluation.backend."""
    from tfq.evaluation import evaluate_model

    settings = _config(config, needs)
    content = (needs[CONVERTED] / FLATBUFFER).read_bytes()
    own = settings.evaluation
    timing = EvaluationConfig(
        backend=own.backend,
        num_threads=own.num_threads,
        num_workers=1,
        xnnpack=own.xnnpack,
        warmup_runs=own.warmup_runs,
        num_runs=own.num_runs,
        differing_examples=0,
    )
    record = evaluate_model(content, _first_example(settings), timing)
    return {"latency_ms": record.latency_p50_ms, "how": record.how, "reason": record.latency_reason}


def robustness(directory: Path, needs: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate a flatbuffer on corrupted test examples."""
    from tfq.robustness import evaluate_robustness

    settings = _config(config, needs)
    examples = workflows.load_split(settings.data, "test", limit=settings.evaluation.robustness.limit)
    content = (needs[CONVERTED] / FLATBUFFER).read_bytes()
    record = evaluate_robustness({"model": content}, examples, settings.evaluation).to_dict()
    # The same example may degrade most in many points; times differ from run to run.
    return {name: value for name, value in record.items() if name not in ("degraded", "secs", "estimated_secs")}


def _first_example(config: RunConfig) -> data.AnySplit:
    """Return the first example of the split that every source has: test, else train."""
    try:
        return data.load_split(config.data, "test", limit=1)
    except InputError:
        return data.load_calibration_split(config.data, limit=1)
