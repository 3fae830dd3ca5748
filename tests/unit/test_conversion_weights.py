# SPDX-License-Identifier: Apache-2.0
"""int8 weights by hand, and conversion settings that no target or scheme supports."""

import numpy as np
import pytest
from golden_models import changed, golden
from messages import refused, warned

from tfq import auditing, tflite
from tfq.config import AuditConfig, ConversionConfig
from tfq.conversion.targeting import config_for_target
from tfq.conversion.weights import quantize_weights, symmetric_int8
from tfq.errors import InputError


def test_quantized_values_and_scales_equal_those_computed_by_hand():
    values = np.float32([[1.27, -0.5, 0.015], [-254.0, 3.0, 127.0]])
    quantized, scales = symmetric_int8(values, axis=0)
    np.testing.assert_allclose(scales, [0.01, 2.0], rtol=1e-6)
    # 0.015 is 1.5 steps, 3.0 is 1.5 times 2: both round half to even.
    assert quantized.tolist() == [[127, -50, 2], [-127, 2, 64]]
    quantized, scales = symmetric_int8(values, axis=None)
    assert scales.tolist() == [2.0]
    assert quantized.tolist() == [[1, 0, 0], [-127, 2, 64]]


def test_minus_128_is_never_used():
    quantized, _ = symmetric_int8(np.float32([[-1.0, 1.0 - 1e-7]]), axis=0)
    assert quantized.min() == -127


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38])
def test_channel_of_nothing_has_a_scale_that_xnnpack_takes(value):
    quantized, scales = symmetric_int8(np.float32([[value, value], [1.0, -1.0]]), axis=0)
    assert scales[0] == np.finfo(np.float32).smallest_normal
    assert np.isfinite(quantized).all()
    assert quantized[1].tolist() == [127, -127]


@pytest.mark.parametrize("scheme", ["dynamic_range", "float16", "weight_only_int8"])
def test_the_flatbuffer_is_its_scheme_and_the_same_bytes_every_time(scheme):
    config = ConversionConfig(scheme=scheme)
    built = quantize_weights(golden("digits_float32"), config)
    assert auditing.audit_model(built, AuditConfig(require=scheme)).ok
    assert built == quantize_weights(golden("digits_float32"), config)
    # The float weights are removed completely.
    parsed = tflite.read(built)
    held = sum(tensor.buffer_bytes for tensor in parsed.main_subgraph.tensors)
    assert parsed.buffer_bytes == held + sum(size for _, size in parsed.metadata.values())


@pytest.mark.parametrize("scheme", ["dynamic_range", "float16", "weight_only_int8"])
def test_weights_that_are_not_finite_are_refused_by_name(scheme):
    def spoil(model):
        tensor = next(tensor for tensor in model.subgraphs[0].tensors if list(tensor.shape) == [12, 3, 3, 12])
        values = model.buffers[tensor.buffer].data.copy().view("<f4")
        values[7] = np.nan
        model.buffers[tensor.buffer].data = values.view(np.uint8)

    with refused(InputError, word="conv2"):
        quantize_weights(changed(golden("digits_float32"), spoil), ConversionConfig(scheme=scheme))


def test_weights_beyond_float16_stay_float32_with_a_warning():
    def enlarge(model):
        tensor = next(tensor for tensor in model.subgraphs[0].tensors if list(tensor.shape) == [12, 3, 3, 12])
        values = model.buffers[tensor.buffer].data.copy().view("<f4")
        values[7] = 70_000
        model.buffers[tensor.buffer].data = values.view(np.uint8)

    with warned("conv2"):
        built = quantize_weights(changed(golden("digits_float32"), enlarge), ConversionConfig(scheme="float16"))
    report = auditing.audit_model(built, AuditConfig(require="float16"))
    assert [(finding.op, finding.keras_layer) for finding in report.failures] == [("CONV_2D", "conv2")]


def test_constant_that_two_ops_share_is_stored_once():
    def share(model):
        graph = model.subgraphs[0]
        first, second = [tensor for tensor in graph.tensors if list(tensor.shape) == [12]][:2]
        second.buffer = first.buffer

    built = tflite.read(quantize_weights(changed(golden("digits_float32"), share), ConversionConfig(scheme="float16")))
    offsets = [tensor.buffer_offset for tensor in built.main_subgraph.tensors if tensor.dtype == "float16"]
    assert len(offsets) == len(set(offsets)) + 1


