# SPDX-License-Identifier: Apache-2.0
"""A QAT model and its flatbuffer, layer by layer: equal layers are reported as equal, and damaged ones are named."""

import importlib
import json
import math

import numpy as np
import pytest
from messages import refused
from small_models import fit_briefly, fit_for, noise, small_model

import tfq
from tfq import tflite
from tfq.backends import LocalBackend, RunRequest
from tfq.compression import qat_model, untrained_qat_model
from tfq.compression.parity.compare import qat_parity
from tfq.compression.training import deterministic
from tfq.errors import FlatbufferError, InputError, RequirementError
from tfq.evaluation import prepare_inputs
from tfq.keras_bridge import import_tf_keras, import_tfmot


@pytest.fixture(scope="module")
def trained():
    """Return (QAT model, its flatbuffer, data)."""
    model = qat_model(small_model(), fit_for(4))
    return model, tfq.convert(model), noise(model, 48)


@pytest.fixture(scope="module")
def parity(trained):
    return qat_parity(*trained)


def test_the_flatbuffer_may_be_a_path(trained, parity, tmp_path):
    model, content, data = trained
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    for source in (path, str(path)):
        assert qat_parity(model, source, data).to_dict() == parity.to_dict()


def edited(content, change):
    """Return the flatbuffer after `change(graph, values of a tensor's buffer)`, by the schema's own object API."""
    model = tflite.unpack(content)
    change(model.subgraphs[0], lambda tensor: model.buffers[tensor.buffer])
    return tflite.pack(model, len(content))


def op_of(content, layer, name=None):
    ops = tflite.read(content).main_subgraph.ops
    return next(op for op in ops if (op.keras_layer or "").removeprefix("quant_") == layer and name in (None, op.name))


def test_a_variance_quantized_to_zero_is_reported_as_not_comparable():
    keras = import_tf_keras()
    with deterministic(0):
        inputs = keras.Input((4, 4, 8))
        x = keras.layers.LayerNormalization(epsilon=1e-6, name="norm")(keras.layers.Conv2D(8, 1)(inputs))
        model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(x))
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 8)).astype(np.float32)
    x[::2] *= 1e-2
    quantized = untrained_qat_model(model, x)
    result = qat_parity(quantized, tfq.convert(quantized, x), x)
    root = next(layer for layer in result.layers if layer.op == "RSQRT")
    assert root.local_max_lsb == math.inf and "128 of 256" in root.departs
    assert "NaN" not in json.dumps(result.to_dict()).replace(root.departs, "")


def test_layers_of_a_correct_flatbuffer_are_within_one_lsb_of_qat(parity):
    assert [(layer.layers, layer.op) for layer in parity.layers] == [
        (("image",), "input"),
        (("conv", "bn", "relu"), "CONV_2D"),
        (("depthwise",), "DEPTHWISE_CONV_2D"),
        (("sum",), "ADD"),
        (("pool",), "MEAN"),
        (("head",), "FULLY_CONNECTED"),
        (("head",), "SOFTMAX"),
    ]
    assert parity.first_departure is None and parity.departures == () and parity.notes == ()
    assert max(layer.local_max_lsb for layer in parity.layers) <= 1.01
    assert all(layer.mean_lsb < 0.5 for layer in parity.layers)
    assert [layer.fake_quantized for layer in parity.layers] == [True] * 6 + [False]
    assert parity.skipped == {"conv": "part of relu", "bn": "part of relu"}
    assert parity.num_examples == 48 and parity.layers[1].compared == 48 * 6 * 6 * 8


