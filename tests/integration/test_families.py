# SPDX-License-Identifier: Apache-2.0
"""The matrix of families: the four smallest pass, and missed bounds, crashes and hangs are reported as such."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import families  # noqa: E402
from family_matrix import chain, verdict  # noqa: E402
from family_matrix.settings import SMALLEST, Settings  # noqa: E402

GOOD = {
    "stages": {
        "train": {"secs": 1.0, "accuracy": 0.9},
        "bridge": {"secs": 1.0, "max_difference": 1e-6},
        "preflight": {"secs": 1.0, "ok": True, "qat": 9, "ptq_only": 1, "unsupported": 0},
        "prune": {"secs": 1.0, "accuracy": 0.9, "not_as_promised": []},
        "qat": {"secs": 1.0, "identity": 0.0, "accuracy": 0.9},
        "convert": {
            "secs": 1.0,
            "audit_ok": True,
            "audit_failures": [],
            "sparsity": {"layers": {"conv": {"zeros": 4, "values": 9}}, "missing": []},
        },
        "parity": {
            "secs": 1.0,
            "accuracy": 0.9,
            "num_examples": 256,
            "logit_sqnr_db": 20.0,
            "first_departure": None,
            "outputs": [{"disagreements": [{"margin_lsb": 3.9, "logit_margin_lsb": 0.5}]}],
        },
    },
    "stock": {"tf_keras": {"result": "right", "difference": 0.0}},
}


def changed(stage: str, **values):
    record = copy.deepcopy(GOOD)
    record["stages"][stage] |= values
    return record


def test_a_family_within_every_bound_passes():
    assert verdict.misses(GOOD) == []


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("train", {"accuracy": 0.2}, "20.0%"),
        ("bridge", {"max_difference": 2e-4}, "0.0002"),
        ("preflight", {"ok": False, "unsupported": 2}, "2 layer(s)"),
        ("prune", {"not_as_promised": ["conv"]}, "what is pruned: conv"),
        ("qat", {"identity": 1e-9}, "1e-09"),
        ("qat", {"identity": float("nan")}, "nan"),
        ("convert", {"audit_ok": False, "audit_failures": ["op #3 is float"]}, "op #3 is float"),
        # Half of nine weights is four.
        ("convert", {"sparsity": {"layers": {"conv": {"zeros": 3, "values": 9}}, "missing": []}}, "33.33%"),
        ("convert", {"sparsity": {"layers": {"conv": {"zeros": 294_900, "values": 589_824}}, "missing": []}}, "50.00%"),
        ("convert", {"sparsity": {"layers": {}, "missing": ["conv"]}}, "not found in the flatbuffer: conv"),
        ("parity", {"num_examples": 255}, "255 images"),
        ("parity", {"logit_sqnr_db": 19.9, "first_departure": "conv"}, "first departure conv"),
        ("parity", {"logit_sqnr_db": float("nan")}, "nan"),
        ("parity", {"outputs": [{"disagreements": [{"margin_lsb": 4.0, "logit_margin_lsb": None}]}]}, "4.0 LSB"),
    ],
)
def test_a_family_outside_a_bound_misses_it(stage, values, message):
    [miss] = verdict.misses(changed(stage, **values))
    assert message in miss


def test_a_weight_equal_to_the_smallest_kept_one_is_kept():
    sparsity = {"layers": {"conv": {"zeros": 294_911, "values": 589_824}}, "missing": []}
    assert verdict.misses(changed("convert", sparsity=sparsity)) == []


def test_flatbuffers_that_are_the_same_to_the_bit_have_no_noise():
    assert verdict.misses(changed("parity", logit_sqnr_db="inf")) == []


def test_an_error_and_an_end_too_early_are_misses():
    stages = {name: GOOD["stages"][name] for name in ("train", "bridge")}
    error = {"stage": "preflight", "type": "InputError", "message": "no\nway"}
    assert verdict.misses({"stages": stages, "error": error}) == ["preflight: InputError: no way"]
    assert verdict.misses({"stages": stages}) == ["did not come to its end"]


def test_an_excuse_is_for_the_comparison_alone(monkeypatch):
    monkeypatch.setattr(verdict, "EXCUSED", {"MobileNet": "conv: its cause"})
    record = changed("parity", logit_sqnr_db=3.0)
    assert verdict.misses(record, "VGG16")
    assert verdict.misses(record, "MobileNet") == []
    assert "excused: conv: its cause" in verdict.table({"MobileNet": record}, [])
    assert verdict.misses(changed("qat", identity=1.0), "MobileNet")


def test_the_table_counts_and_has_a_cell_for_every_column():
    failed = {"stages": {}, "error": {"stage": "train", "type": "ValueError", "message": "a | b"}, "stock": {}}
    lines = verdict.table({"VGG16": GOOD, "MobileNet": failed}, ["today"]).splitlines()
    rows = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert {row.count("|") for row in rows} == {len(verdict.COLUMNS) + 1}
    assert "1 of 2 families pass; stock tfmot computes the right function for 1." in lines


def test_a_hang_and_a_crash_of_a_child_are_results(tmp_path):
    run = families.run_child
    assert run("stock:VGG16:keras", Settings(), tmp_path, timeout_secs=0.1) == "hangs (given up after 0.1 s)"
    assert "hangs (given up after 1 CPU s" in run(
        "stock:VGG16:keras", Settings(), tmp_path, timeout_secs=99, cpu_secs=1
    )


def test_pruning_targets_the_pointwise_kernel_of_a_separable_convolution():
    def weight(op, zeros, layer="separable"):
        return SimpleNamespace(op=op, keras_layer=layer, zeros=zeros, values=10)

    weights = [
        weight("DEPTHWISE_CONV_2D", 0),
        weight("CONV_2D", 5),
        weight("CONV_2D", 4, "dense"),
        weight("MUL", 0, ""),
    ]
    result = chain.zeros_by_layer(weights, ["separable", "dense", "gone"])
    assert result["layers"] == {"separable": {"zeros": 5, "values": 10}, "dense": {"zeros": 4, "values": 10}}
    assert result["missing"] == ["gone"]


def test_an_unknown_family_is_refused_with_the_nearest_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["families.py", "--families=MobileNetV2,Inception"])
    assert families.main() == 2
    assert "'Inception' is not one of the fifteen: did you mean 'InceptionV3'?" in capsys.readouterr().err


@pytest.mark.families
def test_the_four_smallest_families_pass_and_are_not_measured_twice(tmp_path):
    # Two at a time, because much of the work is Python on one core.
    started = [start(tmp_path / names[0], names) for names in (SMALLEST[:2], SMALLEST[2:])]
    messages = [run.communicate(timeout=1500)[0] for run in started]
    assert [run.returncode for run in started] == [0, 0], "\n".join(messages)
    for names in (SMALLEST[:2], SMALLEST[2:]):
        out = tmp_path / names[0]
        stages = [json.loads((out / name / "record.json").read_text())["stages"] for name in names]
        assert all(item["qat"]["identity"] == 0.0 and item["parity"]["num_examples"] >= 256 for item in stages)
        again = start(out, names).communicate(timeout=60)[0]
        assert "2 of 2 families pass" in again
        assert (out / "families.md").read_text() in again


def start(out: Path, names: tuple[str, ...]) -> subprocess.Popen:
    command = [sys.executable, str(BENCHMARKS / "families.py"), f"--families={','.join(names)}", f"--out={out}"]
    command += ["--size=32", "--train_steps=80", "--tune_steps=24", "--nostock"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
