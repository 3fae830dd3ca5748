# SPDX-License-Identifier: Apache-2.0
"""What is mended in tfmot from outside: ranges and names; and that its private symbols are where they were."""

import importlib

import numpy as np
import pytest
from small_models import fit_for, noise, small_model

from tfq.compression import qat, qat_model, tfmot_private
from tfq.compression.ranges import ranges_from_first_batch
from tfq.keras_bridge import import_tf_keras, import_tfmot


def test_automatic_names_of_the_user_go_on_counting_where_they_were():
    keras = import_tf_keras()
    before = keras.layers.Dense(1).name
    with tfmot_private.automatic_names_from_zero(avoid=["dense_7", "dense"]):
        assert keras.layers.Dense(1).name == "dense_8"
    number = int(before.rpartition("_")[2]) if "_" in before else 0
    assert keras.layers.Dense(1).name == f"dense_{number + 1}"


def variable(model, suffix):
    return next(float(weight.numpy()) for weight in model.weights if weight.name.endswith(suffix))


def test_ranges_are_those_of_the_data_after_a_few_steps():
    # tfmot's own start at [-6, 6]; activations of inputs around 100 are far beyond.
    model = small_model()
    quantized = qat_model(model, fit_for(spread=100.0))
    inputs = noise(model, spread=100.0).inputs["x"]
    keras = import_tf_keras()
    wanted = float(np.max(keras.Model(quantized.inputs, quantized.get_layer("quant_depthwise").output)(inputs)))
    got = variable(quantized, "quant_depthwise/post_activation_max:0")
    assert wanted / 3 < got < wanted * 3 and got > 0
    assert variable(quantized, "quant_depthwise/post_activation_min:0") != pytest.approx(-6, abs=0.5)
    assert variable(quantized, "quantize_layer/quantize_layer_max:0") == pytest.approx(inputs.max())


def test_the_moving_average_follows_its_rule_and_tfmots_quantizers_come_back():
    import tensorflow as tf

    quantized = qat._quantized(small_model(), preserve_sparsity=False)
    places = tfmot_private.moving_average_places(quantized)
    before = [id(quantizer) for _, _, quantizer in places]
    variables = {"min_var": tf.Variable(-6.0), "max_var": tf.Variable(6.0)}
    with ranges_from_first_batch(quantized) as steps_seen:
        quantizer = tfmot_private.moving_average_places(quantized)[0][2]
        average = None
        for n, top in enumerate([10.0, 20.0, 5.0, 40.0]):
            quantizer(tf.constant([-1.0, top]), True, variables)
            decay = 0.0 if n == 0 else (1 + n) / (10 + n)
            average = top if average is None else decay * average + (1 - decay) * top
            assert float(variables["max_var"].numpy()) == pytest.approx(average, rel=1e-5)
        assert float(variables["min_var"].numpy()) == pytest.approx(-1, rel=1e-5)
        assert steps_seen() == 4
        quantizer(tf.constant([-100.0, 100.0]), False, variables)
        assert float(variables["max_var"].numpy()) == pytest.approx(average, rel=1e-5)
    assert [id(quantizer) for _, _, quantizer in tfmot_private.moving_average_places(quantized)] == before


def test_private_symbols_of_tfmot_are_where_we_touch_them():
    import_tfmot()
    core = "tensorflow_model_optimization.python.core"
    symbols = {
        "sparsity.keras.prune_registry": [
            "PruneRegistry.supports",
            "PruneRegistry._weight_names",
            "PruneRegistry._is_rnn_layer",
        ],
        "quantization.keras.default_8bit.default_8bit_quantize_registry": ["Default8BitQuantizeRegistry.supports"],
        "quantization.keras.default_8bit.default_8bit_quantize_scheme": ["Default8BitQuantizeScheme"],
        "quantization.keras.collab_opts.prune_preserve.prune_preserve_quantize_registry": [
            "PrunePreserveQuantizeRegistry.supports"
        ],
        "quantization.keras.collab_opts.prune_preserve.default_8bit_prune_preserve_quantize_scheme": [
            "Default8BitPrunePreserveQuantizeScheme"
        ],
        "quantization.keras.quantizers": ["MovingAverageQuantizer"],
        "quantization.keras.quantize_layer": ["QuantizeLayer"],
        "quantization.keras.quantize_wrapper": ["QuantizeWrapper"],
        "quantization.keras.quant_ops": ["MovingAvgQuantize", "_FakeQuantWithMinMaxVars", "FixedQuantize"],
    }
    for module, names in symbols.items():
        for name in names:
            value = importlib.import_module(f"{core}.{module}")
            for part in name.split("."):
                value = getattr(value, part)
    activation = importlib.import_module(f"{core}.quantization.keras.quantize_aware_activation").QuantizeAwareActivation
    taken = activation._PRE_QUANT_ACTIVATIONS | activation._POST_QUANT_ACTIVATIONS
    assert taken == tfmot_private.FUSED_ACTIVATIONS
    quantized = qat._quantized(small_model(), preserve_sparsity=False)
    # relu (output), depthwise, sum and pool (outputs), head (before its softmax), and conv's, which does nothing.
    assert len(tfmot_private.moving_average_places(quantized)) >= 5
    assert tfmot_private.is_graph_model(quantized)
