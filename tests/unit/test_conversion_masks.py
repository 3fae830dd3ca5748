# SPDX-License-Identifier: Apache-2.0
"""Masks of a float flatbuffer are bounded if its function allows it. Oracle: a plain interpreter."""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter
from messages import warned

from tfq import tflite
from tfq.conversion.masks import bound_and_check_masks, bound_masks, with_finite_masks
from tfq.ptq.calibration import observe
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES

PLACES = 8
SHAPE = (1, PLACES, PLACES)
CAUSAL = np.triu(np.full((PLACES, PLACES), -1e9, np.float32), 1)
LOWER = np.tril(np.ones((PLACES, PLACES), bool))


class Built:
    """A flatbuffer built op by op. Tensors are numbers."""

    def __init__(self):
        self.model, self.graph = generated.ModelT(), generated.SubGraphT()
        self.model.version, self.model.subgraphs, self.model.operatorCodes = 3, [self.graph], []
        self.model.buffers = [generated.BufferT()]
        self.graph.tensors, self.graph.operators, self.graph.inputs = [], [], []

    def tensor(self, shape, dtype="float32", values=None):
        tensor = generated.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), TENSOR_TYPES.index(dtype), 0
        tensor.name = f"t{len(self.graph.tensors)}"
        if values is not None:
            buffer = generated.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def input(self, shape, dtype="float32"):
        self.graph.inputs.append(self.tensor(shape, dtype))
        return self.graph.inputs[-1]

    def constant(self, values):
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        return self.tensor(array.shape, array.dtype.name, array)

    def op(self, name, inputs, shape, options=None, dtype="float32"):
        op, code = generated.OperatorT(), generated.OperatorCodeT()
        code.builtinCode, code.version = OPERATORS.index(name), 1
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        self.model.operatorCodes.append(code)
        output = self.tensor(shape, dtype)
        op.opcodeIndex, op.inputs, op.outputs = len(self.model.operatorCodes) - 1, inputs, [output]
        if options is not None:
            op.builtinOptions = options
            op.builtinOptionsType = getattr(generated.BuiltinOptions, type(options).__name__[:-1])
        self.graph.operators.append(op)
        return output

    def softmax(self, scores, shape=SHAPE):
        options = generated.SoftmaxOptionsT()
        options.beta = 1.0
        return self.op("SOFTMAX", [scores], shape, options)

    def content(self, *outputs):
        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def scores(count=20, low=-3.0, high=5.0):
    values = np.random.default_rng(0).uniform(low, high, (count, *SHAPE)).astype(np.float32)
    values[0, 0, 0, :2], values[0, 0, -1, -1] = (low, high), high
    return [{"t0": value} for value in values]


def added(mask=CAUSAL):
    built = Built()
    x = built.input(SHAPE)
    return built.content(built.softmax(built.op("ADD", [x, built.constant(mask)], SHAPE, generated.AddOptionsT())))


def selected(mask=-1e9):
    built = Built()
    x = built.input(SHAPE)
    inputs = [built.constant(LOWER[None]), x, built.constant(np.full(SHAPE, mask, np.float32))]
    return built.content(built.softmax(built.op("SELECT", inputs, SHAPE, generated.SelectOptionsT())))


def switched_off(factor=-1e9):
    built = Built()
    x, off = built.input(SHAPE), built.constant(~LOWER[None])
    ones, zeros = (built.constant(np.full(SHAPE, value, np.float32)) for value in (1, 0))
    switch = built.op("SELECT", [off, ones, zeros], SHAPE, generated.SelectOptionsT())
    mask = built.op("MUL", [switch, built.constant(factor)], SHAPE, generated.MulOptionsT())
    return built.content(built.softmax(built.op("ADD", [x, mask], SHAPE, generated.AddOptionsT())))


def padded():
    built = Built()
    x = built.input((1, PLACES, PLACES, 1))
    pads = built.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    lowest = built.constant(np.finfo(np.float32).min.astype(np.float32))
    wide = built.op("PADV2", [x, pads, lowest], (1, PLACES + 2, PLACES + 2, 1), generated.PadV2OptionsT())
    pool = generated.Pool2DOptionsT()
    pool.padding, pool.strideH, pool.strideW, pool.filterHeight, pool.filterWidth = 1, 1, 1, 3, 3
    return built.content(built.op("MAX_POOL_2D", [wide], (1, PLACES, PLACES, 1), pool))


def images(count=20):
    return [{"t0": sample["t0"].reshape(1, PLACES, PLACES, 1)} for sample in scores(count)]


def ran(model, samples):
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    results = []
    for sample in samples:
        for details in interpreter.get_input_details():
            interpreter.set_tensor(details["index"], sample[details["name"]])
        interpreter.invoke()
        results.append([interpreter.get_tensor(item["index"]) for item in interpreter.get_output_details()])
    return results


def bounded(model, samples, scheme="int8"):
    ends = {key: (seen.minimum, seen.maximum) for key, seen in observe(model, samples).tensors.items()}
    return bound_masks(model, ends, ends, scheme)


def constants(model):
    """Return all values of float constants."""
    tensors = [tensor for tensor in tflite.read(model).main_subgraph.tensors if tensor.dtype == "float32"]
    read = {index for op in tflite.read(model).main_subgraph.ops for index in op.inputs}
    kept = [tensor for tensor in tensors if tensor.is_constant and tensor.index in read]
    return np.concatenate([tflite.constant_values(model, tensor).reshape(-1) for tensor in kept])


