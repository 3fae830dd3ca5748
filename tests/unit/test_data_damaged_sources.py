# SPDX-License-Identifier: Apache-2.0
"""Damaged tables, manifests, recordings and IDX files are read or refused; no other exception leaves a source."""

import gzip
import random
import struct
import warnings
import wave

import numpy as np
import pytest
from container_mutations import damaged_bytes

from tfq.config import DataConfig
from tfq.data import load_split, source_fingerprint
from tfq.errors import TfqError

MUTANTS = 150
# What is inserted into a text, or replaces a field of it.
WORDS = (
    b"", b"nan", b"inf", b"-1", b"1e400", b"1e308", b'"', b"\n", b"\r", b",", b";", b"\0", b"\xff", b"\xef\xbb\xbf",
    b"9" * 5000, b"x" * 200_000, "\u0663".encode(), b"\\ud800", b"null", b"[]", b"test", b"..", b"/", b"a.wav",
)  # fmt: skip
TABLE = b"a,b,label,split\n1.5,2,x,train\n2.5,3,y,test\n3.5,4,z,test\n-1e-3,5,x,val\n"
MANIFEST = b"path,label,start,end\na.wav,x,0,0.02\na.wav,y,0.01,\n"
LINES = b'{"path": "a.wav", "label": "x", "end": 0.02}\n{"path": "a.wav", "label": "y", "start": 0.01}\n'


def damaged_text(data, source):
    """Return a text with words inserted, or fields replaced by them."""
    mutant = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4))):
        at = source.randrange(len(mutant) + 1)
        end = at
        if source.random() < 0.5:
            while end < len(mutant) and mutant[end : end + 1] not in b',\n"':
                end += 1
        mutant[at:end] = source.choice(WORDS)
    return bytes(mutant)


def write_wav(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(800, dtype="<i2").tobytes())


def table(folder, source):
    (folder / "t.csv").write_bytes(damaged_text(TABLE, source))
    return f"csv:{folder / 't.csv'}"


def manifest(folder, source):
    suffix, content = source.choice((("csv", MANIFEST), ("jsonl", LINES)))
    write_wav(folder / "a.wav")
    (folder / f"m.{suffix}").write_bytes(damaged_text(content, source))
    return f"wav:{folder / 'm'}.{suffix}"


def recording(folder, source):
    (folder / "c").mkdir(exist_ok=True)
    write_wav(folder / "c" / "a.wav")
    content = (folder / "c" / "a.wav").read_bytes()
    (folder / "c" / "a.wav").write_bytes(damaged_bytes(content[:48], source) + content[48:])
    return f"wav:{folder}"


def idx(folder, source):
    for kind, shape in (("images-idx3", (9, 6, 5)), ("labels-idx1", (9,))):
        content = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(int(np.prod(shape)))
        first, second = source.choice(((True, False), (False, True), (False, False)))
        content = gzip.compress(damaged_bytes(content, source) if first else content, mtime=0)
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(damaged_bytes(content, source) if second else content)
    return f"idx:{folder}"


@pytest.mark.parametrize("damage", [table, manifest, recording, idx])
def test_damaged_files_are_read_or_refused_without_warnings(damage, tmp_path):
    count_read = 0
    for number in range(MUTANTS):
        source = random.Random(f"{damage.__name__} {number}")
        address = damage(tmp_path, source)
        config = DataConfig(
            source=address, sample_rate=6000, window_secs=0.01, hop_secs=source.choice((0, 0.004, 0.02))
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                split = load_split(config, "test")
                source_fingerprint(config)
        except TfqError:
            continue
        count_read += 1
        assert np.isfinite(split.inputs["x"]).all() and (
            split.labels is None or len(split.labels) == split.num_examples
        )
    assert 0 < count_read < MUTANTS
