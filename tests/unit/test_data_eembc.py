# SPDX-License-Identifier: Apache-2.0
"""The source eembc:DIR, on folders in the format that the MLPerf Tiny backend reads."""

import numpy as np
import pytest
from messages import refused

from tfq.config import DataConfig
from tfq.data import MissingSplitError, load_calibration_split, load_split
from tfq.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes the arrays as .bin files with a y_labels.csv and returns the DataConfig."""

    def write(arrays, lines=None, **changes):
        for index, array in enumerate(arrays):
            (tmp_path / f"f{index}.bin").write_bytes(array.tobytes())
        lines = [f"f{index}.bin, 10, {index % 10}" for index in range(len(arrays))] if lines is None else lines
        (tmp_path / "y_labels.csv").write_text("\n".join(lines) + "\n")
        return DataConfig(source=f"eembc:{tmp_path}", **changes)

    return write


def pixels(count, side):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("side", [32, 96])
def test_images_come_as_pixels_in_the_order_of_the_label_file(folder, side):
    images = pixels(3, side)
    config = folder(images, ["f2.bin,10,7", "f0.bin,10,1", "f1.bin,10,0"])
    split = load_split(config, "test")
    assert split.inputs["x"].dtype == np.float32 and np.array_equal(split.inputs["x"], images[[2, 0, 1]])
    assert split.labels.tolist() == [7, 1, 0] and split.notes == ()


def test_keyword_features_are_int8_and_a_scale_dequantizes_them(folder):
    quantized = np.random.default_rng(1).integers(-128, 128, (4, 49, 10, 1)).astype(np.int8)
    lines = [f"f{index}.bin, 12, {index + 8}" for index in range(4)]
    split = load_split(folder(quantized, lines, scale=0.5, offset=-0.5 * 83), "test")
    assert np.array_equal(split.inputs["x"], (quantized.astype(np.float32) - 83) / 2)
    assert split.labels.tolist() == [8, 9, 10, 11] and "data.scale" in split.notes[0]


def test_windows_slide_over_a_spectrogram_of_anomaly_detection(folder):
    files = [np.arange(896, dtype=np.float32), np.arange(640, dtype=np.float32) + 5000]
    config = folder(files, ["f0.bin,2,0,2560,512", "f1.bin,2,1,2560,512"])
    split = load_split(config, "test")
    # 640 values a window, 128 values a step: three windows fit into 896 values, one into 640.
    assert split.inputs["x"].shape == (4, 640) and split.inputs["x"][:, 0].tolist() == [0, 128, 256, 5000]
    assert all(np.array_equal(row, row[0] + np.arange(640)) for row in split.inputs["x"])
    assert split.labels.tolist() == [0, 0, 0, 1]
    assert "640" in split.notes[0]


def test_another_label_file_may_be_named(folder, tmp_path):
    folder(pixels(2, 32))
    (tmp_path / "y_labels_alt.csv").write_text("f1.bin,10,4\n")
    split = load_split(DataConfig(source=f"eembc:{tmp_path}/y_labels_alt.csv"), "test")
    assert split.labels.tolist() == [4] and ".bin" in split.notes[0]


def test_all_is_test_and_calibration_says_so(folder):
    config = folder(pixels(2, 32))
    for split in ("train", "val"):
        with refused(MissingSplitError, field="split", expected=("test",), got=split):
            load_split(config, split)
    assert "test" in load_calibration_split(config).notes[-1]


def test_a_stream_gives_what_memory_gives(folder):
    config = folder(pixels(100, 32))
    streamed = load_split(DataConfig(source=config.source, max_memory_mb=1), "test")
    assert streamed.num_examples == 100 and streamed.sha256() == load_split(config, "test").sha256()
    whole = load_split(config, "test")
    (part,) = list(streamed.read(37, 40))
    assert np.array_equal(part.inputs["x"], whole.inputs["x"][37:40]) and part.labels.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("lines", "got", "word"),
    [
        (["f0.bin,10,1", "f9.bin,10,1"], "f9.bin", "f9.bin"),
        (["f0.bin,10,10"], 10, "y_labels.csv"),
        (["f0.bin,10"], 2, "y_labels.csv"),
        (["name,classes,class", "f0.bin,10,1"], ["classes", "class"], "y_labels.csv"),
        (["f0.bin,10,1", "f1.bin,12,1"], (12, 0, 0), "y_labels.csv"),
        (["f0.bin,10,1", "f2.bin,10,1"], 12, "f2.bin"),
        (["f0.bin,10,1", "f3.bin,10,1"], 27648, "f3.bin"),
        (["../f0.bin,10,1"], "../f0.bin", "y_labels.csv"),
        (["f0.bin,2,1,2562,512"], (2562, 512), "y_labels.csv"),
        (["f2.bin,2,1,2560,512"], 12, "f2.bin"),
        (["f\0.bin,10,1"], "f\0.bin", "y_labels.csv"),
        ([f"f0.bin,{1 << 65},{1 << 64}"], 1 << 65, "y_labels.csv"),
        # 96 GB of labels for a list of 200 kB
        (["f4.bin,2,1,4,4"] * 12_000, 12_000 << 20, "y_labels.csv"),
    ],
)
def test_an_invalid_folder_is_refused_with_line_or_file(folder, tmp_path, lines, got, word):
    folder(pixels(2, 32))
    (tmp_path / "f2.bin").write_bytes(b"x" * 12)
    (tmp_path / "f3.bin").write_bytes(b"x" * 27648)
    with open(tmp_path / "f4.bin", "wb") as sparse:
        sparse.truncate(4 << 20)
    (tmp_path / "y_labels.csv").write_text("\n".join(lines) + "\n")
    with refused(InputError, field="data.source", got=got, word=word):
        load_split(DataConfig(source=f"eembc:{tmp_path}"), "test")


def test_a_folder_without_labels_is_reported(tmp_path):
    with refused(InputError, got=str(tmp_path / "y_labels.csv")):
        load_split(DataConfig(source=f"eembc:{tmp_path}"), "test")
