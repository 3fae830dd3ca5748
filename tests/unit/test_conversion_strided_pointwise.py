# SPDX-License-Identifier: Apache-2.0
"""Strided integer 1x1 convolutions, which LiteRT's GPU accelerator computes wrongly, and their exact replacement."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from messages import refused, warned
from strided_pointwise import model

import tfq
from tfq import tflite
from tfq.auditing import audit_model
from tfq.config import AuditConfig
from tfq.conversion.strided_pointwise import without_strided_pointwise
from tfq.errors import InputError


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def op_names(content: bytes) -> list[str]:
    return [op.name for op in tflite.read(content).main_subgraph.ops]


@pytest.mark.parametrize(("strides", "size"), [((2, 2), 8), ((2, 3), 7), ((1, 2), 5)])
def test_replacement_computes_the_same_values(strides, size):
    before = model(strides, size)
    after = without_strided_pointwise(before)
    assert op_names(after) == ["MAX_POOL_2D", "CONV_2D", "CONV_2D", "ADD"]
    x = np.random.default_rng(1).integers(-128, 128, (1, size, size, 2)).astype(np.int8)
    np.testing.assert_array_equal(run(after, x), run(before, x))
    assert len(np.unique(run(before, x))) > 5
    assert without_strided_pointwise(after) is after


@pytest.mark.parametrize(
    "settings", [{"strides": (1, 1)}, {"kernel": 2}, {"dtype": "float32", "weights": "float32"}], ids=str
)
def test_other_convolutions_stay_unchanged(settings):
    content = model(**settings)
    assert without_strided_pointwise(content) is content
    assert not [finding for finding in gpu_failures(content) if finding.op == "CONV_2D"]


def gpu_failures(content: bytes):
    return audit_model(content, AuditConfig(require="gpu")).failures


def test_audit_names_the_ops_until_they_are_replaced():
    failures = gpu_failures(model())
    assert [(finding.op, finding.op_index) for finding in failures] == [("CONV_2D", 0), ("CONV_2D", 1)]
    assert not gpu_failures(without_strided_pointwise(model()))
    assert not audit_model(model(), AuditConfig(require="xnnpack")).failures


def test_conversion_replaces_only_these_ops_of_an_int8_file():
    with warned("again"):
        converted = tfq.convert(model(), config=tfq.ConversionConfig(target="gpu"))
    assert op_names(converted) == ["MAX_POOL_2D", "CONV_2D", "CONV_2D", "ADD"]
    with refused(InputError, limit="integer-tflite"):
        tfq.convert(model(), config=tfq.ConversionConfig(target="xnnpack"))


def test_schemes_that_the_gpu_refuses_are_refused_before_the_conversion():
    for scheme in ("int16x8", "weight_only_int8"):
        with refused(InputError, field="conversion.scheme", got=scheme):
            tfq.convert(model(), config=tfq.ConversionConfig(target="gpu", scheme=scheme))
