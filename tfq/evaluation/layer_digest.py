# SPDX-License-Identifier: Apache-2.0
"""A compact digest of a flatbuffer for records: what a later file is compared with when this one is gone.

It has no weights, only their hashes: about 300 bytes for each op.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

from tfq import tflite
from tfq.auditing.composition import Composition
from tfq.auditing.schemes import FLOATS
from tfq.errors import FlatbufferError
from tfq.tflite import Op, Subgraph, Tensor
from tfq.tflite.model_metadata import NormalizationOptions
from tfq.tflite.op_types import BIAS, WEIGHT, roles

# Ops that convert between floats and integers, and compute nothing else.
CONVERTERS = ("QUANTIZE", "DEQUANTIZE")
_HASH_DIGITS = 12
# Longer texts are only hashed: the labels of 1,000 classes have about 15 kB.
_LONGEST_TEXT = 1 << 15


def digest_of(content: bytes) -> dict[str, Any]:
    """Return the digest of a flatbuffer as JSON values.

    Returns:
        The keys `scheme` (the scheme that the audit finds: "full_int8"), `inputs` and `outputs` (for each its name,
        dtype, shape, scale and zero_point; of inputs also the `normalization` in TFLite Metadata), `preprocessing` (the
        preprocessing that tfq recorded in the file, or None), `files` (for each associated file, such as labels, its
        `sha256`, and its `lines` if it is a short text) and `layers`.
        An entry of `layers` is an op, of all subgraphs: its `label` ("conv1/CONV_2D"; "subgraph 1, conv1/CONV_2D" in
        the body of a loop), `layer`, `op`, `type` ("int8"), `outputs` and `constants`. A constant has its role, shape,
        dtype, scale (the geometric mean of the scales of all channels), num_scales, and the first 12 digits of the
        SHA-256 of its bytes (`sha256`) and of its quantization (`scales_sha256`).
    """
    model = tflite.read(content)
    graph = model.main_subgraph
    normalizations = _normalizations(content, len(graph.inputs))
    return {
        "scheme": Composition(model).scheme,
        "inputs": [
            {"name": name, **_tensor(tensor), "normalization": normalization}
            for name, tensor, normalization in zip(model.input_names, graph.input_tensors, normalizations, strict=True)
        ],
        "outputs": [
            {"name": name, **_tensor(tensor)}
            for name, tensor in zip(model.output_names, graph.output_tensors, strict=True)
        ],
        "preprocessing": (tflite.read_metadata(content) or {}).get("preprocessing"),
        "files": _associated_files(content),
        "layers": [layer for graph in model.subgraphs for layer in _layers(content, graph)],
    }


def num_float_ops(digest: Mapping[str, Any]) -> int:
    """Return how many ops of a digest compute in floating point. Converters from and to integers do not count."""
    return sum(item["type"] in FLOATS and item["op"] not in CONVERTERS for item in digest["layers"])


def _layers(content: bytes, graph: Subgraph) -> list[dict[str, Any]]:
    results, counts = [], dict[str, int]()
    prefix = f"subgraph {graph.index}, " if graph.index else ""
    for op in graph.ops:
        label = f"{prefix}{graph.layer_of(op)}/{op.custom_code or op.name}"
        counts[label] = counts.get(label, 0) + 1
        results.append(
            {
                "label": label if counts[label] == 1 else f"{label} ({counts[label]})",
                "layer": graph.layer_of(op),
                "op": op.custom_code or op.name,
                "type": _type(graph, op),
                "outputs": [_tensor(graph.tensors[index]) for index in op.outputs],
                "constants": [
                    _constant(content, graph.tensors[index], role)
                    for place, _, index, role in roles(op)
                    if place == "input" and graph.tensors[index].is_constant
                ],
            }
        )
    return results


def _type(graph: Subgraph, op: Op) -> str:
    """Return the type that an op computes in: a float type if any activation that it reads or writes has one."""
    tensors = [graph.tensors[index] for index in (*op.outputs, *op.inputs) if index != tflite.ABSENT]
    types = [tensor.dtype for tensor in tensors if not tensor.is_constant]
    return next((dtype for dtype in types if dtype in FLOATS), types[0] if types else "none")


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype,
        "shape": list(tensor.shape_signature),
        "scale": _finite(tensor.scale[0]) if tensor.scale else None,
        "zero_point": tensor.zero_point[0] if tensor.zero_point else None,
    }


def _constant(content: bytes, tensor: Tensor, role: str) -> dict[str, Any]:
    stored = content[tensor.buffer_offset : tensor.buffer_offset + tensor.buffer_bytes]
    quantization = repr((tensor.scale, tensor.zero_point, tensor.quantized_dimension)).encode()
    positive = [math.log(scale) for scale in tensor.scale if scale > 0 and math.isfinite(scale)]
    return {
        "role": {WEIGHT: "weights", BIAS: "bias"}.get(role, "constant"),
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "scale": math.exp(sum(positive) / len(positive)) if positive else None,
        "num_scales": len(tensor.scale),
        "sha256": _short_hash(stored),
        "scales_sha256": _short_hash(quantization) if tensor.scale else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]


def _normalizations(content: bytes, num_inputs: int) -> list[dict[str, Any] | None]:
    """Return the mean and std of each input in TFLite Metadata; None for an input without them."""
    try:
        metadata = tflite.read_model_metadata(content)
    except FlatbufferError:
        metadata = None
    results: list[dict[str, Any] | None] = [None] * num_inputs
    for index, item in enumerate((metadata.inputs if metadata else ())[:num_inputs]):
        options = item.unit(NormalizationOptions)
        if options is not None:
            results[index] = {"mean": [*map(_finite, options.mean)], "std": [*map(_finite, options.std)]}
    return results


def _associated_files(content: bytes) -> dict[str, dict[str, Any]]:
    """Return the hash of each file after the flatbuffer, and the lines of short texts; {} if they cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = tflite.associated_files(content)
    return {name: {"sha256": hashlib.sha256(data).hexdigest(), "lines": _lines(data)} for name, data in files.items()}


def _lines(data: bytes) -> list[str] | None:
    if len(data) > _LONGEST_TEXT:
        return None
    try:
        return data.decode().splitlines()
    except UnicodeDecodeError:
        return None
