# SPDX-License-Identifier: Apache-2.0
"""WAV files of every encoding, damaged ones, and resampling compared with SciPy."""

import io
import math
import struct
import wave

import numpy as np
import pytest
from messages import refused

from tfq.data.waveforms import read_format, read_waveform, resample, resampled_length, resampled_part
from tfq.errors import InputError


def wav(samples, kind, bits, *, channels=1, rate=16_000, extensible=False, **changes):
    """Return the bytes of a WAV file; `samples` are the stored bytes."""
    frame = channels * bits // 8
    values = {
        "kind": kind,
        "channels": channels,
        "rate": rate,
        "frame": frame,
        "bits": bits,
        "length": len(samples),
        **changes,
    }
    form = struct.pack(
        "<HHIIHH", 0xFFFE if extensible else values["kind"], values["channels"], values["rate"],
        (values["rate"] * values["frame"]) % 2**32, values["frame"], values["bits"],
    )  # fmt: skip
    if extensible:
        form += struct.pack("<HHIH14x", 22, bits, 0, values["kind"])
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk is padded
    chunks += b"data" + struct.pack("<I", values["length"]) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def read(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    return read_waveform(read_format(path))


VALUES = np.array([0, 0.5, -0.5, -1, 0.25])


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(
    ("kind", "bits", "stored"),
    [
        (1, 8, (VALUES * 128 + 128).astype(np.uint8).tobytes()),
        (1, 16, (VALUES * 2**15).astype("<i2").tobytes()),
        (1, 24, b"".join(int(v * 2**23).to_bytes(3, "little", signed=True) for v in VALUES)),
        (1, 32, (VALUES * 2**31).astype("<i4").tobytes()),
        (3, 32, VALUES.astype("<f4").tobytes()),
        (3, 64, VALUES.astype("<f8").tobytes()),
    ],
)
def test_every_encoding_gives_the_same_values(tmp_path, kind, bits, stored, extensible):
    assert read(tmp_path, wav(stored, kind, bits, extensible=extensible)).tolist() == VALUES.tolist()


def test_files_of_pythons_own_module_are_read(tmp_path):
    values = np.random.default_rng(0).integers(-(2**15), 2**15, (100, 2)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(values.tobytes())
    assert np.allclose(read(tmp_path, file.getvalue()), values.mean(axis=1) / 2**15, atol=1e-7)
    form = read_format(tmp_path / "a.wav")
    assert (form.rate, form.channels, form.frames) == (8000, 2, 100)
    assert np.array_equal(read_waveform(form, 10, 20), read_waveform(form)[10:20])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"OggS" + bytes(40),
        wav(bytes(8), 1, 16)[:-1],
        wav(bytes(8), 1, 16, length=2**32 - 1),
        wav(b"", 1, 16),
        wav(bytes(8), 1, 16, channels=0),
        wav(bytes(8), 1, 16, rate=0),
        wav(bytes(8), 1, 16, frame=3),
        wav(bytes(8), 0x55, 16),
        wav(bytes(8), 1, 12),
        wav(np.float32([np.nan]).tobytes(), 3, 32),
        wav(np.float64([0, 1e300]).tobytes(), 3, 64),
        b"RIFF" + struct.pack("<I", 100) + b"WAVEdata" + struct.pack("<I", 4) + bytes(4),
        b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + struct.pack("<I", 2**32 - 1),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    with refused(InputError, field="data.source", word="a.wav", limit="wav-formats"):
        read(tmp_path, content)


def test_files_cut_or_changed_anywhere_are_read_or_refused(tmp_path):
    whole = wav((np.arange(64) * 100).astype("<i2").tobytes(), 1, 16)
    rng = np.random.default_rng(0)
    contents = [whole[:size] for size in range(len(whole))]
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        contents.append(bytes(changed))
    for content in contents:
        try:
            read(tmp_path, content)
        except InputError as error:
            assert error.field == "data.source"


@pytest.mark.parametrize(
    ("rate", "new_rate"), [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (16_000, 11_025), (3, 2)]
)
def test_resampling_equals_scipys(rate, new_rate):
    signal = pytest.importorskip("scipy.signal")
    samples = np.random.default_rng(0).normal(size=777).astype(np.float32)
    divisor = math.gcd(rate, new_rate)
    expected = signal.resample_poly(samples.astype(np.float64), new_rate // divisor, rate // divisor)
    result = resample(samples, rate, new_rate)
    assert len(result) == resampled_length(777, rate, new_rate) == len(expected)
    assert np.abs(result - expected).max() < 1e-6


@pytest.mark.parametrize(("rate", "new_rate"), [(44_100, 16_000), (8_000, 16_000), (16_000, 11_025), (5, 5)])
def test_parts_of_a_resampled_waveform_equal_the_whole(rate, new_rate):
    samples = np.random.default_rng(0).normal(size=3_000).astype(np.float32)
    whole = resample(samples, rate, new_rate)
    reads = []

    def read(first, stop):
        reads.append(stop - first)
        return samples[first:stop]

    for first, stop in [(0, 1), (0, 7), (500, 700), (len(whole) - 3, len(whole)), (9, 9)]:
        part = resampled_part(read, len(samples), rate, new_rate, first, stop)
        assert part.dtype == np.float32 and np.array_equal(part, whole[first:stop])
    assert max(reads) < 700


def test_a_ratio_of_rates_with_too_long_a_filter_is_refused():
    with refused(InputError, field="data.sample_rate", word="999983"):
        resample(np.zeros(10, np.float32), 999_983, 16_000)


def test_a_tone_keeps_its_frequency_and_a_higher_one_is_removed():
    time = np.arange(44_100) / 44_100
    low, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (1_000, 12_000))
    inside = slice(200, -200)
    expected = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    assert np.abs(resample(low, 44_100, 16_000)[inside] - expected[inside]).max() < 0.01
    assert np.abs(resample(high, 44_100, 16_000)[inside]).max() < 0.01
    assert resample(low, 16_000, 16_000) is low
