# SPDX-License-Identifier: Apache-2.0
"""Paths that are not regular files, and files whose content breaks decoders.

`PATHS` has a function for each kind of path: (directory, suffix) -> the path, which it creates. `CONTENTS` has, for
each format, a function for each kind of content: (path) -> None, which writes a file or a directory there. The names of
all of them contain `NAME`, so that a test can find the path in a message.
"""

import contextlib
import ctypes
import functools
import gzip
import io
import json
import os
import socket
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from container_mutations import framed

TESTS = Path(__file__).resolve().parent
NAME = "hostile"
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of Linux: with them, root may read files of mode 0.
_OVERRIDE = (1 << 1) | (1 << 2)


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Have file permissions apply inside, also if this process is root's. Only Linux."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, changed = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    libc.capget(header, before)
    changed[:] = before
    changed[0] &= ~_OVERRIDE
    libc.capset(header, changed)
    try:
        yield
    finally:
        libc.capset(header, before)


def drop_override_of_children() -> None:
    """Have file permissions apply to every program that this process starts."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def _linked(target: str) -> Callable[[Path, str], str]:
    def make(directory: Path, suffix: str) -> str:
        path = directory / f"{NAME}{suffix}"
        path.symlink_to(target)
        return str(path)

    return make


def _named(stem: str, content: bytes | None = b"\0") -> Callable[[Path, str], str]:
    """Return a function that writes a file with an unusual name; None writes nothing."""

    def make(directory: Path, suffix: str) -> str:
        path = f"{directory}/{NAME}{stem}{suffix}"
        if content is not None:
            with open(path, "wb") as file:
                file.write(content)
        return path

    return make


def _fifo(directory: Path, suffix: str) -> str:
    path = directory / f"{NAME}{suffix}"
    os.mkfifo(path)
    return str(path)


def _socket(directory: Path, suffix: str) -> str:
    # An address has at most 107 bytes, so it is bound by a relative name.
    before = os.getcwd()
    os.chdir(directory)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"{NAME}{suffix}")
    finally:
        os.chdir(before)
    return str(directory / f"{NAME}{suffix}")


def _directory(directory: Path, suffix: str) -> str:
    path = directory / f"{NAME}{suffix}"
    path.mkdir()
    return str(path)


def _unreadable(directory: Path, suffix: str) -> str:
    path = directory / f"{NAME}{suffix}"
    path.write_bytes(b"\0")
    path.chmod(0)
    return str(path)


def _in_unreadable_directory(directory: Path, suffix: str) -> str:
    parent = directory / "closed"
    parent.mkdir()
    (parent / f"{NAME}{suffix}").write_bytes(b"\0")
    parent.chmod(0)
    return str(parent / f"{NAME}{suffix}")


def _loop(directory: Path, suffix: str) -> str:
    return _linked(f"{NAME}{suffix}")(directory, suffix)


def _below_a_file(directory: Path, suffix: str) -> str:
    (directory / NAME).write_bytes(b"\0")
    return str(directory / NAME / f"below{suffix}")


PATHS: Mapping[str, Callable[[Path, str], str]] = {
    "named pipe": _fifo,
    "device": _linked("/dev/zero"),
    "standard input": lambda directory, suffix: "/dev/stdin",
    "socket": _socket,
    "directory": _directory,
    "link to /": _linked("/"),
    "dangling link": _linked("nothing"),
    "link to itself": _loop,
    "link to memory": _linked("/proc/self/mem"),
    "unreadable": _unreadable,
    "unreadable directory": _in_unreadable_directory,
    "below a file": _below_a_file,
    "missing": _named("", None),
    "empty": _named("", b""),
    "not UTF-8": _named("\udcff\udcfe"),
    "not UTF-8, missing": _named("\udcff\udcfe", None),
    "long name": _named("x" * 5000, None),
    "long path": lambda directory, suffix: f"{NAME}/" + "a/" * 3000 + f"x{suffix}",
    "null": _named("a\0b", None),
    "line break": _named("a\nTraceback b"),
    "escape sequence": _named("\x1b[31m\x1b]0;title\x07\x9b2J"),
    "escape sequence, missing": _named("\x1b[31m\x1b]0;title\x07\x9b2J", None),
}


# Bytes, or a function that makes them if that takes long.
Content = bytes | Callable[[], bytes]


def _zip(members: Mapping[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED, zeros: int = 0) -> bytes:
    """Return a zip; `zeros` follow the content of its last member."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, value in members.items():
            with archive.open(name, "w") as member:
                member.write(value)
                if name == list(members)[-1]:
                    for _ in range(zeros >> 20):
                        member.write(bytes(1 << 20))
    return content.getvalue()


