# SPDX-License-Identifier: Apache-2.0
"""Comparing two flatbuffers: each seeded change is reported with its layer or field, and nothing else is."""

import copy
import json

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from flatbuffer_mutations import mutants
from golden_models import FLOAT32, changed, golden, unpacked
from messages import refused

import tfq
from tfq import tflite
from tfq.comparison import check_requirements
from tfq.comparison.alignment import align
from tfq.config import ComparisonRequireConfig
from tfq.errors import FlatbufferError, InputError, RequirementError

INT8, FLOAT = golden("digits_int8"), golden("digits_float32")
# Op and tensors of the files: see make.py in tests/golden.
CONV2 = 4


def op_of(model, index=CONV2):
    return model.subgraphs[0].operators[index]


def tensor_of(model, index):
    return model.subgraphs[0].tensors[index]


def data_of(model, tensor):
    return model.buffers[tensor.buffer].data


def compared(change, data=INT8):
    return tfq.compare_models(data, changed(data, change))


def facts(record):
    """Return the discrete differences as (part, where, what, reference, model)."""
    return [(item.part, item.where, item.what, item.reference, item.model) for item in record.changes]


def differing(record):
    return [item for item in record.constants if item.differs]


def test_a_file_is_identical_to_itself():
    record = tfq.compare_models(INT8, INT8)
    assert (record.byte_identical, record.num_differences, record.to_dict()["changes"]) == (True, 0, [])
    assert "identical" in record.to_text()


@pytest.mark.parametrize("name", ["digits_int8", "digits_float16", "two_branches_float32", "float_island"])
def test_another_layout_of_the_same_model_is_no_difference(name):
    data = golden(name)
    record = tfq.compare_models(data, changed(data, lambda model: model.buffers.append(generated.BufferT())))
    assert (record.byte_identical, record.num_differences) == (False, 0), facts(record)
    assert record.matching.matched == record.matching.reference_ops == record.matching.model_ops


def test_a_doubled_scale_of_weights_names_the_layer():
    def double(model):
        quantization = tensor_of(model, op_of(model).inputs[1]).quantization
        quantization.scale = quantization.scale * 2

    record = compared(double)
    (item,) = differing(record)
    assert (item.layer, item.role, item.scale_ratio, item.changed_bytes) == ("conv2", "weight", 2.0, 0)
    # The error is as large as the weights.
    assert item.sqnr_db == pytest.approx(0, abs=1e-4)
    assert record.num_differences == 1 and record.constants[0] is item


def test_a_doubled_scale_of_activations_names_the_layer():
    def double(model):
        quantization = tensor_of(model, op_of(model).outputs[0]).quantization
        quantization.scale = quantization.scale * 2

    record = compared(double)
    (item,) = record.activations
    assert (item.layer, item.scale_ratio, item.reference_zero_point) == ("conv2", 2.0, item.model_zero_point)
    assert record.num_differences == 1


def dequantized(model, tensor):
    """Return the real values of a constant of the object API."""
    values = data_of(model, tensor).view(np.int8 if tensor.type == generated.TensorType.INT8 else np.int32)
    values = values.reshape(tensor.shape).astype(np.float64)
    scale = tensor.quantization.scale.astype(np.float64)
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[tensor.quantization.quantizedDimension] = -1
        scale = scale.reshape(shape)
    return values * scale  # all zero points are 0


def leave_float(model):
    """Compute conv2 in float: DEQUANTIZE, the op with real constants, QUANTIZE."""
    graph, op = model.subgraphs[0], op_of(model)

    def add_tensor(like, name, type_):
        tensor = copy.copy(like)
        tensor.name, tensor.type, tensor.buffer = name, type_, 0
        tensor.quantization = tensor.quantization if type_ != FLOAT32 else None
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def add_op(code, source, target):
        converter = generated.OperatorT()
        converter.opcodeIndex, converter.inputs, converter.outputs = code, [source], [target]
        return converter

    opcodes = [
        tflite.operator_code(model, tflite.schema.OPERATORS.index(name), 1) for name in ("DEQUANTIZE", "QUANTIZE")
    ]
    source, target = op.inputs[0], op.outputs[0]
    real_source = add_tensor(tensor_of(model, source), b"before", FLOAT32)
    real_target = add_tensor(tensor_of(model, target), b"after", FLOAT32)
    for slot in (1, 2):
        tensor = tensor_of(model, op.inputs[slot])
        model.buffers.append(generated.BufferT())
        model.buffers[-1].data = np.frombuffer(dequantized(model, tensor).astype(np.float32).tobytes(), np.uint8)
        tensor.buffer, tensor.type, tensor.quantization = len(model.buffers) - 1, FLOAT32, None
    op.inputs, op.outputs = [real_source, *op.inputs[1:]], [real_target]
    position = graph.operators.index(op)
    graph.operators[position : position + 1] = [
        add_op(opcodes[0], source, real_source),
        op,
        add_op(opcodes[1], real_target, target),
    ]


