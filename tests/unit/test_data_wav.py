# SPDX-License-Identifier: Apache-2.0
"""The source wav: folders, Speech Commands and manifests; windows, rates and labels."""

import json
import wave

import numpy as np
import pytest
from messages import refused

from tfq.config import DataConfig
from tfq.data import MissingSplitError, load_calibration_split, load_split, source_fingerprint
from tfq.data.waveforms import resample
from tfq.errors import InputError


def record(path, seconds=0.5, rate=8000, seed=0, channels=1):
    """Write a recording of noise and return its values, (frames,) in [-1, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(-(2**15), 2**15, (round(seconds * rate), channels)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())
    return (values / 2**15).mean(axis=1).astype(np.float32)


def source(path, **config):
    return DataConfig(source=f"wav:{path}", **config)


def test_class_folders_with_splits_give_whole_recordings(tmp_path):
    values = {}
    for index, name in enumerate(["train/yes/a", "train/no/b", "train/no/c", "test/yes/d"]):
        values[name] = record(tmp_path / f"{name}.wav", seed=index)
    test = load_split(source(tmp_path), "test")
    assert test.inputs["x"].shape == (1, 4000) and np.allclose(test.inputs["x"][0], values["test/yes/d"], atol=1e-7)
    assert test.class_names == ("no", "yes") and test.labels.tolist() == [1]
    train, val = load_split(source(tmp_path), "train"), load_split(source(tmp_path), "val")
    assert sorted([*train.labels.tolist(), *val.labels.tolist()]) == [0, 0, 1]


def test_the_lists_of_speech_commands_are_splits(tmp_path):
    for index, name in enumerate(["up/a", "up/b", "down/c", "down/d", "_background_noise_/hum"]):
        record(tmp_path / f"{name}.wav", seed=index)
    (tmp_path / "testing_list.txt").write_text("up/a.wav\n")
    (tmp_path / "validation_list.txt").write_text("down/c.wav\n")
    sizes = {name: load_split(source(tmp_path), name).num_examples for name in ("train", "val", "test")}
    assert sizes == {"train": 2, "val": 1, "test": 1}
    assert load_split(source(tmp_path), "test").class_names == ("down", "up")


def test_folders_without_splits_are_the_test_split(tmp_path):
    record(tmp_path / "a" / "x.wav")
    assert load_split(source(tmp_path), "test").num_examples == 1
    assert "test" in load_calibration_split(source(tmp_path)).notes[-1]
    with refused(MissingSplitError, field="split", got="train"):
        load_split(source(tmp_path), "train")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_has_parts_of_recordings(tmp_path, kind):
    values = record(tmp_path / "audio" / "long.wav", seconds=2)
    rows = [
        {"path": "audio/long.wav", "label": "dog", "split": "test", "start": "0.5", "end": "1.0"},
        {"path": "audio/long.wav", "label": "cat", "split": "test", "start": "1.5", "end": ""},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        numbers = [
            {**row, "start": float(row["start"]), "end": float(row["end"]) if row["end"] else None} for row in rows
        ]
        path.write_text("\n".join(map(json.dumps, numbers)))
    test = load_split(source(path), "test")
    assert np.allclose(test.inputs["x"], [values[4000:8000], values[12000:]], atol=1e-7)
    assert test.labels.tolist() == [1, 0] and test.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "expected", "dtype"), [(["3", "0"], [3, 0], np.int64), (["0.5", "2"], [0.5, 2], np.float32)]
)
def test_labels_of_a_manifest_may_be_numbers(tmp_path, labels, expected, dtype):
    record(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"a.wav,{label}\n" for label in labels))
    test = load_split(source(tmp_path / "m.csv"), "test")
    assert test.labels.tolist() == expected and test.labels.dtype == dtype


def test_windows_overlap_and_belong_to_one_recording(tmp_path):
    long, short = record(tmp_path / "a" / "long.wav", seconds=1.0), record(tmp_path / "b" / "short.wav", 0.1, seed=1)
    test = load_split(source(tmp_path, window_secs=0.25, hop_secs=0.125), "test")
    starts = range(0, 8000 - 2000 + 1, 1000)
    windows = [long[start : start + 2000] for start in starts]
    padded = np.concatenate([short, np.zeros(2000 - 800, np.float32)])
    of_long = test.inputs["x"][test.labels == 0]
    assert np.allclose(of_long, windows, atol=1e-7) and len(of_long) == 7
    assert np.allclose(test.inputs["x"][test.labels == 1], [padded], atol=1e-7)
    assert any("short.wav" in note for note in test.notes) and any("8 windows" in item for item in test.information)
    middle = test.shard(1, 3)
    assert np.array_equal(middle.inputs["x"], test.inputs["x"][2:5])


def test_recordings_are_resampled_and_channels_averaged(tmp_path):
    values = record(tmp_path / "a" / "x.wav", rate=8000, channels=2)
    test = load_split(source(tmp_path, sample_rate=16000), "test")
    assert np.allclose(test.inputs["x"][0], resample(values, 8000, 16000), atol=1e-6)
    assert any("8000" in item for item in test.information) and any("channels" in item for item in test.information)


def test_different_lengths_and_rates_name_the_setting(tmp_path):
    record(tmp_path / "a" / "x.wav", 0.5)
    record(tmp_path / "a" / "y.wav", 0.6)
    with refused(InputError, field="data.window_secs"):
        load_split(source(tmp_path), "test")
    record(tmp_path / "a" / "y.wav", 0.5, rate=16000)
    with refused(InputError, field="data.sample_rate"):
        load_split(source(tmp_path), "test")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "path,label\n"),
        ("m.csv", "file,label\na.wav,x\n"),
        ("m.csv", "path,label\na.wav\n"),
        ("m.csv", "path,label,split\na.wav,x,dev\n"),
        ("m.csv", "path,label,start\na.wav,x,soon\n"),
        ("m.csv", "path,label,start\na.wav,x,9\n"),
        ("m.csv", "path,label\na.wav,x\na.wav,\n"),
        ("m.csv", "path,label\nmissing.wav,x\n"),
        ("m.jsonl", "{"),
        ("m.jsonl", "[1]"),
        ("m.txt", ""),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, name, text):
    record(tmp_path / "a.wav")
    (tmp_path / name).write_text(text)
    with refused(InputError):
        load_split(source(tmp_path / name), "test")


def test_an_empty_folder_is_refused(tmp_path):
    with refused(InputError, field="data.source"):
        load_split(source(tmp_path), "test")


def test_the_fingerprint_follows_the_recordings_and_the_settings(tmp_path):
    record(tmp_path / "a" / "x.wav")
    before = source_fingerprint(source(tmp_path))
    assert source_fingerprint(source(tmp_path)) == before
    assert source_fingerprint(source(tmp_path, window_secs=0.1)) != before
    record(tmp_path / "a" / "x.wav", seed=5)
    assert source_fingerprint(source(tmp_path)) != before
