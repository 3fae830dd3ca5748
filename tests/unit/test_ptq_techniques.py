# SPDX-License-Identifier: Apache-2.0
"""Techniques of flatbuffers.

Oracles: the interpreter on the flatbuffers themselves, brute force, arithmetic by hand.
"""

import itertools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from golden_models import changed, golden
from messages import refused

from tfq import ptq, quant_math, tflite
from tfq.errors import FlatbufferError, InputError, TfqError
from tfq.ptq.calibration.observer import map_activations
from tfq.ptq.gptq import InputMoments, mean_patch, round_weights
from tfq.ptq.weighted_ops import WeightedOp, extract_patches, same_padding, weighted_ops

FLOATING, QUANTIZED = golden("digits_float32"), golden("digits_int8")
RELU6 = generated.ActivationFunctionType.RELU6
RNG = np.random.default_rng(0)
SAMPLES = [{"image": RNG.integers(0, 17, (1, 8, 8, 1)).astype(np.float32)} for _ in range(60)]


def op_of(model, layer):
    """Return the op of a layer in the object form of one of the digits' flatbuffers."""
    place = next(op.index for op in tflite.read(FLOATING).main_subgraph.ops if op.keras_layer == layer)
    return model.subgraphs[0].operators[place]


def constant(model, layer, slot):
    graph = model.subgraphs[0]
    tensor = graph.tensors[op_of(model, layer).inputs[slot]]
    kind = {generated.TensorType.FLOAT32: np.float32, generated.TensorType.INT8: np.int8}.get(tensor.type, np.int32)
    return model.buffers[tensor.buffer], model.buffers[tensor.buffer].data.view(kind).reshape(tensor.shape)


def multiply(model, layer, slot, factors):
    """Multiply a constant by `factors`, which broadcast."""
    buffer, values = constant(model, layer, slot)
    buffer.data = (values * factors).astype(values.dtype).reshape(-1).view(np.uint8)


def uneven(model):
    """Make two channels of conv2 64 times as large; the dense layer after it compensates."""
    factors = np.ones(12, np.float32)
    factors[[3, 7]] = 64
    multiply(model, "conv2", 1, factors[:, None, None, None])
    multiply(model, "conv2", 2, factors)
    multiply(model, "logits", 1, 1 / np.tile(factors, 4))


def tensor_values(model, tensor, samples=SAMPLES):
    """Return the real values of a tensor over all samples, by the reference kernels."""
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    (details,) = interpreter.get_input_details()
    scale, zero_point = details["quantization"]
    results = []
    for sample in samples:
        array = sample["image"]
        interpreter.set_tensor(details["index"], quant_math.quantize(array, scale, zero_point) if scale else array)
        interpreter.invoke()
        results.append(interpreter.get_tensor(tensor))
    values = np.concatenate(results)
    record = tflite.read(model).main_subgraph.tensors[tensor]
    return quant_math.dequantize(values, record.scale[0], record.zero_point[0]) if record.is_quantized else values


def output_of(model, layer):
    return next(op.outputs[0] for op in tflite.read(model).main_subgraph.ops if op.keras_layer == layer)


def probabilities(model):
    return tensor_values(model, tflite.read(model).main_subgraph.outputs[0])


def evenness(model, layer):
    """Return the smallest range of an output channel's weights as a fraction of the largest."""
    _, weights = constant(tflite.unpack(model), layer, 1)
    ranges = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    return ranges.min() / ranges.max()


def test_equalizing_leaves_the_function_as_it_was_to_the_bit():
    model = changed(FLOATING, uneven)
    result = ptq.equalize(model)
    np.testing.assert_array_equal(probabilities(result.model), probabilities(model))
    assert result.difference == 0


def test_channels_that_were_made_uneven_are_even_again():
    model = changed(FLOATING, uneven)
    assert evenness(model, "conv2") < 1 / 32
    assert evenness(ptq.equalize(model).model, "conv2") > evenness(FLOATING, "conv2") / 3
    (pair,) = (pair for pair in ptq.equalize(model).pairs if pair.first == "conv2")
    assert (pair.second, pair.channels) == ("logits", 12)
    assert pair.highest_factor / pair.lowest_factor >= 32


def test_pairs_are_found_through_depthwise_pooling_and_flattening():
    result = ptq.equalize(FLOATING)
    assert [(pair.first, pair.second) for pair in result.pairs] == [("depthwise", "pointwise"), ("conv2", "logits")]
    assert result.skipped == {
        "conv1": "2 ops read its output",
        "pointwise": "ADD reads its output",
        "logits": "SOFTMAX reads its output",
    }


