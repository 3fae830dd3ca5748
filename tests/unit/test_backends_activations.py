# SPDX-License-Identifier: Apache-2.0
"""Samples run in child processes: a crash is an error, and nothing is left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from golden_models import golden

from tfq import tflite
from tfq.backends import forks
from tfq.backends.activations import map_in_children
from tfq.errors import ModelError
from tfq.ptq.calibration.observer import map_activations

HOSTILE = Path(__file__).resolve().parent.parent / "hostile"
CRASHING = ("crash_704317", "crash_713949")


def sample_of(model):
    parsed = tflite.read(model)
    tensors = parsed.main_subgraph.input_tensors
    return {name: np.ones(t.shape, t.dtype) for name, t in zip(parsed.input_names, tensors, strict=True)}


@pytest.mark.parametrize("name", CRASHING)
def test_a_crash_of_the_interpreter_is_a_model_error(name):
    model = (HOSTILE / f"{name}.tflite").read_bytes()
    activations = [output for op in tflite.read(model).main_subgraph.ops for output in op.outputs]
    with pytest.raises(ModelError) as caught:
        list(map_activations(model, activations, [sample_of(model)] * 5, lambda values: None))
    assert caught.value.got == "SIGSEGV"


def test_the_crashing_file_ends_a_process_that_runs_it_itself():
    script = (
        "import sys, numpy as np; from ai_edge_litert.interpreter import Interpreter as I; i = I(sys.argv[1]); "
        "i.allocate_tensors(); i.invoke()"
    )
    path = HOSTILE / f"{CRASHING[0]}.tflite"
    assert subprocess.run([sys.executable, "-c", script, path], capture_output=True).returncode == -signal.SIGSEGV


def numbered(count):
    """Yield samples whose first pixel is their number."""
    for number in range(count):
        array = np.zeros((1, 8, 8, 1), np.float32)
        array[0, 0, 0, 0] = number
        yield (array,)


def inputs_of_digits():
    model = golden("digits_float32")
    return model, tflite.read(model).main_subgraph.inputs


def test_results_come_in_the_order_of_the_samples():
    model, inputs = inputs_of_digits()
    results = map_in_children(model, inputs, numbered(40), lambda values: values[0].ravel()[0], num_workers=3)
    assert list(results) == list(range(40))


def test_an_exception_of_the_function_belongs_to_its_sample():
    def refuse_7(values):
        if values[0].ravel()[0] == 7:
            raise KeyError("seven")

    model, inputs = inputs_of_digits()
    results = map_in_children(model, inputs, numbered(40), refuse_7, num_workers=2)
    assert [next(results) for _ in range(7)] == [None] * 7
    with pytest.raises(KeyError, match="seven"):
        next(results)


def test_a_caller_that_stops_early_leaves_no_children():
    model, inputs = inputs_of_digits()
    results = map_in_children(model, inputs, numbered(10_000), lambda values: 0, num_workers=2)
    next(results)
    server = forks._server[0].pid
    deadline = time.monotonic() + 30
    while len(children_of(server)) < 2 and time.monotonic() < deadline:  # the second one may start later
        time.sleep(0.01)
    assert len(children_of(server)) == 2
    results.close()
    deadline = time.monotonic() + 5
    while children_of(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children_of(server) == []
    gc.collect()  # the exceptions of other tests hold their frames, and so their arrays
    assert not [name for name in map(read_link, Path("/proc/self/fd").iterdir()) if "memfd:tfq" in name]


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def read_link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""
