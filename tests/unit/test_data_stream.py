# SPDX-License-Identifier: Apache-2.0
"""Splits that are not in memory: same examples, hashes and numbers as in memory, with bounded peak memory."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from golden_models import golden
from messages import refused
from sklearn.datasets import load_digits

from tfq.config import DataConfig, EvaluationConfig
from tfq.data import Split, SplitStream, as_split, load_split, representative_samples, source_fingerprint
from tfq.data.representative import InputSpec
from tfq.data.split import batches_in_order, shuffled_batches
from tfq.errors import InputError
from tfq.evaluation import compare_backends, evaluate_model, reference_outputs

INT8, FLOAT = golden("digits_int8"), golden("digits_float32")
COUNT = 5000


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def digits(request, tmp_path):
    """Return a function: max_memory_mb -> 5,000 digits (1.28 MB as float32) of an .npz as test split."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.arange(COUNT) % len(images)
    images = images[chosen].reshape(-1, 8, 8, 1).astype(np.uint8)
    request.param(tmp_path / "digits.npz", x_test=images, y_test=labels[chosen])

    def load(max_memory_mb=2048, **changes):
        return load_split(
            DataConfig(source=f"npz:{tmp_path}/digits.npz", max_memory_mb=max_memory_mb, **changes), "test"
        )

    return load


def test_data_larger_than_memory_is_streamed_unchanged(digits):
    whole, streamed = digits(), digits(1)
    assert isinstance(whole, Split) and isinstance(streamed, SplitStream)
    pieces = list(streamed.pieces())
    assert len(pieces) > 3 and sum(piece.inputs["x"].nbytes for piece in pieces) == whole.inputs["x"].nbytes
    assert all(piece.inputs["x"].nbytes <= 250_000 for piece in pieces)
    assert np.array_equal(np.concatenate([piece.inputs["x"] for piece in pieces]), whole.inputs["x"])
    assert np.array_equal(streamed.all_labels(), whole.labels)
    assert streamed.sha256() == whole.sha256() and streamed.num_examples == COUNT
    assert np.array_equal(np.concatenate([piece.inputs["x"] for piece in whole.pieces()]), whole.inputs["x"])


def test_parts_of_a_stream_can_be_read_separately(digits):
    whole, streamed = digits(), digits(1)
    part = list(streamed.read(1234, 4321))
    assert np.array_equal(np.concatenate([piece.inputs["x"] for piece in part]), whole.inputs["x"][1234:4321])
    assert np.array_equal(np.concatenate([piece.labels for piece in part]), whole.labels[1234:4321])
    assert streamed.take(1500).sha256() == whole.take(1500).sha256()
    assert streamed.take(COUNT + 1) is streamed
    assert as_split(streamed, limit=10).num_examples == 10
    with refused(InputError, field="n", got=0):
        streamed.take(0)


def test_an_evaluation_of_a_stream_is_that_of_memory(digits):
    whole, streamed = digits(), digits(1)
    config = EvaluationConfig(num_runs=0)
    records = [evaluate_model(INT8, data, config, reference=FLOAT).to_dict() for data in (whole, streamed)]
    assert (
        records[0] == records[1] and records[0]["accuracy"] > 0.9 and records[0]["clipped_input_fraction"] is not None
    )


def test_reference_outputs_apply_only_to_streams_of_the_same_data(digits):
    streamed, config = digits(1), EvaluationConfig(num_runs=0, limit=4500)
    shared = reference_outputs(FLOAT, streamed, config)
    assert evaluate_model(INT8, streamed, config, reference=shared).compared == 4500
    assert evaluate_model(INT8, digits(1), config, reference=shared).compared == 4500
    with refused(InputError, field="reference"):
        evaluate_model(INT8, digits(1, scale=0.5), config, reference=shared)


def test_runners_are_compared_on_a_stream(digits):
    record = compare_backends(INT8, digits(1), "local", "local", limit=4500)
    assert (record.num_examples, record.compared, record.num_different) == (4500, 45_000, 0)


def test_timed_runs_of_a_stream_are_timed(digits):
    assert evaluate_model(INT8, digits(1), EvaluationConfig(num_runs=5)).latency_p50_ms > 0