@pytest.mark.parametrize("reader", ["ADD", "output"])
def test_weight_also_read_as_float_keeps_a_dequantize(reader):
    def share(model):
        graph = model.subgraphs[0]
        weight = [list(tensor.shape) for tensor in graph.tensors].index([12, 3, 3, 12])
        if reader == "output":
            graph.outputs = [*graph.outputs, weight]
        else:
            graph.operators[3].inputs = [graph.operators[3].inputs[0], weight]

    built = tflite.read(
        quantize_weights(changed(golden("digits_float32"), share), ConversionConfig(scheme="dynamic_range"))
    )
    graph = built.main_subgraph
    (index,) = {graph.outputs[-1]} if reader == "output" else {op.inputs[1] for op in graph.ops if op.name == "ADD"}
    assert graph.tensors[index].dtype == "float32"
    assert [op.name for op in graph.ops if index in op.outputs] == ["DEQUANTIZE"]


def test_equal_bytes_in_other_shapes_have_separate_scales():
    def share(model):
        graph = model.subgraphs[0]
        shapes = [list(tensor.shape) for tensor in graph.tensors]
        dense = graph.tensors[shapes.index([10, 48])]
        pointwise = graph.tensors[shapes.index([12, 1, 1, 12])]
        # A dense layer of the pointwise weights' 144 values, with 3 channels.
        dense.shape, dense.buffer = [3, 48], pointwise.buffer

    built = tflite.read(
        quantize_weights(changed(golden("digits_float32"), share), ConversionConfig(scheme="dynamic_range"))
    )
    stored = {tensor.shape: len(tensor.scale) for tensor in built.main_subgraph.tensors if tensor.dtype == "int8"}
    assert (stored[(12, 1, 1, 12)], stored[(3, 48)]) == (12, 3)


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({"scheme": "int8", "inference_input_type": "int16"}, "int8, uint8, float32"),
        ({"scheme": "int16x8", "inference_output_type": "int8"}, "int16, float32"),
        ({"scheme": "int16x8", "inference_input_type": "uint8"}, "int16, float32"),
        ({"scheme": "dynamic_range", "inference_input_type": "int8"}, "float32"),
        ({"scheme": "float16", "inference_output_type": "uint8"}, "float32"),
        ({"scheme": "weight_only_int8", "inference_output_type": "int16"}, "float32"),
    ],
)
def test_an_unsupported_type_is_refused_with_the_supported_ones(settings, possible):
    with refused(InputError, expected=tuple(possible.split(", "))):
        ConversionConfig(**settings)


def test_an_audit_for_an_impossible_type_is_refused():
    with refused(InputError, word="inference_input_type=int8"):
        AuditConfig(require="float16", inference_input_type="int8")


@pytest.mark.parametrize(
    ("scheme", "own"),
    [
        ("int8", "int8"),
        ("int16x8", "int16"),
        ("dynamic_range", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
    ],
)
def test_types_are_the_schemes_own_unless_asked_for(scheme, own):
    config = ConversionConfig(scheme=scheme)
    assert (config.input_type, config.output_type) == (own, own)
    assert ConversionConfig(scheme=scheme, inference_input_type="float32").input_type == "float32"


@pytest.mark.parametrize(
    ("target", "dense"), [("xnnpack", True), ("tflm", False), ("nnapi", False), ("edgetpu", False)]
)
def test_a_target_chooses_the_granularity_of_dense_weights_that_it_runs(target, dense):
    config = config_for_target(ConversionConfig(target=target))
    assert (config.per_channel, config.per_channel_dense) == (True, dense)
    assert not config_for_target(ConversionConfig(target=target, per_channel_dense=False)).per_channel_dense


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"target": "edgetpu", "scheme": "float16"}, "scheme=float16"),
        ({"target": "xnnpack", "scheme": "int16x8"}, "dynamic_range"),
        ({"target": "tflm", "scheme": "dynamic_range"}, "scheme=dynamic_range"),
        ({"target": "nnapi", "scheme": "weight_only_int8"}, "float32"),
        ({"target": "tflm", "batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_a_target_can_never_run_is_refused_before_any_work(settings, word):
    with refused(InputError, word=word):
        config_for_target(ConversionConfig(**settings))
