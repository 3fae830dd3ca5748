#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare MLPerf Tiny's int8 ResNet8 on LiteRT's GPU accelerator before and after the conversion for the target `gpu`.

    python benchmarks/gpu_resnet8.py --model=resnet8_int8.tflite '--data=tfrecord:cifar10/cifar10-*' [--limit=500]

`published` is the file as it is, and `target=gpu` the same file converted. `2x2 kernels` is the published file with the
kernels of its strided 1x1 convolutions enlarged by zeros, so that it has no such convolutions: its difference is
rounding. `builtin` is the published file on TFLite's builtin kernels, another correct implementation. Takes about a
minute on two cores. The exit code is 1 if `target=gpu` differs from XNNPACK in more classes or by more than
`2x2 kernels`.
"""

import argparse
import dataclasses
import sys

import numpy as np

import tfq
from tfq import tflite
from tfq.auditing.schemes import is_strided_pointwise
from tfq.backends import RunRequest, make_backend
from tfq.config import DataConfig
from tfq.data import Split, as_split, load_split
from tfq.evaluation import prepare_inputs


def with_larger_kernels(model: bytes) -> bytes:
    """Return the model with 2x2 kernels in its strided 1x1 convolutions; the added weights are 0."""
    edited, parsed = tflite.unpack(model), tflite.read(model).main_subgraph
    graph = edited.subgraphs[0]
    for op in parsed.ops:
        if is_strided_pointwise(parsed, op):
            tensor = graph.tensors[op.inputs[1]]
            buffer = edited.buffers[tensor.buffer]
            weights = np.frombuffer(bytes(buffer.data), np.int8).reshape(tensor.shape)
            larger = np.zeros((weights.shape[0], 2, 2, weights.shape[3]), np.int8)
            larger[:, :1, :1] = weights
            tensor.shape, buffer.data = list(larger.shape), larger.reshape(-1).view(np.uint8)
    return tflite.pack(edited, len(model))


def main() -> None:
    """Print a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=500)
    arguments = parser.parse_args()
    with open(arguments.model, "rb") as file:
        published = file.read()
    split = as_split(load_split(DataConfig(source=arguments.data), "test", limit=arguments.limit))
    assert isinstance(split, Split)
    (inputs,) = prepare_inputs(tflite.read(published), split).arrays
    (expected,) = make_backend("local").assess(RunRequest(model=published, inputs=(inputs,))).computed_outputs()
    labels = np.asarray(split.labels)
    print(f"{len(inputs)} images; XNNPACK: top-1 {np.mean(expected.argmax(1) == labels):.1%}")
    files = {
        "published": published,
        "target=gpu": tfq.convert(published, config=tfq.ConversionConfig(target="gpu")),
        "2x2 kernels": with_larger_kernels(published),
        "builtin": published,
    }
    print("file         on GPU/CPU   top-1  class differs  largest  values differ  values that differ on XNNPACK")
    different, largest = {}, {}
    for name, model in files.items():
        request = RunRequest(model=model, inputs=(inputs,))
        (here,) = make_backend("local").assess(request).computed_outputs()
        if name == "builtin":
            result = make_backend("local").assess(dataclasses.replace(request, kernels="builtin"))
        else:
            result = make_backend("gpu").assess(request)
        (output,) = result.computed_outputs()
        distance = np.abs(output.astype(int) - expected)
        different[name], largest[name] = int(np.sum(output.argmax(1) != expected.argmax(1))), int(distance.max())
        print(
            f"{name:12} {result.delegated_ops:>3} of {result.total_ops:>2} {np.mean(output.argmax(1) == labels):>7.1%} "
            f"{different[name]:>14} {largest[name]:>8} {np.mean(distance > 0):>14.2%}  {np.sum(here != expected)}"
        )
    sys.exit(any(values["target=gpu"] > values["2x2 kernels"] for values in (different, largest)))


if __name__ == "__main__":
    main()