def _npy(descr: str, shape: str, values: bytes = bytes(64), extra: int = 0) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * extra + b"\n"
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(header)) + header + values


def png(width: int, height: int, chunks: bytes = b"", pixels: bytes = b"") -> bytes:
    """Return a PNG that declares a size; without `pixels`, it has none."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xc0" + struct.pack(">H", 11) + frame


_DEEP = {"deep list": "[" * 200_000, "deep object": '{"a":' * 200_000, "closed deep list": "[" * 9000 + "]" * 9000}
_TEXTS = {
    **{kind: text.encode() for kind, text in _DEEP.items()},
    "not an object": b"[1, 2]",
    "null characters": b"\0" * 100,
    "not UTF-8": b'{"seed": "\xff\xfe"}',
    "truncated": b'{"seed": 1',
    "nothing after the object": b'{"seed": 1} x',
    "compressed": b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + bytes(20),
    "long number": b'{"seed": 1' + b"9" * 5000 + b"}",
    "float that overflows": b'{"seed": 1e999}',
    "NaN": b'{"seed": NaN}',
    "infinity": b'{"seed": -Infinity}',
    "duplicate key": b'{"seed": 1, "seed": 2}',
    "surrogate": b'{"model": "\\ud800.tflite"}',
    "null in a path": b'{"model": "hostile\\u0000b.tflite"}',
    "null in the output": b'{"out": "hostile\\u0000b"}',
    "null in the data": b'{"data": "npz:hostile\\u0000b.npz"}',
    "long key": b'{"' + b"k" * 1_000_000 + b'": 1}',
    "many keys": json.dumps({f"key{number}": number for number in range(100_000)}).encode(),
    "another version": b'{"schema_version": [], "config": {}}',
    "config of another type": b'{"schema_version": 2, "config": 3}',
}
_RANGES = {
    "ranges that are not numbers": {"minimum": "a", "maximum": None},
    "infinite ranges": {"minimum": float("-inf"), "maximum": float("inf")},
    "swapped ranges": {"minimum": 1.0, "maximum": -1.0},
    "huge ranges": {"minimum": -1e300, "maximum": 1e308},
}


def _ranges(changes: Mapping[str, object]) -> bytes:
    entry = {
        "subgraph": 0, "tensor": 0, "name": "x", "layer": None, "minimum": 0.0, "maximum": 1.0, "observed_minimum": 0.0,
        "observed_maximum": 1.0, "method": "mse", "clipped": None, "outlier_samples": [], "coverage": 1.0, **changes,
    }  # fmt: skip
    head = {"schema_version": 2, "num_samples": 1, "model_sha256": "", "data_sha256": []}
    return json.dumps({**head, "tensors": [entry]}).encode()


def _damaged(data: bytes, what: str) -> bytes:
    """Return a zip with one kind of damage."""
    end = data.rindex(b"PK\x05\x06")
    (start,) = struct.unpack_from("<I", data, end + 16)
    mutant = bytearray(data)
    if what == "truncated":
        return data[: len(data) // 2]
    if what == "checksum":
        struct.pack_into("<I", mutant, start + 16, 0xDEADBEEF)
    if what == "central directory":
        struct.pack_into("<I", mutant, end + 16, start - 7)
    if what == "offset of a member":
        struct.pack_into("<I", mutant, start + 42, 0x7FFFFFFF)
    if what == "sizes":
        struct.pack_into("<II", mutant, start + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    if what == "encrypted":
        struct.pack_into("<H", mutant, start + 8, 1)
    if what == "method":
        struct.pack_into("<H", mutant, start + 10, 98)
    if what == "year 1980, month 0":
        struct.pack_into("<I", mutant, start + 12, 0)
    if what == "number of members":
        struct.pack_into("<HH", mutant, end + 8, 0xFFFF, 0xFFFF)
    return bytes(mutant)


_ZIP_DAMAGE = (
    "truncated", "checksum", "central directory", "offset of a member", "sizes", "encrypted", "method",
    "year 1980, month 0", "number of members",
)  # fmt: skip


@functools.cache
def _keras_files() -> dict[str, Content]:
    good = (TESTS / "containers" / "keras.keras").read_bytes()
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    results: dict[str, Content] = {f"zip: {what}": _damaged(good, what) for what in _ZIP_DAMAGE}
    results |= {f"config: {kind}": _zip({**members, "config.json": text}) for kind, text in _TEXTS.items()}
    results["long names"] = _zip({**members, **{f"{number}{'n' * 60_000}": b"" for number in range(50)}})
    results["many members"] = _zip({**members, **{f"m{number}": b"" for number in range(20_000)}})
    results["weights: garbage"] = _zip({**members, "model.weights.h5": b"\x89HDF\r\n\x1a\n" + b"\xff" * 4000})
    weights = {key: members[key] for key in members if key != "model.weights.h5"} | {"model.weights.h5": b""}
    results["weights: expands"] = lambda: _zip(weights, zeros=400 << 20)
    results["lzma: damaged"] = _damaged(_zip(members, compression=zipfile.ZIP_LZMA), "checksum")
    return results


@functools.cache
def _h5_files() -> dict[str, bytes]:
    import h5py

    good = (TESTS / "containers" / "tf_keras.h5").read_bytes()
    results = {
        "truncated": good[: len(good) // 2],
        "only its signature": good[:8],
        "garbage": good[:8] + b"\xff" * 4000,
    }
    for kind in ("deep list", "long number", "NaN", "null characters", "truncated", "not an object", "surrogate"):
        content = io.BytesIO(good)
        with h5py.File(content, "r+") as file:
            del file.attrs["model_config"]
            file.attrs.create("model_config", np.void(_TEXTS[kind][:60_000]))
        results[f"config: {kind}"] = content.getvalue()
    return results


@functools.cache
def _npz_files() -> dict[str, Content]:
    labels = _npy("'<i8'", "(2,)", bytes(16))
    good = _zip({"x_test.npy": _npy("'<f4'", "(2, 8, 8, 1)", bytes(512)), "y_test.npy": labels})
    arrays = {
        "objects": _npy("'|O'", "(2,)", b"\x80\x04N." * 9),
        "absurd shape": _npy("'<f4'", "(1000000000000, 8, 8, 1)"),
        "negative shape": _npy("'<f4'", "(-1, 8, 8, 1)"),
        "overflowing shape": _npy("'<f4'", f"({2**62}, 4, 4)"),
        "long number in the shape": _npy("'<f4'", f"({'9' * 5000},)"),
        "many dimensions": _npy("'<f4'", "(" + "1, " * 100 + ")"),
        "shape of another type": _npy("'<f4'", "'a'"),
        "open parentheses": _npy("'<f4'", "(" * 300),
        "huge header": _npy("'<f4'", "(2, 8, 8, 1)", bytes(512), extra=5_000_000),
        "header beyond the end": b"\x93NUMPY\x02\0\xff\xff\xff\xff{",
        "unknown version": b"\x93NUMPY\x09\0" + bytes(100),
        "text": _npy("'<U16'", "(2,)", bytes(128)),
        "structure": _npy("[('a', '<f4')]", "(2, 8, 8, 1)", bytes(512)),
        "dates": _npy("'<M8[ns]'", "(2, 8, 8, 1)", bytes(1024)),
        "complex numbers": _npy("'<c8'", "(2, 8, 8, 1)", bytes(1024)),
        "NaN": _npy("'<f4'", "(2, 8, 8, 1)", b"\xff" * 512),
        "no examples": _npy("'<f4'", "(0, 8, 8, 1)", b""),
        "a single number": _npy("'<f4'", "()", bytes(4)),
        "more than it has": _npy("'<f4'", "(2, 8, 8, 1)", bytes(100)),
    }
    results: dict[str, Content] = {f"zip: {what}": _damaged(good, what) for what in _ZIP_DAMAGE}
    results |= {kind: _zip({"x_test.npy": array, "y_test.npy": labels}) for kind, array in arrays.items()}
    bomb = _npy("'<f4'", "(2, 8192, 8192, 1)", b"")
    results["half a gigabyte of zeros"] = lambda: _zip({"y_test.npy": labels, "x_test.npy": bomb}, zeros=512 << 20)
    results["labels: objects"] = _zip(
        {"x_test.npy": _npy("'<f4'", "(2, 8, 8, 1)", bytes(512)), "y_test.npy": arrays["objects"]}
    )
    results["long names"] = _zip({f"{number}{'n' * 60_000}.npy": labels for number in range(20)})
    results["escape sequence in a name"] = _zip({"x_test.\x1b[31m\n.npy": arrays["NaN"]})
    results["a single array"] = labels
    for path in sorted((TESTS / "hostile").glob("*.npz")):
        results[path.stem] = path.read_bytes()
    return results


def _example(content: bytes) -> bytes:
    """Return a tf.train.Example with an image and the label 1, in protobuf's wire format."""

    def message(number: int, value: bytes) -> bytes:
        size, length = len(value), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + value

    def feature(key: bytes, value: bytes) -> bytes:
        return message(1, message(1, key) + message(2, value))

    pairs = feature(b"image", message(1, message(1, content))) + feature(b"label", message(3, message(1, b"\x01")))
    return message(1, pairs)


