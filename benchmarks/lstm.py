#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare the two int8 forms of an LSTM layer, the fused op and a copy of the cell for each step, and a GRU.

    python benchmarks/lstm.py --out=out/lstm [--steps=20,60,100] [--units=32]

The model is LSTM(units) and Dense(4) with random weights, on sequences of 8 bounded features. Reference of the SQNR:
`model.predict` on 200 sequences that were not used to calibrate. The times of both forms are measured in turns, in one
process. The script prints a Markdown table. Each row is a JSON file in --out, so a killed run resumes. It takes a
quarter of an hour: an unrolled layer of 100 steps converts in more than a minute.
"""

import argparse
import gzip
import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

import tfq
from tfq.quant_math import sqnr_db

FEATURES, CALIBRATION, TEST = 8, 100, 200


def sequences(steps: int) -> np.ndarray:
    """Return (CALIBRATION + TEST, steps, FEATURES): slow noise between -1 and 1."""
    random = np.random.default_rng(0)
    values = np.zeros((CALIBRATION + TEST, steps, FEATURES), np.float32)
    for step in range(1, steps):
        values[:, step] = 0.9 * values[:, step - 1] + 0.4 * random.normal(size=values[:, 0].shape)
    return np.tanh(values)


def model_of(kind: str, steps: int, units: int) -> keras.Model:
    keras.utils.set_random_seed(1)
    x = keras.Input((steps, FEATURES), name="x")
    model = keras.Model(x, keras.layers.Dense(4, name="y")(getattr(keras.layers, kind)(units, name="memory")(x)))
    random = np.random.default_rng(5)
    model.set_weights([weight + random.normal(size=weight.shape) * 0.1 for weight in model.get_weights()])
    return model


def outputs_of(content: bytes, data: np.ndarray) -> np.ndarray:
    """Return the outputs of a plain interpreter, which nothing resets between the sequences."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (output_scale, output_zero) = source["quantization"], target["quantization"]
    results = []
    for sequence in data:
        quantized = np.clip(np.rint(sequence[None] / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], quantized)
        interpreter.invoke()
        results.append((interpreter.get_tensor(target["index"])[0].astype(np.float32) - output_zero) * output_scale)
    return np.array(results)


def measured(kind: str, form: str, steps: int, units: int, out: Path) -> dict[str, float]:
    """Convert one model in one form and compare it with Keras; the flatbuffer is written next to the result."""
    path = out / f"{kind}_{form}_{steps}_{units}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    model, data = model_of(kind, steps, units), sequences(steps)
    start = time.process_time()
    content = tfq.convert(model, data[:CALIBRATION], tfq.ConversionConfig(lstm=form, verify=False))
    seconds = time.process_time() - start
    path.with_suffix(".tflite").write_bytes(content)
    expected = model.predict(data[CALIBRATION:], verbose=0)
    result: dict[str, float] = {
        "bytes": len(content),
        "gzip": len(gzip.compress(content)),
        "ops": len(tfq.tflite.read(content).main_subgraph.ops),
        "sqnr_db": sqnr_db(expected, outputs_of(content, data[CALIBRATION:])),
        "seconds": seconds,
    }
    path.write_text(json.dumps(result))
    return result


def time_ratio(steps: int, units: int, out: Path) -> str:
    """Return the time of the fused op divided by that of the unrolled form, with its 95% interval."""
    path = out / f"ratio_{steps}_{units}.json"
    if not path.exists():
        models = {form: str(out / f"LSTM_{form}_{steps}_{units}.tflite") for form in ("unrolled", "fused")}
        record = tfq.benchmark(models, tfq.BenchmarkConfig(num_runs=200))
        path.write_text(json.dumps(record.to_dict()["ratios"]))
    (row,) = json.loads(path.read_text())
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", default="20,60,100")
    parser.add_argument("--units", type=int, default=32)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", tfq.TfqWarning)
    print("| layer | steps | form | SQNR | bytes | gzip | ops | conversion, CPU | time against unrolled |")
    print("|---|---|---|---|---|---|---|---|---|")
    for steps in map(int, arguments.steps.split(",")):
        for kind, form in (("LSTM", "unrolled"), ("LSTM", "fused"), ("GRU", "unrolled")):
            row = measured(kind, form, steps, arguments.units, arguments.out)
            ratio = time_ratio(steps, arguments.units, arguments.out) if form == "fused" else ""
            print(
                f"| {kind} | {steps} | {form} | {row['sqnr_db']:.1f} dB | {row['bytes']:,} | {row['gzip']:,} | "
                f"{row['ops']:,} | {row['seconds']:.0f} s | {ratio} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
