# SPDX-License-Identifier: Apache-2.0
"""App bundles: their files, golden vectors, labels, refusals, and self-tests that fail for wrong values."""

import ctypes
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from messages import refused, warned

import tfq
from tfq import artifacts, registry, tflite, workflows
from tfq.config import TASKS, TOKENIZERS
from tfq.deploy import TASKS as MEDIAPIPE_TASKS
from tfq.deploy import Platform, metadata
from tfq.deploy.bundle import run_self_tests
from tfq.deploy.files import staged_folder, write_files, zip_bytes
from tfq.deploy.labels import read_labels
from tfq.deploy.platforms import linux, micro
from tfq.deploy.results import read_results, tolerance_of
from tfq.deploy.steps import apply_steps
from tfq.deploy.templates import c_string, fill, read_source
from tfq.deploy.tflm_measurement import Measurement
from tfq.errors import InputError, RequirementError, TfqError
from tfq.quant_math import quantize

LINUX = tfq.ExportConfig(platform=("linux",), self_test=False)


def images(count=4, height=12, width=10):
    """Return pixels from 0 to 255 in another size than the model's."""
    return np.random.default_rng(5).integers(0, 256, (count, height, width, 1), np.uint8)


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("".join(f"digit {number}\n" for number in range(10)))
    return path


@pytest.fixture(scope="module")
def preprocessed(golden, tmp_path_factory):
    """Return an int8 model that records the resizing and scaling of its images, as a conversion does."""
    path = tmp_path_factory.mktemp("model") / "digits.tflite"
    content = (golden / "digits_int8.tflite").read_bytes()
    record = {"resize": [8, 8], "scale": 16 / 255, "offset": 0.0}
    path.write_bytes(tflite.write_metadata(content, {"preprocessing": record}))
    return path


@pytest.fixture(scope="module")
def bundle(preprocessed, labels_file, tmp_path_factory):
    config = tfq.ExportConfig(platform=("linux",), labels=str(labels_file), description="Reads digits.")
    return tfq.export_bundle(preprocessed, config, out=tmp_path_factory.mktemp("out"), data=images())


def golden_json(folder):
    return json.loads((folder / "golden/golden.json").read_text())


def read(folder, entry):
    return np.fromfile(folder / entry["file"], entry["dtype"]).reshape(entry["shape"])


def self_tests(folder):
    """Return {name: result} of the self-tests of a bundle."""
    return {result.name: result for result in run_self_tests([registry.get(Platform, "linux")], folder)}


def test_the_self_tests_pass_where_they_can_run(bundle):
    statuses = {result.name: result.status for result in bundle.self_tests}
    assert statuses["Python"] == "passed", bundle.self_tests
    assert statuses["C"] == ("passed" if shutil.which("gcc") or shutil.which("cc") else "not run")
    bundle.check()


def test_golden_vectors_hold_what_the_interpreter_computes(bundle, preprocessed):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(preprocessed))
    interpreter.allocate_tensors()
    detail, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    document = golden_json(bundle.folder)
    assert document["is_real"] and len(document["examples"]) == 3
    for example, image in zip(document["examples"], images(), strict=False):
        assert (read(bundle.folder, example["inputs"][0]["source"])[0] == image).all()
        interpreter.set_tensor(detail["index"], read(bundle.folder, example["inputs"][0]))
        interpreter.invoke()
        output = interpreter.get_tensor(result["index"])
        assert (read(bundle.folder, example["outputs"][0]) == output).all()
        scale, zero_point = result["quantization"]
        real = (output.astype(np.int32) - zero_point) * np.float32(scale)
        decoded = {**example["outputs"][0], "file": example["outputs"][0]["decoded_file"], "dtype": "float32"}
        assert np.allclose(read(bundle.folder, decoded), real, rtol=1e-6)
        assert example["outputs"][0]["top"][0]["label"] == f"digit {real.argmax()}"


