# SPDX-License-Identifier: Apache-2.0
"""The constants of a bundle's C program: the table of inputs and outputs, and the files of the golden vectors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq.deploy.golden import GoldenVectors
from tfq.deploy.platform import BundleContents, Problem
from tfq.deploy.templates import c_string, fill, read_source

C_TYPES = {
    "float32": "MODEL_FLOAT32",
    "int8": "MODEL_INT8",
    "uint8": "MODEL_UINT8",
    "int16": "MODEL_INT16",
    "int32": "MODEL_INT32",
    "int64": "MODEL_INT64",
    "bool": "MODEL_BOOL",
}
MAX_RANK = 8
SOURCES = ("c/litert.h", "c/model.h", "c/model.c", "c/golden.h", "c/self_test.c")


def c_problems(io: Mapping[str, Any]) -> list[Problem]:
    """Return why the C program cannot feed or read a model."""
    problems = []
    for side in ("inputs", "outputs"):
        for entry in io[side]:
            if entry["dtype"] not in C_TYPES:
                problems.append(
                    Problem(
                        reason=f"{side[:-1]} {entry['name']} has the type {entry['dtype']}, which the C program lacks",
                        advice=f"convert to a type among {', '.join(C_TYPES)}",
                    )
                )
            if len(entry["shape"]) > MAX_RANK:
                problems.append(
                    Problem(
                        reason=f"{side[:-1]} {entry['name']} has {len(entry['shape'])} axes",
                        advice=f"convert a model whose inputs and outputs have at most {MAX_RANK} axes",
                    )
                )
    return problems


def c_sources(contents: BundleContents) -> dict[str, bytes]:
    """Return the files of the C program: {path in the bundle: content}."""
    files = {name: read_source(name) for name in SOURCES}
    files["c/model_io.c"] = fill(read_source("c/model_io.c"), {"values": _io_values(contents)})
    files["c/golden.c"] = fill(read_source("c/golden.c"), {"values": _golden_values(contents.golden)})
    return {name: text.encode() for name, text in files.items()}


def _io_values(contents: BundleContents) -> str:
    io, first = contents.io, contents.golden.examples[0]
    lines: list[str] = []
    inputs = [_input(index, entry, first["inputs"][index], lines) for index, entry in enumerate(io["inputs"])]
    outputs = [_output(index, entry, first["outputs"][index], lines) for index, entry in enumerate(io["outputs"])]
    signature = "NULL" if io["signature"] is None else c_string(io["signature"])
    lines += [
        f"const char *const MODEL_SIGNATURE = {signature};",
        f"const int MODEL_NUM_INPUTS = {len(inputs)};",
        *_table("const struct model_tensor MODEL_INPUTS[]", inputs),
        f"const int MODEL_NUM_OUTPUTS = {len(outputs)};",
        *_table("const struct model_tensor MODEL_OUTPUTS[]", outputs),
    ]
    return "\n".join(lines)


def _input(index: int, entry: Mapping[str, Any], golden: Mapping[str, Any], lines: list[str]) -> str:
    steps = []
    for number, step in enumerate(entry["preprocessing"]):
        text = _step(f"INPUT_{index}_STEP_{number}", step, lines)
        steps += [text] if text else []
    name = f"INPUT_{index}_STEPS"
    if steps:
        lines += _table(f"static const struct model_step {name}[]", steps)
    return _tensor(entry, golden, steps=f"{name if steps else 'NULL'}, {len(steps)}", labels="NULL, 0")


def _step(name: str, step: Mapping[str, Any], lines: list[str]) -> str:
    """Return a `struct model_step`; "" for a step before the program, such as splitting text."""
    match step["step"]:
        case "resize":
            return f"{{MODEL_RESIZE, {step['height']}, {step['width']}, 0.0f, 0.0f, NULL, NULL, 0}}"
        case "scale_offset":
            numbers = f"{c_float(step['scale'])}, {c_float(step['offset'])}"
            return f"{{MODEL_SCALE_OFFSET, 0, 0, {numbers}, NULL, NULL, 0}}"
        case "normalize":
            count = max(len(step["mean"]), len(step["std"]))
            for key in ("mean", "std"):
                values = ", ".join(c_float(value) for value in np.broadcast_to(step[key], count))
                lines.append(f"static const float {name}_{key.upper()}[] = {{{values}}};")
            return f"{{MODEL_NORMALIZE, 0, 0, 0.0f, 0.0f, {name}_MEAN, {name}_STD, {count}}}"
        case "quantize":
            return "{MODEL_QUANTIZE, 0, 0, 0.0f, 0.0f, NULL, NULL, 0}"
    return ""


def _output(index: int, entry: Mapping[str, Any], golden: Mapping[str, Any], lines: list[str]) -> str:
    labels = [c_string(label) for label in entry["labels"] or ()]
    name = f"OUTPUT_{index}_LABELS"
    if labels:
        lines += _table(f"static const char *const {name}[]", labels)
    return _tensor(entry, golden, steps="NULL, 0", labels=f"{name if labels else 'NULL'}, {len(labels)}")


def _tensor(entry: Mapping[str, Any], golden: Mapping[str, Any], *, steps: str, labels: str) -> str:
    """Return a `struct model_tensor`. Open dimensions have the sizes of the golden vectors."""
    quantized = entry["scale"] is not None
    numbers = f"1, {c_float(entry['scale'])}, {entry['zero_point']}" if quantized else "0, 1.0f, 0"
    return (
        f"{{{c_string(entry['name'])}, {C_TYPES[entry['dtype']]}, {_shape(golden['shape'])}, "
        f"{int(bool(entry['dynamic_axes']))}, {numbers}, {steps}, {labels}}}"
    )


def _shape(shape: Sequence[int]) -> str:
    """Return the rank and the dimensions as initializers."""
    return f"{len(shape)}, {{{', '.join(map(str, shape)) or '0'}}}"


def _golden_values(golden: GoldenVectors) -> str:
    examples = golden.examples
    inputs = [entry for example in examples for entry in example["inputs"]]
    outputs = [entry for example in examples for entry in example["outputs"]]
    real = [{**entry, "file": entry["decoded_file"], "dtype": "float32"} for entry in outputs]
    best = [str(entry["top"][0]["index"]) if entry.get("top") else "-1" for entry in outputs]
    file = "const struct golden_file"
    return "\n".join(
        [
            f"const int GOLDEN_COUNT = {len(examples)};",
            *_table(f"{file} GOLDEN_SOURCES[]", [_file(entry["source"]) for entry in inputs]),
            *_table(f"{file} GOLDEN_INPUTS[]", map(_file, inputs)),
            *_table(f"{file} GOLDEN_OUTPUTS[]", map(_file, outputs)),
            *_table(f"{file} GOLDEN_REAL_OUTPUTS[]", map(_file, real)),
            f"const int GOLDEN_BEST[] = {{{', '.join(best)}}};",
        ]
    )


def _file(entry: Mapping[str, Any]) -> str:
    return f"{{{c_string(entry['file'])}, {C_TYPES[entry['dtype']]}, {_shape(entry['shape'])}}}"


def _table(declaration: str, items: Any) -> list[str]:
    return [f"{declaration} = {{", *(f"    {item}," for item in items), "};"]


def c_float(value: float) -> str:
    """Return a float32 as a C literal that keeps all of its bits."""
    text = np.format_float_scientific(np.float32(value), unique=True)
    return f"{text}f"