@functools.cache
def _tfrecord_files() -> dict[str, bytes]:
    good = framed(_example(png(8, 8)))
    return {
        "garbage": b"\xff" * 4000,
        "length beyond the end": struct.pack("<Q", 2**63) + bytes(100),
        "no checksum": struct.pack("<Q", 4) + bytes(12),
        "truncated": good[:-6],
        "compressed": b"\x1f\x8b\x08" + bytes(100),
        "not an Example": framed(b"\xff" * 100),
        "empty records": framed(b"") * 1000,
        "image without pixels": good,
        "image that declares too much": framed(_example(png(60_000, 60_000))),
        "image of another format": framed(_example(b"GIF89a" + bytes(100))),
    }


_CSV = {
    "UTF-16": "a.bin, 10, 1\n".encode("utf-16"),
    "UTF-8 with a mark": b"\xef\xbb\xbfa.bin, 10, 1\n",
    "carriage returns": b"a.bin, 10, 1\rb.bin, 10, 2\r",
    "Latin-1": b"caf\xe9.bin, 10, 1\n",
    "null characters": b"a\0.bin, 10, 1\n",
    "long number": b"a.bin, 10, " + b"1" * 5000 + b"\n",
    "long field": b'"' + b"x" * 200_000 + b'", 10, 1\n',
    "open quote": b'"a.bin, 10, 1\n' * 1000,
    "other directory": b"../../etc/passwd, 10, 1\n",
    "huge window": b"a.bin, 10, 1, 1099511627776, 4\n",
    "huge stride": b"a.bin, 10, 1, 4, 99999999999999999999999996\n",
    "huge label": b"a.bin, 99999999999999999999999, 99999999999999999999998\n",
    "escape sequence": b"\x1b[31m.bin, 10, 1\n",
}
_PYTHON = {
    "null characters": b"a = 1\0\n",
    "not Python": b"\xff\xfe\xfa",
    "unknown encoding": b"# coding: no-such-encoding\n",
    "UTF-16": "a = 1\n".encode("utf-16"),
    "deep expression": b"a = " + b"(" * 5000 + b")" * 5000,
    "deep sum": b"a = " + b"-" * 200_000 + b"1\n",
    "exit": b"raise SystemExit(0)\n",
    "failure": b"raise ValueError('one\\ntwo \\x1b[31m' + 'x' * 100000)\n",
    "interrupt": b"raise KeyboardInterrupt\n",
    "recursion": b"def f(): f()\nf()\n",
    "long number": b"a = " + b"1" * 5000 + b"\n",
    "exit of an exception group": b"raise BaseExceptionGroup('a', [SystemExit(0)])\n",
}
_IMAGES = {
    "PNG that declares too much": png(60_000, 60_000),
    "PNG with sizes above 2**31": png(2**32 - 1, 2**32 - 1),
    "PNG without size": png(0, 0),
    "PNG without pixels": png(64, 64),
    "truncated PNG": png(64, 64)[:20],
    "PNG that expands": png(8000, 8000, pixels=zlib.compress(bytes(8001 * 8000))),
    "JPEG that declares too much": _jpeg(65_500, 65_500),
    "truncated JPEG": b"\xff\xd8\xff\xe0",
    "GIF": b"GIF89a\xff\xff\xff\xff" + bytes(100),
    "BMP": b"BM" + bytes(24) + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bytes(100),
    "empty": b"",
    "garbage": b"\xff" * 5000,
}
_IMAGE_PATHS = (
    "named pipe", "device", "socket", "dangling link", "link to itself", "unreadable", "escape sequence", "not UTF-8",
    "line break",
)  # fmt: skip