def test_layer_values_are_those_of_keras_and_of_the_interpreter(trained, parity):
    from ai_edge_litert.interpreter import Interpreter

    model, content, data = trained
    keras = import_tf_keras()
    x = data.inputs["x"]
    in_keras = np.asarray(keras.Model(model.input, model.get_layer("quant_sum").output)(x, training=False))
    interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (fed,), tensor = interpreter.get_input_details(), op_of(content, "sum").outputs[0]
    quantized = []
    for example in prepare_inputs(tflite.read(content), data).arrays[0]:
        interpreter.set_tensor(fed["index"], example[None])
        interpreter.invoke()
        quantized.append(interpreter.get_tensor(tensor)[0].astype(int))
    result = next(layer for layer in parity.layers if layer.layer == "sum")
    expected = np.clip(np.rint(in_keras / result.scale) + result.zero_point, -128, 127).astype(int)
    distance = np.abs(np.stack(quantized) - expected)
    assert result.agreement == pytest.approx((distance == 0).mean(), abs=2e-3)
    assert result.mean_lsb == pytest.approx(distance.mean(), abs=2e-3)
    noise_power = ((in_keras - (np.stack(quantized) - result.zero_point) * result.scale) ** 2).sum()
    assert result.sqnr_db == pytest.approx(10 * math.log10((in_keras**2).sum() / noise_power), abs=0.5)


def test_the_whole_model_is_judged_by_its_classes_margins_and_logits(trained, parity):
    model, content, data = trained
    own = np.asarray(model(data.inputs["x"], training=False))
    (output,) = parity.outputs
    inputs = prepare_inputs(tflite.read(content), data).arrays
    (answers,) = LocalBackend().assess(RunRequest(model=content, inputs=inputs)).outputs
    assert parity.top1_agreement == output.top1_agreement == (answers.argmax(1) == own.argmax(1)).mean()
    assert output.lsb == 1 / 256 and output.logits_of == "input of SOFTMAX"
    assert parity.logit_sqnr_db == parity.layers[-2].sqnr_db > 20
    for item in output.disagreements:
        second, first = np.sort(own[item.example])[-2:]
        assert item.expected == own[item.example].argmax() != item.got
        assert item.margin_lsb == pytest.approx((first - second) * 256, abs=1e-3)
        # softmax(x)[a] / softmax(x)[b] is exp(x[a] - x[b]).
        lead = math.log(first / second) / parity.layers[-2].scale
        assert item.logit_margin_lsb == pytest.approx(lead, abs=1e-2)
    assert parity.missed() == ()
    parity.require()


@pytest.mark.parametrize("kernels", ["builtin", "reference"])
def test_the_other_kernels_compute_it_too(trained, kernels):
    result = qat_parity(*trained, limit=8, kernels=kernels)
    assert result.first_departure is None and result.kernels == kernels and result.num_examples == 8


def weight_scale(layer):
    def change(graph, buffer_of, index):
        graph.tensors[index].quantization.scale = np.asarray(graph.tensors[index].quantization.scale) * 1.25

    return layer, "weights", change


def one_weight(layer):
    def change(graph, buffer_of, index):
        values = buffer_of(graph.tensors[index]).data.copy()
        values[0] = 256 - 100 if values[0] < 128 else 100
        buffer_of(graph.tensors[index]).data = values

    return layer, "weights", change


def output_scale(layer, factor=1.1):
    def change(graph, buffer_of, index):
        graph.tensors[index].quantization.scale = np.asarray(graph.tensors[index].quantization.scale) * factor

    return layer, "output", change


def output_zero_point(layer):
    def change(graph, buffer_of, index):
        graph.tensors[index].quantization.zeroPoint = np.asarray(graph.tensors[index].quantization.zeroPoint) + 9

    return layer, "output", change


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (weight_scale("conv"), ["relu"]),
        (weight_scale("depthwise"), ["depthwise"]),
        (weight_scale("head"), ["head"]),
        (one_weight("depthwise"), ["depthwise"]),
        (output_scale("conv"), ["relu"]),
        (output_scale("sum"), ["sum"]),
        # The bias after it has steps of this scale, so it is damaged too.
        (output_scale("pool", 2), ["pool", "head"]),
        (output_zero_point("depthwise"), ["depthwise"]),
    ],
)
def test_a_damaged_layer_is_named_and_it_alone(trained, damage, named):
    model, content, data = trained
    layer, part, change = damage
    op = op_of(content, layer)
    index = op.inputs[1] if part == "weights" else op.outputs[0]
    broken = edited(content, lambda graph, buffer_of: change(graph, buffer_of, index))
    result = qat_parity(model, broken, data)
    assert result.first_departure.layer == named[0] and result.first_departure.op == op.name
    assert [departure.layer for departure in result.departures] == named
    assert f"first departure: {named[0]}" in result.to_text()
    if part == "output":
        assert "zero_point" in result.first_departure.departs
    else:
        # The following layers compute correctly from wrong inputs, so their outputs are wrong too.
        assert result.layers[-1].agreement < 1


