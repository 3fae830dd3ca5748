# SPDX-License-Identifier: Apache-2.0
"""Read WAV files, and change the sample rate of waveforms.

Sources of the format: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF, PCM);
Microsoft, "WAVEFORMATEXTENSIBLE".
"""

import functools
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tfq.artifacts import open_file, shown
from tfq.errors import InputError

_EXPECTED = "a WAV file (PCM of 8, 16, 24 or 32 bits, or float of 32 or 64 bits)"
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# (kind, bits) -> the type of a stored sample; 24 bits have no type of NumPy.
_TYPES = {
    (_PCM, 8): "u1",
    (_PCM, 16): "<i2",
    (_PCM, 24): "",
    (_PCM, 32): "<i4",
    (_FLOAT, 32): "<f4",
    (_FLOAT, 64): "<f8",
}
_OTHER_FORMATS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "IMA ADPCM", 0x55: "MP3"}
_MAX_CHANNELS = 64
MAX_RATE = 1_000_000
# Half the length of the filter, in samples of the lower of the two rates.
_HALF_LENGTH = 10
_KAISER_BETA = 5.0
# Rates whose ratio has a larger numerator or denominator need a filter of hundreds of megabytes.
_MAX_RATIO = 1 << 18
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class WavFormat:
    """What the header of a WAV file says.

    Attributes:
        path: The file.
        kind: 1 for PCM, 3 for float.
        bits: Bits of a sample.
        channels: The number of channels.
        rate: Frames (samples of each channel) per second.
        frames: The number of frames.
        start: Where the samples start in the file, in bytes.
    """

    path: Path
    kind: int
    bits: int
    channels: int
    rate: int
    frames: int
    start: int


def read_format(path: Path) -> WavFormat:
    """Return what the header of a WAV file says, checked against the size of the file.

    Raises:
        InputError: The file is not a WAV file, is truncated or has another encoding. The message names it.
    """
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    with open_file(path, _EXPECTED, field="data.source") as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            what = "RF64" if head[:4] == b"RF64" else "empty" if not head else "no RIFF WAVE file"
            raise _refused(path, f"is {what}")
        fields: tuple[int, ...] | None = None
        position = 12
        while position + 8 <= size:
            file.seek(position)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"fmt ":
                fields = _fields(file, path, length)
            elif name == b"data":
                if fields is None:
                    raise _refused(path, "has samples before the description of their format")
                return _checked(path, fields, position + 8, length, size)
            position += 8 + length + length % 2
    raise _refused(path, "has no samples (no chunk 'data' within the file), or is truncated")


def _fields(file: IO[bytes], path: Path, length: int) -> tuple[int, ...]:
    """Return (kind, channels, rate, bytes of a frame, bits)."""
    content = file.read(min(length, 40))
    if len(content) < 16:
        raise _refused(path, "is truncated in the description of its format")
    kind, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", content[:16])
    if kind == _EXTENSIBLE and len(content) >= 26:
        kind = struct.unpack("<H", content[24:26])[0]
    return kind, channels, rate, frame_bytes, bits


def _checked(path: Path, fields: tuple[int, ...], start: int, length: int, size: int) -> WavFormat:
    kind, channels, rate, frame_bytes, bits = fields
    if (kind, bits) not in _TYPES:
        raise _refused(path, f"is {_OTHER_FORMATS.get(kind, f'of encoding {kind}')} with {bits} bits")
    if not 1 <= channels <= _MAX_CHANNELS or not 1 <= rate <= MAX_RATE:
        raise _refused(path, f"declares {channels} channels at {rate} Hz")
    if frame_bytes != channels * bits // 8:
        raise _refused(path, f"declares {frame_bytes} bytes for a frame of {channels} channels with {bits} bits")
    if start + length > size:
        raise _refused(path, f"is truncated: it declares {length:,} bytes of samples, but has {size - start:,}")
    frames = length // frame_bytes
    if not frames:
        raise _refused(path, "has no samples")
    return WavFormat(path=path, kind=kind, bits=bits, channels=channels, rate=rate, frames=frames, start=start)


def _refused(path: Path, problem: str) -> InputError:
    return InputError(
        f"{shown(str(path))} {problem}. Expected {_EXPECTED}: convert or replace it",
        field="data.source",
        expected=_EXPECTED,
        got=str(path),
        limit="wav-formats",
    )