def _image_folder(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        (path / "class").mkdir(parents=True)
        (path / "class" / f"{NAME}.png").write_bytes(content)

    return make


def _image_path(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        (path / "class").mkdir(parents=True)
        PATHS[kind](path / "class", ".png")

    return make


def _folder_in_folder(place: str, target: str) -> Callable[[Path], None]:
    """Return a function that makes a folder in which `place` is a link, next to a class of one small image."""

    def make(path: Path) -> None:
        _image_folder(png(8, 8))(path)
        (path / place).symlink_to(target)

    return make


def _unreadable_class(path: Path) -> None:
    _image_folder(png(8, 8))(path)
    (path / "class").chmod(0)


def _many_files(path: Path) -> None:
    _image_folder(b"")(path)
    for number in range(20_000):
        (path / "class" / f"{number}.png").touch()


def _folder_of(members: Mapping[str, Callable[[Path, str], str] | Content]) -> Callable[[Path], None]:
    """Return a function that makes a directory with files, some of which are hostile paths themselves."""

    def make(path: Path) -> None:
        path.mkdir()
        _add(path, members)

    return make


def _add(folder: Path, members: Mapping[str, Callable[[Path, str], str] | Content]) -> None:
    for name, member in members.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if isinstance(member, bytes):
            (folder / name).write_bytes(member)
        elif member in PATHS.values():
            os.rename(member(folder, ".tmp"), folder / name)  # type: ignore[call-arg, arg-type]
        else:
            (folder / name).write_bytes(member())  # type: ignore[call-arg, arg-type]


@functools.cache
def _saved_models() -> dict[str, Callable[[Path], None]]:
    empty_variables = {"variables/variables.index": b"\xff" * 100, "variables/variables.data-00000-of-00001": b"\0"}
    graphs = {"garbage": b"\xff" * 4000, "empty graph": b"\x08\x01", "truncated": b"\x12\xff\xff\xff\x7f"}
    results = {kind: _folder_of({"saved_model.pb": graph, **empty_variables}) for kind, graph in graphs.items()}
    kinds = ("named pipe", "device", "socket", "directory", "link to /", "dangling link", "unreadable", "empty")
    for kind in kinds:
        results[f"graph: {kind}"] = _folder_of({"saved_model.pb": PATHS[kind]})
        results[f"metadata: {kind}"] = _folder_of({"saved_model.pb": b"\x08\x01", "keras_metadata.pb": PATHS[kind]})
        results[f"variables: {kind}"] = _folder_of({"saved_model.pb": b"\x08\x01", "variables": PATHS[kind]})
        results[f"config: {kind}"] = _folder_of({"config.json": PATHS[kind], "metadata.json": b"{}"})
    return results


def _written(files: Mapping[str, Content]) -> dict[str, Callable[[Path], object]]:
    def write(path: Path, content: Content) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content())

    return {kind: functools.partial(write, content=content) for kind, content in files.items()}


@functools.cache
def _flatbuffers() -> dict[str, bytes]:
    good = (TESTS / "golden" / "digits_int8.tflite").read_bytes()
    results = {
        "garbage": b"\xff" * 5000,
        "only its signature": good[:8],
        "truncated": good[: len(good) // 2],
        "zeros after the signature": good[:8] + bytes(5000),
        "another format": (TESTS / "containers" / "keras.keras").read_bytes(),
    }
    return results | {path.stem: path.read_bytes() for path in sorted((TESTS / "hostile").glob("*.tflite"))}


# Format -> (suffix, kind of content -> a function that writes it).
_TABLES: Mapping[str, bytes] = {
    "empty": b"",
    "zeros": bytes(1 << 20),
    "one line of 20 MB": b"a," * 10_000_000,
    "not UTF-8": b"a,label\n\xff,1\n",
    "quote without end": b'a,label\n"' + b"1" * 100_000,
    "many columns": b",".join(b"c%d" % index for index in range(100_000)) + b"\n1",
    "huge number": b"a,label\n1e999,1\n",
    "huge label": b"a,label\n1," + b"9" * 5000 + b"\n",
}
_MANIFESTS: Mapping[str, str] = {
    "empty": "",
    "no JSON": "{",
    "deep JSON": "[" * 100_000,
    "a device": '{"path": "/dev/zero", "label": "a"}',
    "a folder": '{"path": "/", "label": "a"}',
    "path of 100,000 characters": '{"path": "' + "a" * 100_000 + '", "label": "a"}',
    "null in a path": '{"path": "a\\u0000b", "label": "a"}',
    "endless seconds": '{"path": "a.wav", "label": "a", "end": 1e999}',
}


def _wav(
    samples: bytes = bytes(16_000), *, channels: int = 1, bits: int = 16, rate: int = 8000, code: int = 1
) -> bytes:
    """Return a WAV file whose header declares these values."""
    width = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels & 0xFFFF, rate, rate * width & 0xFFFFFFFF, width & 0xFFFF, bits)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


_RECORDINGS: Mapping[str, Content] = {
    "empty": b"",
    "garbage": b"\xff" * 5000,
    "only its signature": b"RIFF\xff\xff\xff\xffWAVE",
    "truncated": _wav()[:100],
    "data beyond the end": _wav()[:40] + struct.pack("<I", 0xFFFFFFF0) + bytes(100),
    "no samples": _wav(b""),
    "no channels": _wav(channels=0),
    "65,535 channels": _wav(channels=65_535),
    "no rate": _wav(rate=0),
    "rate of 4 GHz": _wav(rate=0xFFFFFFFF),
    "bits that do not exist": _wav(bits=7),
    "another encoding": _wav(code=85),
    "NaN": _wav(b"\xff" * 16_000, bits=32, code=3),
    "endless chunks": _wav()[:12] + b"junk\0\0\0\0" * 200_000,
    "chunk that ends in front of itself": _wav()[:12] + b"junk\xff\xff\xff\xff" + bytes(100),
}
_SPECIAL_FILES = ("named pipe", "device", "socket", "directory", "dangling link", "link to itself", "unreadable")


def _recording(member: Callable[[Path, str], str] | Content) -> Callable[[Path], None]:
    """Return a function that writes a manifest of one recording, and the recording next to it."""

    def make(path: Path) -> None:
        path.write_text(json.dumps({"path": f"{NAME}.wav", "label": 1}))
        _add(path.parent, {f"{NAME}.wav": member})

    return make


@functools.cache
def _wav_contents() -> dict[str, Callable[[Path], object]]:
    results = _written({kind: content.encode() for kind, content in _MANIFESTS.items()})
    results |= {f"recording: {kind}": _recording(content) for kind, content in _RECORDINGS.items()}
    return results | {f"recording: {kind}": _recording(PATHS[kind]) for kind in _SPECIAL_FILES}


def _idx(sizes: tuple[int, ...], values: bytes, *, kind: int = 8, axes: int | None = None) -> bytes:
    count = len(sizes) if axes is None else axes
    return bytes([0, 0, kind, count]) + struct.pack(f">{len(sizes)}I", *sizes) + values


@functools.cache
def _idx_folders() -> dict[str, Callable[[Path], object]]:
    images, labels = _idx((2, 8, 8), bytes(128)), _idx((2,), b"\0\1")
    names = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    hostile: dict[str, Content] = {
        "empty": b"",
        "garbage": b"\xff" * 5000,
        "only its signature": images[:4],
        "truncated": images[:-5],
        "too long": images + bytes(5),
        "floats": _idx((2, 8, 8), bytes(128), kind=13),
        "no axes": _idx((), b""),
        "255 axes": _idx((1,) * 255, b"\0"),
        "no examples": _idx((0, 8, 8), b""),
        "absurd sizes": _idx((0xFFFFFFFF,) * 3, bytes(128)),
        "sizes whose product overflows": _idx((1 << 16,) * 4, b""),
        "compressed garbage": b"\x1f\x8b" + b"\xff" * 500,
        "compressed, truncated": gzip.compress(images)[:-10],
        "compressed, expands": lambda: gzip.compress(_idx((1 << 9, 1 << 10, 1 << 10), b"") + bytes(1 << 29), 1),
    }
    results = {
        f"{part}: {kind}": _folder_of({names[0]: images, names[1]: labels, names[place]: content})
        for place, part in enumerate(("images", "labels"))
        for kind, content in hostile.items()
    }
    results["more images than labels"] = _folder_of({names[0]: images, names[1]: _idx((1,), b"\0")})
    results["labels of three axes"] = _folder_of({names[0]: images, names[1]: images})
    for kind in _SPECIAL_FILES:
        results[f"images: {kind}"] = _folder_of({names[0]: PATHS[kind], names[1]: labels})
        results[f"labels: {kind}"] = _folder_of({names[0]: images, names[1]: PATHS[kind]})
    return results


_GOOD_PNG = png(8, 8, pixels=zlib.compress(bytes(8 * 9)))


def _coco(
    change: Callable[[dict], object] = lambda tables: None, member: Callable[[Path, str], str] | Content = _GOOD_PNG
) -> Callable[[Path], None]:
    """Return a function that writes an annotation file, changed, and its two images; the second one is `member`."""

    def make(path: Path) -> None:
        tables: dict = {
            "images": [
                {"id": number, "file_name": f"{NAME}{number}.png", "height": 8, "width": 8} for number in (1, 2)
            ],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}],
            "categories": [{"id": 1, "name": "a"}],
        }
        change(tables)
        path.write_text(json.dumps(tables))
        (path.parent / "images").mkdir()
        _add(path.parent / "images", {f"{NAME}1.png": _GOOD_PNG, f"{NAME}2.png": member})

    return make


