#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure weights of 4 and 2 bits with float activations, next to litert-quantizer's: accuracy, agreement, bytes, time.

    python benchmarks/few_bits.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' [--draws=3] [--steps=512]

The rows without data round to nearest; those with `gptq` round by --steps unlabelled training images, of each of
--draws random choices. litert-quantizer rounds to nearest at the scale of the largest weight (its min-max). The last
column is the CPU time of an inference divided by that of weight-only int8, in alternating blocks in one process.
--split=val evaluates on held-back training images, to choose settings. ResNet8 and 10,000 images take about ten
minutes. The exit code is 1 if litert-quantizer is better in a row, or int4 with gptq is more than 2 points below float.
"""

import argparse
import os
import statistics
import time
import warnings
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from compression_training import exit_with
from numpy.typing import NDArray

import tfq
from tfq.data import Split

BLOCKS, BLOCK_RUNS, MOST_DROP = 15, 20, 0.02
INT8 = ("weight_only_int8", "dynamic_range")
FORMS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "dynamic_range, int4": ({"scheme": "dynamic_range", "int4_layers": ("*",)}, 4, False),
    "weight_only_int4": ({"scheme": "weight_only_int4"}, 4, True),
    "weight_only_int2": ({"scheme": "weight_only_int2"}, 2, True),
}


def by_litert_quantizer(floating: bytes, bits: int, weight_only: bool) -> bytes:
    """Return what litert-quantizer makes of the convolutions and dense layers, with its checks off."""
    from litert_quantizer import qtyping, quantizer

    weights = qtyping.TensorQuantizationConfig(
        num_bits=bits, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
    )
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.FLOAT if weight_only else qtyping.ComputePrecision.INTEGER,
        explicit_dequantize=weight_only,
        skip_checks=True,
    )
    tool = quantizer.Quantizer(bytearray(floating))
    for op in (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.FULLY_CONNECTED):
        tool.update_quantization_recipe(
            regex=".*", operation_name=op, op_config=config, algorithm_key="min_max_uniform_quantize"
        )
    return bytes(tool.quantize().quantized_model)


def answers(content: bytes, images: NDArray) -> NDArray[np.int64]:
    """Return the predicted classes."""
    interpreter = started(content, images)
    (output,) = interpreter.get_output_details()
    results = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        results.append(int(interpreter.get_tensor(output["index"]).argmax()))
    return np.array(results)


def started(content: bytes, images: NDArray) -> Interpreter:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images[:1])
    return interpreter


def relative_times(contents: dict[str, bytes], images: NDArray) -> dict[str, float]:
    """Return the median CPU time of each model's inference, divided by that of the first model."""
    running = {name: started(content, images) for name, content in contents.items()}
    times: dict[str, list[float]] = {name: [] for name in contents}
    for _ in range(BLOCKS):
        for name, interpreter in running.items():
            start = time.process_time()
            for _ in range(BLOCK_RUNS):
                interpreter.invoke()
            times[name].append(time.process_time() - start)
    first = np.array(next(iter(times.values())))
    return {name: float(np.median(np.array(values) / first)) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--limit", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    data = tfq.DataConfig(source=arguments.data)
    train, test = (tfq.load_split(data, split, limit=arguments.limit) for split in ("train", arguments.split))
    assert isinstance(train, Split) and isinstance(test, Split)
    (images,), (tested,) = train.inputs.values(), (np.asarray(item) for item in test.inputs.values())
    labels = np.asarray(test.labels)
    traced = tfq.trace(tfq.load_model(arguments.model))
    floating = tfq.convert(traced, config=tfq.ConversionConfig(scheme="float32"))
    expected = answers(floating, tested)
    draws = [
        images[np.random.default_rng(seed).choice(len(images), arguments.steps, replace=False)]
        for seed in range(arguments.draws)
    ]
    int8 = {scheme: tfq.convert(traced, config=tfq.ConversionConfig(scheme=scheme)) for scheme in INT8}
    rows: dict[str, list[bytes]] = {"float32": [floating], **{name: [content] for name, content in int8.items()}}
    for name, (settings, bits, weight_only) in FORMS.items():
        rows[f"{name}, litert-quantizer"] = [by_litert_quantizer(floating, bits, weight_only)]
        rows[name] = [tfq.convert(traced, config=tfq.ConversionConfig(**settings))]
        config = tfq.ConversionConfig(**settings, techniques=("gptq",), num_calibration_samples=arguments.steps)
        rows[f"{name}, gptq"] = [tfq.convert(traced, draw, config) for draw in draws]
    times = relative_times({name: rows[name][0] for name in ("weight_only_int8", *rows)}, tested)
    print("| file | accuracy | mean | minus float, 95% | agreement | mean | bytes | CPU time |")
    print("|---|---|---|---|---|---|---|---|")
    means = {}
    for name, contents in rows.items():
        classes = [answers(content, tested) for content in contents]
        accuracies = [float((item == labels).mean()) for item in classes]
        agreements = [float((item == expected).mean()) for item in classes]
        means[name] = statistics.mean(accuracies)
        differences = 100 * (np.mean([item == labels for item in classes], axis=0) - (expected == labels))
        half = 1.96 * differences.std() / np.sqrt(len(labels))
        interval = f"{differences.mean() - half:+.2f} to {differences.mean() + half:+.2f}"
        print(
            f"| {name} | {percents(accuracies)} | {means[name]:.2%} | {interval} | {percents(agreements)} | "
            f"{statistics.mean(agreements):.2%} | {len(contents[0]):,} | {times[name]:.2f} |",
            flush=True,
        )
    failed = [name for name in FORMS if means[f"{name}, litert-quantizer"] > means[f"{name}, gptq"]]
    failed += [name for name in FORMS if "int4" in name and means[f"{name}, gptq"] < means["float32"] - MOST_DROP]
    for name in failed:
        print(f"MISSED: {name}")
    return 1 if failed else 0


def percents(values: list[float]) -> str:
    return " ".join(f"{value:.2%}" for value in values)


if __name__ == "__main__":
    exit_with(main, __file__)
