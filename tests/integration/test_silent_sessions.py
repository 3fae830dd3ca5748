# SPDX-License-Identifier: Apache-2.0
"""A plain Python program that uses tfq prints no line of TensorFlow's C++ and nothing else that was not requested."""

import os
import subprocess
import sys

import pytest

# Labels and images of two classes, a model that distinguishes them, and a loop that trains without output.
PREPARE = """
import numpy as np
import tfq
rng = np.random.default_rng(0)
y = rng.integers(0, 2, 256)
x = (rng.normal(0, 0.2, (256, 8, 8, 1)).cumsum(1) + y[:, None, None, None]).astype("float32")

def fit(model, callbacks):
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=1, verbose=0, callbacks=callbacks)

def build(keras):
    layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(2, activation="softmax")])
"""
SAVE = """
import os, sys
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
import keras
keras.utils.set_random_seed(0)
model = build(keras)
fit(model, [])
model.save(sys.argv[1])
"""
LOAD = """
import sys
model = tfq.load_model(sys.argv[1])
"""
CONVERT = """
floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
for scheme in ("int8", "int16x8", "float16", "dynamic_range", "weight_only_int8"):
    content = tfq.convert(model, x, tfq.ConversionConfig(scheme=scheme))
tfq.convert(floating, x, tfq.ConversionConfig(quantizer="litert"))
int8 = tfq.convert(floating, x)
"""
VERIFY = """
tfq.evaluate(int8, (x, y), tfq.EvaluationConfig(num_runs=2), reference=floating)
tfq.analyze(int8, floating, x)
tfq.audit(int8)
tfq.find_int8(floating, (x, y), (x, y), (x, y))
"""
COMPRESS = """
built = tfq.to_tf_keras(model)
pruned = tfq.prune(built.model, fit, tfq.PruneConfig(enabled=True))
trained = tfq.qat(pruned, fit, calibration=x)
int8 = tfq.convert(trained)
tfq.qat_parity(trained, int8, (x, y))
tfq.return_weights(built, trained)
"""
TRAIN = """
from tfq import workflows
settings = {"model": "digits_cnn", "data": "digits", "training": {"epochs": 1}}
workflows.train(tfq.RunConfig.from_dict(settings))
"""
CALLBACKS = """
from pathlib import Path
import keras
path = Path(sys.argv[1]).with_name("best.tflite")
for trained in (model, tfq.to_tf_keras(model).model):
    trained.compile("adam", "sparse_categorical_crossentropy")
    callbacks = [tfq.Int8Evaluation((x, y), x), tfq.TFLiteExport(path, x, monitor="loss")]
    trained.fit(x, y, epochs=1, verbose=0, callbacks=callbacks)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a program as a user does, with a saved model as its argument and TensorFlow's default log level."""
    model = tmp_path_factory.mktemp("session") / "model.keras"

    def run(program, **variables):
        environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        command = [sys.executable, "-c", PREPARE + program, str(model)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment | variables)

    done = run(SAVE)
    assert done.returncode == 0
    return run


@pytest.mark.parametrize(
    "program",
    [LOAD + CONVERT + VERIFY, LOAD + COMPRESS + CALLBACKS, TRAIN],
    ids=["verify", "compress and callbacks", "train"],
)
def test_a_program_that_uses_tfq_gets_no_output(program, run):
    # Advice about the data is a warning of tfq, which is requested output.
    quiet = "import warnings\nwarnings.simplefilter('ignore', tfq.TfqWarning)\n"
    done = run(quiet + program)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == ""


def test_the_same_program_shows_all_lines_at_log_level_0(run):
    lines = run(LOAD + "tfq.convert(model, x)" + TRAIN, TF_CPP_MIN_LOG_LEVEL="0").stderr
    assert "fully_quantize" in lines and "node_def_util" in lines
