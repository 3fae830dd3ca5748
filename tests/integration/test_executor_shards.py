# SPDX-License-Identifier: Apache-2.0
"""Evaluations and calibrations whose examples are shared by workers give the bytes of one process."""

import json

import numpy as np
import pytest
from messages import refused

import tfq
from tfq.config import CalibrationConfig, DataConfig, EvaluationConfig, ExecutorConfig, RunConfig
from tfq.errors import InputError, TfqError
from tfq.evaluation import sharded
from tfq.evaluation.accuracy import assess_model
from tfq.executors import distributed, open_executor
from tfq.ptq.calibration import calibrate_with_outputs, observe
from tfq.workflows.evaluation import evaluate

RANDOM = np.random.default_rng(7)
IMAGES = RANDOM.uniform(0, 1, (41, 8, 8, 1)).astype(np.float32)
LABELS = RANDOM.integers(0, 10, 41)
SETTINGS = EvaluationConfig(num_runs=0)


@pytest.fixture(scope="module")
def workers():
    with open_executor("local", num_workers=2) as executor:
        yield executor


def samples(count):
    return [{"image": image[None]} for image in IMAGES[:count]]


@pytest.mark.parametrize("method", ["percentile", "moving_average", "mse", "min_max"])
def test_shared_calibration_gives_the_ranges_of_one_process(method, workers, golden, tmp_path):
    model, config = (golden / "digits_float32.tflite").read_bytes(), CalibrationConfig(method=method)
    alone, outputs = calibrate_with_outputs(model, samples(13), config, keep=(0, 12))
    with distributed(workers, tmp_path, num_shards=4):
        shared, others = calibrate_with_outputs(model, samples(13), config, keep=(0, 12))
    assert json.dumps(shared.to_dict()) == json.dumps(alone.to_dict())
    assert outputs.keys() == others.keys() == {0, 12}
    for key in outputs:
        np.testing.assert_array_equal(outputs[key], others[key], strict=True)


def test_shared_observations_are_equal_to_the_bit(workers, golden, tmp_path):
    model = (golden / "digits_float32.tflite").read_bytes()
    alone = observe(model, samples(10)).to_dict()
    with distributed(workers, tmp_path, num_shards=3):
        assert observe(model, samples(10)).to_dict() == alone
    # Another order of samples gives other moving averages, so the comparison sees the order.
    other = observe(model, samples(10)[::-1]).to_dict()
    assert other["tensors"] != alone["tensors"]


def test_a_bad_sample_is_named_by_its_index_among_all(workers, golden, tmp_path):
    model, inputs = (golden / "digits_float32.tflite").read_bytes(), samples(9)
    inputs[7] = {"image": np.full((1, 8, 8, 1), np.inf, np.float32)}
    with distributed(workers, tmp_path, num_shards=3), refused(InputError, field="representative_dataset[7]"):
        observe(model, inputs)


def compared(assessment):
    """Return everything that must be the same: all but time, memory and the machine."""
    record = assessment.record.to_dict()
    dropped = ("memory_bytes", "machine")
    kept = {name: value for name, value in record.items() if not name.startswith("latency") and name not in dropped}
    return json.dumps(kept), [array.tobytes() for array in assessment.result.outputs]


def test_shared_evaluation_gives_the_record_and_outputs_of_one_process(workers, golden, tmp_path):
    model, reference = ((golden / f"digits_{kind}.tflite").read_bytes() for kind in ("int8", "float32"))
    alone = assess_model(model, (IMAGES, LABELS), SETTINGS, reference=reference)
    with distributed(workers, tmp_path, num_shards=4) as distribution:
        shared = assess_model(model, (IMAGES, LABELS), SETTINGS, reference=reference)
        # One model and four parts for each of the two files, and the examples of four parts.
        assert len(distribution.keys) == 2 + 8 + 4
    assert compared(shared) == compared(alone)
    assert not (tmp_path / ".stages").exists()


@pytest.fixture
def streamed(tmp_path):
    """Return the config of a source that is too large for its memory limit, so that it is streamed."""
    images = RANDOM.uniform(0, 1, (4100, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_test=images, y_test=RANDOM.integers(0, 10, len(images)))
    return DataConfig(source=f"npz:{tmp_path / 'data.npz'}", max_memory_mb=1)


def test_workers_read_a_streamed_source_themselves(streamed, golden, tmp_path, monkeypatch):
    model = (golden / "digits_int8.tflite").read_bytes()
    settings = EvaluationConfig(num_runs=0, backends=("none",))
    alone = evaluate(model, RunConfig(data=streamed, evaluation=settings))
    executor = ExecutorConfig(name="local", num_workers=2, num_shards=3)
    # This process reads nothing but the first examples.
    monkeypatch.setattr(tfq.SplitStream, "all_labels", lambda stream: stream.__dict__["_labels"])
    shared = evaluate(model, RunConfig(data=streamed, evaluation=settings, executor=executor, out=str(tmp_path)))
    assert shared.sha256 == alone.sha256
    first, second = (json.loads(json.dumps(each.evaluation.to_dict())) for each in (alone, shared))
    for record in (first, second):
        for name in ("machine", "memory_bytes"):
            record.pop(name)
    assert first == second


def test_workers_with_different_examples_are_refused(streamed):
    data = tfq.load_split(streamed, "test")
    hashed = {"ranges": ["a", "b"], "sha256": "c", "part_hashes": {}}
    with refused(TfqError, field="data", word="different"):
        sharded._remember(data, hashed, [(None, {"sha256": "a"}), (None, {"sha256": "other"})])


def test_a_failure_of_a_part_is_the_error_of_one_process(workers, golden, tmp_path):
    model = (golden / "digits_int8.tflite").read_bytes()
    images = IMAGES.copy()
    images[30, 0, 0, 0] = np.nan
    with refused(InputError, word="30"):
        assess_model(model, (images, LABELS), SETTINGS)
    with distributed(workers, tmp_path, num_shards=4), refused(InputError, word="30"):
        assess_model(model, (images, LABELS), SETTINGS)