def read_waveform(wav: WavFormat, first: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Return the frames first..stop-1 of a file as one channel, (frames,) float32 in [-1, 1).

    Integers of b bits are divided by 2^(b-1); 8-bit samples are unsigned, and 128 is 0. The channels are averaged.

    Raises:
        InputError: The file changed since its header was read, or a value is not finite in float32.
    """
    stop = wav.frames if stop is None else stop
    frame_bytes = wav.channels * wav.bits // 8
    with open_file(wav.path, _EXPECTED, field="data.source") as file:
        file.seek(wav.start + first * frame_bytes)
        content = file.read((stop - first) * frame_bytes)
    if len(content) != (stop - first) * frame_bytes:
        raise _refused(wav.path, "changed while it was read")
    with np.errstate(over="ignore", invalid="ignore"):
        mean = _samples(content, wav).reshape(-1, wav.channels).mean(axis=1).astype(np.float32)
    if not np.isfinite(mean).all():
        raise _refused(wav.path, "holds NaN, infinity or values that are too large for float32")
    return mean


def _samples(content: bytes, wav: WavFormat) -> NDArray[np.float64]:
    if wav.bits == 24:
        # The three bytes are the upper ones of 32 bits, so that the sign is theirs.
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return padded.reshape(-1).view("<i4") / 2.0**31
    stored = np.frombuffer(content, _TYPES[wav.kind, wav.bits])
    if wav.kind == _FLOAT:
        return stored.astype(np.float64)
    offset = 128 if wav.bits == 8 else 0
    return (stored.astype(np.float64) - offset) / 2.0 ** (wav.bits - 1)


def resampled_length(frames: int, rate: int, new_rate: int) -> int:
    """Return the number of frames after resampling: frames * new_rate / rate, rounded up."""
    return -(-frames * new_rate // rate)


def resample(samples: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    """Return a whole waveform at another sample rate, (resampled_length,) float32. See `resampled_part`."""
    if rate == new_rate:
        return samples
    count = resampled_length(len(samples), rate, new_rate)
    return resampled_part(lambda first, stop: samples[first:stop], len(samples), rate, new_rate, 0, count)


def resampled_part(
    read: Callable[[int, int], NDArray[np.float32]], frames: int, rate: int, new_rate: int, first: int, stop: int
) -> NDArray[np.float32]:
    """Return the samples first..stop-1 of a resampled waveform, float32, and read only what they depend on.

    The samples are filtered by a linear-phase low-pass filter, a sinc with a Kaiser window (beta 5, 10 samples of the
    lower rate on each side), and evaluated at the exact ratio of the rates. Values outside of the waveform count as 0.
    A sample has the same value in every part that contains it.

    Source: Crochiere and Rabiner 1983, "Multirate digital signal processing", chapter 4 (polyphase structures).

    Args:
        read: (first, stop) -> these frames of the waveform, float32.
        frames: The number of its frames.
        rate: Their rate in Hz.
        new_rate: The rate of the result in Hz.
        first: The first sample of the part, at the new rate.
        stop: The sample after its last one, at most `resampled_length`.

    Raises:
        InputError: The ratio of the rates needs too long a filter.
    """
    divisor = math.gcd(rate, new_rate)
    up, down = new_rate // divisor, rate // divisor
    if up == down:
        return read(first, stop)
    if max(up, down) > _MAX_RATIO:
        raise InputError(
            f"data.sample_rate={new_rate} is {up}/{down} of the recording's {rate} Hz. Such a ratio needs too long a "
            f"filter: use a rate whose ratio has no number above {_MAX_RATIO:,}",
            field="data.sample_rate",
            expected=f"a ratio without numbers above {_MAX_RATIO}",
            got=f"{up}/{down}",
        )
    taps = _filter(up, down)
    half, per_phase = _HALF_LENGTH * max(up, down), taps.shape[1]
    results = [np.zeros(0, np.float32)]
    for start in range(first, stop, _CHUNK):
        place = np.arange(start, min(start + _CHUNK, stop)) * down + half
        # Tap j of a phase belongs to the frame place // up - j, and taps are stored last one first.
        oldest = place // up - per_phase + 1
        needed = _padded(read, frames, int(oldest[0]), int(oldest[-1]) + per_phase)
        windows = np.lib.stride_tricks.sliding_window_view(needed, per_phase)[oldest - oldest[0]]
        with np.errstate(over="ignore"):  # the values are checked to be finite where examples are loaded
            results.append(np.einsum("ij,ij->i", windows, taps[place % up]).astype(np.float32))
    return np.concatenate(results)


def _padded(read: Callable[[int, int], NDArray[np.float32]], frames: int, first: int, stop: int) -> NDArray[np.float64]:
    """Return frames first..stop-1 of a waveform, with zeros for those before its start and after its end."""
    values = np.zeros(stop - first)
    begin, end = max(first, 0), min(stop, frames)
    if begin < end:
        values[begin - first : end - first] = read(begin, end)
    return values


@functools.lru_cache(maxsize=4)
def _filter(up: int, down: int) -> NDArray[np.float64]:
    """Return the taps of each phase, (up, taps of a phase), the last tap first."""
    widest = max(up, down)
    half = _HALF_LENGTH * widest
    times = np.arange(-half, half + 1)
    taps = np.sinc(times / widest) * np.kaiser(len(times), _KAISER_BETA)
    taps *= up / taps.sum()
    per_phase = -(-len(taps) // up)
    return np.pad(taps, (0, per_phase * up - len(taps))).reshape(per_phase, up).T[:, ::-1].copy()
