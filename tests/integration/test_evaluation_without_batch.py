# SPDX-License-Identifier: Apache-2.0
"""Models whose inputs share no batch dimension, compared with an interpreter that runs one example at a time."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tfq
from tfq.data import Split
from tfq.keras_bridge import import_tf_keras

RNG = np.random.default_rng(0)
N = 12
DATA = {
    "x": RNG.normal(size=(N, 8)).astype("float32"),
    "table": RNG.normal(size=(N, 4, 3)).astype("float32"),
    "factor": RNG.uniform(1, 2, (N, 3)).astype("float32"),
}
INPUTS = {"x": (1, 8), "table": (4, 3), "factor": (3,)}


@pytest.fixture(scope="module")
def models():
    """Return a float and an int8 file with inputs (1, 8), (4, 3) and (3,), and outputs (1, 4) and (4, 3)."""
    keras = import_tf_keras()
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input(batch_shape=shape, name=name) for name, shape in INPUTS.items()}
    hidden = keras.layers.Dense(3, name="dense")(inputs["x"])
    scores = tf.matmul(hidden, inputs["table"], transpose_b=True)
    model = keras.Model(inputs, {"scores": scores, "scaled": inputs["table"] * inputs["factor"]})
    return [tfq.convert(model, DATA, tfq.ConversionConfig(scheme=scheme)) for scheme in ("float32", "int8")]


def one_at_a_time(content, arrays):
    """Return the outputs of each example, from one interpreter; the oracle of these tests."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    names = tfq.tflite.read(content).input_names
    results = []
    for index in range(N):
        for detail, name in zip(interpreter.get_input_details(), names, strict=True):
            value = arrays[name][index]
            scale, zero_point = detail["quantization"]
            if scale:
                value = np.clip(np.rint(value / scale) + zero_point, -128, 127)
            interpreter.set_tensor(detail["index"], np.asarray(value, detail["dtype"]).reshape(detail["shape"]))
        interpreter.invoke()
        results.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
    return [np.stack(values) for values in zip(*results, strict=True)]


def test_evaluation_runs_one_inference_for_each_example(models):
    floating, quantized = models
    reference = tfq.reference_outputs(floating, DATA)
    for output, expected in zip(reference.outputs, one_at_a_time(floating, DATA), strict=True):
        np.testing.assert_allclose(output.reshape(expected.shape), expected, atol=1e-5)
    scores = DATA["table"].mean(axis=(1, 2))
    labels = {"scores": np.stack([scores] * 4, axis=1), "scaled": DATA["table"] * DATA["factor"][:, None]}
    record = tfq.evaluate(quantized, (DATA, labels), tfq.EvaluationConfig(num_runs=2), reference=floating)
    outputs = dict(zip(tfq.tflite.read(quantized).output_names, one_at_a_time(quantized, DATA), strict=True))
    assert record.num_examples == N and record.latency_p50_ms is not None
    [scaled] = [output for output in record.outputs if output["name"] == "scaled"]
    detail = next(t for t in tfq.tflite.read(quantized).main_subgraph.output_tensors if t.shape == (4, 3))
    real = (outputs["scaled"].astype(float) - detail.zero_point[0]) * detail.scale[0]
    assert scaled["accuracy"] == pytest.approx(np.abs(real - labels["scaled"]).mean(), abs=1e-6)
    # Negative control: other data gives another error.
    other = tfq.evaluate(quantized, ({**DATA, "factor": DATA["factor"] + 1}, labels))
    assert next(output for output in other.outputs if output["name"] == "scaled")["accuracy"] > 2 * scaled["accuracy"]


def test_benchmark_and_analysis_accept_inputs_without_a_batch(models):
    floating, quantized = models
    data = Split(name="test", inputs=DATA, labels=None, source="arrays")
    record = tfq.benchmark({"int8": quantized}, tfq.BenchmarkConfig(num_runs=10, warmup_runs=0), data=data)
    assert "12 examples" in str(record.to_dict())
    analysis = tfq.analyze(quantized, floating, DATA)
    assert analysis.to_dict()["ops"]
