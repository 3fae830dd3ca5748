# SPDX-License-Identifier: Apache-2.0
"""MLPerf Tiny's trained ResNet8 from .h5 to int8, on CIFAR-10's whole test split, compared with published numbers."""

import warnings

import pytest

import tfq
from tfq.backends.qemu import sysroot


@pytest.fixture(scope="module")
def data(shared):
    return tfq.DataConfig(source=f"tfrecord:{shared}/data/cifar10/cifar10-*")


@pytest.fixture(scope="module")
def test_split(data):
    return tfq.load_split(data, "test")


@pytest.fixture(scope="module")
def flatbuffers(shared, data):
    """Return (float32, PTQ int8) from one trace."""
    traced = tfq.trace(tfq.load_model(shared / "models" / "mlperf_tiny_resnet8_cifar10.h5"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", tfq.TfqWarning)
        ptq = tfq.convert(traced, tfq.load_split(data, "train", limit=200))
    return tfq.convert(traced, config=tfq.ConversionConfig(scheme="float32")), ptq


def test_float_and_ptq_have_the_accuracy_that_they_should(flatbuffers, test_split):
    floating, ptq = flatbuffers
    record = tfq.evaluate(ptq, test_split, tfq.EvaluationConfig(num_runs=0), reference=floating)
    assert record.num_examples == record.compared == 10_000
    assert record.reference_accuracy == pytest.approx(0.7548, abs=1e-9)
    assert record.accuracy == pytest.approx(0.7548, abs=0.004)
    assert record.agreement > 0.93


def test_the_ptq_flatbuffer_is_full_int8_with_the_models_layers(flatbuffers):
    report = tfq.audit(flatbuffers[1], tfq.AuditConfig(require="full_int8"))
    assert report.ok
    assert report.scheme == "full_int8"


@pytest.mark.slow  # it downloads the emulator if that is not installed yet
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_emulated_arm_is_within_one_lsb_on_our_flatbuffer(cpu, flatbuffers, test_split, users_cache):
    from tfq.evaluation import compare_backends

    sysroot.install()
    record = compare_backends(flatbuffers[1], test_split, "local", f"qemu:{cpu}", 64)
    assert record.num_examples == 64
    assert record.compared == 640
    assert record.max_abs_error_lsb <= 1
