#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare an int8 .tflite with its float one layer by layer, and explain what costs accuracy.

    tfq analyze --model=model_int8.tflite --reference=model_float32.tflite --data=npz:examples.npz --sensitivity

A line a layer: signal to error of what it gives, beside what rounding alone would leave; the largest error in steps;
what its range cuts off and how much of it is used; channels that never leave one code. "alone" is the signal to error
of the model's outputs with this layer alone quantized. With --out it writes analyze.json, and analyze.html with plots.
"""

from collections.abc import Sequence

from tfq import analysis, artifacts, report, workflows
from tfq.cli import flags, process
from tfq.errors import InputError


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    workflows.check_given(config)
    content = workflows.read_tflite(config)
    if not config.analysis.reference:
        raise InputError("--reference: give the float .tflite that --model was made of")
    floating = artifacts.read_bytes(config.analysis.reference, "a float .tflite")
    split = workflows.load_split(config.data, "test", limit=config.analysis.limit)
    found = analysis.analyze(content, floating, split, config.analysis)
    record = process.record(invocation, "analyze", **found.to_dict())
    if config.out:
        artifacts.write_text(process.out_dir(invocation) / "analyze.html", report.analysis_page(record))
    process.finish(invocation, record, found.to_text())


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="analyze", section="analysis", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
