# SPDX-License-Identifier: Apache-2.0
"""Sparsity and its gain, measured in flatbuffers whose zeros are made by hand. No TensorFlow."""

import gzip
import json

import numpy as np
import pytest

from tfq.auditing import audit_model
from tfq.compression import groups_in_flatbuffer, pruning_gain, sparsity_in_flatbuffer
from tfq.config import BenchmarkConfig
from tfq.errors import InputError
from tfq.tflite import constant_values, read

QUICK = BenchmarkConfig(warmup_runs=1, num_runs=10, min_secs=0, ops=False)


def weights(model):
    """keras_layer -> (tensor, values) of each weight."""
    tensors = {tensor.name: tensor for tensor in read(model).main_subgraph.tensors}
    return {
        weight.keras_layer: (tensors[weight.tensor], constant_values(model, tensors[weight.tensor]))
        for weight in audit_model(model).weights
    }


def with_weights(model, change):
    """`model` with change(values, keras_layer) in place of each weight's values."""
    changed = bytearray(model)
    for layer, (_, values) in weights(model).items():
        at = model.index(values.tobytes())
        changed[at : at + values.nbytes] = change(values.copy(), layer).astype(values.dtype).tobytes()
    return bytes(changed)


@pytest.fixture
def dense(golden):
    return (golden / "digits_int8.tflite").read_bytes()


def every_second(values, layer):
    values.reshape(-1)[::2] = 0
    return values


def test_zeros_are_counted_by_layer(dense):
    made = with_weights(dense, lambda values, layer: np.where(np.arange(values.size) % 4, 7, 0).reshape(values.shape))
    counted = sparsity_in_flatbuffer(made)
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

    for layer, share in groups_in_flatbuffer(with_weights(dense, two_in_four), 2, 4).items():
        assert share == 1 or weights(dense)[layer][1].shape[-1] < 4
    # As many zeros, but along the outputs: whole groups are dense.
    along_outputs = with_weights(dense, lambda values, layer: np.indices(values.shape)[0] % 4 // 2)
    assert groups_in_flatbuffer(along_outputs, 2, 4)["logits"] == pytest.approx(0.5, abs=0.11)


def test_the_gain_is_told_in_bytes_and_time_and_says_what_it_is_not(dense):
    pruned = with_weights(dense, every_second)
    gain = pruning_gain(dense, pruned, benchmark=QUICK, emulators=("local", "qemu:cortex-a76"))
    assert gain.dense.gzip_bytes == len(gzip.compress(dense, 9, mtime=0))
    assert gain.dense.model_bytes == gain.pruned.model_bytes == len(dense)
    assert gain.gzip_ratio < 0.9 and gain.pruned.sparsity > 0.5 > gain.dense.sparsity
    assert 0.2 < gain.latency["ratio"] < 5
    counts = gain.instructions["qemu:cortex-a76"]
    assert "not_run" in counts or counts["ratio"] == pytest.approx(1, abs=0.02)
    assert json.loads(json.dumps(gain.to_dict())) == gain.to_dict()
    told = gain.to_text()
    assert "shrinks the compressed file, not the time" in told and f"{gain.pruned.gzip_bytes:,} bytes" in told


def test_what_cannot_be_compared_is_refused(dense, golden):
    with pytest.raises(InputError, match="two of one scheme"):
        pruning_gain(dense, (golden / "digits_float32.tflite").read_bytes(), timed=False, emulators=())