def test_each_of_two_damaged_layers_is_named(trained):
    model, content, data = trained
    both = content
    for layer, _, change in (weight_scale("head"), weight_scale("conv")):
        index = op_of(content, layer).inputs[1]
        both = edited(both, lambda graph, buffer_of, change=change, index=index: change(graph, buffer_of, index))
    result = qat_parity(model, both, data)
    assert [departure.layer for departure in result.departures] == ["relu", "head"]
    assert "first departure: relu" in result.to_text() and "  head: " in result.to_text()


def test_a_flatbuffer_with_other_outputs_fails_and_its_layer_is_reported(trained):
    model, content, data = trained

    def negate(graph, buffer_of):
        buffer = buffer_of(graph.tensors[op_of(content, "head").inputs[1]])
        buffer.data = (-buffer.data.view(np.int8)).view(np.uint8)

    result = qat_parity(model, edited(content, negate), data)
    assert result.top1_agreement < 0.8 and len(result.missed()) == 2
    assert result.largest_margin_lsb > 4
    assert result.missed(min_logit_sqnr_db=-math.inf, max_margin_lsb=math.inf) == ()
    with refused(RequirementError, field="model", expected=(20.0, 4.0), got="head", word="SOFTMAX"):
        result.require()


def pooled():
    """Return a model whose pooling TFLite rounds to its input's coarse steps, before the finer ones of tfmot."""
    keras = import_tf_keras()
    with deterministic(0):
        image = keras.Input((6, 6, 2), name="image")
        x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
        x = keras.layers.AveragePooling2D(4, name="average")(x)
        return keras.Model(image, keras.layers.Dense(3, name="head")(keras.layers.Flatten(name="flatten")(x)))


def test_coarse_untrained_rounding_is_a_departure():
    # tfmot's own scheme, regardless of tfq's.
    model = import_tfmot().quantization.keras.quantize_model(pooled())
    data = noise(model, 32)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name.endswith(("max:0", "min:0")) and weight.shape.rank == 0:
                low = weight.name.endswith("min:0")
                narrow = "average" in weight.name
                weight.assign(-0.5 * low if narrow else (-6.0 if low else 6.0))
                if narrow and not low:
                    weight.assign(0.5)
    content = tfq.convert(model)
    result = qat_parity(model, content, data)
    pooling = [layer for layer in result.layers if layer.layer == "average"]
    assert [layer.op for layer in pooling] == ["AVERAGE_POOL_2D", "QUANTIZE"]
    assert [layer.fake_quantized for layer in pooling] == [False, True]
    assert result.noisiest is pooling[0] and pooling[0].local_sqnr_db < 30 < pooling[1].local_sqnr_db
    assert result.first_departure is pooling[0] and "it rounds to steps of" in pooling[0].departs
    assert result.outputs[0].logits_of == "output"


def test_an_addition_of_zeros_is_not_the_end_of_a_layer():
    # Conversion removes a bias of zeros and an offset of 0: the tensor is then named after the op before them.
    keras = import_tf_keras()
    with deterministic(0):
        image = keras.Input((6, 6, 2), name="image")
        x = keras.layers.Conv2D(4, 3, name="no_bias_yet")(image)
        x = keras.layers.ReLU(name="relu")(keras.layers.Rescaling(0.3, name="no_offset")(x))
        x = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
        model = keras.Model(image, x)
    data = noise(model, 48)
    quantized = untrained_qat_model(model, data)
    result = qat_parity(quantized, tfq.convert(quantized), data)
    assert all(layer.fake_quantized for layer in result.layers) and result.departures == ()
    assert [layer.layer for layer in result.layers if layer.op in ("CONV_2D", "FULLY_CONNECTED")][-1] == "head"


