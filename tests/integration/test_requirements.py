# SPDX-License-Identifier: Apache-2.0
"""Every command with requirements: its record has bound, value and verdict before exit code 1."""

import json

import numpy as np
import pytest

from tfq.keras_bridge import import_tf_keras


@pytest.fixture
def asked(tfq_here, tmp_path):
    """Run a command with --format=json; return its exit code and the `requirements` it printed and wrote."""

    def run(command, *arguments):
        done = tfq_here(command, *arguments, f"--out={tmp_path / 'out'}", "--format=json")
        printed = json.loads(done.stdout)
        written = json.loads((tmp_path / "out" / f"{'report' if command == 'run' else command}.json").read_text())
        assert printed["requirements"] == written["requirements"]
        return done.returncode, printed["requirements"]

    return run


def test_evaluate_lists_every_bound_whether_it_holds_or_not(asked, golden):
    command = ["evaluate", f"--model={golden}/digits_int8.tflite", "--data=digits", "--num_runs=0"]
    command.append(f"--reference={golden}/digits_float32.tflite")
    code, (accuracy, agreement, drop) = asked(
        *command, "--require.min_accuracy=1", "--require.min_agreement=0.9", "--require.max_accuracy_drop=0.5"
    )
    assert code == 1
    assert list(accuracy) == ["name", "bound", "value", "holds", "reason"]
    assert (accuracy["name"], accuracy["bound"], accuracy["holds"]) == ("min_accuracy", 1, False)
    assert 0.9 < accuracy["value"] < 1
    assert (agreement["name"], agreement["bound"], agreement["holds"]) == ("min_agreement", 0.9, True)
    assert (drop["name"], drop["holds"], drop["reason"]) == ("max_accuracy_drop", True, None)
    assert asked(*command, "--require.min_agreement=0.9") == (0, [agreement])
    assert asked(*command) == (0, [])


def test_evaluate_gives_the_reason_of_a_missing_value(asked, golden, tmp_path):
    np.savez(tmp_path / "unlabelled.npz", x_test=np.zeros((4, 8, 8, 1), np.float32))
    command = ["evaluate", f"--model={golden}/digits_int8.tflite", f"--data=npz:{tmp_path}/unlabelled.npz"]
    code, (lowest,) = asked(*command, "--num_runs=0", "--require.min_accuracy=0.5")
    assert code == 1
    assert (lowest["bound"], lowest["value"], lowest["holds"]) == (0.5, None, False)
    assert "labels" in lowest["reason"]


def test_audit_gives_the_scheme_and_the_first_finding(asked, golden):
    code, (scheme,) = asked("audit", f"--model={golden}/digits_float32.tflite", "--require=full_int8")
    assert code == 1
    assert {**scheme, "reason": ""} == {
        "name": "require", "bound": "full_int8", "value": "float32", "holds": False, "reason": ""
    }  # fmt: skip
    assert "int8" in scheme["reason"]
    code, (scheme,) = asked("audit", f"--model={golden}/digits_int8.tflite", "--require=full_int8")
    assert code == 0
    assert (scheme["value"], scheme["holds"], scheme["reason"]) == ("full_int8", True, None)


def test_search_gives_the_values_of_the_chosen_candidate(asked, golden, monkeypatch):
    monkeypatch.setattr("tfq.search.search._TIMED_SECS", 0.0)
    command = ["search", f"--model={golden}/digits_float32.tflite", "--data=digits", "--methods=min_max"]
    command += ["--conversion.num_calibration_samples=64"]
    code, (drop, size) = asked(*command, "--budget.max_bytes=10", "--max_mixed_layers=0")
    assert code == 1
    assert (drop["name"], drop["bound"], drop["holds"]) == ("max_accuracy_drop", 0.005, True)
    assert (size["name"], size["bound"], size["holds"]) == ("max_bytes", 10, False)
    assert size["value"] > 10
    code, (drop,) = asked(*command, "--budget.max_accuracy_drop=0.02")
    assert code == 0
    assert (drop["bound"], drop["holds"]) == (0.02, True)
    assert drop["value"] <= 0.02


def test_run_gives_the_file_with_each_requirement(asked, tmp_path):
    keras = import_tf_keras()
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4, 4, 1))
    outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "small.h5")
    rng, arrays = np.random.default_rng(1), {}
    for split in ("train", "val", "test"):
        arrays[f"x_{split}"] = rng.normal(size=(30, 4, 4, 1)).astype(np.float32)
        arrays[f"y_{split}"] = rng.integers(0, 3, 30)
    np.savez(tmp_path / "noise.npz", **arrays)
    command = [
        "run", f"--model={tmp_path / 'small.h5'}", f"--data=npz:{tmp_path / 'noise.npz'}", "--audit.require=full_int8",
        "--nocompression.prune", "--nocompression.qat", "--evaluation.num_runs=0", "--benchmark.num_runs=1",
        "--benchmark.min_secs=0", "--nobenchmark.ops",
    ]  # fmt: skip
    code, (scheme, accuracy) = asked(*command, "--evaluation.require.min_accuracy=0.99")
    assert code == 1
    assert list(scheme) == ["file", "name", "bound", "value", "holds", "reason"]
    assert (scheme["file"], scheme["name"], scheme["holds"]) == ("small_int8.tflite", "require", True)
    assert (accuracy["file"], accuracy["name"], accuracy["bound"]) == ("small_int8.tflite", "min_accuracy", 0.99)
    assert accuracy["value"] < 0.99
    assert not accuracy["holds"]
    code, (scheme, accuracy) = asked(*command, "--evaluation.require.min_accuracy=0.01")
    assert (code, scheme["holds"], accuracy["holds"]) == (0, True, True)
