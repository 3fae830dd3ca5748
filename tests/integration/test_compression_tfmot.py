# SPDX-License-Identifier: Apache-2.0
"""Names that tfmot assigns, and the locations of its private symbols."""

import importlib

from small_models import small_model

from tfq import registry
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat import qat
from tfq.keras_bridge import BridgedLayer, import_tf_keras, import_tfmot
from tfq.keras_bridge.quantize_configs import quantize_config_classes


def test_automatic_names_continue_counting():
    keras = import_tf_keras()
    before = keras.layers.Dense(1).name
    with tfmot_symbols.automatic_names_from_zero(avoid=["dense_7", "dense"]):
        assert keras.layers.Dense(1).name == "dense_8"
    number = int(before.rpartition("_")[2]) if "_" in before else 0
    assert keras.layers.Dense(1).name == f"dense_{number + 1}"


def test_private_symbols_of_tfmot_are_where_we_touch_them():
    import_tfmot()
    core = "tensorflow_model_optimization.python.core"
    symbols = {
        "quantization.keras.quantizers": ["AllValuesQuantizer", "MovingAverageQuantizer"],
        "quantization.keras.quantize_layer": ["QuantizeLayer"],
        "quantization.keras.quantize_wrapper": ["QuantizeWrapper", "QuantizeWrapperV2"],
        "quantization.keras.quant_ops": ["MovingAvgQuantize", "_FakeQuantWithMinMaxVars", "FixedQuantize"],
    }
    for module, names in symbols.items():
        for name in names:
            value = importlib.import_module(f"{core}.{module}")
            for part in name.split("."):
                value = getattr(value, part)
    quantized = qat.quantized(small_model()).model
    # The input, relu, depthwise, sum and pool (outputs), head (before its softmax).
    places = tfmot_symbols.activation_quantizers(quantized)
    assert len(places) >= 6 and not places[0].is_moving_average and all(place.is_moving_average for place in places[1:])
    assert {name for name, *_ in tfmot_symbols.weight_ranges(quantized)} == {
        "quant_conv",
        "quant_depthwise",
        "quant_head",
    }
    assert tfmot_symbols.is_graph_model(quantized)


def test_the_prunable_weights_agree_with_tfmots_registry():
    import_tfmot()
    core = "tensorflow_model_optimization.python.core"
    pruning = importlib.import_module(f"{core}.sparsity.keras.prune_registry").PruneRegistry
    known, layers = registry.entries(BridgedLayer), vars(import_tf_keras().layers).values()
    of_tfmot = {cls.__name__: names for cls, names in pruning._LAYERS_WEIGHTS_MAP.items() if cls in layers}
    of_tfmot |= {cls.__name__: names for cls, names in pruning._RNN_CELLS_WEIGHTS_MAP.items()}
    assert len(of_tfmot) > 50
    missing = {name for name, weights in of_tfmot.items() if weights} - known.keys()
    assert missing == set()
    ours = {name: list(known[name].prunable or ()) for name in of_tfmot.keys() & known.keys()}
    assert ours == {name: of_tfmot[name] for name in ours}
    assert all(known[cls.__name__].wraps == ("cell",) for cls in pruning._RNN_LAYERS)


def test_the_classes_that_stand_in_for_layers_exist():
    entries = registry.entries(BridgedLayer).values()
    named = {name for entry in entries for name in entry.stand_ins.values()}
    assert named and named <= quantize_config_classes().keys()
