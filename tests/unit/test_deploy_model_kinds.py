# SPDX-License-Identifier: Apache-2.0
"""Bundles of models with unusual inputs and outputs: ranks, counts, labels, and values that do not fit."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from built_models import Call, T, build, constant
from messages import refused, warned
from one_op_models import options

import tfq
from tfq import auditing, tflite
from tfq.deploy.labels import output_for_labels
from tfq.deploy.programs import run_program
from tfq.errors import InputError
from tfq.tflite.model_metadata import (
    ModelMetadata,
    NormalizationOptions,
    ProcessUnit,
    SubGraphMetadata,
    TensorMetadata,
)

LINUX = tfq.ExportConfig(platform=("linux",), self_test=False, zip=False, num_golden=1)
pytestmark = pytest.mark.filterwarnings("ignore:.*golden vectors are random")


def read(folder, entry):
    return np.fromfile(folder / entry["file"], entry["dtype"]).reshape(entry["shape"])


def absolute(shape=(1, 4), dtype="float32", outputs=("y",), op="ABS"):
    """Return a model of one op; `outputs` may name its input "x" and output "y" in any way."""
    tensors = {"x": T(dtype, shape), "y": T(dtype, shape)}
    return build(tensors, [Call(op, ["x"], ["y"], options("Abs"))], ["x"], list(outputs))


def dynamic_output(axis):
    """Return a model whose output has no fixed length along an axis, though its input is fixed."""
    model = tflite.unpack(absolute())
    model.subgraphs[0].tensors[1].shapeSignature = np.array(
        [-1 if place == axis else 4 for place in range(2)], np.int32
    )
    return tflite.pack(model, 10_000)


def module_of(folder):
    """Import python/run_model.py of a bundle."""
    spec = importlib.util.spec_from_file_location("run_model", folder / "python/run_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_seventy_outputs_and_inputs_of_three_ranks_pass_the_self_tests(tmp_path):
    tensors = {"x": T("float32", (1, 4)), "row": T("float32", (4,)), "one": T("float32", ()), "y": T("float32", (1, 4))}
    tensors |= {f"y{place}": T("float32", ()) for place in range(70)}
    calls = [Call("ADD", ["x", "row"], ["y"], options("Add"))]
    calls += [
        Call("ABS", ["one" if place == 0 else f"y{place - 1}"], [f"y{place}"], options("Abs")) for place in range(70)
    ]
    model = build(tensors, calls, ["x", "row", "one"], ["y", *(f"y{place}" for place in range(70))])
    bundle = tfq.export_bundle(model, tfq.ExportConfig(platform=("linux",), num_golden=1), out=tmp_path)
    assert {result.status for result in bundle.self_tests} <= {"passed", "not run"}, bundle.self_tests
    assert bundle.self_tests[0].status == "passed"
    example = json.loads((bundle.folder / "golden/golden.json").read_text())["examples"][0]
    assert [entry["source"]["shape"] for entry in example["inputs"]] == [[1, 4], [4], []]


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (absolute(outputs=["y", "x"]), "input,"),
        (absolute(outputs=["y", "y"]), "output,"),
        (absolute(shape=(1, 0)), "values,"),
        (dynamic_output(0), "fixed"),
        (dynamic_output(1), "fixed"),
        (build({"c": constant([1.0]), "y": T("float32", (1,))}, [Call("ABS", ["c"], ["y"])], [], ["y"]), "inputs,"),
    ],
    ids=["returned input", "returned twice", "empty", "length by values", "dynamic axis", "no inputs"],
)
def test_models_that_clients_do_not_run_are_refused(model, word, tmp_path):
    for platform in ("linux", "web"):
        with refused(InputError, word=word):
            tfq.export_bundle(model, dataclasses.replace(LINUX, platform=(platform,)), out=tmp_path)


def test_value_labels_of_a_detector_are_not_names_of_scores(golden, tmp_path):
    model = golden / "metadata/object_detector.tflite"
    classes = auditing.io_table(model).outputs[1]
    assert (classes.labels, classes.value_labels) == (None, ("cat", "dog", "bird"))
    bundle = tfq.export_bundle(model, LINUX, out=tmp_path)
    assert (bundle.folder / "labels.txt").read_text() == "cat\ndog\nbird\n"
    outputs = json.loads((bundle.folder / "golden/golden.json").read_text())["examples"][0]["outputs"]
    assert not any("top" in output for output in outputs)


def test_a_map_of_classes_has_no_best_class(golden, tmp_path):
    bundle = tfq.export_bundle(golden / "metadata/image_segmenter.tflite", LINUX, out=tmp_path)
    assert "top" not in json.loads((bundle.folder / "golden/golden.json").read_text())["examples"][0]["outputs"][0]


def test_labels_in_the_file_that_do_not_fit_are_left_out_with_a_note(golden):
    content = (golden / "metadata/image_classifier.tflite").read_bytes()
    metadata = tflite.read_model_metadata(content)
    changed = tflite.write_model_metadata(content, metadata, {"labels.txt": b"cat\ndog\n", "german.txt": b""})
    table = auditing.io_table(changed)
    assert table.outputs[0].labels is None
    assert any("labels.txt" in note and "2 names" in note for note in table.notes)


def test_the_python_program_refuses_values_that_do_not_fit(golden, tmp_path):
    tokens = build(
        {"x": T("int32", (1, 4)), "y": T("int32", (1, 4))}, [Call("ABS", ["x"], ["y"], options("Abs"))], ["x"], ["y"]
    )
    module = module_of(tfq.export_bundle(tokens, LINUX, out=tmp_path).folder)
    (entry,) = module.IO["inputs"]
    assert module.preprocess([[1.0, 2, 3, 4]], entry).dtype == np.int32
    for values in ([[1.5, 2, 3, 4]], [[2**40, 2, 3, 4]]):
        with pytest.raises(ValueError, match="int32"):
            module.preprocess(np.array(values), entry)
    with pytest.raises(ValueError, match="shape"):
        module.Model().run([np.zeros((1, 5), np.int32)])
    quantized = {"name": "x", "dtype": "int8", "preprocessing": [{"step": "quantize", "scale": 0.1, "zero_point": 0}]}
    with pytest.raises(ValueError, match="NaN"):
        module.preprocess([[np.nan]], quantized)


def test_infinite_outputs_equal_themselves_and_nothing_else(tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    config = tfq.ExportConfig(platform=("linux", "web", "android"), labels=str(tmp_path / "labels.txt"), zip=False)
    model, zeros = absolute(op="LOG"), np.array([[0, 1, 0, 1]], np.float32)
    bundle = tfq.export_bundle(model, config, out=tmp_path, data=zeros)
    bundle.check()
    first = json.loads((bundle.folder / "golden/golden.json").read_text())["examples"][0]["outputs"][0]
    assert np.isneginf(read(bundle.folder, first)[0, 0]) and first["top"][-1]["score"] is None
    assert "const TOLERANCES = [0.0];" in (bundle.folder / "web/page.js").read_text()
    compare = module_of(bundle.folder).compare
    infinity, number = np.array([-np.inf], np.float32), np.array([3], np.float32)
    assert compare("x", infinity, infinity, is_output=True) == []
    assert compare("x", number, infinity, is_output=True) and compare("x", infinity, number, is_output=True)
    assert compare("x", np.array([2**60]), np.array([2**60 + 1]), is_output=True)


def test_data_without_examples_is_refused(tmp_path):
    with refused(InputError, field="data", got=()):
        tfq.export_bundle(absolute(), LINUX, out=tmp_path, data=np.float32(1))


def test_a_program_that_cannot_start_did_not_fail(tmp_path):
    (tmp_path / "cc").write_text("not a program")
    (tmp_path / "cc").chmod(0o755)
    commands = {"not run": [str(tmp_path / "cc")], "failed": ["sleep", "60"], "passed": ["true"]}
    for status, command in commands.items():
        assert run_program("C", command, tmp_path, timeout=0.2 if status == "failed" else 60).status == status


def test_names_cannot_change_the_structure_of_the_readme(tmp_path):
    names = {"in": "a`b|\n# c", "out": "</td>``"}
    tensors = {name: T("float32", (1, 4)) for name in names.values()}
    model = build(tensors, [Call("ABS", [names["in"]], [names["out"]])], [names["in"]], [names["out"]])
    bundle = tfq.export_bundle(model, LINUX, out=tmp_path, name="x\n# <script>*/")
    lines = (bundle.folder / "README.md").read_text().splitlines()
    assert lines[0] == "# x \\# &lt;script>\\*/"
    assert [line for line in lines if line.startswith("# ")] == lines[:1]
    assert "| input | `` a`b\\|?# c `` | 1 x 4 | float32 | none |" in lines


@pytest.mark.parametrize(("mean", "std"), [((1, 2), (1,)), ((1,), (0,)), ((), ())])
def test_normalization_that_does_not_fit_the_channels_is_refused(mean, std, tmp_path):
    described = TensorMetadata(process_units=(ProcessUnit(options=NormalizationOptions(mean=mean, std=std)),))
    graph = SubGraphMetadata(input_tensor_metadata=(described,), output_tensor_metadata=(TensorMetadata(),))
    model = tflite.write_model_metadata(absolute((1, 2, 2, 3)), ModelMetadata(subgraph_metadata=(graph,)))
    assert "mean" not in auditing.io_table(model).inputs[0].steps[0].values
    with refused(InputError, got="normalize"):
        tfq.export_bundle(model, LINUX, out=tmp_path, data=np.ones((1, 2, 2, 3), np.uint8))


def test_labels_that_fit_two_outputs_warn(tmp_path):
    model = build(
        {"x": T("float32", (1, 2)), "y": T("float32", (1, 2)), "z": T("float32", (1, 2))},
        [Call("ABS", ["x"], ["y"]), Call("ABS", ["y"], ["z"])],
        ["x"],
        ["y", "z"],
    )
    with warned("z"):
        assert output_for_labels(tflite.read(model), ("a", "b"), "labels.txt") == "y"
