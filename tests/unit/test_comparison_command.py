# SPDX-License-Identifier: Apache-2.0
"""`tfq compare`: what it accepts, its exit codes, its record and its page."""

import json
import re

import pytest
from golden_models import GOLDEN, changed, golden
from messages import refused

from tfq import tflite
from tfq.comparison import read_subject
from tfq.errors import FlatbufferError, InputError
from tfq.report import build_report
from tfq.report.plots import Plot

FLOAT, INT8 = GOLDEN / "digits_float32.tflite", GOLDEN / "digits_int8.tflite"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


def test_identical_files_are_exit_0_also_with_requirements(tfq_here):
    done = tfq_here("compare", INT8, INT8, "--require.no_differences", "--require.min_weight_sqnr_db=90")
    assert done.returncode == 0 and "identical" in done.stdout


def test_a_difference_is_exit_1_only_if_none_is_allowed(tfq_here, folder):
    def scale(model):
        quantization = model.subgraphs[0].tensors[model.subgraphs[0].operators[4].inputs[1]].quantization
        quantization.scale = quantization.scale * 2

    (folder / "scaled.tflite").write_bytes(changed(golden("digits_int8"), scale))
    assert tfq_here("compare", INT8, folder / "scaled.tflite").returncode == 0
    for flag in ("--require.no_differences", "--require.min_weight_sqnr_db=20"):
        done = tfq_here("compare", INT8, folder / "scaled.tflite", flag)
        assert done.returncode == 1
        assert flag.partition("=")[0] in done.stderr and "conv2/CONV_2D" in done.stderr


def test_the_record_and_the_pages_have_the_numbers_and_can_be_rebuilt(tfq_here, folder):
    out = folder / "out"
    done = tfq_here("compare", FLOAT, INT8, "--data=digits", "--limit=16", f"--out={out}")
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "compare.json").read_text())
    compared = record["comparison"]
    assert record["evaluation"]["compared"] == 16 and record["evaluation"]["agreement"] is not None
    assert compared["matching"]["matched"] == 9 and compared["files"]["model"]["bytes"] == INT8.stat().st_size
    worst = compared["constants"][0]
    page = (out / "compare.html").read_text()
    assert f"{worst['sqnr_db']:.1f} dB" in page and worst["op"] in page
    assert f"differ in {compared['num_differences']} places" in page
    # Weights are drawn: conv1, depthwise, pointwise, conv2, logits.
    assert len(re.findall(r"data-plot=\"constants\"", page)) == 1 and "<svg" in page
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    build_report(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_names_from_a_file_cannot_become_markup(tfq_here, folder):
    def rename(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"<script>alert(1)</script>\x1b[31m" + tensor.name

    data = tflite.append_files(changed(golden("digits_int8"), rename), {"<b>.txt": b"<i>a\n"})
    (folder / "hostile.tflite").write_bytes(data)
    done = tfq_here("compare", INT8, folder / "hostile.tflite", f"--out={folder / 'hostile'}")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    page = (folder / "hostile" / "compare.html").read_text()
    assert not any(tag in page for tag in ("<script>alert", "<i>a", "<b>.txt"))
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("missing", ["constants", "changes", "activations", "files", "matching", "num_differences"])
def test_a_record_without_any_one_part_still_has_a_page(missing, folder, tfq_here, monkeypatch):
    monkeypatch.setattr(
        "tfq.report.comparison_content.drawn", lambda title, draw: Plot(title=title, svg="", caption="")
    )
    source, target = folder / "plain", folder / "part"
    if not (source / "compare.json").exists():
        tfq_here("compare", INT8, GOLDEN / "digits_int8_qat.tflite", f"--out={source}")
    record = json.loads((source / "compare.json").read_text())
    del record["comparison"][missing]
    target.mkdir(exist_ok=True)
    (target / "compare.json").write_text(json.dumps(record))
    build_report(target)
    assert "tfq compare" in (target / "compare.html").read_text()


@pytest.mark.parametrize(
    ("content", "error", "word"),
    [
        (golden("digits_int8")[:4000], FlatbufferError, "b.bin"),
        (b"PK\x03\x04" + b"0" * 60, InputError, "ZIP"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 60, InputError, "HDF5"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 60, FlatbufferError, "b.bin"),
        (b'{"a": 1}', InputError, "record"),
        (b'{"command": 3, "schema_version": 2}', InputError, "record"),
        (b'{"command": "evaluate", "schema_version": 1}', InputError, "schema_version"),
        (b'{"command": ', InputError, "JSON"),
        (b"", InputError, "empty"),
    ],
)
def test_another_file_is_refused_with_what_it_is(content, error, word, folder):
    path = folder / "b.bin"
    path.write_bytes(content)
    with refused(error, field="model", word=word):
        read_subject(path, "model")


def test_a_flatbuffer_and_a_record_are_not_compared(tfq_here, folder):
    record = folder / "evaluate.json"
    record.write_text('\ufeff{"command": "evaluate", "schema_version": 2}')
    for pair in ((INT8, record), (record, INT8)):
        done = tfq_here("compare", *pair)
        assert done.returncode == 2
        assert "evaluate.json" in done.stderr and "--reference" not in done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--reference"),
        ((INT8,), "--reference"),
        ((INT8, FLOAT, INT8), "int8"),
        ((INT8, FLOAT, f"--model={INT8}"), "--model"),
        ((f"--reference={INT8}",), "--model"),
        ((INT8, GOLDEN / "gone.tflite"), "gone.tflite"),
    ],
)
def test_missing_and_surplus_files_are_input_errors(arguments, word, tfq_here):
    done = tfq_here("compare", *arguments)
    assert done.returncode == 2 and word in done.stderr.splitlines()[-1]


def test_flags_may_stand_for_the_arguments(tfq_here):
    done = tfq_here("compare", f"--model={INT8}", "--format=json", f"--reference={INT8}")
    assert json.loads(done.stdout)["comparison"]["byte_identical"] is True


def test_two_records_are_compared_figure_by_figure_with_a_page(tfq_here, folder):
    """The float file against int8 on a few digits: it is larger, and its ops are float."""
    for path in (INT8, FLOAT):
        flags = ("--data=digits", "--limit=8", "--num_runs=0", "--backends=none")
        assert tfq_here("evaluate", f"--model={path}", *flags, f"--out={folder / path.stem}").returncode == 0
    records = [folder / path.stem / "evaluate.json" for path in (INT8, FLOAT)]
    done = tfq_here("compare", *records, f"--out={folder / 'records'}")
    assert done.returncode == 0 and "model_bytes" in done.stdout
    page = (folder / "records" / "compare.html").read_text()
    gate = json.loads((folder / "records" / "compare.json").read_text())["gate"]
    figures = {item["figure"]: item for item in gate["models"][0]["figures"]}
    assert figures["model_bytes"]["new"] == FLOAT.stat().st_size and figures["model_bytes"]["status"] == "worse"
    assert 'data-state="bad"' in page and f"{FLOAT.stat().st_size:,} bytes" in page
    assert page.count('data-check="gate"') == len(gate["failures"]) > 0
    same = tfq_here("compare", records[0], records[0], f"--out={folder / 'records'}")
    assert same.returncode == 0
    assert 'data-state="good"' in (folder / "records" / "compare.html").read_text()


def test_records_without_figures_are_refused(tfq_here, folder):
    record = folder / "audit.json"
    record.write_text('{"command": "audit", "schema_version": 2}')
    done = tfq_here("compare", record, record)
    assert done.returncode == 2 and "audit.json" in done.stderr