def _field(table: str, name: str, value: object) -> Callable[[dict], object]:
    """Return a change of a field of the last entry of a table."""
    return lambda tables: tables[table][-1].update({name: value})


_ANNOTATIONS: Mapping[str, Callable[[dict], object]] = {
    "image in another folder": _field("images", "file_name", "../../../etc/passwd"),
    "absolute path of an image": _field("images", "file_name", "/dev/zero"),
    "null in the name of an image": _field("images", "file_name", "a\0b"),
    "surrogate in the name of an image": _field("images", "file_name", "\ud800.png"),
    "name of 100,000 characters": _field("images", "file_name", "a" * 100_000),
    "name that is a number": _field("images", "file_name", 3),
    "escape sequence in a name": _field("images", "file_name", "\x1b[31m.png"),
    "the folder itself": _field("images", "file_name", "."),
    "absurd size": _field("images", "height", 10**15),
    "size of 0": _field("images", "width", 0),
    "size that is a float": _field("images", "width", 1e308),
    "id of many digits": _field("images", "id", 10**4000),
    "NaN in a box": _field("annotations", "bbox", [float("nan"), 0, 1, 1]),
    "infinite box": _field("annotations", "bbox", [0, 0, float("inf"), 1]),
    "box of many digits": _field("annotations", "bbox", [0, 0, 10**4000, 1]),
    "box of one number": _field("annotations", "bbox", [1]),
    "box that is an object": _field("annotations", "bbox", {}),
    "negative box": _field("annotations", "bbox", [4, 4, -2, 2]),
    "crowd that is a list": _field("annotations", "iscrowd", []),
    "area of many digits": _field("annotations", "area", 10**4000),
    "unknown image": _field("annotations", "image_id", 9),
    "category that is a list": _field("annotations", "category_id", [1]),
    "no images": lambda tables: tables.update(images=[]),
    "tables of another type": lambda tables: tables.update(annotations={"a": 1}),
    "entries of another type": lambda tables: tables.update(annotations=[1, 2]),
    "name of a category that is an object": _field("categories", "name", {"a": "\x1b[31m"}),
}