@pytest.mark.parametrize(
    ("model", "samples", "least"),
    [
        (added(), scores(), -32.0),  # span 8, and 24
        (selected(), scores(), -27.0),  # the lowest score, and 24 less
        (switched_off(), scores(), -32.0),
        (padded(), images(), -3.0),
    ],
    ids=["added", "selected", "switched off", "padded"],
)
def test_masks_are_bounded_by_the_scores_and_float_outputs_stay(model, samples, least):
    result = bounded(model, samples)
    assert constants(result.model).min() == pytest.approx(least, abs=1e-3)
    for before, after in zip(ran(model, samples), ran(result.model, samples), strict=True):
        assert np.abs(before[0] - after[0]).max() <= 1e-6


@pytest.mark.parametrize(
    ("scheme", "high", "low"), [("int8", 5.0, -15.0), ("int16x8", 5.0, -15.0), ("int16x8", 40.0, -40.0)]
)
def test_the_input_of_the_softmax_ends_below_the_lowest_score(scheme, high, low):
    result = bounded(added(), scores(high=high), scheme)
    [item] = result.to_dict()["masks"]["bounded"]
    assert item["op"] == "SOFTMAX"
    assert item["range"] == pytest.approx([low, high], abs=1e-3)


def test_a_mask_that_leaves_the_model_stays_and_is_named():
    built = Built()
    x = built.input(SHAPE)
    masked = built.op("ADD", [x, built.constant(CAUSAL)], SHAPE, generated.AddOptionsT())
    model = built.content(built.softmax(masked), masked)
    result = bounded(model, scores())
    assert result.model == model
    assert result.unbounded == ("t2",)
    ends = {key: (seen.minimum, seen.maximum) for key, seen in observe(model, scores()).tensors.items()}
    with warned("t2"):
        bound_and_check_masks(model, ends, ends, "int8", scores())


def test_a_large_factor_of_scores_is_not_a_mask():
    built = Built()
    x = built.input(SHAPE)
    sharp = built.op("MUL", [x, built.constant(2000.0)], SHAPE, generated.MulOptionsT())
    model = built.content(built.softmax(sharp))
    assert bounded(model, scores()).model == model


def test_scores_of_large_magnitude_without_a_mask_stay():
    built = Built()
    x = built.input(SHAPE)
    shifted = built.op("ADD", [x, built.constant(np.float32(3.0))], SHAPE, generated.AddOptionsT())
    model = built.content(built.softmax(shifted))
    result = bounded(model, scores(low=-5e4, high=4e4))
    assert result.model == model
    assert not result.layers


def test_a_mask_in_the_data_is_clipped_to_its_range():
    built = Built()
    x, mask = built.input(SHAPE), built.input(SHAPE)
    model = built.content(built.softmax(built.op("ADD", [x, mask], SHAPE, generated.AddOptionsT())))
    samples = [{**sample, "t1": CAUSAL[None]} for sample in scores()]
    result = bounded(model, samples)
    assert constants_or_none(result.model) == []
    assert result.ranges[0, 1] == pytest.approx((-20.0, 0.0), abs=1e-3)


def constants_or_none(model):
    return [tensor for tensor in tflite.read(model).main_subgraph.tensors if tensor.is_constant]


def test_a_maximum_over_rows_that_are_masked_throughout_keeps_its_mask():
    built = Built()
    x = built.input(SHAPE)
    keep = LOWER.copy()
    keep[0] = False
    inputs = [built.constant(keep[None]), x, built.constant(np.full(SHAPE, -1e9, np.float32))]
    masked = built.op("SELECT", inputs, SHAPE, generated.SelectOptionsT())
    axis = built.constant(np.array([2], np.int32))
    model = built.content(built.op("REDUCE_MAX", [masked, axis], SHAPE[:2], generated.ReducerOptionsT()))
    assert bounded(model, scores()).model == model


def test_infinite_masks_become_finite_and_are_bounded():
    model = selected(-np.inf)
    assert np.isinf(constants(model)).any()
    finite = with_finite_masks(model)
    assert np.isfinite(constants(finite)).all()
    result = bounded(finite, scores())
    assert constants(result.model).min() == pytest.approx(-27.0, abs=1e-3)
    for before, after in zip(ran(model, scores()), ran(result.model, scores()), strict=True):
        assert np.abs(before[0] - after[0]).max() <= 1e-6


def test_one_mask_of_two_softmaxes_is_bounded_by_the_wider_scores():
    built = Built()
    x = built.input(SHAPE)
    ones, zeros = (built.constant(np.full(SHAPE, value, np.float32)) for value in (1, 0))
    inputs = [built.constant(~LOWER[None]), ones, zeros]
    switch = built.op("SELECT", inputs, SHAPE, generated.SelectOptionsT())
    mask = built.op("MUL", [switch, built.constant(-1e9)], SHAPE, generated.MulOptionsT())
    wide = built.op("MUL", [x, built.constant(3.0)], SHAPE, generated.MulOptionsT())
    outputs = [built.softmax(built.op("ADD", [item, mask], SHAPE, generated.AddOptionsT())) for item in (x, wide)]
    result = bounded(built.content(*outputs), scores())
    assert constants(result.model).min() == pytest.approx(-48.0, abs=1e-3)  # span 24, and 24
    assert [item["range"][0] for item in result.layers] == pytest.approx([-15.0, -21.0], abs=1e-3)


@pytest.mark.parametrize(("mask", "least"), [(-1e9, -15.0), (-1e4, -23.0)])
def test_rows_masked_throughout_are_even_where_they_are_in_float(mask, least):
    model = added(np.where(LOWER[::-1], 0, mask) + np.where(np.arange(PLACES) < 1, mask, 0)[:, None])
    samples = scores()
    ends = {key: (seen.minimum, seen.maximum) for key, seen in observe(model, samples).tensors.items()}
    result = bound_and_check_masks(model, ends, ends, "int8", samples)
    assert result.layers[0]["range"][0] == pytest.approx(least, abs=1e-2)
