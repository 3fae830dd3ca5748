#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Show the data type that each op of a .tflite computes in, and check a requirement.

    tfq audit --model=model_int8.tflite --require=full_int8
    tfq audit --model=model_int8.tflite --require=edgetpu

Reads a .tflite. --require names a scheme, such as full_int8, or a target, such as edgetpu. The exit code is 1 unless
every op fits; the reason is printed for each op that does not. Without --require, the file is audited as the scheme
that it has, and the exit code is 0.

The file is also run once on neutral inputs, in a child process, and a file that fails there does not pass. A file with
a custom op, or one compiled for another device, cannot be run here and is not judged by that. --noexecute skips the
run.

With --out it writes audit.json, and the pages audit.html and audit.md.
"""

from collections.abc import Sequence

from tfq import artifacts, auditing, evaluation, workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
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
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="audit", section="audit", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