@functools.cache
def _coco_contents() -> dict[str, Callable[[Path], object]]:
    results: dict[str, Callable[[Path], object]] = dict(_written(_TEXTS))
    results |= {kind: _coco(change) for kind, change in _ANNOTATIONS.items()}
    results |= {f"image: {kind}": _coco(member=content) for kind, content in _IMAGES.items()}
    return results | {f"image: {kind}": _coco(member=PATHS[kind]) for kind in _SPECIAL_FILES}


@functools.cache
def _mask_folders() -> dict[str, Callable[[Path], object]]:
    places = {"image": "images/a.png", "mask": "masks/a.png"}
    good: dict[str, Callable[[Path, str], str] | Content] = dict.fromkeys(places.values(), _GOOD_PNG)
    hostile = {**_IMAGES, **{kind: PATHS[kind] for kind in _SPECIAL_FILES}}
    results: dict[str, Callable[[Path], object]] = {
        f"{name}: {kind}": _folder_of({**good, place: content})
        for name, place in places.items()
        for kind, content in hostile.items()
    }

    def unreadable(part: str) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            _folder_of(good)(path)
            (path / part).chmod(0)

        return make

    results["unreadable folder"] = unreadable(".")
    results["unreadable folder of images"] = unreadable("images")
    results["unreadable folder of masks"] = unreadable("masks")
    return results


