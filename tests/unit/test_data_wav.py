# SPDX-License-Identifier: Apache-2.0
"""The source wav: folders, Speech Commands and manifests; windows, rates and labels."""

import json
import wave

import numpy as np
import pytest
from messages import refused

from tfq.config import DataConfig
from tfq.data import DataSource, MissingSplitError, load_calibration_split, load_split, source_fingerprint
from tfq.data.sources.wav import chosen_for_val
from tfq.data.waveforms import read_waveform, resample
from tfq.errors import InputError
from tfq.registry import entries


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


def recordings_of(examples, values):
    """Return the names of the recordings that windows are from; `values` has the samples of each recording."""
    first = {array[0]: name for name, array in values.items()}
    return {first[window[0]] for window in examples.inputs["x"] if window[0] in first}


def test_all_windows_of_a_recording_are_in_train_or_in_val(tmp_path):
    values = {}
    for number in range(20):
        for name in ("yes", "no"):
            path = f"{name}/{number}"
            values[path] = record(tmp_path / "train" / f"{path}.wav", seconds=0.03, seed=len(values))
    config = source(tmp_path, window_secs=0.01)
    train, val = (load_split(config, split) for split in ("train", "val"))
    assert (train.num_examples, val.num_examples) == (108, 12)
    held_out = recordings_of(val, values)
    assert len(held_out) == 4 and recordings_of(train, values) == set(values) - held_out
    assert sorted(val.labels.tolist()) == [0] * 6 + [1] * 6
    assert "4 of 40 training recordings (12 of 120 windows)" in val.information[-1] == train.information[-1]
    assert load_calibration_split(config).num_examples == 120
    (tmp_path / "moved").mkdir()
    (tmp_path / "train").rename(tmp_path / "moved" / "train")
    assert load_split(source(tmp_path / "moved", window_secs=0.01), "val").sha256() == val.sha256()