def cap(model):
    op_of(model, "conv2").builtinOptions.fusedActivationFunction = RELU6


def test_nothing_is_scaled_after_a_relu6_without_data():
    result = ptq.equalize(changed(FLOATING, cap))
    assert "ReLU6" in result.skipped["conv2"]


def test_channels_after_a_relu6_are_scaled_within_the_cap():
    def small_then_capped(model):
        factors = np.geomspace(1e-3, 1e-1, 12).astype(np.float32)
        multiply(model, "conv2", 1, factors[:, None, None, None])
        multiply(model, "conv2", 2, factors)
        multiply(model, "logits", 1, 1 / np.tile(factors, 4))
        cap(model)

    model = changed(FLOATING, small_then_capped)
    largest = tensor_values(model, output_of(model, "conv2")).max(axis=(0, 1, 2))
    assert largest.max() < 6
    result = ptq.equalize(model, SAMPLES)
    after = tensor_values(result.model, output_of(result.model, "conv2")).max(axis=(0, 1, 2))
    assert evenness(result.model, "conv2") > 4 * evenness(model, "conv2")
    assert after.max() <= 4  # 6 is half as much again
    np.testing.assert_array_equal(probabilities(result.model), probabilities(model))


def test_channels_that_the_cap_cuts_are_left_alone():
    def large_then_capped(model):
        uneven(model)
        cap(model)

    model = changed(FLOATING, large_then_capped)
    result = ptq.equalize(model, SAMPLES)
    _, before = constant(tflite.unpack(model), "conv2", 1)
    _, after = constant(tflite.unpack(result.model), "conv2", 1)
    np.testing.assert_array_equal(after[[3, 7]], before[[3, 7]])
    np.testing.assert_array_equal(probabilities(result.model), probabilities(model))


def test_a_function_that_changed_is_refused(monkeypatch):
    monkeypatch.setattr(WeightedOp, "scale_inputs", lambda self, factors: None)
    with refused(TfqError, field="conversion.techniques", expected=1e-5):
        ptq.equalize(changed(FLOATING, uneven))


def shifted(layer, by):
    """Return the digits model in which a layer's biases are greater by `by`."""

    def shift(model):
        buffer, values = constant(model, layer, 2)
        buffer.data = (values + np.float32(by)).astype(np.float32).reshape(-1).view(np.uint8)

    return changed(FLOATING, shift)


@pytest.mark.parametrize(("layer", "reader"), [("conv2", "logits"), ("depthwise", "pointwise")])
def test_bias_absorption_keeps_the_function(layer, reader):
    model = shifted(layer, 400)
    result = ptq.absorb_biases(model, SAMPLES)
    (pair,) = (pair for pair in result.pairs if pair.first == layer)
    assert pair.second == reader and pair.width_after < pair.width_before - 200
    np.testing.assert_allclose(probabilities(result.model), probabilities(model), atol=1e-4)
    before, after = (tensor_values(item, output_of(item, layer)) for item in (model, result.model))
    assert after.max() - min(0, after.min()) == pytest.approx(pair.width_after, rel=1e-3)
    assert before.max() - min(0, before.min()) == pytest.approx(pair.width_before, rel=1e-3)


def test_channels_that_are_sometimes_zero_keep_their_output():
    result = ptq.absorb_biases(FLOATING, SAMPLES)
    assert "conv2" not in {pair.first for pair in result.pairs}
    assert "narrower" in result.skipped["conv2"]
    assert result.skipped["conv1"] == "2 ops read its output"


def test_before_a_layer_that_pads_nothing_is_absorbed():
    def padded(model):
        op_of(model, "pointwise").builtinOptions.padding = generated.Padding.SAME
        graph = model.subgraphs[0]
        tensor = graph.tensors[op_of(model, "pointwise").inputs[1]]
        weights = np.zeros((tensor.shape[0], 3, 3, tensor.shape[3]), np.float32)
        weights[:, 1, 1] = constant(model, "pointwise", 1)[1][:, 0, 0]
        tensor.shape = list(weights.shape)
        model.buffers[tensor.buffer].data = weights.reshape(-1).view(np.uint8)

    model = changed(shifted("depthwise", 400), padded)
    assert ptq.absorb_biases(model, SAMPLES).skipped["depthwise"] == "the layer that reads it pads with zeros"


