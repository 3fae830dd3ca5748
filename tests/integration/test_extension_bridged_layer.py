# SPDX-License-Identifier: Apache-2.0
"""A user's own layer in Python and as a plugin of the command line."""

import json

import numpy as np
import pytest

import tfq
from tfq import registry

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = '''
# --8<-- [start:bridged_layer]
import keras
import tf_keras

import tfq


@keras.saving.register_keras_serializable(package="gain")
class Gain(keras.layers.Layer):
    """Multiply each channel by a learned factor."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


@tf_keras.utils.register_keras_serializable(package="gain", name="Gain")
class GainInTFKeras(tf_keras.layers.Layer):
    """The same layer for tf_keras, which pruning and quantization-aware training work on."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


def translate(layer, context):
    """Return the tf_keras layer that computes the same; its weights have the same names, so they are copied."""
    return tfq.Translation(layers=(GainInTFKeras(name=context.name),))


tfq.register(
    tfq.BridgedLayer(
        name="GainInTFKeras",
        help="a factor for each channel",
        keras_class=Gain,
        translate=translate,
        qat="output_only",
        prunable="a zero removes its channel: use structured pruning",
        channels="per_channel",
        channel_weights=("gain",),
    )
)
# --8<-- [end:bridged_layer]
'''


@pytest.fixture
def plugin(tmp_path):
    """Load the plugin and yield its path and its module; afterwards its layer is no longer registered."""
    (tmp_path / "gain.py").write_text(PLUGIN)
    with registry.temporary():
        yield tmp_path / "gain.py", registry.load_plugin(str(tmp_path / "gain.py")).module


def small_model(module):
    import keras

    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="conv")(inputs)
    x = keras.layers.ReLU(name="relu")(module.Gain(name="gain")(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(x), name="small")
    model.get_layer("gain").set_weights([np.linspace(0.5, 2, 6).astype(np.float32)])
    return model


def test_a_registered_layer_is_bridged_and_its_facts_are_used(plugin):
    _, module = plugin
    model = small_model(module)
    bridged = tfq.to_tf_keras(model)
    built = bridged.model.get_layer("gain")
    assert type(built) is module.GainInTFKeras
    np.testing.assert_array_equal(built.get_weights()[0], np.linspace(0.5, 2, 6).astype(np.float32))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(bridged.model(x), model(x), rtol=1e-5, atol=1e-6)
    rows = {row.name: row for row in tfq.preflight(model).layers}
    assert rows["gain"].qat == "qat" and not rows["gain"].prunable
    assert "a zero removes its channel" in rows["gain"].reason


def test_quantization_aware_training_observes_its_output(plugin):
    from tfq.compression.qat.qat import quantized

    _, module = plugin
    annotated = quantized(tfq.to_tf_keras(small_model(module)).model)
    config = annotated.model.get_layer("quant_gain").quantize_config
    assert not annotated.skipped and config.output == "observed" and not config.weights


def test_structured_pruning_follows_its_channels(plugin):
    from tfq.compression.structured_pruning.trace import trace_channels

    _, module = plugin
    model = tfq.to_tf_keras(small_model(module)).model
    sites = {site.layer: site for site in trace_channels(model, "l1").sites}
    np.testing.assert_array_equal(sites["conv"].outputs, sites["gain"].inputs)
    np.testing.assert_array_equal(sites["conv"].outputs, sites["gain"].outputs)
    config = tfq.StructuredPruningConfig(target_cost=0.5, channel_multiple=1)
    smaller = tfq.prune_structured(model, config=config).model
    assert smaller.get_layer("gain").gain.shape[0] == smaller.get_layer("conv").filters < 6


def test_without_its_registration_the_call_of_the_layer_is_translated(plugin):
    _, module = plugin
    del registry._entries["bridged_layer"]["GainInTFKeras"]
    result = tfq.to_tf_keras(small_model(module))
    assert result.layer_map["gain"] == ("gain_gain", "gain_multiply")


def test_a_plugin_adds_a_layer_to_the_command_line(plugin, tmp_path, tfq_cli):
    path, module = plugin
    model = tmp_path / "small.keras"
    small_model(module).save(model)
    done = tfq_cli("compress", f"--model={model}", "--preflight", f"--plugin={path}", "--format=json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert "gain.py" in json.dumps(record["plugins"])
    (row,) = (row for row in record["preflight"]["layers"] if row["name"] == "gain")
    assert row["kind"] == "Gain" and row["qat"] == "qat" and "a zero removes its channel" in row["reason"]
    assert tfq_cli("compress", f"--model={model}", "--preflight").returncode == 2
