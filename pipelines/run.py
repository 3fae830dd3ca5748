#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run everything from one config: train or load, compress, convert, audit, evaluate, report.

    tfq run --config=pipelines/configs/demo.json --out=out/demo

--out receives the .tflite files, report.json, report.md and report.html. `tfq run --config=report.json` replays a run.
A run that was interrupted or killed resumes when it is started again with the same --out.
"""

from collections.abc import Sequence

from tfq import report
from tfq.cli import flags, process
from tfq.workflows.run import require, run_recipe


def main(invocation: flags.Invocation) -> None:
    record = run_recipe(invocation.config, allow_code=invocation.allow_code, fresh=invocation.fresh)
    text = f"{report.summary_table(record)}\n\n{invocation.config.out}/report.html"
    process.show(invocation, record, text)
    require(record)


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="run", section=None, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