def test_to_absorb_without_data_is_refused():
    with refused(InputError, field="samples", expected="at least one sample"):
        ptq.absorb_biases(FLOATING, [])


def test_weights_of_two_ops_are_not_scaled():
    def shared(model):
        graph = model.subgraphs[0]
        twin = generated.OperatorT()
        twin.__dict__.update(op_of(model, "conv2").__dict__)
        graph.tensors.append(graph.tensors[twin.outputs[0]])
        twin.outputs = np.array([len(graph.tensors) - 1], np.int32)
        graph.operators.append(twin)
        graph.outputs = np.array([*graph.outputs, *twin.outputs], np.int32)

    assert {pair.first for pair in ptq.equalize(changed(FLOATING, shared)).pairs} == {"depthwise"}


def test_a_bias_of_several_layers_is_theirs_alone_after_a_change():
    def one_bias(model):
        op = op_of(model, "conv2")
        op.inputs = np.array([*op.inputs[:2], op_of(model, "pointwise").inputs[2]], np.int32)

    model = changed(FLOATING, one_bias)
    edited = tflite.unpack(model)
    layers = {item.layer: item for item in weighted_ops(edited, tflite.read(model))}
    before = layers["pointwise"].bias
    layers["conv2"].set_bias(before + 1)
    again = tflite.unpack(tflite.pack(edited, len(model)))
    layers = {item.layer: item for item in weighted_ops(again, tflite.read(tflite.pack(again, len(model))))}
    np.testing.assert_array_equal(layers["pointwise"].bias, before)
    np.testing.assert_array_equal(layers["conv2"].bias, before + 1)


def test_a_bias_scale_of_several_layers_changes_for_one_alone():
    def one_bias(model):
        op = op_of(model, "conv2")
        op.inputs = np.array([*op.inputs[:2], op_of(model, "pointwise").inputs[2]], np.int32)

    before = changed(QUANTIZED, one_bias)
    after = ptq.quantize_to_int4(before, FLOATING, SAMPLES[:4], ["conv2"]).model
    old, new = (
        tflite.read(model).main_subgraph.tensors[op_of(tflite.unpack(model), "pointwise").inputs[2]]
        for model in (before, after)
    )
    assert new.scale == old.scale
    np.testing.assert_array_equal(
        tensor_values(after, output_of(after, "pointwise")), tensor_values(before, output_of(before, "pointwise"))
    )


def grouped(model):
    """Give conv2 two groups of channels."""
    op = op_of(model, "conv2")
    buffer, weights = constant(model, "conv2", 1)
    buffer.data = weights[..., :6].copy().reshape(-1).view(np.uint8)
    model.subgraphs[0].tensors[op.inputs[1]].shape = [12, 3, 3, 6]


def twice(model):
    """Add an op that reads the weights of conv2 as well, for an output that nothing reads."""
    graph, twin = model.subgraphs[0], generated.OperatorT()
    twin.__dict__.update(op_of(model, "conv2").__dict__)
    copy = generated.TensorT()
    copy.__dict__.update(graph.tensors[twin.outputs[0]].__dict__)
    copy.name = b"twin"
    graph.tensors.append(copy)
    twin.outputs = np.array([len(graph.tensors) - 1], np.int32)
    graph.operators.append(twin)


@pytest.mark.parametrize(("change", "word"), [(grouped, "grouped"), (twice, "read")])
def test_layers_that_techniques_leave_unchanged_are_named_with_the_reason(change, word):
    floating, quantized = changed(FLOATING, change), changed(QUANTIZED, change)
    samples = SAMPLES[:4]
    bits = {int(op_of(tflite.unpack(floating), layer).inputs[1]): 4 for layer in ("conv1", "conv2")}
    results = [
        ptq.optimize_rounding(quantized, floating, samples),
        ptq.quantize_to_int4(quantized, floating, samples),
        ptq.make_sparse(floating, samples),
        ptq.round_to_few_bits(floating, samples, bits),
    ]
    for result in results:
        assert result.to_dict()["skipped"]["conv2"].split().count(word) == 1
        assert "conv2" not in result.layers and "conv1" in result.layers
    with refused(InputError, field="conversion.int4_layers", word=word):
        ptq.quantize_to_int4(quantized, floating, samples, ["conv2"])
    alone = ptq.round_to_few_bits(floating, samples, {int(op_of(tflite.unpack(floating), "conv1").inputs[1]): 4})
    assert not alone.skipped


