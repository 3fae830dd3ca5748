#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure accuracy, latency and size of a .tflite, and compare the backends that may run it.

    tfq evaluate --model=model_int8.tflite --reference=model_float32.tflite --data=npz:examples.npz
    tfq evaluate --model=model_int8.tflite --data=npz:examples.npz --backend=qemu:cortex-a53

Reads a .tflite and the test split of --data, preprocessed as for training (--data.resize, --data.scale, --data.offset).
With --reference, the float .tflite runs on the same examples. A Keras model or a SavedModel in --model or --reference
is converted to float32 first.

Reports the metric with its 95% interval, latency and size. With --reference it also reports the signal-to-noise ratio
(SQNR) of each output, and the agreement (fraction of examples with the reference's class) of each output that predicts
a class. A table shows how the first --backends_limit examples run on each of --backends: which ops are accelerated, how
many output values differ from this machine's, accuracy, memory and cost. By default it has every backend that is
available here.

--require.* set bounds for --backend and for each backend that --backends names. The exit code is 1 if one is not met.

With --out it writes evaluate.json, and the pages evaluate.html and evaluate.md.
"""

from collections.abc import Sequence

from tfq import evaluation, workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    workflows.check_named(config, "test")
    content = workflows.load_flatbuffer(config.model, config, field="model", allow_code=invocation.allow_code)
    results = workflows.evaluate(content, config, allow_code=invocation.allow_code)
    asked = evaluation.requirements_on_backends(
        results.evaluation, results.portability, config.evaluation, results.digest
    )
    record = process.record(
        invocation, "evaluate", **results.to_dict(), requirements=[item.to_dict() for item in asked]
    )
    process.finish(invocation, record, results.to_text())
    evaluation.check_requirements_on_backends(
        results.evaluation, results.portability, config.evaluation, results.digest
    )


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="evaluate", section="evaluation", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