def test_pictures_show_bytes_as_they_are_and_other_ranges_visibly(bundle, preprocessed, tmp_path):
    from PIL import Image

    stored = Image.open(bundle.folder / golden_json(bundle.folder)["examples"][1]["inputs"][0]["picture"])
    assert (np.asarray(stored) == images()[1, :, :, 0]).all()
    digits = (images(1) / 16).astype(np.float32)  # from 0 to 16
    config = dataclasses.replace(LINUX, num_golden=1)
    drawn = tfq.export_bundle(preprocessed, config, out=tmp_path, data=digits).folder / "golden/0_input_0.png"
    pixels = np.asarray(Image.open(drawn))
    assert pixels.min() == 0 and pixels.max() == 255


def test_golden_inputs_equal_tensorflows_resize_and_the_quantize_op(bundle, preprocessed):
    """The formulas of both, in float64."""
    first = golden_json(bundle.folder)["examples"][0]["inputs"][0]
    image = images()[0, :, :, 0].astype(np.float64)
    rows, columns = ((np.arange(8) + 0.5) * size / 8 - 0.5 for size in image.shape)
    resized = np.array([[bilinear(image, y, x) for x in columns] for y in rows]) * 16 / 255
    tensor = tflite.read(preprocessed.read_bytes()).main_subgraph.input_tensors[0]
    expected = resized / tensor.scale[0] + tensor.zero_point[0]
    assert np.abs(read(bundle.folder, first)[0, :, :, 0] - expected).max() <= 0.5 + 1e-3


def bilinear(image, y, x):
    top, left = int(np.floor(y)), int(np.floor(x))

    def at(row, column):
        return image[min(max(row, 0), image.shape[0] - 1), min(max(column, 0), image.shape[1] - 1)]

    down, across = y - top, x - left
    upper = at(top, left) * (1 - across) + at(top, left + 1) * across
    return upper * (1 - down) + (at(top + 1, left) * (1 - across) + at(top + 1, left + 1) * across) * down


@pytest.mark.parametrize("part", ["output", "source", "model"])
def test_a_corrupted_bundle_fails_its_self_tests(bundle, part, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder)
    example = golden_json(folder)["examples"][1]
    if part == "model":
        content = bytearray((folder / "model.tflite").read_bytes())
        weights = max(
            (item for item in tflite.read(bytes(content)).main_subgraph.tensors if item.is_constant),
            key=lambda item: item.buffer_bytes,
        )
        span = slice(weights.buffer_offset, weights.buffer_offset + weights.buffer_bytes)
        content[span] = bytes(reversed(content[span]))
        (folder / "model.tflite").write_bytes(content)
    else:
        entry = example["outputs"][0] if part == "output" else example["inputs"][0]["source"]
        values = bytearray((folder / entry["file"]).read_bytes())
        values[0] ^= 0x40
        (folder / entry["file"]).write_bytes(values)
    for name, result in self_tests(folder).items():
        assert result.status in ("failed", "not run"), name
        assert "differ" in result.detail or result.status == "not run"


def test_a_failed_self_test_is_a_missed_requirement(bundle):
    failed = dataclasses.replace(
        bundle, self_tests=(tfq.SelfTestResult(name="C", status="failed", detail="exit code 1"),)
    )
    with refused(RequirementError, field="export.self_test", got=["C"]):
        failed.check()
    assert [item["holds"] for item in failed.requirements()] == [False]
    assert [item["holds"] for item in bundle.requirements()] == [True] * len(bundle.requirements())


def test_the_exported_model_has_standard_metadata_and_labels(bundle):
    with zipfile.ZipFile(bundle.folder / "model.tflite") as archive:
        assert archive.read("labels.txt").decode().splitlines() == [f"digit {number}" for number in range(10)]
    table = json.loads((bundle.folder / "io.json").read_text())
    assert table["metadata"]["description"] == "Reads digits."
    assert [step["step"] for step in table["inputs"][0]["preprocessing"]] == ["resize", "scale_offset", "quantize"]
    assert table["outputs"][0]["labels"][3] == "digit 3"


def test_the_folder_and_the_archive_have_the_same_files(bundle):
    files = {str(path.relative_to(bundle.folder)): path for path in bundle.folder.rglob("*") if path.is_file()}
    assert {name: artifacts.sha256_file(path) for name, path in files.items()} == dict(bundle.files)
    with zipfile.ZipFile(bundle.zip) as archive:
        assert {name.removeprefix("bundle/") for name in archive.namelist()} == set(files)
        assert archive.read("bundle/README.md") == files["README.md"].read_bytes()
    assert zip_bytes({"a": b"1", "b": b"2"}, "x") == zip_bytes({"b": b"2", "a": b"1"}, "x")