def test_every_class_keeps_a_recording_in_train(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(100):
        classes = {f"{number}.wav": str(rng.integers(0, 6)) for number in range(rng.integers(7, 60))}
        held_out = chosen_for_val(classes, tmp_path)
        assert len(held_out) == max(1, len(classes) // 10)
        assert {classes[path] for path in classes if path not in held_out} == set(classes.values())
    assert len(chosen_for_val({"a": "0", "b": "1"}, tmp_path)) == 1


def test_rows_of_one_file_are_in_one_split(tmp_path):
    for number in range(4):
        record(tmp_path / f"{number}.wav", seed=number)
    rows = [f"{number}.wav,{part % 2},train,{part / 10},{(part + 1) / 10}" for part in range(4) for number in range(4)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split,start,end", *rows]))
    train, val = (load_split(source(tmp_path / "m.csv"), split) for split in ("train", "val"))
    assert (train.num_examples, val.num_examples) == (12, 4) and sorted(val.labels.tolist()) == [0, 0, 1, 1]


def test_a_single_recording_is_divided_and_the_note_says_so(tmp_path):
    values = record(tmp_path / "train" / "a" / "x.wav", seconds=1)
    val = load_split(source(tmp_path, window_secs=0.05), "val")
    assert np.allclose(val.inputs["x"], values.reshape(20, 400)[18:], atol=1e-7)
    assert any("same recording" in item for item in val.information)


def test_the_lists_of_speech_commands_are_splits(tmp_path):
    for index, name in enumerate(["up/a", "up/b", "down/c", "down/d", "_background_noise_/hum"]):
        record(tmp_path / f"{name}.wav", seed=index)
    (tmp_path / "testing_list.txt").write_text("up/a.wav\n")
    (tmp_path / "validation_list.txt").write_text("down/c.wav\n")
    sizes = {name: load_split(source(tmp_path), name).num_examples for name in ("train", "val", "test")}
    assert sizes == {"train": 2, "val": 1, "test": 1}
    assert load_split(source(tmp_path), "test").class_names == ("down", "up")


def test_files_in_the_lists_that_do_not_exist_are_named(tmp_path):
    for name in ("a", "b", "c"):
        record(tmp_path / "up" / f"{name}.wav")
    (tmp_path / "testing_list.txt").write_text("up/a.wav\nup/lost.wav\n")
    (note,) = load_split(source(tmp_path), "test").notes
    assert "1 files in testing_list.txt" in note and "up/lost.wav" in note
    (tmp_path / "validation_list.txt").write_text("up/b.wav\nup/a.wav\n")
    with refused(InputError, field="data.source", word="testing_list.txt"):
        load_split(source(tmp_path), "test")


def test_a_split_without_recordings_does_not_exist(tmp_path):
    (tmp_path / "test" / "a").mkdir(parents=True)
    record(tmp_path / "train" / "a" / "x.wav")
    entries(DataSource)["wav"].check(str(tmp_path), "train")
    assert load_split(source(tmp_path), "train").num_examples == 1
    with refused(MissingSplitError, field="split", expected=("train",)):
        load_split(source(tmp_path), "test")
    (tmp_path / "train" / "a" / "x.wav").unlink()
    with refused(InputError, field="data.source", word="WAV"):
        load_split(source(tmp_path), "train")


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


def test_integers_of_a_manifest_that_are_names_are_stated(tmp_path):
    record(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_text("path,label\na.wav,1\na.wav,one\n")
    test = load_split(source(tmp_path / "m.csv"), "test")
    assert test.class_names == ("1", "one") and any("'one'" in item for item in test.information)


def test_other_columns_of_a_manifest_are_named(tmp_path):
    record(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_text("path,label,begin,speaker\na.wav,x,0.1,s1\n")
    (note,) = load_split(source(tmp_path / "m.csv"), "test").notes
    assert "begin, speaker" in note


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


@pytest.mark.parametrize("rate", [8000, 5000])
@pytest.mark.parametrize("hop", [0.01, 0.1, 0.25])
def test_only_the_windows_of_a_long_recording_are_read(tmp_path, monkeypatch, rate, hop):
    values = resample(record(tmp_path / "a" / "long.wav", seconds=4), 8000, rate)
    windows = load_split(source(tmp_path, window_secs=0.1, hop_secs=hop, sample_rate=rate), "test")
    length, step = rate // 10, round(hop * rate)
    expected = np.lib.stride_tricks.sliding_window_view(values, length)[::step]
    assert np.allclose(windows.inputs["x"], expected, atol=1e-7)
    sizes = []

    def counted(path_format, first, stop):
        sizes.append(stop - first)
        return read_waveform(path_format, first, stop)

    monkeypatch.setattr("tfq.data.sources.wav.read_waveform", counted)
    config = source(tmp_path, window_secs=0.1, hop_secs=hop, sample_rate=rate)
    piece = next(iter(entries(DataSource)["wav"].read(str(tmp_path), config, "test").read(5, 7)))
    assert np.array_equal(piece.inputs["x"], windows.inputs["x"][5:7])
    assert 0 < sum(sizes) < 2 * (800 + 0.1 * 8000 + 100)


def test_the_rest_after_the_last_window_is_stated(tmp_path):
    record(tmp_path / "a" / "x.wav", seconds=0.5)
    information = load_split(source(tmp_path, window_secs=0.2), "test").information
    assert any("1 recordings go on for up to 0.1 seconds" in item for item in information)
    assert not any("go on" in item for item in load_split(source(tmp_path, window_secs=0.25), "test").information)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("data.window_secs", {"window_secs": 1e9}),
        ("data.window_secs", {"window_secs": 1e308}),
        ("data.window_secs", {"window_secs": 1e-9}),
        ("data.sample_rate", {"sample_rate": 10**9}),
    ],
)
def test_settings_beyond_any_recording_are_refused(tmp_path, field, config):
    record(tmp_path / "a" / "x.wav")
    with refused(InputError, field=field):
        load_split(source(tmp_path, **config), "test")


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
        ("m.csv", "path,label,start\na.wav,x,1e308\n"),
        ("m.csv", "path,label,end\na.wav,x,1e308\n"),
        ("m.csv", 'path,label\na.wav,1.5\na.wav,"1,5"\n'),
        ("m.csv", "path,label\na.wav,1e39\n"),
        ("m.jsonl", '{"path": "a.wav", "label": ["x"]}'),
        ("m.jsonl", '{"path": "a.wav", "label": "\\ud800"}'),
        ("m.jsonl", '{"path": "\\ud800.wav", "label": "x"}'),
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
