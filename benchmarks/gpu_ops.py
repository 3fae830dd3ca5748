#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure which ops LiteRT's GPU accelerator runs, and which of them it computes right.

    python benchmarks/gpu_ops.py [--restart]

It runs a one-op flatbuffer for each op and type, and a small Keras model for each layer and scheme, on the backends
`gpu` and `local`. Results go to out/gpu_ops.json after each model, and a killed run resumes. In the end they are copied
to tfq/auditing/gpu_ops.json, which the target `gpu` reads. Takes about four minutes on two cores.

It also measures how many axes a tensor may have, and the newest version of each op that the GPU accepts.

`right`: within 2 quantized values of XNNPACK, or within 0.1% of the largest output (2% in the scheme dynamic_range,
where XNNPACK also quantizes activations).
"""

import datetime
import json
import os
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from built_models import Call, T, build, constant  # noqa: E402
from one_op_models import BUILT, one_op_model, options  # noqa: E402

import tfq  # noqa: E402
from tfq import tflite  # noqa: E402
from tfq.artifacts import write_json  # noqa: E402
from tfq.backends import RunRequest, make_backend  # noqa: E402
from tfq.errors import ModelError, TfqError  # noqa: E402
from tfq.tflite.schema import OPERATORS  # noqa: E402

FILE, PACKAGED = ROOT / "out" / "gpu_ops.json", ROOT / "tfq" / "auditing" / "gpu_ops.json"
TYPES = ("float32", "int8", "int32", "bool")
SCHEMES = ("float32", "int8", "float16", "dynamic_range", "int16x8", "weight_only_int8")
SHAPE = (16, 16, 8)
NUM_EXAMPLES = 3
MOST_LSB = 2
NEWEST_VERSION = 16
# What differs between two runs: times, threads and addresses.
UNSTABLE = re.compile(r" *\(?[EWIF]\d{4} \d\d:\d\d:[\d.]+ +\d+ | *@ +0x[0-9a-f]+ +")
POSITIVE = {"DIV", "FLOOR_DIV", "FLOOR_MOD", "LOG", "POW", "RSQRT", "SQRT"}


def op_model(op: str, dtype: str) -> bytes:
    """Return the one-op model, for some ops one whose first axis is a batch of 1."""
    scale, three = 0.05 if dtype == "int8" else None, (1, 4, 4)

    def data(*shape: int) -> T:
        return T(dtype, shape, scale)

    forms = {
        "UNPACK": ({"x": data(*three), "y": data(1, 4)}, options("Unpack", axis=1, num=4)),
        "PACK": ({"x": data(1, 4), "z": data(1, 4), "y": data(1, 2, 4)}, options("Pack", axis=1, valuesCount=2)),
        "BROADCAST_TO": (
            {"x": data(1, 1, 4, 4), "shape": constant([1, 2, 4, 4], "int32"), "y": data(1, 2, 4, 4)},
            options("BroadcastTo"),
        ),
        "GATHER": (
            {"x": data(*three), "rows": constant([2, 0], "int32"), "y": data(1, 2, 4)},
            options("Gather", axis=1),
        ),
        "GATHER_ND": (
            {"x": data(*three), "rows": constant([[[0, 2], [0, 1]]], "int32"), "y": data(1, 2, 4)},
            options("GatherNd"),
        ),
        "DYNAMIC_UPDATE_SLICE": (
            {"x": data(*three), "z": data(1, 1, 4), "start": constant([0, 1, 0], "int32"), "y": data(*three)},
            options("DynamicUpdateSlice"),
        ),
    }
    if op not in forms:
        return one_op_model(op, dtype)
    tensors, table = forms[op]
    if op == "UNPACK":
        tensors |= dict.fromkeys(("y2", "y3", "y4"), tensors["y"])
    names = [name for name in tensors if not name.startswith("y")]
    outputs = [name for name in tensors if name.startswith("y")]
    call = Call(op, names, outputs, table, 2 if op == "BROADCAST_TO" else 1)
    return build(tensors, [call], [name for name in names if tensors[name].values is None], outputs)


def sum_model(axes: int) -> bytes:
    """Return a sum of two float tensors with this number of axes."""
    tensor = T("float32", (1, *range(2, axes + 1)))
    return build(dict.fromkeys("xzy", tensor), [Call("ADD", ["x", "z"], ["y"], options("Add"))], ["x", "z"], ["y"])


def newest_version(model: bytes, op: str) -> int | None:
    """Return the newest version of `op` that the GPU accepts; None if it accepts all that the CPU has."""
    edited = tflite.unpack(model)
    op_codes = [code for code in edited.operatorCodes if OPERATORS[code.builtinCode] == op]
    last = max(code.version for code in op_codes)
    for version in range(last, NEWEST_VERSION):
        for code in op_codes:
            code.version = version
        result, reason = outcome(tflite.pack(edited, len(model)), 1.0)
        if result == "refused" and "Max version supported" in str(reason):
            return last
        if result in ("refused", "not measured"):
            return None
        last = version
    return None


def layers():
    """Return {name: function of a Keras input}."""
    import keras
    from keras import layers as L

    def row(x):
        return L.Reshape((256, 8))(x)

    def attention(x):
        tokens = row(x)
        return L.MultiHeadAttention(2, 8)(tokens, tokens)

    def convolved(x):
        return L.Conv2D(8, 3, padding="same")(x)

    return {
        **{f"conv1x1_stride{s}": lambda x, s=s: L.Conv2D(16, 1, strides=s)(x) for s in (1, 2, 3)},
        "conv1x1_stride2_same": lambda x: L.Conv2D(16, 1, strides=2, padding="same")(x),
        "conv1x1_stride2_relu": lambda x: L.Conv2D(16, 1, strides=2, activation="relu")(x),
        "conv1x1_stride2_odd": lambda x: L.Conv2D(16, 1, strides=2)(L.Cropping2D(((0, 1), (0, 1)))(convolved(x))),
        "conv2x2_stride2": lambda x: L.Conv2D(16, 2, strides=2, padding="same")(x),
        "conv3x3_stride2": lambda x: L.Conv2D(16, 3, strides=2)(x),
        "conv3x3_dilated": lambda x: L.Conv2D(16, 3, dilation_rate=2, padding="same")(x),
        "conv5x5_relu6": lambda x: L.Conv2D(16, 5, padding="same", activation="relu6")(x),
        "conv1x3": lambda x: L.Conv2D(16, (1, 3), padding="same")(x),
        "conv1x3_stride2": lambda x: L.Conv2D(16, (1, 3), strides=2, padding="same")(x),
        "conv_groups": lambda x: L.Conv2D(16, 3, groups=2, padding="same")(x),
        "conv1d": lambda x: L.Conv1D(8, 3, padding="same")(row(x)),
        "conv1d_1_stride2": lambda x: L.Conv1D(8, 1, strides=2)(row(x)),
        "depthwise3x3_stride2": lambda x: L.DepthwiseConv2D(3, strides=2, padding="same")(x),
        "depthwise1x1_stride2": lambda x: L.DepthwiseConv2D(1, strides=2)(x),
        "depthwise_multiplier2": lambda x: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x),
        "transposed3x3_stride2": lambda x: L.Conv2DTranspose(8, 3, strides=2, padding="same")(x),
        "transposed1x1_stride2": lambda x: L.Conv2DTranspose(8, 1, strides=2)(x),
        "average_pool": lambda x: L.AveragePooling2D(2)(x),
        "average_pool_same": lambda x: L.AveragePooling2D(3, strides=2, padding="same")(x),
        "average_pool1_stride2": lambda x: L.AveragePooling2D(1, strides=2)(x),
        "max_pool": lambda x: L.MaxPooling2D(2)(x),
        "max_pool1_stride2": lambda x: L.MaxPooling2D(1, strides=2)(x),
        "global_average_pool": lambda x: L.GlobalAveragePooling2D()(x),
        "global_max_pool": lambda x: L.GlobalMaxPooling2D()(x),
        "dense": lambda x: L.Dense(10)(L.Flatten()(x)),
        "dense_of_4_axes": lambda x: L.Dense(10)(x),
        "softmax": lambda x: L.Softmax()(x),
        **{
            name: lambda x, name=name: L.Activation(name)(x)
            for name in ("sigmoid", "tanh", "hard_silu", "swish", "gelu", "elu")
        },
        "leaky_relu": lambda x: L.LeakyReLU()(x),
        "prelu": lambda x: L.PReLU(shared_axes=[1, 2])(x),
        "add": lambda x: L.Add()([convolved(x), x]),
        "multiply": lambda x: L.Multiply()([convolved(x), x]),
        "subtract": lambda x: L.Subtract()([convolved(x), x]),
        "concatenate": lambda x: L.Concatenate()([convolved(x), x]),
        "squeeze_and_excite": lambda x: L.Multiply()(
            [x, L.Dense(8, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))]
        ),
        "upsampling_bilinear": lambda x: L.UpSampling2D(2, interpolation="bilinear")(x),
        "upsampling_nearest": lambda x: L.UpSampling2D(2)(x),
        "pad": lambda x: L.Conv2D(8, 3, strides=2)(L.ZeroPadding2D(((0, 1), (0, 1)))(x)),
        "layer_normalization": lambda x: L.LayerNormalization()(x),
        "attention": attention,
        "mean_of_channels": lambda x: keras.ops.mean(x, axis=-1, keepdims=True),
        "first_row": lambda x: x[:, 0],
        "channel_shuffle": lambda x: L.Reshape(SHAPE)(L.Permute((1, 2, 4, 3))(L.Reshape((16, 16, 2, 4))(x))),
        "permute": lambda x: L.Reshape((32, 32, 2))(L.Permute((2, 1, 3))(x)),
        "lstm": lambda x: L.LSTM(4)(row(x)[:, :8]),
        "gru": lambda x: L.GRU(4)(row(x)[:, :8]),
    }


def inputs_of(model: bytes) -> tuple:
    """Return random examples for each input: integers and floats of both signs, unless the op needs positive values."""
    lowest = 1 if any(op.name in POSITIVE for op in tflite.read(model).main_subgraph.ops) else -100
    generator, arrays = np.random.default_rng(1), []
    for tensor in tflite.read(model).main_subgraph.input_tensors:
        shape = (NUM_EXAMPLES, *tensor.shape[1:])
        match tensor.dtype:
            case "float32":
                values = generator.normal(0, 1, shape).astype(np.float32)
                arrays.append(values if lowest < 0 else np.abs(values) + np.float32(0.1))
            case "bool":
                arrays.append(generator.integers(0, 2, shape).astype(bool))
            case "int32" | "int64":
                arrays.append(generator.integers(max(lowest, 0), 4, shape).astype(tensor.dtype))
            case _:
                arrays.append(generator.integers(lowest, 100, shape).astype(tensor.dtype))
    return tuple(arrays)


def outcome(model: bytes, tolerance: float) -> list:
    """Return ["right" or "wrong", largest difference] or ["refused", reason]."""
    request = RunRequest(model=model, inputs=inputs_of(model))
    try:
        expected = make_backend("local").assess(request).computed_outputs()
    except ModelError:
        return ["not measured", "LiteRT does not run it on the CPU"]
    try:
        result = make_backend("gpu").assess(request)
    except ModelError as error:
        return ["refused", UNSTABLE.sub(" ", str(error).partition(". The model may be damaged")[0])[:200].strip()]
    if result.unaccelerated or result.delegated_ops != result.total_ops:
        return ["refused", "; ".join(f"{op}: {reason}" for op, reason in result.unaccelerated.items()) or "on the CPU"]
    largest, is_right = 0.0, True
    for output, other in zip(result.computed_outputs(), expected, strict=True):
        is_float = output.dtype.kind == "f"
        output, other = output.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(other)
        difference = float(np.abs(output - other)[finite].max(initial=0.0))
        if not np.isfinite(difference):
            return ["wrong", None]
        limit = tolerance * max(1.0, np.abs(other[finite]).max(initial=0.0)) if is_float else MOST_LSB
        largest, is_right = max(largest, difference), is_right and difference <= limit
    return ["right" if is_right else "wrong", float(f"{largest:.3g}")]


def main() -> None:
    """Measure what the file does not have yet."""
    FILE.parent.mkdir(exist_ok=True)
    version = metadata.version("ai-edge-litert")
    record = {} if "--restart" in sys.argv or not FILE.is_file() else json.loads(FILE.read_text())
    if record.get("ai_edge_litert") != version:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        record = {"ai_edge_litert": version, "date": date, "ops": {}, "layers": {}, "ops_of_layers": {}, "versions": {}}
    probe = make_backend("gpu").assess(
        RunRequest(model=one_op_model("ABS", "float32"), inputs=(np.ones((1, 2, 4, 4), "f4"),))
    )
    record["adapter"] = probe.machine["gpu"]

    def note(place: str, name: str, variant: str, result: list) -> None:
        record[place].setdefault(name, {})[variant] = result
        write_json(FILE, record)
        print(f"{name:24} {variant:16} {result[0]:12} {result[1]}", flush=True)

    def note_versions(model: bytes, ops: Iterable[str]) -> None:
        for op in ops:
            if op not in record["versions"]:
                record["versions"][op] = newest_version(model, op)

    record["max_axes"] = max(axes for axes in range(2, 7) if outcome(sum_model(axes), 1e-3)[0] == "right")
    for op in BUILT:
        for dtype in TYPES:
            if dtype not in record["ops"].get(op, {}):
                result = outcome(op_model(op, dtype), 1e-3)
                if result[0] == "right":
                    note_versions(op_model(op, dtype), [op])
                note("ops", op, dtype, result)
    samples = np.random.default_rng(0).normal(0, 1, (100, *SHAPE)).astype(np.float32)
    for name, function in layers().items():
        missing = [scheme for scheme in SCHEMES if scheme not in record["layers"].get(name, {})]
        if not missing:
            continue
        import keras

        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        x = keras.Input(SHAPE)
        model = keras.Model(x, function(x))
        for scheme in missing:
            # LiteRT's buffers for Python do not hold int16.
            ends = "float32" if scheme == "int16x8" else ""
            config = tfq.ConversionConfig(
                scheme=scheme, verify=False, inference_input_type=ends, inference_output_type=ends
            )
            try:
                content = tfq.convert(model, samples if config.needs_ranges else None, config)
            except TfqError as error:
                note("layers", name, scheme, ["not measured", str(error)[:200]])
                continue
            ops = sorted({op.name for op in tflite.read(content).main_subgraph.ops})
            record["ops_of_layers"].setdefault(name, {})[scheme] = ops
            result = outcome(content, 0.02 if scheme == "dynamic_range" else 1e-3)
            if result[0] == "right":
                note_versions(content, ops)
            note("layers", name, scheme, result)
    write_json(PACKAGED, record)


if __name__ == "__main__":
    main()
