#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare MLPerf Tiny's int8 ResNet8 on LiteRT's GPU accelerator before and after the conversion for the target `gpu`.

    python benchmarks/gpu_resnet8.py --model=resnet8_int8.tflite '--data=tfrecord:cifar10/cifar10-*' \\
        [--float_model=resnet8.h5] [--limit=500] [--ops]

`published` is the file as it is, and `target=gpu` the same file converted. `2x2 kernels` is the published file with the
kernels of its strided 1x1 convolutions enlarged by zeros, so that it has no such convolutions: its difference is
rounding. `builtin` is the published file on TFLite's builtin kernels, another correct implementation. `float_model` is
converted by tfq, and compared with XNNPACK on the file for the target `xnnpack`.

With `--ops`, it also runs each op of the published file and of `target=gpu` alone on the GPU, with XNNPACK's values as
inputs, and prints how far its result differs from XNNPACK's.

Prints each image whose class differs for `target=gpu`, with the scores of both classes. Takes about a minute on two
cores. The exit code is 1 if `target=gpu` has another class than XNNPACK on more than 2 of 500 images, or differs by
more than `2x2 kernels`.
"""

import argparse
import dataclasses
import sys
import warnings

import numpy as np

import tfq
from tfq import tflite
from tfq.auditing.schemes import is_strided_pointwise
from tfq.backends import RunRequest, make_backend
from tfq.config import DataConfig
from tfq.data import Split, as_split, load_split
from tfq.evaluation import prepare_inputs

# The same class on at least 498 of 500 images.
MOST_DIFFERENT = 2 / 500


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


def outputs_of(model: bytes, split: Split, backend: str = "local", **settings) -> tuple[np.ndarray, str]:
    """Return the outputs for all images, and how many ops a delegate or the GPU computed."""
    request = RunRequest(model=model, inputs=prepare_inputs(tflite.read(model), split).arrays)
    result = make_backend(backend).assess(dataclasses.replace(request, **settings))
    (output,) = result.computed_outputs()
    return output.astype(int), f"{result.delegated_ops} of {result.total_ops}"


def single_op(model: bytes, number: int) -> tuple[bytes, list[int], int]:
    """Return the flatbuffer of one op alone, the tensors that are its inputs, and the one that is its output."""
    edited, parsed = tflite.unpack(model), tflite.read(model).main_subgraph
    op, graph = parsed.ops[number], edited.subgraphs[0]
    inputs = [index for index in op.inputs if index >= 0 and not parsed.tensors[index].is_constant]
    graph.operators, edited.signatureDefs = [graph.operators[number]], []
    graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(op.outputs[:1], np.int32)
    return tflite.pack(edited, len(model)), inputs, op.outputs[0]


def print_ops(name: str, model: bytes, split: Split) -> None:
    """Print how far each op alone differs on the GPU."""
    graph = tflite.read(model).main_subgraph
    values = dict(zip(graph.inputs, prepare_inputs(tflite.read(model), split).arrays, strict=True))
    for op in graph.ops:
        alone, inputs, output = single_op(model, op.index)
        request = RunRequest(model=alone, inputs=tuple(values[index] for index in inputs))
        (values[output],) = make_backend("local").assess(request).computed_outputs()
        (other,) = make_backend("gpu").assess(request).computed_outputs()
        distance = np.abs(other.astype(int) - values[output])
        print(f"{name:12} {op.index:>2} {op.name:18} {distance.max():>4} {np.mean(distance > 0):>10.4%}", flush=True)


class Table:
    """The printed rows, and what they are compared with."""

    def __init__(self, labels: np.ndarray) -> None:
        """Start a table of images with these labels."""
        self.labels = labels
        self.different: dict[str, np.ndarray] = {}
        self.largest: dict[str, int] = {}
        print("file, where               accelerated   top-1  other class  largest  values differ  differ on XNNPACK")

    def row(self, name: str, expected: np.ndarray, output: np.ndarray, accelerated: str, here: np.ndarray) -> None:
        """Print a row: outputs compared with `expected`; `here` are XNNPACK's outputs of the same file."""
        distance = np.abs(output - expected)
        self.different[name] = np.flatnonzero(output.argmax(1) != expected.argmax(1))
        self.largest[name] = int(distance.max())
        print(
            f"{name:26} {accelerated:>10} {np.mean(output.argmax(1) == self.labels):>7.1%} "
            f"{len(self.different[name]):>12} {self.largest[name]:>8} {np.mean(distance > 0):>14.2%} "
            f"{np.sum(here != expected):>18}"
        )


def main() -> None:
    """Print a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--float_model")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--ops", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    with open(arguments.model, "rb") as file:
        published = file.read()
    data = DataConfig(source=arguments.data)
    split = as_split(load_split(data, "test", limit=arguments.limit))
    assert isinstance(split, Split)
    expected, _ = outputs_of(published, split)
    ranked, labels = np.sort(expected, axis=1), np.asarray(split.labels)
    print(
        f"{len(labels)} images; XNNPACK: top-1 {np.mean(expected.argmax(1) == labels):.1%}; its two highest scores are "
        f"equal on {np.sum(ranked[:, -1] == ranked[:, -2])} images"
    )
    table = Table(labels)
    target = tfq.ConversionConfig(target="gpu")
    outputs = {}
    for name, model in (
        ("published", published),
        ("target=gpu", tfq.convert(published, config=target)),
        ("2x2 kernels", with_larger_kernels(published)),
    ):
        here, _ = outputs_of(model, split)
        outputs[name], accelerated = outputs_of(model, split, "gpu")
        table.row(f"{name}, gpu", expected, outputs[name], accelerated, here)
    table.row("published, builtin", expected, *outputs_of(published, split, kernels="builtin"), expected)
    if arguments.float_model:
        samples = as_split(load_split(data, "train", limit=arguments.limit))
        assert isinstance(samples, Split)
        float_model = tfq.load_model(arguments.float_model)
        own = tfq.convert(float_model, samples.inputs)
        here, accelerated = outputs_of(own, split)
        table.row("float, int8, XNNPACK", here, here, accelerated, here)
        table.row("float, int8, gpu", here, *outputs_of(own, split, "gpu"), here)
        for_gpu = tfq.convert(float_model, samples.inputs, target)
        table.row("float, target=gpu, gpu", here, *outputs_of(for_gpu, split, "gpu"), outputs_of(for_gpu, split)[0])
    output = outputs["target=gpu"]
    for image in table.different["target=gpu, gpu"]:
        classes = [expected[image].argmax(), output[image].argmax()]
        scores = f"{expected[image][classes].tolist()} on XNNPACK, {output[image][classes].tolist()} on the GPU"
        print(f"image {image}: classes {' and '.join(map(str, classes))} have the scores {scores}")
    if arguments.ops:
        print("file         op alone on the GPU   largest  values differ")
        print_ops("published", published, split)
        print_ops("target=gpu", tfq.convert(published, config=target), split)
    too_many = len(table.different["target=gpu, gpu"]) > MOST_DIFFERENT * len(labels)
    sys.exit(too_many or table.largest["target=gpu, gpu"] > table.largest["2x2 kernels, gpu"])


if __name__ == "__main__":
    main()