def test_a_layer_left_float_is_named():
    record = compared(leave_float)
    added = [(where, what) for part, where, what, _, _ in facts(record) if part == "ops"]
    assert [what for _, what in added] == ["added", "added"]
    assert any("DEQUANTIZE" in where for where, _ in added) and any("/QUANTIZE" in where for where, _ in added)
    assert ("types", "conv2/CONV_2D (#4)", "dtype", "int8", "float32") in facts(record)
    assert {(item.layer, item.model.dtype) for item in differing(record)} == {("conv2", "float32")}
    # The same real values, rounded to float32.
    assert all(item.sqnr_db > 120 for item in differing(record))
    assert record.matching.matched == 9


def test_errors_of_int8_weights_equal_numpy():
    """Independent of tfq's reader: the generated object API and NumPy."""
    record = tfq.compare_models(FLOAT, INT8)
    models = unpacked(FLOAT), unpacked(INT8)
    found = {(item.layer, item.input): item for item in record.constants}
    assert len(found) == 10 and not record.activations
    for index, layer, axis in ((0, "conv1", 0), (1, "depthwise", 3), (CONV2, "conv2", 0), (7, "logits", 0)):
        tensors = [tensor_of(model, op_of(model, index).inputs[1]) for model in models]
        expected = data_of(models[0], tensors[0]).view(np.float32).reshape(tensors[0].shape).astype(np.float64)
        noise = dequantized(models[1], tensors[1]) - expected
        axes = tuple(place for place in range(noise.ndim) if place != axis)
        by_channel = 10 * np.log10((expected**2).sum(axes) / (noise**2).sum(axes))
        item = found[layer, 1]
        assert item.sqnr_db == pytest.approx(10 * np.log10((expected**2).sum() / (noise**2).sum()), rel=1e-9)
        assert item.max_abs_error == pytest.approx(np.abs(noise).max(), rel=1e-9)
        assert (item.worst_channel, item.worst_channel_sqnr_db) == (
            by_channel.argmin(),
            pytest.approx(by_channel.min()),
        )
        assert item.model.sparsity == np.mean(dequantized(models[1], tensors[1]) == 0)
        assert item.model.granularity == f"per channel, axis {axis}"
    order = [item.loss for item in record.constants]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("name", "matched"),
    [("float16", 9), ("dynamic_range", 9), ("int16x8", 9), ("int8_qat", 9), ("int8_keras3", 9), ("int8_float_io", 9)],
)
def test_every_op_of_another_scheme_has_its_counterpart(name, matched):
    """The same network converted in another way, partly with other names: the ops correspond in order."""
    other = golden(f"digits_{name}")
    alignment = align(tflite.read(FLOAT).main_subgraph, tflite.read(other).main_subgraph)
    pairs = [(ours.name, theirs.name) for ours, theirs in alignment.pairs()]
    assert pairs == [(op.name, op.name) for op in tflite.read(FLOAT).main_subgraph.ops]
    kinds = {alignment.model.graph.ops[index].name for index in alignment.added}
    assert kinds <= {"QUANTIZE", "DEQUANTIZE"} and not alignment.removed and len(pairs) == matched


def test_ops_are_matched_by_topology_without_any_name():
    def rename(model):
        for number, tensor in enumerate(model.subgraphs[0].tensors):
            tensor.name = f"t{number * 7 % 31}".encode()

    # In the float16 file, DEQUANTIZE ops stand between the constants and the layers.
    for data in (FLOAT, golden("two_branches_float32"), golden("digits_float16")):
        record = compared(rename, data)
        assert {part for part, *_ in facts(record)} <= {"names", "inputs"}, facts(record)
        assert record.matching.matched == record.matching.reference_ops and not differing(record)


def test_a_renamed_tensor_is_the_only_difference():
    def rename(model):
        tensor_of(model, op_of(model, 6).outputs[0]).name = b"elsewhere"

    record = compared(rename)
    assert facts(record) == [("names", "flatten/RESHAPE (#6)", "name", "digits_cnn/flatten/Reshape", "elsewhere")]
    assert record.num_differences == 1