def test_two_ops_of_one_layer_both_have_an_entry():
    def renamed(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.name = tensor.name.replace(b"/pointwise/", b"/conv2/")

    floating, quantized = changed(FLOATING, renamed), changed(QUANTIZED, renamed)
    first = (
        "digits_cnn/conv2/Relu;digits_cnn/conv2/BiasAdd;digits_cnn/conv2/Conv2D;digits_cnn/conv2/BiasAdd/ReadVariableOp"
    )
    samples = SAMPLES[:4]
    bits = {int(op_of(tflite.unpack(floating), layer).inputs[1]): 4 for layer in ("pointwise", "conv2")}
    for result in (
        ptq.optimize_rounding(quantized, floating, samples),
        ptq.quantize_to_int4(quantized, floating, samples),
        ptq.make_sparse(floating, samples),
        ptq.round_to_few_bits(floating, samples, bits),
        ptq.correct_biases(quantized, floating, samples),
    ):
        names = [name for name in result.layers if name.startswith("conv2")]
        assert len(names) == 2 and names[0] == "conv2" and names[1].startswith(f"conv2 ({first}")


def test_weights_of_another_size_than_their_shape_are_refused():
    def shorten(model):
        weights = model.subgraphs[0].tensors[int(op_of(model, "conv2").inputs[1])]
        weights.shape = [int(weights.shape[0]), int(weights.shape[1]) - 1, *map(int, weights.shape[2:])]

    model = changed(FLOATING, shorten)
    layers = {item.layer: item for item in weighted_ops(tflite.unpack(model), tflite.read(model))}
    with refused(FlatbufferError, field="model", word="damaged"):
        _ = layers["conv2"].weights


def mean_offset(model, layer):
    """Return the error of the mean of each channel of an int8 flatbuffer."""
    expected = tensor_values(FLOATING, output_of(FLOATING, layer))
    got = tensor_values(model, output_of(model, layer))
    return (got - expected).reshape(-1, got.shape[-1]).mean(axis=0)


def biased_weights(model):
    """Add an error of the same sign to all weights of conv2, as coarse rounding may cause."""
    buffer, quantized = constant(model, "conv2", 1)
    buffer.data = np.clip(quantized + 4, -127, 127).astype(np.int8).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("layer", ["conv2", "logits"])
def test_biases_take_off_what_quantization_added(layer):
    model = changed(QUANTIZED, biased_weights)
    result = ptq.correct_biases(model, FLOATING, SAMPLES)
    before, after = (np.abs(mean_offset(item, layer)).mean() for item in (model, result.model))
    assert after < before / 5
    assert result.error_after < result.error_before / 2 and result.rounds >= 1
    assert result.layers[layer][1] < result.layers[layer][0] / 5


def test_biases_are_kept_where_correction_does_not_help(monkeypatch):
    monkeypatch.setattr("tfq.ptq.bias_correction._shift", lambda layer, offset: layer.set_bias(layer.bias + 500))
    result = ptq.correct_biases(QUANTIZED, FLOATING, SAMPLES)
    assert (result.model, result.rounds) == (QUANTIZED, 0)
    assert result.error_after == result.error_before


def test_a_float_flatbuffer_of_another_model_is_refused():
    for act in (ptq.correct_biases, ptq.optimize_rounding):
        with refused(InputError, field="floating"):
            act(QUANTIZED, golden("two_branches_float32"), SAMPLES)


@pytest.mark.parametrize("seed", range(8))
def test_rounding_is_nearly_optimal(seed):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    gram = mixed.T @ mixed / 50
    weights = rng.uniform(-3, 3, (6, 5))

    def error(rounded):
        return np.einsum("ok,kl,ol->o", weights - rounded, gram, weights - rounded)

    steps = np.array(list(itertools.product((-1, 0, 1), repeat=5)))
    best = np.min([error(np.rint(weights) + step) for step in steps], axis=0)
    chosen = error(round_weights(weights, gram, -127, 127))
    assert chosen.sum() <= error(np.rint(weights)).sum()
    assert chosen.sum() <= 1.5 * best.sum() + 1e-3


def test_rounding_stays_in_range_and_zeros_stay_zero():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8))
    weights = rng.normal(0, 6, (20, 8))
    weights[:, ::3] = 0
    quantized = round_weights(weights, mixed.T @ mixed, -7, 7)
    assert np.abs(quantized).max() == 7 and (quantized == np.rint(quantized)).all()
    assert (quantized[:, ::3] == 0).all()


