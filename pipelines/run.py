#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run the whole pipeline: train or load, compress, convert, audit, evaluate, report.

    tfq run --config=pipelines/configs/demo.json --out=out/demo
    tfq run --model=model.keras --data=npz:examples.npz --out=out/run

Reads --model (a .keras or .h5 file, or the name of a model that tfq builds and trains) and the train, val and test
splits of --data with labels. Makes three .tflite files: float32, int8 by post-training quantization, and int8 after
pruning and quantization-aware training. Audits, evaluates and benchmarks all three. With --export.platform, it also
writes an app bundle of the last one, as `tfq export` does.

Writes the .tflite files, report.json, report.md and report.html to --out. `tfq run --config=report.json` repeats a run.
An interrupted run resumes when it is started again with the same --out; --fresh starts from scratch.
"""

from collections.abc import Sequence

from tfq import report
from tfq.cli import flags, process
from tfq.workflows.run import require, run_recipe


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    record = run_recipe(invocation.config, allow_code=invocation.allow_code, fresh=invocation.fresh)
    out = invocation.config.out
    files = "\n".join(filter(None, [f"{out}/report.html", report.bundle_text(record, out)]))
    parts = [report.summary_table(record), report.portability_text(record), report.robustness_text(record), files]
    process.show(invocation, record, "\n\n".join(filter(None, parts)))
    require(record)


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="run", section=None, description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
