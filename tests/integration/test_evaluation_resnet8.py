# SPDX-License-Identifier: Apache-2.0
"""MLPerf Tiny's own int8 ResNet8 on all of CIFAR-10's test records."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from cifar10 import read_test_split
from messages import warned

from tfq.config import EvaluationConfig
from tfq.evaluation import evaluate_model


@pytest.fixture(scope="module")
def model(shared):
    return (shared / "models" / "mlperf_tiny_resnet8_cifar10_int8.tflite").read_bytes()


@pytest.fixture(scope="module")
def cifar10(shared):
    images, labels = read_test_split(shared)
    assert np.bincount(labels).tolist() == [1000] * 10
    return images, labels


def test_the_mlperf_int8_model_has_its_known_accuracy(model, cifar10):
    record = evaluate_model(model, cifar10, EvaluationConfig(num_runs=0))
    assert record.num_examples == 10_000
    assert record.accuracy == pytest.approx(0.7542, abs=1e-9)
    assert (record.clipped_input_fraction, record.unused_range_fraction) == (0.0, 0.0)
    # XNNPACK has no int8 AVERAGE_POOL_2D and SOFTMAX.
    assert (record.total_ops, record.delegated_ops) == (16, 14)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_batches_threads_and_processes_change_nothing(model, cifar10, num_threads):
    images, labels = cifar10[0][:200], cifar10[1][:200]
    interpreter = Interpreter(model_content=model)
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], [200, 32, 32, 3])
    interpreter.allocate_tensors()
    # Scale 1, zero_point -128.
    interpreter.set_tensor(source["index"], (images.astype(np.int16) - 128).astype(np.int8))
    interpreter.invoke()
    expected = float(np.mean(interpreter.get_tensor(sink["index"]).argmax(axis=1) == labels))
    record = evaluate_model(model, (images, labels), EvaluationConfig(num_runs=0, num_threads=num_threads))
    assert record.accuracy == expected


def test_the_builtin_kernels_are_another_implementation(model, cifar10):
    images, labels = cifar10[0][:500], cifar10[1][:500]
    config = EvaluationConfig(num_runs=0, xnnpack=False)
    record = evaluate_model(model, (images, labels), config, reference=model)
    assert record.delegated_ops == 0
    assert 0.9 < record.agreement < 1
    assert 10 < record.output_sqnr_db < 40


def test_images_scaled_to_one_are_warned_of(model, cifar10):
    images, labels = cifar10[0][:50], cifar10[1][:50]
    with warned("100%"):
        record = evaluate_model(model, (images / np.float32(255), labels), EvaluationConfig(num_runs=0))
    assert record.unused_range_fraction > 0.99