def test_pruned_weights_show_in_sparsity():
    def prune(model):
        values = data_of(model, tensor_of(model, op_of(model).inputs[1])).copy()
        values[: values.size // 2] = 0
        model.buffers[tensor_of(model, op_of(model).inputs[1]).buffer].data = values

    record = compared(prune)
    (item,) = differing(record)
    before = data_of(unpacked(INT8), tensor_of(unpacked(INT8), op_of(unpacked(INT8)).inputs[1]))
    half = before[: before.size // 2]
    assert item.layer == "conv2"
    assert item.reference.sparsity == np.mean(before == 0)
    assert item.model.sparsity == (np.count_nonzero(before[half.size :] == 0) + half.size) / before.size
    assert item.changed_bytes == np.count_nonzero(half)


def test_changed_options_are_named_as_in_the_schema():
    def change(model):
        options = op_of(model).builtinOptions
        options.strideW, options.padding = 2, generated.Padding.VALID
        options.fusedActivationFunction = generated.ActivationFunctionType.NONE

    assert facts(compared(change)) == [
        ("options", "conv2/CONV_2D (#4)", "padding", "SAME", "VALID"),
        ("options", "conv2/CONV_2D (#4)", "stride_w", 1, 2),
        ("options", "conv2/CONV_2D (#4)", "fused_activation_function", "RELU", "NONE"),
    ]


def test_a_changed_shape_operand_is_listed_with_its_values():
    def change(model):
        buffer = model.buffers[tensor_of(model, op_of(model, 6).inputs[1]).buffer]
        buffer.data = np.array([1, 48], np.int32).view(np.uint8)

    assert facts(compared(change, FLOAT)) == [("options", "flatten/RESHAPE (#6)", "input 1", [-1, 48], [1, 48])]


def test_a_dropped_op_is_removed_and_its_reader_is_rewired():
    def drop(model):
        graph = model.subgraphs[0]
        graph.operators[5].inputs = [graph.operators[CONV2].inputs[0]]
        del graph.operators[CONV2]

    record = compared(drop)
    assert [item for item in facts(record) if item[0] == "ops"] == [
        ("ops", "conv2/CONV_2D (#4)", "removed", "CONV_2D -> int8 [1, 8, 8, 12]", None),
        ("ops", "pool/AVERAGE_POOL_2D (#5)", "input 0", "conv2/CONV_2D (#4)", "residual/ADD (#3)"),
    ]
    assert record.num_differences == 2


def test_a_replaced_op_keeps_its_place():
    def replace(model):
        code = tflite.operator_code(model, tflite.schema.OPERATORS.index("MAX_POOL_2D"), 2)
        op_of(model, 5).opcodeIndex = code

    assert facts(compared(replace)) == [("ops", "pool/AVERAGE_POOL_2D (#5)", "type", "AVERAGE_POOL_2D", "MAX_POOL_2D")]


def test_reordered_ops_are_reported_as_order_only():
    """In the float16 file, the first ops convert one constant each, so their order is free."""

    def swap(model):
        ops = model.subgraphs[0].operators
        ops[2], ops[5] = ops[5], ops[2]

    record = compared(swap, golden("digits_float16"))
    assert {(part, what) for part, _, what, _, _ in facts(record)} == {("ops", "order")}
    # To restore the order, it is enough to move these two.
    assert record.num_differences == 2 and record.matching.matched == 19


def test_an_extra_signature_is_added():
    def add(model):
        extra = copy.copy(model.signatureDefs[0])
        extra.signatureKey = b"embed"
        model.signatureDefs.append(extra)

    assert facts(compared(add)) == [("signatures", "'embed'", "added", None, "subgraph 0: image -> probabilities")]


def test_other_names_in_a_signature_are_reported_by_name():
    def rename(model):
        model.signatureDefs[0].signatureKey = b"predict"
        model.signatureDefs[0].inputs[0].name = b"pixels"

    assert facts(compared(rename)) == [
        ("inputs", "input 0 'image'", "name", "image", "pixels"),
        ("signatures", "'serving_default'", "key", "serving_default", "predict"),
        ("signatures", "'serving_default' inputs", "image", 0, None),
        ("signatures", "'serving_default' inputs", "pixels", None, 0),
    ]


def test_changed_inputs_are_reported():
    def change(model):
        tensor = tensor_of(model, model.subgraphs[0].inputs[0])
        tensor.quantization.scale = tensor.quantization.scale * np.float32(0.5)
        tensor.quantization.zeroPoint = tensor.quantization.zeroPoint + 1

    record = compared(change)
    changes = {(where, what): (ours, theirs) for part, where, what, ours, theirs in facts(record) if part == "inputs"}
    scale = tflite.read(INT8).main_subgraph.input_tensors[0].scale[0]
    assert changes == {
        ("input 0 'image'", "scale"): (scale, scale / 2),
        ("input 0 'image'", "zero_point"): (-128, -127),
    }
    assert record.num_differences == 2


def test_an_open_dimension_and_another_op_version_are_reported():
    def change(model):
        graph = model.subgraphs[0]
        tensor_of(model, graph.inputs[0]).shapeSignature = np.int32([-1, 8, 8, 1])
        model.operatorCodes[op_of(model, 8).opcodeIndex].version += 1

    assert facts(compared(change)) == [
        ("inputs", "input 0 'image'", "shape", [1, 8, 8, 1], [-1, 8, 8, 1]),
        ("versions", "Identity/SOFTMAX (#8)", "version", 2, 3),
    ]


def test_ops_that_only_their_order_tells_apart_are_matched_by_position():
    """Two more RESHAPE ops read the same tensor as that of the layer `flatten`, and nothing reads their outputs."""

    def extend(*names):
        def change(model):
            graph, op = model.subgraphs[0], op_of(model, 6)
            for name in names:
                tensor, twin = copy.copy(tensor_of(model, op.outputs[0])), copy.copy(op)
                tensor.name = name
                graph.tensors.append(tensor)
                twin.outputs = [len(graph.tensors) - 1]
                graph.operators.append(twin)

        return changed(INT8, change)

    record = tfq.compare_models(extend(b"a", b"b"), extend(b"c", b"d"))
    assert record.matching.rules == {"output name": 9, "position": 2}
    assert [(what, ours, theirs) for *_, what, ours, theirs in facts(record)] == [
        ("name", "a", "c"),
        ("name", "b", "d"),
    ]


def test_changed_preprocessing_names_the_field():
    versions = [
        tflite.write_metadata(INT8, {"preprocessing": {"resize": [8, 8], "scale": scale, "offset": 0.0}, "seed": 0})
        for scale in (1.0, 1 / 255)
    ]
    record = tfq.compare_models(*versions)
    assert facts(record)[1:] == [("metadata", "tfq", "preprocessing.scale", 1.0, 1 / 255)]
    part, where, what, ours, theirs = facts(record)[0]
    assert (part, where, what) == ("inputs", "input 0 'image'", "preprocessing")
    assert "0.0039" in theirs and "0.0039" not in ours


def test_swapped_labels_are_listed_by_line():
    names = [b"zero", b"one", b"two"]
    swapped = [names[0], names[2], names[1]]
    files = [tflite.append_files(INT8, {"labels.txt": b"\n".join(lines)}) for lines in (names, swapped)]
    record = tfq.compare_models(*files)
    assert facts(record) == [
        ("files", "labels.txt", "line 2", "one", "two"),
        ("files", "labels.txt", "line 3", "two", "one"),
    ]
    without = tfq.compare_models(files[0], INT8)
    assert [item[:3] for item in facts(without)] == [("files", "labels.txt", "removed")]


def test_tflite_metadata_is_compared_by_field():
    metadata = [tflite.ModelMetadata(name="digits", description=text) for text in ("old", "new")]
    record = tfq.compare_models(*(tflite.write_model_metadata(INT8, item) for item in metadata))
    assert facts(record) == [("metadata", "TFLITE_METADATA", "description", "old", "new")]


def test_values_that_are_not_finite_are_counted_not_hidden():
    def spoil(model):
        buffer = model.buffers[tensor_of(model, op_of(model).inputs[1]).buffer]
        values = buffer.data.view(np.float32).copy()
        values[:3] = np.nan
        buffer.data = values.view(np.uint8)

    record = compared(spoil, FLOAT)
    (item,) = differing(record)
    assert (item.layer, item.equal, item.reason.split()[0]) == ("conv2", False, "3")
    json.dumps(record.to_dict(), allow_nan=False)


def test_packed_and_sparse_constants_are_read():
    """int4 weights: each byte has two values, the first in the low bits."""

    def pack(model):
        tensor = tensor_of(model, op_of(model).inputs[1])
        values = np.clip(np.round(data_of(model, tensor).view(np.int8) / 16), -8, 7).astype(np.int8).reshape(-1, 2) & 15
        model.buffers[tensor.buffer].data = (values[:, 0] | values[:, 1] << 4).astype(np.uint8)
        tensor.type, tensor.quantization.scale = generated.TensorType.INT4, tensor.quantization.scale * 16

    record = compared(pack)
    (item,) = differing(record)
    source = unpacked(INT8)
    tensor = tensor_of(source, op_of(source).inputs[1])
    real = dequantized(source, tensor)
    scale = tensor.quantization.scale.astype(np.float64).reshape(-1, 1, 1, 1) * 16
    rounded = np.clip(np.round(data_of(source, tensor).view(np.int8) / 16), -8, 7).reshape(real.shape) * scale
    assert (item.model.dtype, item.changed_bytes) == ("int4", None)
    assert item.sqnr_db == pytest.approx(10 * np.log10((real**2).sum() / ((rounded - real) ** 2).sum()), rel=1e-6)


def test_requirements_name_the_difference():
    def double(model):
        quantization = tensor_of(model, op_of(model).inputs[1]).quantization
        quantization.scale = quantization.scale * 2

    same, worse = tfq.compare_models(INT8, INT8), compared(double)
    for require in (ComparisonRequireConfig(no_differences=True), ComparisonRequireConfig(min_weight_sqnr_db=20)):
        check_requirements(same, require)
        with refused(RequirementError, word="conv2/CONV_2D"):
            check_requirements(worse, require)


def test_weights_without_a_counterpart_do_not_meet_a_bound():
    def drop(model):
        graph = model.subgraphs[0]
        graph.operators[5].inputs = [graph.operators[CONV2].inputs[0]]
        del graph.operators[CONV2]

    with refused(RequirementError, field="comparison.require.min_weight_sqnr_db", got=None, word="conv2/CONV_2D"):
        check_requirements(compared(drop), ComparisonRequireConfig(min_weight_sqnr_db=-1000))


def test_the_text_limits_rows_and_counts_the_rest():
    def rename(model):
        for number, tensor in enumerate(model.subgraphs[0].tensors):
            tensor.name = f"{'x' * number * 9}{number}".encode()

    text = compared(rename).to_text()
    assert max(map(len, text.splitlines())) < 200
    assert "conv1/CONV_2D (#0)" in text


def test_numbers_that_differ_in_late_digits_are_shown_with_all_digits():
    def nudge(model):
        quantization = tensor_of(model, model.subgraphs[0].inputs[0]).quantization
        quantization.scale = np.nextafter(quantization.scale, np.float32(1))

    record = compared(nudge)
    ((*_, ours, theirs),) = facts(record)
    assert f"{ours:.6g}" == f"{theirs:.6g}"
    assert str(ours) in record.to_text() and str(theirs) in record.to_text()


def test_damaged_files_end_in_clear_errors():
    for data in (INT8[:5000], b"", b"TFL3" * 4):
        with pytest.raises(InputError):
            tfq.compare_models(INT8, data)
    differences = []
    for damaged in mutants(INT8, 80, "compare"):
        try:
            record = tfq.compare_models(INT8, damaged)
        except (FlatbufferError, InputError):
            continue
        differences.append(record.num_differences)
        json.dumps(record.to_dict(), allow_nan=False)
        record.to_text()
    assert len(differences) > 10 and sum(differences) > 10


def test_states_and_intermediate_scales_of_recurrent_ops_are_compared():
    """An op whose states are variables, and whose intermediate values have scales, as an int8 LSTM."""

    def extend(factor):
        def change(model):
            graph, op = model.subgraphs[0], op_of(model, 7)
            for name, is_variable in ((b"state", True), (b"cell", False)):
                tensor = copy.copy(tensor_of(model, op.outputs[0]))
                tensor.name, tensor.isVariable, tensor.quantization = name, is_variable, copy.copy(tensor.quantization)
                tensor.quantization.scale = np.float32([factor])
                graph.tensors.append(tensor)
            op.inputs, op.intermediates = [*op.inputs, len(graph.tensors) - 2], [len(graph.tensors) - 1]

        return changed(INT8, change)

    record = tfq.compare_models(extend(0.5), extend(2))
    places = {(item.layer, item.where.rpartition(") ")[2], item.scale_ratio) for item in record.activations}
    assert places == {("logits", "input 3", 4.0), ("logits", "intermediate 0", 4.0)}
    assert record.num_differences == 2