def test_the_readme_says_what_is_missing(bundle):
    text = (bundle.folder / "README.md").read_text()
    assert "Not known" in text and "tfq evaluate" in text
    assert "`probabilities`" in text


def test_a_bundle_replaces_a_bundle_and_nothing_else(golden, tmp_path):
    model = golden / "digits_float32.tflite"
    with warned("random"):
        tfq.export_bundle(model, LINUX, out=tmp_path)
    (tmp_path / "bundle/python/mine.py").touch()
    (tmp_path / "bundle/web/node_modules").mkdir(parents=True)
    (tmp_path / "bundle/web/node_modules/x.js").touch()
    (tmp_path / "bundle/link").symlink_to("missing")
    with warned("random"):
        tfq.export_bundle(model, dataclasses.replace(LINUX, platform=("ios",)), out=tmp_path)
    assert not (tmp_path / "bundle/python/run_model.py").exists() and (tmp_path / "bundle/ios").is_dir()
    for name in ("python/mine.py", "web/node_modules/x.js"):
        assert (tmp_path / "bundle" / name).is_file()
    assert (tmp_path / "bundle/link").is_symlink()
    (tmp_path / "bundle/ios/Model.swift").write_text("edited")
    with refused(InputError, field="out", word="Model.swift"):
        tfq.export_bundle(model, LINUX, out=tmp_path)
    (tmp_path / "other/bundle").mkdir(parents=True)
    (tmp_path / "other/bundle/mine.txt").touch()
    with refused(InputError, field="out"):
        tfq.export_bundle(model, LINUX, out=tmp_path / "other")
    assert (tmp_path / "other/bundle/mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "bundle", "bundle.zip", "other"]
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip/bundle.zip").write_bytes(zip_bytes({"mine.txt": b""}, "bundle"))
    with refused(InputError, field="out", word="bundle.zip"):
        tfq.export_bundle(model, dataclasses.replace(LINUX, zip=False), out=tmp_path / "zip")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_earlier_folder(tmp_path, error):
    target = tmp_path / "bundle"
    with staged_folder(target) as fresh:
        write_files(fresh, {"a/b.txt": b"first"})
    with pytest.raises((TfqError, KeyboardInterrupt)), staged_folder(target) as fresh:
        write_files(fresh, {"a/b.txt": b"second"})
        raise error
    assert (target / "a/b.txt").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_process_that_is_killed_between_two_renames_loses_nothing(tmp_path):
    (tmp_path / ".bundle.old").mkdir()
    (tmp_path / ".bundle.old/mine.txt").touch()
    artifacts.sweep(tmp_path)
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "bundle"):
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["mine.txt"]


