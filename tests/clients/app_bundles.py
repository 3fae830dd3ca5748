# SPDX-License-Identifier: Apache-2.0
"""Bundles for tests of the sources for apps, and the programs that compile and open them."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from built_models import Call, T, build, constant
from one_op_models import options
from sklearn.datasets import load_digits

import tfq
from tfq import tflite
from tfq.tflite import ModelMetadata, SubGraphMetadata, TensorMetadata
from tfq.tflite.model_metadata import NormalizationOptions, ProcessUnit

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LABELS = tuple(f"digit {number} $x \"é'" for number in range(10))
# `make clients` installs them.
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"


def program(name: str) -> str:
    """Return the path of a program. A test without it fails, because the check of a change must not skip it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"this test needs {name}")
    return path


def node_modules() -> Path:
    """Return the folder of the npm packages."""
    if not NODE_MODULES.is_dir():
        pytest.fail(f"{NODE_MODULES} does not exist: make clients installs it")
    return NODE_MODULES


def digit_images(count: int) -> np.ndarray:
    """Return handwritten digits as pixels from 0 to 255, three times as large as the models expect: (n, 24, 24, 1)."""
    images = np.clip(load_digits().images[:count] * 16, 0, 255).astype(np.uint8)
    return images.repeat(3, axis=1).repeat(3, axis=2)[..., None]


def with_preprocessing(model: bytes, resize=(), scale=1.0, offset=0.0) -> bytes:
    """Return a model that records its preprocessing, as a conversion does."""
    return tflite.write_metadata(model, {"preprocessing": {"resize": list(resize), "scale": scale, "offset": offset}})


def digits_bundle(name: str, platforms: tuple[str, ...], out: Path) -> Path:
    """Write a bundle of a digit classifier, which resizes and scales its images and has labels."""
    model = with_preprocessing((GOLDEN / f"{name}.tflite").read_bytes(), (8, 8), 16 / 255, -0.125)
    return _labeled_bundle(model, name, platforms, out, digit_images(3))


def normalized_bundle(name: str, platforms: tuple[str, ...], out: Path) -> Path:
    """Write a bundle of a digit classifier whose TFLite Metadata has the mean and standard deviation of its pixels."""
    unit = ProcessUnit(options=NormalizationOptions(mean=(3.3,), std=(15.7,)))
    graph = SubGraphMetadata(input_tensor_metadata=(TensorMetadata(process_units=(unit,)),))
    metadata = ModelMetadata(subgraph_metadata=(graph,))
    model = tflite.write_model_metadata((GOLDEN / f"{name}.tflite").read_bytes(), metadata)
    return _labeled_bundle(model, name, platforms, out, digit_images(3)[:, 1::3, 1::3])


def _labeled_bundle(model: bytes, name: str, platforms: tuple[str, ...], out: Path, images: np.ndarray) -> Path:
    out.mkdir(parents=True)
    (out / "names.txt").write_text("".join(f"{label}\n" for label in LABELS))
    config = tfq.ExportConfig(platform=platforms, labels=str(out / "names.txt"))
    return tfq.export_bundle(model, config, out=out, data=images, name=name).folder


def several_types(integers: str, *, with_audio: bool) -> bytes:
    """Build a model whose inputs and outputs have many types.

    Its preprocessing is such that every pixel and audio sample is half-way between two quantized values.

    Args:
        integers: The type of the image: "int8" or "uint8". int8 models also have an int64 output.
        with_audio: Whether it has an int16 input.
    """
    indices = "int64" if integers == "int8" else "int32"
    zero_point = {"int8": -101, "uint8": 29}[integers]
    tensors = {
        "image": T(integers, (1, 6, 5, 3), 0.5, zero_point),
        "pixels": T(integers, (1, 90), 0.5, zero_point),
        "flat": constant([1, 90], "int32"),
        "tokens": T("int32", (1, 4)),
        "table": constant(np.arange(20).reshape(10, 2) / 3),
        "rows": T("float32", (1, 4, 2)),
        "features": T("float32", (1, 3)),
        "one": constant([1, 10, 100]),
        "sum": T("float32", (1, 3)),
        "axis": constant(1, "int32"),
        "best": T(indices, (1,)),
    }
    arg_max = options("ArgMax", outputType={"int64": 4, "int32": 2}[indices])
    ops = [
        Call("RESHAPE", ["image", "flat"], ["pixels"], options("Reshape")),
        Call("GATHER", ["table", "tokens"], ["rows"], options("Gather")),
        Call("ADD", ["features", "one"], ["sum"], options("Add")),
        Call("ARG_MAX", ["features", "axis"], ["best"], arg_max),
    ]
    inputs, outputs = ["tokens", "image", "features"], ["pixels", "rows", "sum", "best"]
    if with_audio:
        tensors |= {"audio": T("int16", (1, 16), 2**-15, 3), "wave": T("int16", (16,), 2**-15, 3)}
        tensors |= {"length": constant([16], "int32")}
        ops.append(Call("RESHAPE", ["audio", "length"], ["wave"], options("Reshape")))
        inputs, outputs = [*inputs, "audio"], ["wave", *outputs]
    return with_preprocessing(build(tensors, ops, inputs, outputs), scale=0.5, offset=0.25)


def several_types_bundle(model: bytes, platforms: tuple[str, ...], out: Path) -> Path:
    """Write a bundle of `several_types`, without labels."""
    generator = np.random.default_rng(0)
    arrays = {
        "image": generator.integers(0, 256, (2, 6, 5, 3)).astype(np.uint8),
        "tokens": generator.integers(0, 10, (2, 4)).astype(np.int32),
        "features": generator.normal(size=(2, 3)).astype(np.float32),
        "audio": ((generator.integers(-40_000, 40_000, (2, 16)) + 0.5) * 2**-14 - 0.5).astype(np.float32),
    }
    names = tflite.read(model).input_names
    config = tfq.ExportConfig(platform=platforms, num_golden=2)
    data = {name: arrays[name] for name in names}
    return tfq.export_bundle(model, config, out=out, data=data, name="several").folder


def changed_copy(bundle: Path, target: Path, path: str, change) -> Path:
    """Return a copy of a bundle in which `change` has changed the bytes of one file."""
    shutil.copytree(bundle, target, symlinks=True)
    content = bytearray((bundle / path).read_bytes())
    (target / path).write_bytes(bytes(change(content)))
    return target