def test_what_is_clipped_in_a_later_piece_is_counted(tmp_path):
    x = np.full((COUNT, 8, 8, 1), 8, np.float32)
    x[-1000:] = 1000
    np.savez(tmp_path / "a.npz", x_test=x)
    fractions = [
        evaluate_model(INT8, DataConfig(source=f"npz:{tmp_path}/a.npz", max_memory_mb=size)).clipped_input_fraction
        for size in (1, 100)
    ]
    assert fractions == [0.2, 0.2]


def test_an_error_in_a_later_chunk_names_the_example(tmp_path):
    x = np.zeros((COUNT, 8, 8, 1), np.float32)
    x[4321] = np.nan
    np.savez(tmp_path / "a.npz", x_test=x)
    config = DataConfig(source=f"npz:{tmp_path}/a.npz", max_memory_mb=1)
    with refused(InputError, field="x[4321]", got="NaN"):
        evaluate_model(INT8, config)
    with refused(InputError, field="x[4321]", got="NaN"):
        load_split(config, "test").sha256()


def test_a_wrong_shape_is_reported_before_anything_runs(digits):
    with refused(InputError, field="data", expected=(8, 8, 1), got=(9, 9, 1), word="8,8"):
        evaluate_model(INT8, digits(1, resize=(9, 9)))


def test_a_stream_that_lost_examples_is_reported():
    piece = Split(name="test", inputs={"x": np.zeros((3, 2), np.float32)}, labels=None, source="s")
    stream = SplitStream(
        name="test", source="s", num_examples=5, read=lambda start, stop: iter([piece]), piece_examples=3, seekable=True
    )
    with refused(InputError, field="data", expected=5, got=3):
        stream.sha256()


def test_a_stream_calibrates_without_being_read_whole(digits):
    streamed = digits(1)
    read = []
    counted = SplitStream(
        **{**streamed.__dict__, "read": lambda a, b: (read.append(p) or p for p in streamed.read(a, b))}
    )
    samples = representative_samples(counted, [InputSpec(name="image", shape=(1, 8, 8, 1))], 100)
    assert len(samples.samples) == 100 and len(read) == 1
    assert (
        samples.sha256()
        == representative_samples(digits(), [InputSpec(name="image", shape=(1, 8, 8, 1))], 100).sha256()
    )


# arrays of an archive


def test_a_fortran_order_array_is_read_whole_with_a_note(tmp_path):
    x = np.asfortranarray(np.arange(2_000_000, dtype=np.float32).reshape(1000, 2000))
    np.savez(tmp_path / "a.npz", x_test=x)
    streamed = load_split(DataConfig(source=f"npz:{tmp_path}/a.npz", max_memory_mb=1), "test")
    assert "whole" in streamed.notes[0] and not streamed.seekable
    assert np.array_equal(np.concatenate([piece.inputs["x"] for piece in streamed.pieces()]), x)


