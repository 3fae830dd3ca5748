# SPDX-License-Identifier: Apache-2.0
"""The same config and seed give byte-identical flatbuffers in any process; report.json replays its run."""

import json

import pytest

FILES = ("digits_cnn_float32.tflite", "digits_cnn_int8.tflite", "digits_cnn_pruned_qat_int8.tflite")


def short_run(tfq_cli, out, cache, *arguments):
    done = tfq_cli("run", *arguments, f"--out={out}", TFQ_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
    return {name: (out / name).read_bytes() for name in FILES}


SHORT = (
    "--model=digits_cnn",
    "--data=digits",
    "--training.epochs=2",
    "--compression.train.epochs=1",
    "--conversion.num_calibration_samples=50",
    "--evaluation.num_runs=0",
    "--benchmark.min_secs=0",
    "--benchmark.num_runs=1",
    "--nobenchmark.ops",
)


@pytest.fixture(scope="module")
def first(tfq_cli, tmp_path_factory):
    out = tmp_path_factory.mktemp("first")
    return out, short_run(tfq_cli, out / "out", out / "cache", *SHORT, "--seed=5")


def test_two_fresh_processes_give_the_same_bytes_and_a_report_replays(first, tfq_cli, tmp_path):
    out, built = first
    again = short_run(tfq_cli, tmp_path / "again", tmp_path / "cache", f"--config={out}/out/report.json")
    assert len(set(built.values())) == len(FILES)
    assert {name: again[name] == built[name] for name in FILES} == dict.fromkeys(FILES, True)
    one, other = (json.loads((path / "report.json").read_text()) for path in (out / "out", tmp_path / "again"))
    assert one["config_hash"] == other["config_hash"]
    assert one["sha256"] == other["sha256"]
    numbers = ("accuracy", "agreement", "output_sqnr_db", "gzip_bytes")
    for name in numbers:
        assert [m["evaluation"][name] for m in one["models"]] == [m["evaluation"][name] for m in other["models"]]