@pytest.mark.parametrize("layer", ["conv1", "depthwise", "pointwise", "conv2", "logits"])
def test_patches_times_weights_are_what_the_layer_computes(layer):
    edited, parsed = tflite.unpack(FLOATING), tflite.read(FLOATING)
    weighted = next(item for item in weighted_ops(edited, parsed) if item.layer == layer)
    patches = extract_patches(weighted, tensor_values(FLOATING, weighted.data, SAMPLES[:1]))
    rows = weighted.weights_by_output().reshape(len(patches), -1, patches.shape[2])
    result = np.einsum("gpk,gok->pgo", patches, rows).reshape(patches.shape[1], -1) + weighted.bias
    expected = tensor_values(FLOATING, weighted.output, SAMPLES[:1])
    result = np.maximum(result, 0) if weighted.activation else result
    np.testing.assert_allclose(result, expected.reshape(result.shape), atol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((32, 3, 1, 1), (1, 1)),
        ((32, 3, 2, 1), (0, 1)),
        ((7, 3, 2, 1), (1, 1)),
        ((8, 3, 1, 2), (2, 2)),
        ((5, 1, 2, 1), (0, 0)),
    ],
)
def test_same_padding_is_tensorflows(numbers, expected):
    assert same_padding(*numbers) == expected


def test_rounding_brings_the_outputs_of_every_layer_nearer():
    result = ptq.optimize_rounding(golden("digits_int8_per_tensor"), golden("digits_float32"), SAMPLES)
    assert set(result.layers) == {"conv1", "depthwise", "pointwise", "conv2", "logits"} and not result.skipped
    assert all(after <= before for before, after in result.layers.values())
    # Weights with many inputs, which are rounded together.
    assert all(result.layers[name][1] < result.layers[name][0] / 2 for name in ("conv2", "logits"))


def test_kept_moments_are_those_of_the_same_model_and_samples(monkeypatch):
    runs, other = [], [{"image": sample["image"] + 1} for sample in SAMPLES]

    def counting(*arguments, **settings):
        runs.extend([1] * ("total" in settings))  # not the first sample alone
        return map_activations(*arguments, **settings)

    monkeypatch.setattr("tfq.ptq.gptq.map_activations", counting)
    expected = [ptq.quantize_to_int4(QUANTIZED, FLOATING, data).model for data in (SAMPLES, other)]
    assert expected[0] != expected[1] and len(runs) == 2
    with ptq.kept_moments():
        found = [ptq.quantize_to_int4(QUANTIZED, FLOATING, data, ("conv2",)) for data in (SAMPLES, SAMPLES)]
        assert len(runs) == 3 and found[0].model == found[1].model
        # Only the missing layers are computed, and other samples have other moments.
        assert [ptq.quantize_to_int4(QUANTIZED, FLOATING, data).model for data in (SAMPLES, other)] == expected
        assert len(runs) == 5
    ptq.quantize_to_int4(QUANTIZED, FLOATING, SAMPLES)
    assert len(runs) == 6


