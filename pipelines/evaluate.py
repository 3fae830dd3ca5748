#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run a .tflite on test examples, here or on an emulated ARM CPU, and compare it with its float model.

    tfq evaluate --model=model_int8.tflite --reference=model_float32.tflite --data=npz:examples.npz --backend=local

Reported are the metric with its 95% interval, the SQNR of each output against the reference, agreement (the fraction of
examples with the reference's class) of each output that says a class, latency and size. --require.* are bounds: exit
code 1 if one does not hold.
"""

from collections.abc import Sequence

from tfq import evaluation, workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    workflows.check_given(config)
    content = workflows.read_tflite(config)
    results = workflows.evaluate(content, config)
    asked = evaluation.requirements_of(results.evaluation, config.evaluation.require)
    record = process.record(
        invocation, "evaluate", **results.to_dict(), requirements=[item.to_dict() for item in asked]
    )
    process.finish(invocation, record, results.to_text())
    evaluation.check_requirements(results.evaluation, config.evaluation.require)


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="evaluate", section="evaluation", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