def test_folders_of_killed_processes_are_deleted(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f".tfq-{process.pid}-bundle.1"
    left.mkdir()
    (left / "file").touch()
    artifacts.sweep(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize(
    ("text", "got"),
    [("a\nb\na\n", 3), ("a\nb\x0cc\n", 2), ("a\0\n", 1), ("a\n\nb\n", 2), ("\n\n", 0), ("\ufeffa\r\n b\r\n\n", None)],
)
def test_labels_are_checked_with_their_lines(tmp_path, text, got):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    if got is None:
        assert read_labels(str(path)) == ("a", "b")
        return
    with refused(InputError, field="export.labels", got=got):
        read_labels(str(path))


def test_labels_that_no_output_has_are_refused(golden, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    config = tfq.ExportConfig(platform=("linux",), labels=str(tmp_path / "labels.txt"))
    with refused(InputError, field="export.labels", got=2, expected=(10,)):
        tfq.export_bundle(golden / "digits_int8.tflite", config, out=tmp_path)


def test_a_platform_is_required_and_known(golden, tmp_path):
    with refused(InputError, field="export.platform", got=()):
        tfq.export_bundle(golden / "digits_int8.tflite", tfq.ExportConfig(), out=tmp_path)
    with refused(InputError, word="'linux'"):
        tfq.ExportConfig(platform=("linus",))


def test_a_file_that_is_not_a_tflite_is_refused(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"PK\3\4" * 100)
    with refused(tfq.FlatbufferError):
        tfq.export_bundle(tmp_path / "model.tflite", LINUX, out=tmp_path)


def test_a_task_refuses_a_file_with_the_conversion_that_works(golden):
    words = {"limit": "refused-by-task", "word": "conversion.inference_input_type=uint8"}
    with refused(InputError, field="export.task", **words):
        tfq.add_metadata(golden / "digits_int8.tflite", tfq.ExportConfig(task="image_classifier"))


def test_a_platform_refuses_a_file_with_the_conversion_that_works(golden, tmp_path):
    config = tfq.ExportConfig(platform=("web",))
    with refused(InputError, field="export.platform", limit="refused-by-platform", word="uint8"):
        tfq.export_bundle(golden / "digits_int8.tflite", config, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_large_difference_on_a_microcontroller_is_a_warning_everywhere(golden, tmp_path, monkeypatch):
    monkeypatch.setattr(micro, "measure", lambda *_: Measurement(arena=1000, differences=(60.0,)))
    config = tfq.ExportConfig(platform=("micro",), self_test=False, zip=False)
    data = np.zeros((1, 8, 8, 1), np.float32)
    with warned("builtin"):
        bundle = tfq.export_bundle(golden / "digits_int8_per_tensor_dense.tflite", config, out=tmp_path, data=data)
    assert any("60" in note and "builtin" in note for note in bundle.notes)
    assert "**Warning**: TensorFlow Lite Micro differs from XNNPACK by 60" in (bundle.folder / "README.md").read_text()


def test_a_large_recorded_difference_is_a_warning_in_the_readme(golden, tmp_path):
    model = golden / "digits_int8.tflite"
    output = {"name": "probabilities", "max_abs_error_lsb": 60, "num_different": 9, "compared": 10}
    difference = {"max_abs_error_lsb": 60, "outputs": [output]}
    record = {
        "sha256": {"model": artifacts.sha256_file(model)},
        "evaluation": {"accuracy": None, "accuracy_reason": "no labels"},
        "portability": {"rows": {"qemu:x": {"status": "ran", "difference": difference}}},
    }
    config = tfq.ExportConfig(platform=("ios",), zip=False)
    with warned("qemu:x"):
        bundle = tfq.export_bundle(model, config, out=tmp_path, data=np.zeros((1, 8, 8, 1), "f4"), record=record)
    assert "**Warning**: backend qemu:x differs" in (bundle.folder / "README.md").read_text()
    assert "tolerance: 60" in (bundle.folder / "ios/SelfTest.swift").read_text()
    del difference["max_abs_error_lsb"]
    with refused(InputError, field="record", word="damaged"):
        tfq.export_bundle(model, config, out=tmp_path, record=record)


def test_a_setting_for_another_kind_of_input_is_refused(golden):
    with refused(InputError, field="export.sample_rate", got=16_000):
        tfq.add_metadata(golden / "digits_int8.tflite", tfq.ExportConfig(sample_rate=16_000))
    with refused(InputError, field="export.audio_channels", got=2):
        tfq.add_metadata(golden / "digits_int8.tflite", tfq.ExportConfig(audio_channels=2))
    with refused(InputError, field="export.kinds", got="image"):
        tfq.add_metadata(golden / "digits_int8.tflite", tfq.ExportConfig(kinds=("image",)))


def test_tasks_and_tokenizers_of_the_config_are_those_of_deploy():
    assert [task.name for task in MEDIAPIPE_TASKS] == list(TASKS)
    assert [item.name for item in metadata.TOKENIZERS] == list(TOKENIZERS)


def test_results_are_found_next_to_the_file(golden, tmp_path):
    shutil.copy(golden / "digits_int8.tflite", tmp_path / "m.tflite")
    sha256 = artifacts.sha256_file(tmp_path / "m.tflite")
    output = {"name": "probabilities", "max_abs_error_lsb": 2, "num_different": 1, "compared": 10}
    row = {"status": "ran", "difference": {"outputs": [output], "max_abs_error_lsb": 2}}
    record = {
        "command": "evaluate",
        "sha256": {"model": sha256},
        "evaluation": {"accuracy": 0.5},
        "portability": {"rows": {"qemu:x": row}},
    }
    (tmp_path / "evaluate.json").write_text(json.dumps(record))
    results = read_results(sha256, "", tmp_path)
    assert tolerance_of(results) == {"qemu:x": {"probabilities": {"quantized": 2}}}
    assert read_results("0" * 64, "", tmp_path).missing
    with refused(InputError, field="export.record"):
        read_results("0" * 64, str(tmp_path / "evaluate.json"), None)
    row["difference"] = {"outputs": [{"name": "probabilities"}]}
    (tmp_path / "evaluate.json").write_text(json.dumps(record))
    with refused(InputError, field="export.record", word="damaged"):
        read_results(sha256, "", tmp_path)


def test_steps_equal_those_of_evaluation():
    """The steps of io.json give the same bits as the path of `tfq evaluate`."""
    config = tfq.DataConfig(resize=(5, 7), scale=1 / 127.5, offset=-1.0)
    pixels = images()
    expected = tfq.data.preprocess({"x": pixels}, config, "test")["x"]
    entry = {
        "dtype": "int8",
        "preprocessing": [
            {"step": "resize", "height": 5, "width": 7},
            {"step": "scale_offset", "scale": 1 / 127.5, "offset": -1.0},
            {"step": "quantize", "scale": 0.0078125, "zero_point": -1, "dtype": "int8"},
        ],
    }
    assert (apply_steps(pixels, entry, "x") == quantize(expected, 0.0078125, -1)).all()
    with refused(InputError, got="blur"):
        apply_steps(pixels, {"dtype": "int8", "preprocessing": [{"step": "blur"}]}, "x")


def test_marked_parts_of_sources_are_replaced():
    text = "a\n/* tfq:begin values */\nold\n/* tfq:end values */\nb\n"
    assert fill(text, {"values": "new \\1"}) == "a\nnew \\1\nb\n"
    with pytest.raises(ValueError):
        fill(text, {"other": ""})


def test_c_strings_keep_every_byte(tmp_path):
    text = 'é"\\\n??/日本'
    literal = c_string(text)
    assert literal.isascii() and "\n" not in literal
    compiler = shutil.which("gcc")
    if compiler:
        program = f"#include <stdio.h>\nint main(void) {{ return fputs({literal}, stdout) < 0; }}\n"
        subprocess.run([compiler, "-xc", "-", "-o", tmp_path / "x"], input=program.encode(), check=True)
        assert subprocess.run([tmp_path / "x"], capture_output=True, check=True).stdout == text.encode()


def test_the_c_program_declares_functions_that_the_library_has():
    library = ctypes.CDLL(str(linux.litert_folder() / "libLiteRt.so"))
    names = set(re.findall(r"\b(LiteRt\w+)\(", read_source("c/litert.h")))
    used = set(re.findall(r"\b(LiteRt\w+)\(", read_source("c/model.c")))
    assert len(names) > 20 and used == names
    assert [name for name in sorted(names) if not hasattr(library, name)] == []
    assert not hasattr(library, "LiteRtGetSignatureInputColor")


def test_the_folder_of_a_run_exports_its_last_flatbuffer(golden, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(golden / "digits_int8.tflite", run / "small.tflite")
    config = tfq.RunConfig(model=str(run), out=str(tmp_path / "out"), export=LINUX)

    def export(*files):
        (run / "report.json").write_text(json.dumps({"models": [{"file": file} for file in files]}))
        return workflows.export(config)

    with warned("random"):
        exported = export("float.tflite", "small.tflite")
    assert exported.sha256["model"] == hashlib.sha256((run / "small.tflite").read_bytes()).hexdigest()
    for files in ((), ("../run/small.tflite",)):
        with refused(InputError, field="model"):
            export(*files)
    with refused(InputError, field="model", word="report.json"):
        workflows.export(dataclasses.replace(config, model=str(tmp_path)))


def test_a_platform_without_a_bundle_is_a_warning(golden, tmp_path):
    settings = dataclasses.replace(LINUX, metadata_only=True)
    config = tfq.RunConfig(model=str(golden / "digits_int8.tflite"), out=str(tmp_path), export=settings)
    with warned("export.platform"):
        assert workflows.export(config).bundle is None