def test_a_layer_over_sequences_is_compared_after_its_reshape():
    """The Dense and the Conv1D reshape after their products; without a bias the product has the tensor's name."""
    keras = import_tf_keras()
    with deterministic(0):
        inputs = keras.Input((6, 4))
        x = keras.layers.Dense(5, use_bias=False, name="dense")(inputs)
        x = keras.layers.Conv1D(5, 1, use_bias=False, name="conv")(x)
        model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    x = np.random.default_rng(0).normal(size=(64, 6, 4)).astype(np.float32)
    quantized = untrained_qat_model(model, x / 2)
    # The data exceed the ranges: values that were not rounded were not clipped.
    result = qat_parity(quantized, tfq.convert(quantized), x)
    assert {"dense", "conv"} <= {layer.layer for layer in result.layers if layer.fake_quantized}
    assert result.first_departure is None and result.outputs[0].logit_sqnr_db > 30


def test_tensors_in_another_order_are_not_a_departure():
    """A dilated convolution splits its images in the model; the flatbuffer swaps axes of a LayerNormalization."""
    keras = import_tf_keras()
    with deterministic(0):
        series = keras.Input((24, 3), name="series")
        x = keras.layers.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="relu", name="dilated")(series)
        x = keras.layers.LayerNormalization(name="norm")(x)
        x = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling1D(name="pool")(x))
        model = keras.Model(series, x)
    data = noise(model, 48)
    quantized = untrained_qat_model(model, data)
    result = qat_parity(quantized, tfq.convert(quantized, data.inputs["x"]), data)
    convolution = [layer for layer in result.layers if layer.layer == "dilated"]
    assert [layer.op for layer in convolution][-1] == "CONV_2D"
    assert all(layer.agreement == 1 for layer in convolution)
    normalization = [layer for layer in result.layers if layer.layer == "norm"]
    assert min(layer.sqnr_db for layer in normalization) > 15
    assert any("order" in reason for reason in result.skipped.values())


def test_other_types_of_inputs_and_outputs_are_the_same_model(trained, parity):
    model, _, data = trained
    for kind in ("uint8", "float32"):
        config = tfq.ConversionConfig(inference_input_type=kind, inference_output_type=kind)
        result = qat_parity(model, tfq.convert(model, config=config), data)
        ours = [layer for layer in result.layers if layer.op not in ("input", "QUANTIZE")]
        assert [layer.agreement for layer in ours] == [layer.agreement for layer in parity.layers[1:]]
        assert result.first_departure is None
        assert result.outputs[0].lsb == 1 / 256 and result.logit_sqnr_db == parity.logit_sqnr_db


@pytest.fixture(scope="module")
def joined():
    """Return (QAT model with two inputs and a join, its flatbuffer, data). All inputs of the join have one scale."""
    keras = import_tf_keras()
    with deterministic(0):
        images = [keras.Input((6, 6, 2), name=name) for name in ("right", "left")]
        sides = [keras.layers.Conv2D(4, 3, name=f"conv_{image.name}")(image) for image in images]
        x = keras.layers.ReLU(name="relu")(keras.layers.Concatenate(name="join")(sides))
        x = keras.layers.Dense(3, name="head")(keras.layers.Flatten(name="flatten")(x))
        model = keras.Model(images, x)
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(32, 6, 6, 2)).astype("float32") for name in ("left", "right")}

    def fit(model, callbacks):
        model.compile("adam", "mse")
        model.fit([inputs["right"], inputs["left"]], np.zeros((32, 3)), verbose=0, callbacks=callbacks)

    model = qat_model(model, fit)
    return model, tfq.convert(model), inputs


def test_several_inputs_and_a_join_are_compared_by_name(joined):
    result = qat_parity(*joined)
    assert result.first_departure is None and result.notes == ()
    assert {"conv_left", "conv_right", "join", "head"} <= {name for layer in result.layers for name in layer.layers}
    model, content, inputs = joined
    with refused(InputError, field="data", got=("left_", "right"), word="'left'"):
        qat_parity(model, content, {"left_": inputs["left"], "right": inputs["right"]})


