# SPDX-License-Identifier: Apache-2.0
"""Sparsity counted in flatbuffers with zeros set by hand. No TensorFlow."""

import numpy as np
import pytest

from tfq.auditing import audit_model
from tfq.compression import m_by_n_groups_in_flatbuffer, sparsity_in_flatbuffer
from tfq.tflite import constant_values, read


def weights(model):
    """Return {keras_layer: (tensor, values)} of each weight."""
    tensors = {tensor.name: tensor for tensor in read(model).main_subgraph.tensors}
    return {
        weight.keras_layer: (tensors[weight.tensor], constant_values(model, tensors[weight.tensor]))
        for weight in audit_model(model).weights
    }


def with_weights(model, change):
    """Return `model` with change(values, keras_layer) instead of each weight's values."""
    changed = bytearray(model)
    for layer, (_, values) in weights(model).items():
        at = model.index(values.tobytes())
        changed[at : at + values.nbytes] = change(values.copy(), layer).astype(values.dtype).tobytes()
    return bytes(changed)


@pytest.fixture
def dense(golden):
    return (golden / "digits_int8.tflite").read_bytes()


def test_zeros_are_counted_by_layer(dense):
    built = with_weights(dense, lambda values, layer: np.where(np.arange(values.size) % 4, 7, 0).reshape(values.shape))
    counted = sparsity_in_flatbuffer(built)
    assert set(counted) == set(weights(dense)) and len(counted) > 1
    for layer, (_, values) in weights(dense).items():
        assert counted[layer] == pytest.approx(-(-values.size // 4) / values.size)


def test_rounding_alone_makes_some_zeros(dense):
    counted = sparsity_in_flatbuffer(dense)
    assert counted == {layer: float(np.mean(values == 0)) for layer, (_, values) in weights(dense).items()}
    assert any(counted.values())


def test_groups_are_counted_along_the_input_channels(dense):
    def two_in_four(values, layer):
        values[...] = 1
        values[..., 0::4] = values[..., 1::4] = 0
        return values

    for layer, fraction in m_by_n_groups_in_flatbuffer(with_weights(dense, two_in_four), 2, 4).items():
        assert fraction == 1 or weights(dense)[layer][1].shape[-1] < 4
    # As many zeros, but along the outputs: complete groups are dense.
    along_outputs = with_weights(dense, lambda values, layer: np.indices(values.shape)[0] % 4 // 2)
    assert m_by_n_groups_in_flatbuffer(along_outputs, 2, 4)["logits"] == pytest.approx(0.5, abs=0.11)