@pytest.mark.parametrize("compress_type", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte_is_found_when_a_stream_is_read(tmp_path, compress_type):
    x = np.random.default_rng(0).integers(0, 256, (1000, 2000), np.uint8)
    (np.savez if compress_type == zipfile.ZIP_STORED else np.savez_compressed)(tmp_path / "a.npz", x_test=x)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with refused(InputError, field="x_test", got=str(tmp_path / "a.npz"), word="damaged"):
        load_split(DataConfig(source=f"npz:{tmp_path}/a.npz", max_memory_mb=1), "test").sha256()


def test_audio_features_keep_their_values_and_axes(tmp_path):
    features = np.random.default_rng(0).normal(0, 30, (6, 49, 10)).astype(np.float64)
    np.savez(tmp_path / "a.npz", x_train=features, x_test=features[..., None], y_test=np.arange(6))
    train, test = (load_split(DataConfig(source=f"npz:{tmp_path}/a.npz"), split) for split in ("train", "test"))
    assert train.inputs["x"].shape == (6, 49, 10) or train.num_examples == 5
    assert test.inputs["x"].shape == (6, 49, 10, 1) and test.inputs["x"].dtype == np.float32
    assert np.array_equal(test.inputs["x"][..., 0], features.astype(np.float32))


def test_a_files_fingerprint_depends_only_on_content(tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("a.npz", "other/a.npz"):
        np.savez(tmp_path / name, x_test=np.zeros((2, 3)))
    first, second = (
        source_fingerprint(DataConfig(source=f"npz:{tmp_path}/{name}")) for name in ("a.npz", "other/a.npz")
    )
    assert first == second != source_fingerprint(DataConfig(source="digits"))
    np.savez(tmp_path / "a.npz", x_test=np.ones((2, 3)))
    assert source_fingerprint(DataConfig(source=f"npz:{tmp_path}/a.npz")) != first
    with refused(InputError, field="data.source", got=str(tmp_path / "none.npz")):
        source_fingerprint(DataConfig(source=f"npz:{tmp_path}/none.npz"))
    with refused(InputError, field="data.source", got="digts", word="digits"):
        DataConfig.from_dict({"source": "digts"}, "data")


# the order of training


def counting_stream(count, piece, *, seekable):
    def read(start, stop):
        for first in range(start, stop, piece):
            numbers = np.arange(first, min(first + piece, stop))
            yield Split(name="train", inputs={"x": numbers.astype(np.float32)[:, None]}, labels=numbers, source="s")

    return SplitStream(name="train", source="s", num_examples=count, read=read, piece_examples=piece, seekable=seekable)


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize(("count", "piece", "batch"), [(1000, 10, 7), (1000, 10, 300), (5, 10, 2), (64, 1, 8)])
def test_an_epoch_has_every_example_once_in_seeded_order(seekable, count, piece, batch):
    stream = counting_stream(count, piece, seekable=seekable)

    def order(seed, epoch):
        batches = list(shuffled_batches(stream, batch, seed, epoch))
        assert [item.num_examples for item in batches[:-1]] == [batch] * (len(batches) - 1)
        assert len(batches) == -(-count // batch)
        assert all(np.array_equal(item.inputs["x"][:, 0], item.labels) for item in batches)
        return np.concatenate([item.labels for item in batches]).tolist()

    first = order(3, 0)
    assert sorted(first) == list(range(count)) and first != list(range(count))
    assert first == order(3, 0) and len({tuple(first), tuple(order(3, 1)), tuple(order(4, 0))}) == 3


def test_only_a_seekable_stream_is_shuffled_completely():
    def mean_of_the_first_tenth(seekable):
        batches = list(shuffled_batches(counting_stream(10_000, 10, seekable=seekable), 100, 0, 0))
        return np.mean([batch.labels.mean() for batch in batches[:10]])

    assert 3500 < mean_of_the_first_tenth(True) < 6500
    assert mean_of_the_first_tenth(False) < 1000


@pytest.mark.parametrize(("count", "piece", "batch"), [(1000, 10, 7), (1000, 10, 300), (5, 10, 2)])
def test_batches_in_order_are_in_order(count, piece, batch):
    batches = list(batches_in_order(counting_stream(count, piece, seekable=False), batch))
    assert np.concatenate([item.labels for item in batches]).tolist() == list(range(count))
    assert [item.num_examples for item in batches[:-1]] == [batch] * (len(batches) - 1)


# memory

_CHILD = """
import sys
from tfq.config import DataConfig, EvaluationConfig
from tfq.evaluation import evaluate_model
model = open(sys.argv[1], "rb").read()
data = DataConfig(source="npz:" + sys.argv[2], max_memory_mb=int(sys.argv[3]))
evaluate_model(model, data, EvaluationConfig(num_runs=0))
# Not ru_maxrss, which a child begins with its parent's.
print(int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024)
"""


def test_peak_memory_does_not_grow_with_the_number_of_examples(tmp_path, root):
    def peak_mb(count, max_memory_mb=8):
        path = tmp_path / "a.npz"
        np.savez(path, x_test=np.zeros((count, 8, 8, 1), np.float32))
        model = root / "tests" / "golden" / "digits_int8.tflite"
        command = [sys.executable, "-c", _CHILD, model, path, str(max_memory_mb)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    # 70,000 more examples of 256 bytes are 18 MB. Their outputs, ten int8 and ten float32 values per example, are 3.5
    # MB.
    small, large = peak_mb(30_000), peak_mb(100_000)
    assert large - small < 11, (small, large)
    in_memory = peak_mb(100_000, 2048)
    assert in_memory - large > 15, (large, in_memory)