def test_the_join_excuses_only_a_scale_of_the_qat_model(joined):
    model, content, inputs = joined
    tied = {op_of(content, layer).outputs[0] for layer in ("conv_left", "conv_right", "join")}

    def widen(graph, buffer_of):
        for index in tied:
            output_scale("")[2](graph, buffer_of, index)

    result = qat_parity(model, edited(content, widen), inputs)
    assert {departure.layer for departure in result.departures} == {"conv_left", "conv_right", "join"}


def test_data_in_pieces_gives_the_same_as_data_at_once(trained, parity, monkeypatch):
    module = importlib.import_module("tfq.compression.parity.compare")
    monkeypatch.setattr(module, "_CODE_BYTES", 10_000)
    monkeypatch.setattr(module, "_LARGEST_BATCH", 3)
    result = qat_parity(*trained)
    for one, whole in zip(result.layers, parity.layers, strict=True):
        messages = [one.layer, one.tensor, one.compared, one.max_lsb, one.departs]
        assert messages == [whole.layer, whole.tensor, whole.compared, whole.max_lsb, whole.departs]
        # Sums in another order, and kernels for another batch size.
        for name in ("agreement", "mean_lsb", "sqnr_db", "local_max_lsb", "local_mean_lsb", "local_sqnr_db"):
            assert getattr(one, name) == pytest.approx(getattr(whole, name), rel=1e-3, abs=1e-3)
    assert result.outputs[0].disagreements == parity.outputs[0].disagreements and result.notes == ()


def test_the_record_is_plain_json(parity):
    message = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert message["first_departure"] is None and message["layers"][1]["layers"] == ["conv", "bn", "relu"]
    assert message["outputs"][0]["logits_of"] == "input of SOFTMAX"
    text = parity.to_text()
    assert "head (SOFTMAX) adds the most noise" in text and "the QAT model does not round there" in text
    assert "conv + bn + relu" in text and "no layer departs" in text and "same class in" in text


def other_model(trained):
    keras = import_tf_keras()
    other = keras.Sequential([keras.layers.Flatten(input_shape=(6, 6, 2)), keras.layers.Dense(3, name="other")])
    return tfq.convert(qat_model(other, fit_briefly))


def test_a_flatbuffer_of_another_model_is_refused(trained):
    model, _, data = trained
    with refused(InputError, field="model", expected="a flatbuffer of 'small'"):
        qat_parity(model, other_model(trained), data)


def test_files_that_are_not_int8_flatbuffers_are_refused(trained, golden):
    model, _, data = trained
    floating = tfq.convert(small_model(), config=tfq.ConversionConfig(scheme="float32"))
    with refused(InputError, field="model", expected="int8 activations"):
        qat_parity(model, floating, data)
    with pytest.raises(FlatbufferError):
        qat_parity(model, b"no flatbuffer at all", data)


def test_a_model_without_fake_quantization_is_refused(trained):
    _, content, data = trained
    with refused(InputError, field="qat_model", expected="fake quantization", got="small"):
        qat_parity(small_model(), content, data)


def test_data_that_do_not_fit_are_refused(trained):
    model, content, data = trained
    x = data.inputs["x"]
    with refused(InputError, got="NaN"):
        qat_parity(model, content, np.where(x > 2, np.nan, x))
    with refused(InputError, field="data", got=x[:, :4].shape[1:]):
        qat_parity(model, content, x[:, :4])
    with refused(InputError, field="data", got=("imagge", "other")):
        qat_parity(model, content, {"imagge": x, "other": x})


def test_a_qat_model_with_broken_weights_is_an_error_with_layer(trained):
    model, content, data = trained
    weight = next(w for w in model.get_layer("quant_depthwise").weights if w.name.endswith("bias:0"))
    before = weight.numpy()
    try:
        weight.assign(before * np.nan)
        with refused(InputError, field="qat_model", expected="finite values", got="depthwise"):
            qat_parity(model, content, data)
    finally:
        weight.assign(before)