@pytest.mark.parametrize(("mean", "deviation"), [(2e4, 1.0), (2000.0, 0.5), (0.7, 0.0), (0.0, 0.0)])
def test_moments_of_inputs_with_a_large_mean_keep_their_small_variance(mean, deviation):
    rng = np.random.default_rng(0)
    values = (mean + deviation * rng.normal(size=(3, 1, 500, 4))).astype(np.float32)
    moments = [InputMoments.of(part, mean_patch(values[0])) for part in values]
    total = moments[0] + moments[1] + moments[2]
    rows = values.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(total.mean[0], rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(total.gram(True)[0], np.cov(rows.T, bias=True), atol=1e-3 * deviation**2 + 1e-12)
    np.testing.assert_allclose(total.gram(False)[0], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-12)
    assert np.isfinite(round_weights(rng.normal(size=(2, 4)), total.gram(True)[0], -7, 7)).all()


@pytest.mark.parametrize(
    "technique", [ptq.optimize_rounding, ptq.quantize_to_int4, ptq.correct_biases, ptq.reconstruct]
)
def test_techniques_without_samples_are_refused(technique):
    with refused(InputError, field="samples"):
        technique(QUANTIZED, FLOATING, [])


def test_rounding_moves_values_at_most_one_step_and_keeps_scales():
    result = ptq.optimize_rounding(QUANTIZED, FLOATING, SAMPLES)
    before, after = tflite.read(QUANTIZED).main_subgraph, tflite.read(result.model).main_subgraph
    assert [tensor.scale for tensor in after.tensors] == [tensor.scale for tensor in before.tensors]
    moved = 0
    for layer in result.layers:
        (_, one), (_, other) = (constant(tflite.unpack(item), layer, 1) for item in (QUANTIZED, result.model))
        difference = np.abs(one.astype(int) - other)
        assert (difference <= 1).mean() > 0.95
        moved += int((difference > 0).sum())
    assert moved > 50


def test_pruned_weights_stay_zero_when_rounded():
    def prune(model):
        for layer in ("pointwise", "conv2"):
            buffer, values = constant(model, layer, 1)
            flat = values.reshape(-1).copy()
            flat[::2] = 0
            buffer.data = flat.view(np.uint8)

    result = ptq.optimize_rounding(changed(QUANTIZED, prune), changed(FLOATING, prune), SAMPLES)
    for layer in ("pointwise", "conv2"):
        assert (constant(tflite.unpack(result.model), layer, 1)[1].reshape(-1)[::2] == 0).all()


def test_repairs_give_the_same_bytes_again():
    for act in (ptq.optimize_rounding, ptq.correct_biases):
        assert act(QUANTIZED, FLOATING, SAMPLES).model == act(QUANTIZED, FLOATING, SAMPLES).model
    assert ptq.equalize(FLOATING).model == ptq.equalize(FLOATING).model


@pytest.mark.parametrize("model", ["digits_int8", "digits_int8_per_tensor"])
def test_four_bit_values_are_packed_as_the_kernels_read_them(model):
    result = ptq.quantize_to_int4(golden(model), FLOATING, SAMPLES, rounding=False)
    edited, before = tflite.unpack(result.model), tflite.unpack(FLOATING)
    for layer in ("conv2", "logits", "depthwise"):
        tensor = edited.subgraphs[0].tensors[op_of(edited, layer).inputs[1]]
        packed = np.asarray(edited.buffers[tensor.buffer].data).view(np.int8)
        quantized = np.stack([(packed << 4) >> 4, packed >> 4], axis=1).reshape(-1)[: np.prod(tensor.shape)]
        scales = np.asarray(tensor.quantization.scale)
        axis = tensor.quantization.quantizedDimension
        shape = [-1 if place == axis and len(scales) > 1 else 1 for place in range(len(tensor.shape))]
        reals = quantized.reshape(tensor.shape) * scales.reshape(shape)
        _, expected = constant(before, layer, 1)
        assert max(-quantized.min() - 1, quantized.max()) == 7
        # Half a step, except for values beyond the smallest and the largest quantized value.
        inside = np.abs(expected / scales.reshape(shape) + 0.5) <= 8
        assert (np.abs(reals - expected) <= scales.reshape(shape) * 0.5001)[inside].all() and inside.mean() > 0.9
    answers = tensor_values(result.model, tflite.read(result.model).main_subgraph.outputs[0])
    assert (answers.argmax(axis=1) == probabilities(FLOATING).argmax(axis=1)).mean() > 0.8


def test_the_kernels_compute_with_the_smallest_four_bit_value():
    content = ptq.quantize_to_int4(QUANTIZED, FLOATING, SAMPLES, rounding=False).model

    def widen(model):
        for layer in weighted_ops(model, tflite.read(content)):
            values, tensor = layer.weights, model.subgraphs[0].tensors[int(layer.op.inputs[1])]
            assert values.min() == -8
            tensor.type = generated.TensorType.INT8
            model.buffers[tensor.buffer].data = values.astype(np.int8).reshape(-1).view(np.uint8)

    results = []
    for model in (content, changed(content, widen)):
        interpreter = Interpreter(
            model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
        interpreter.allocate_tensors()
        (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.set_tensor(source["index"], np.arange(-64, 64, 2, np.int8).reshape(source["shape"]))
        interpreter.invoke()
        results.append(interpreter.get_tensor(output["index"]))
    np.testing.assert_array_equal(*results)


def test_four_bits_lose_less_with_optimized_rounding():
    nearest, chosen = (ptq.quantize_to_int4(QUANTIZED, FLOATING, SAMPLES, rounding=way) for way in (False, True))
    assert all(chosen.layers[name][1] < nearest.layers[name][1] / 1.5 for name in ("conv2", "logits"))
    assert all(after <= before * 1.001 for before, after in nearest.layers.values())
