# SPDX-License-Identifier: Apache-2.0
"""The table of a model's inputs and outputs in io.json: what an app must feed and how it reads the results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq.config import DataConfig
from tfq.tflite import Model, Tensor

FORMAT = 1


def io_table(model: Model, preprocessing: DataConfig, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the content of io.json.

    Args:
        model: The model.
        preprocessing: How its inputs are computed from real units.
        labels: {output name: class names}.
    """
    graph = model.main_subgraph
    inputs = [
        {**_tensor(name, tensor), "preprocessing": _steps(tensor, preprocessing)}
        for name, tensor in zip(model.input_names, graph.input_tensors, strict=True)
    ]
    outputs = [
        {**_tensor(name, tensor), "labels": list(labels.get(name, ()))}
        for name, tensor in zip(model.output_names, graph.output_tensors, strict=True)
    ]
    return {"format": FORMAT, "inputs": inputs, "outputs": outputs}


def _tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    quantized = tensor.is_quantized
    entry: dict[str, Any] = {
        "name": name,
        "shape": list(tensor.shape_signature),
        "dtype": tensor.dtype,
        "scale": tensor.scale[0] if quantized else None,
        "zero_point": tensor.zero_point[0] if quantized else None,
        "range": None,
    }
    if quantized:
        limits = np.iinfo(np.dtype(tensor.dtype))
        entry["range"] = [(limit - tensor.zero_point[0]) * tensor.scale[0] for limit in (limits.min, limits.max)]
    return entry


def _steps(tensor: Tensor, preprocessing: DataConfig) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if preprocessing.resize and len(tensor.shape) == 4:
        steps.append({"step": "resize", "method": "bilinear", "size": list(preprocessing.resize)})
    if (preprocessing.scale, preprocessing.offset) != (1.0, 0.0):
        steps.append({"step": "scale", "scale": preprocessing.scale, "offset": preprocessing.offset})
    if tensor.is_quantized:
        steps.append({"step": "quantize", "scale": tensor.scale[0], "zero_point": tensor.zero_point[0]})
    return steps
