# SPDX-License-Identifier: Apache-2.0
"""A sequence of commands on a user's own .npz, and invalid inputs, each with its message and exit code."""

import json
import re

import numpy as np
import pytest

import tfq
from tfq.cli.main import COMMANDS
from tfq.keras_bridge import import_keras, import_tf_keras


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def npz(work):
    """Three-color blobs: easy, and not the digits that tfq was tuned on."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 360)
    x = rng.normal(0, 0.3, (360, 6, 6, 3)) + np.eye(3)[labels][:, None, None, :]
    path = work / "blobs.npz"
    parts = {"train": slice(0, 240), "val": slice(240, 280), "test": slice(280, 360)}
    arrays = {f"x_{name}": x[part].astype(np.float32) for name, part in parts.items()}
    np.savez(path, **arrays, **{f"y_{name}": labels[part] for name, part in parts.items()})
    return path


def blob_model(keras):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3), name="pixels")
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="class")(x), name="blobs")


@pytest.fixture(scope="module")
def trained(work, npz):
    """Trained models: a .keras of tf_keras and of Keras 3, and an .h5."""
    arrays = np.load(npz)
    paths = {}
    for name, keras in {"two": import_tf_keras(), "three": import_keras()}.items():
        model = blob_model(keras)
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        model.fit(arrays["x_train"], arrays["y_train"], epochs=25, batch_size=16, verbose=0)
        for suffix in ("keras", "h5"):
            paths[f"{name}.{suffix}"] = work / f"{name}.{suffix}"
            model.save(str(paths[f"{name}.{suffix}"]))
    return paths


def good(done):
    assert done.returncode == 0, done.stderr
    return done


def check_pages(out, tmp_path):
    """Check that all pages in a folder can be rebuilt from the records there."""
    pages = [page for page in tfq.build_report(out, tmp_path) if page.name != "index.html"]
    assert pages and all(page.read_bytes() == (out / page.name).read_bytes() for page in pages)


def test_the_whole_way_script_by_script(tfq_here, work, npz, trained, tmp_path):
    out = work / "way"
    data = f"--data=npz:{npz}"
    good(tfq_here("convert", f"--model={trained['two.keras']}", data, "--scheme=float32", f"--out={out}"))
    good(tfq_here("convert", f"--model={trained['two.keras']}", data, "--num_calibration_samples=100", f"--out={out}"))
    good(
        tfq_here(
            "compress", f"--model={trained['two.keras']}", data, "--prune.final_sparsity=0.5", "--prune.frequency=5",
            "--cluster", "--cluster.layers=conv", "--cluster.number_of_clusters=7", "--train.epochs=6", f"--out={out}",
        )
    )  # fmt: skip
    check_pages(out, tmp_path)
    record = json.loads((out / "compress.json").read_text())
    assert record["sparsity"]["conv"] >= 0.49
    assert record["clusters"] == {"conv": 7}
    good(tfq_here("convert", f"--model={out}/two_pruned_clustered_qat.h5", data, f"--out={out}"))
    for name in ("two_int8", "two_pruned_clustered_qat_int8"):
        file = out / f"{name}.tflite"
        good(tfq_here("audit", f"--model={file}", "--require=full_int8"))
        done = good(
            tfq_here(
                "evaluate", f"--model={file}", f"--reference={out}/two_float32.tflite", data, "--format=json",
                "--require.min_accuracy=0.9", "--require.min_agreement=0.9", "--require.max_accuracy_drop=0.1",
            )
        )  # fmt: skip
        message = json.loads(done.stdout)
        assert message["evaluation"]["accuracy"] > 0.9
        assert message["evaluation"]["num_examples"] == 80
        assert message["evaluation"]["latency_p50_ms"] > 0


@pytest.mark.parametrize("file", ["two.keras", "two.h5", "three.keras", "three.h5"])
def test_every_kind_of_keras_file_converts_to_full_int8(file, tfq_here, work, npz, trained):
    out = work / file.replace(".", "_")
    good(tfq_here("convert", f"--model={trained[file]}", f"--data=npz:{npz}", f"--out={out}"))
    (content,) = out.glob("*.tflite")
    assert tfq.audit(content.read_bytes(), tfq.AuditConfig(require="full_int8")).ok


def test_run_takes_a_file_and_reports(tfq_here, work, npz, trained, tmp_path):
    out = work / "run"
    done = good(
        tfq_here(
            "run", f"--model={trained['two.h5']}", f"--data=npz:{npz}", f"--out={out}", "--compression.train.epochs=2",
            "--compression.prune.frequency=5", "--audit.require=full_int8", "--evaluation.num_runs=10",
            "--benchmark.min_secs=0", "--benchmark.num_runs=5", "--export.platform=linux",
        )
    )  # fmt: skip
    record = json.loads((out / "report.json").read_text())
    assert [model["name"] for model in record["models"]] == ["float", "ptq_int8", "pruned_qat_int8"]
    assert all((out / model["file"]).exists() for model in record["models"])
    check_pages(out, tmp_path)
    assert record["stages"][0]["skipped"]
    for part in ("float", "PTQ int8", "pruned + QAT int8"):
        assert part in done.stdout
    assert "<svg" in (out / "report.html").read_text()
    assert "(bundle/README.md)" in (out / "report.md").read_text()
    assert record["bundle"]["model"] == record["models"][-1]["file"]
    assert record["bundle"]["golden"]["is_real"]
    assert record["models"][-1]["evaluation"]["accuracy"] is not None
    assert "test examples" in (out / "bundle" / "README.md").read_text()


def test_run_compresses_a_keras_3_model_and_returns_it_trained(tfq_here, work, npz, trained):
    out = work / "run3"
    done = good(
        tfq_here(
            "run", f"--model={trained['three.keras']}", f"--data=npz:{npz}", f"--out={out}", "--evaluation.num_runs=5",
            "--compression.train.epochs=2", "--compression.prune.frequency=5", "--audit.require=full_int8",
            "--benchmark.min_secs=0", "--benchmark.num_runs=5", "--nobenchmark.ops",
        )
    )  # fmt: skip
    assert "pruned + QAT int8" in done.stdout
    compressed = next(
        stage["details"]
        for stage in json.loads((out / "report.json").read_text())["stages"]
        if "bridge" in stage["details"]
    )
    assert compressed["bridge"]["max_difference"] <= 1e-4
    assert compressed["preflight"]["ok"]
    keras = import_keras()
    returned = keras.saving.load_model(out / "three_pruned_qat.keras", compile=False)
    provided = keras.saving.load_model(trained["three.keras"], compile=False)
    assert [layer.name for layer in returned.layers] == [layer.name for layer in provided.layers]
    zeros = np.mean(returned.get_layer("conv").get_weights()[0] == 0)
    assert zeros == pytest.approx(compressed["sparsity"]["conv"])
    assert zeros > 0.4


def test_preflight_prints_a_table_and_exits_1_for_unsupported_layers(tfq_here, work, trained):
    done = good(tfq_here("compress", f"--model={trained['three.keras']}", "--preflight", f"--out={work / 'preflight'}"))
    assert "0 unsupported" in done.stdout
    rows = json.loads((work / "preflight" / "preflight.json").read_text())["preflight"]["layers"]
    assert {row["name"]: row["prunable"] for row in rows}["conv"]
    keras = import_keras()
    x = keras.Input((4,))
    pooled = keras.layers.AdaptiveAveragePooling1D(3, name="odd")(keras.layers.Reshape((4, 1))(x))
    keras.Model(x, keras.layers.Dense(2)(keras.layers.Flatten()(pooled))).save(work / "odd.keras")
    done = tfq_here("compress", f"--model={work / 'odd.keras'}", "--preflight")
    assert done.returncode == 1
    assert "odd" in done.stdout
    assert tfq_here("compress", f"--model={work / 'odd.keras'}", f"--out={work / 'odd'}").returncode == 2


def test_missed_requirements_exit_1_and_say_by_how_much(tfq_here, work, npz, trained, golden):
    floating, out = golden / "digits_float32.tflite", work / "missed"
    done = tfq_here("audit", f"--model={floating}", "--require=full_int8", f"--out={out}")
    assert done.returncode == 1
    assert (out / "audit.json").exists()
    done = tfq_here("evaluate", f"--model={golden}/digits_int8.tflite", "--data=digits", "--require.min_accuracy=0.999")
    assert done.returncode == 1
    assert "0.999" in done.stderr


def test_without_labels_accuracy_is_null_with_its_reason(tfq_here, work, golden):
    path = work / "unlabelled.npz"
    np.savez(path, x_test=np.random.default_rng(0).uniform(0, 16, (30, 8, 8, 1)).astype(np.float32))
    command = ["evaluate", f"--model={golden}/digits_int8.tflite", f"--reference={golden}/digits_float32.tflite"]
    message = json.loads(good(tfq_here(*command, f"--data=npz:{path}", "--format=json")).stdout)["evaluation"]
    assert message["accuracy"] is None
    assert "label" in message["accuracy_reason"]
    assert message["agreement"] is not None
    assert message["output_sqnr_db"] is not None


def test_wrong_preprocessing_is_warned_of(tfq_here, golden):
    done = tfq_here("evaluate", f"--model={golden}/digits_int8.tflite", "--data=digits", "--data.scale=16")
    assert done.returncode == 0
    assert "clipped" in done.stderr
    assert "--data.scale" in done.stderr
    done = tfq_here("evaluate", f"--model={golden}/digits_int8.tflite", "--data=digits", "--data.scale=0.0625")
    assert "range" in done.stderr


def test_builtin_kernels_are_distinguished_from_xnnpack(tfq_here, golden):
    command = ["evaluate", f"--model={golden}/digits_int8.tflite", "--data=digits", "--format=json", "--limit=50"]
    delegated = json.loads(good(tfq_here(*command)).stdout)["evaluation"]["delegated_ops"]
    assert delegated > 0
    assert json.loads(good(tfq_here(*command, "--noxnnpack")).stdout)["evaluation"]["delegated_ops"] == 0


def test_a_pipe_gets_a_line_for_each_stage_and_no_noise(tfq_cli, work, npz, trained):
    done = good(tfq_cli("convert", f"--model={trained['two.h5']}", f"--data=npz:{npz}", f"--out={work / 'quiet'}"))
    assert len(done.stdout.splitlines()) == 3  # the file, the fact that it runs, its output
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert [line for line in lines if not re.fullmatch(r"\[ *\d+\.\d s\] \w.*", line)] == []
    for word in ("starting", "importing", "loading", "reading", "tracing", "calibrating", "quantizing", "verifying"):
        assert sum(f"] {word}" in line for line in lines) == 1, word


@pytest.fixture(scope="module")
def bad_files(work, golden):
    import zipfile

    import h5py

    directory = work / "bad"
    (directory / "directory.keras").mkdir(parents=True)
    (directory / "empty.tflite").touch()
    (directory / "text.tflite").write_text("this is a text, and no model at all")
    content = (golden / "digits_int8.tflite").read_bytes()
    (directory / "cut.tflite").write_bytes(content[: len(content) // 2])
    with h5py.File(directory / "no_model.h5", "w") as file:
        file["x"] = np.zeros(3)
    for name, keras in {"two": import_tf_keras(), "three": import_keras()}.items():
        inputs = keras.Input((6, 6, 3))
        hostile = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2.0, name="payload")(inputs))
        for suffix in ("h5", "keras"):
            hostile.save(str(directory / f"lambda_{name}.{suffix}"))
    with zipfile.ZipFile(directory / "no_config.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    return directory


@pytest.mark.parametrize(
    ("command", "file", "message"),
    [
        ("convert", "missing.keras", "does not exist"),
        ("audit", "missing.tflite", "does not exist"),
        ("convert", "directory.keras", "is a directory"),
        ("audit", "", "is a directory"),
        ("audit", "empty.tflite", "is empty"),
        ("evaluate", "empty.tflite", "is empty"),
        ("audit", "text.tflite", "TFL3"),
        ("evaluate", "text.tflite", "TFL3"),
        ("audit", "cut.tflite", "byte"),
        ("evaluate", "cut.tflite", "byte"),
        ("convert", "no_model.h5", "model_config"),
        ("convert", "no_config.keras", "config.json"),
        ("convert", "lambda_two.h5", "payload"),
        ("convert", "lambda_two.keras", "payload"),
        ("convert", "lambda_three.h5", "payload"),
        ("convert", "lambda_three.keras", "payload"),
        ("compress", "lambda_two.h5", "payload"),
    ],
)
def test_a_bad_model_file_is_exit_2_with_its_own_message(command, file, message, tfq_here, bad_files, npz, work):
    out = [] if command in ("audit", "evaluate") else [f"--out={work / 'never'}"]
    data = [] if command == "audit" else [f"--data=npz:{npz}"]
    done = tfq_here(command, f"--model={bad_files / file}", *data, *out)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": np.zeros((4, 9, 9, 1)), "y_test": np.zeros(4, int)}, "9, 9"),
        ({"x_test": np.zeros((4, 8, 8, 1)), "y_test": np.array([0, 1, 2, 10])}, "10"),
        ({"x_test": np.zeros((4, 8, 8, 1)), "y_test": np.array([0, 1, -2, 1])}, "-2"),
        ({"x_test": np.zeros((0, 8, 8, 1)), "y_test": np.zeros(0, int)}, "is empty"),
        ({"x_test": np.full((4, 8, 8, 1), np.nan), "y_test": np.zeros(4, int)}, "NaN"),
        ({"x_test": np.zeros((4, 8, 8, 1)), "y_test": np.zeros(3, int)}, "3"),
        ({"images": np.zeros((4, 8, 8, 1))}, "x_test"),
    ],
)
def test_bad_data_is_exit_2_with_its_own_message(arrays, message, tfq_here, work, golden):
    path = work / "bad.npz"
    np.savez(path, **arrays)
    done = tfq_here("evaluate", f"--model={golden}/digits_int8.tflite", f"--data=npz:{path}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--data=digits", "--backend=qemu:cortex-a67"], "did you mean 'qemu:cortex-a76'"),
        (["evaluate", "--data=digitz"], "did you mean 'digits'"),
        (["evaluate", "--data=npz:nowhere.npz"], "does not exist"),
        (["evaluate", "--data=tfrecord:nowhere-*"], "nowhere-"),
        (["evaluate", "--data=digits", "--reference=nowhere.tflite"], "does not exist"),
        (["audit", "--require=full_int9"], "full_int8"),
    ],
)
def test_a_bad_name_is_exit_2_with_its_own_message(arguments, message, tfq_here, golden):
    command, *rest = arguments
    done = tfq_here(command, f"--model={golden}/digits_int8.tflite", *rest)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_an_out_below_a_file_is_exit_2_before_any_work(tfq_here, work, npz, trained):
    (work / "file").write_text("x")
    for command in ("train", "convert", "run", "compress"):
        model = "--model=digits_cnn" if command == "train" else f"--model={trained['two.h5']}"
        done = tfq_here(command, model, f"--data=npz:{npz}", f"--out={work}/file/below")
        assert done.returncode == 2
        assert "file/below" in done.stderr


@pytest.mark.parametrize("command", ["convert", "compress", "run"])
def test_a_missing_model_or_an_unknown_name_is_exit_2(command, tfq_here, work):
    assert tfq_here(command, f"--out={work / 'x'}").returncode == 2
    done = tfq_here(command, "--model=resnet9", "--data=digits", f"--out={work / 'x'}")
    assert done.returncode == 2


@pytest.mark.parametrize(
    "command", sorted(set(COMMANDS) - {"audit", "benchmark", "compare", "export", "report", "sweep"})
)
def test_missing_data_are_reported_before_the_model_is_loaded(command, tfq_here, work, monkeypatch):
    monkeypatch.setattr("tfq.workflows.load", lambda *_, **__: pytest.fail("loaded"))
    (work / "never_read.keras").write_text("x")
    done = tfq_here(command, f"--model={work}/never_read.keras", f"--out={work / 'x'}")
    assert done.returncode == 2
    assert "--data" in done.stderr


def test_train_suggests_a_model(tfq_here, work):
    done = tfq_here("train", "--model=digit_cnn", "--data=digits", f"--out={work / 'x'}")
    assert done.returncode == 2
    assert "'digits_cnn'" in done.stderr


def test_ctrl_c_is_exit_130_and_leaves_no_half_file(work, npz, trained):
    import os
    import signal
    import subprocess
    import sys
    import time

    out = work / "interrupted"
    command = ["compress", f"--model={trained['two.h5']}", f"--data=npz:{npz}", "--train.epochs=2000", f"--out={out}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfq", *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stderr:
        if "pruning" in line:
            break
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "interrupted" in message
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_train_never_changes_the_file_that_it_reads(tfq_here, work, trained):
    before = trained["two.keras"].read_bytes()
    done = tfq_here("train", f"--model={trained['two.keras']}", "--data=digits", f"--out={work}")
    assert done.returncode == 2
    assert "(6, 6, 3)" in done.stderr  # of the model, which digits do not fit
    assert trained["two.keras"].read_bytes() == before


def test_a_model_with_its_own_batch_size_converts_at_that_size(tfq_here, work, npz):
    keras = import_tf_keras()
    inputs = keras.Input((6, 6, 3), batch_size=4, name="pixels")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="pool")(inputs))
    model.save(str(work / "batched.h5"))
    command = ["convert", f"--model={work}/batched.h5", f"--data=npz:{npz}", f"--out={work}/batched"]
    assert tfq_here(*command).returncode == 2
    good(tfq_here(*command, "--scheme=float32", "--batch_size=4"))


def test_convert_audits_against_the_types_that_were_asked_for(tfq_here, work, npz, trained):
    out = work / "uint8"
    command = ["convert", f"--model={trained['two.h5']}", f"--data=npz:{npz}", f"--out={out}"]
    good(tfq_here(*command, "--inference_input_type=uint8", "--inference_output_type=float32"))
    record = json.loads((out / "convert.json").read_text())
    assert record["audit"]["ok"]
    assert record["sha256"]["data"].keys() == {"train[:200]"}
    assert record["sha256"]["model"]


def test_a_run_refuses_settings_that_it_would_ignore(tfq_here, work, trained):
    out = work / "refused"
    model = ["run", f"--model={trained['two.h5']}", "--data=digits", f"--out={out}"]
    for ignored in (
        "--conversion.scheme=float32",
        "--evaluation.reference=x.tflite",
        "--evaluation.backends=none,local",
        "--compression.train.epochs=0",
    ):
        done = tfq_here(*model, ignored)
        assert done.returncode == 2, ignored
        assert ignored[2:].partition("=")[0].rpartition(".")[2] in done.stderr
    assert not out.exists() or list(out.iterdir()) == []


def test_help_into_a_closed_pipe_prints_no_traceback(work):
    import subprocess
    import sys

    command = f"{sys.executable} -m tfq run --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 3)


def test_a_pattern_that_fits_no_layer_is_refused_before_pruning_trains(tfq_here, work, npz, trained):
    done = tfq_here(
        "compress", f"--model={trained['two.h5']}", f"--data=npz:{npz}", f"--out={work}/odd", "--train.epochs=100000",
        "--qat.layers=conf*",
    )  # fmt: skip
    assert done.returncode == 2
    assert "conf*" in done.stderr
    assert "'conv'" in done.stderr


def test_a_regression_converts_and_is_evaluated_without_an_accuracy(tfq_here, work):
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    keras.Model(inputs, keras.layers.Dense(1, name="y")(inputs)).save(str(work / "regression.h5"))
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.savez(work / "regression.npz", x_train=x, y_train=x.sum(1), x_test=x, y_test=x.sum(1))
    data, out = f"--data=npz:{work}/regression.npz", work / "regression"
    for scheme in ("int8", "float32"):
        good(tfq_here("convert", f"--model={work}/regression.h5", data, f"--scheme={scheme}", f"--out={out}"))
    reference = f"--reference={out}/regression_float32.tflite"
    done = good(tfq_here("evaluate", f"--model={out}/regression_int8.tflite", reference, data, "--format=json"))
    message = json.loads(done.stdout)["evaluation"]
    assert message["accuracy"] is None
    assert "evaluation.metric" in message["accuracy_reason"]
    assert message["output_sqnr_db"] > 20


def test_a_missing_model_flag_is_called_that(tfq_here):
    for command in ("audit", "evaluate", "convert"):
        done = tfq_here(command, *([] if command != "convert" else ["--out=x"]))
        assert done.returncode == 2
        assert "--model" in done.stderr
