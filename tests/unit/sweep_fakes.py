# SPDX-License-Identifier: Apache-2.0
"""Plans of small sweeps, and made-up results of their tasks."""

import numpy as np

from tfq.config import DataConfig, RunConfig
from tfq.evaluation.per_example import ExampleResults, OutputResults
from tfq.store import StageResult
from tfq.sweep import Grid
from tfq.sweep.plan import plan_of
from tfq.sweep.points import Outcomes

OFF = {"compression": {"prune": False, "qat": False, "train": {"epochs": 2}}, "sweep": {"cost_backends": ["none"]}}
AXES = {
    "compression": {"dense": {}, "pruned80": {"compression": {"prune": {"enabled": True, "final_sparsity": 0.8}}}},
    "scheme": {"int8": {}, "int4": {"conversion": {"int4_layers": ["*"]}}},
}
COMMAND = RunConfig(model="digits_cnn", data=DataConfig(source="digits"))


def plan(command=COMMAND, **changes):
    """Return (grid, plan) of two axes and two seeds."""
    grid = Grid.from_dict({"base": OFF, "axes": AXES, "seeds": [0, 1], **changes})
    return grid, plan_of(grid, command)


def result(stage, key, tmp_path):
    """Return a result that depends on the key only."""
    rng = np.random.default_rng(int(key[:8], 16))
    labels = np.arange(100) % 10
    predicted = np.where(rng.random(100) < 0.8, labels, 0).astype(np.uint8)
    examples = ExampleResults(
        num_examples=100, scores={"top1": predicted == labels}, outputs={"y": OutputResults(predicted=predicted)}
    )
    details = {"sha256": key * 2} if stage == "convert" else {}
    if stage.startswith("evaluate"):
        value = float((predicted == labels).mean())
        details = {
            "metric": "top1", "metrics": {"top1": {"unit": "fraction", "direction": "higher", "interval": [0, 1]}},
            "accuracy": value, "accuracy_reason": None, "num_examples": 100, "scores": {"top1": value},
            "per_example": examples.to_dict(), "model_bytes": int(key[:4], 16), "gzip_bytes": int(key[4:8], 16),
        }  # fmt: skip
    return StageResult(directory=tmp_path, details=details, warnings=(), seconds=1.0, resumed=False)


def outcomes_of(planned, tmp_path):
    """Return a result of every task."""
    results = {
        task.key: result(stage, task.key, tmp_path)
        for chain in (*planned.references, *planned.chains)
        for stage, task in chain.tasks.items()
    }
    return Outcomes(results=results)
