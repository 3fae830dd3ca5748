#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Show the type that every op of a .tflite computes in, and run it; with --require, fail unless it is that.

    tfq audit --model=model_int8.tflite --require=full_int8
    tfq audit --model=model_int8.tflite --require=edgetpu

--require names a scheme or a target. The file is run once on neutral inputs, in a child process: one that fails does
not pass. One with a custom op, or compiled for another device, cannot be tried here. --noexecute leaves the run out.
"""

from collections.abc import Sequence

from tfq import artifacts, auditing, evaluation, workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    content = workflows.read_tflite(config)
    report = evaluation.audit_and_run(content, config.audit)
    record = process.record(
        invocation,
        "audit",
        sha256={"model": artifacts.sha256(content)},
        audit=report.to_dict(),
        requirements=[item.to_dict() for item in auditing.requirements_of(report, config.audit)],
    )
    process.finish(invocation, record, report.to_text())
    auditing.require(report, config.audit)


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="audit", section="audit", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