CONTENTS: Mapping[str, tuple[str, Callable[[], Mapping[str, Callable[[Path], object]]]]] = {
    "flatbuffer": (".tflite", lambda: _written(_flatbuffers())),
    "keras": (".keras", lambda: _written(_keras_files())),
    "h5": (".h5", lambda: _written(_h5_files())),
    "saved_model": ("", _saved_models),
    "json": (".json", lambda: _written(_TEXTS)),
    "ranges": (".json", lambda: _written(_TEXTS | {kind: _ranges(changes) for kind, changes in _RANGES.items()})),
    "python": (".py", lambda: _written(_PYTHON)),
    "labels": (".txt", lambda: _written(_TEXTS)),
    "directory": ("", dict),
    "npz": (".npz", lambda: _written(_npz_files())),
    "tfrecord": (".tfrecord", lambda: _written(_tfrecord_files())),
    "eembc": (".csv", lambda: _written(_CSV)),
    "csv": (".csv", lambda: _written(_TABLES)),
    "wav": (".jsonl", _wav_contents),
    "masks": ("", _mask_folders),
    "idx": ("", _idx_folders),
    "coco": (".json", _coco_contents),
    "folder": (
        "",
        lambda: {
            **{f"image: {kind}": _image_folder(content) for kind, content in _IMAGES.items()},
            **{f"image: {kind}": _image_path(kind) for kind in _IMAGE_PATHS},
            "class that links to /": _folder_in_folder("other", "/"),
            "folder in a class that links to /": _folder_in_folder("class/other", "/"),
            "folder in a class that links to its parent": _folder_in_folder("class/other", ".."),
            "unreadable class": _unreadable_class,
            "20,000 empty images": _many_files,
        },
    ),
}


def remove(directory: Path) -> None:
    """Delete a directory with hostile files. No link is followed."""
    for folder, folders, _ in os.walk(os.fsencode(directory)):
        for name in folders:
            path = os.path.join(folder, name)
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.chmod(path, 0o700)
    for folder, folders, files in os.walk(os.fsencode(directory), topdown=False):
        for name in (*files, *folders):
            path = os.path.join(folder, name)
            (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)
    os.rmdir(directory)
