#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write an app bundle of a .tflite: metadata, io.json, golden vectors, sources with a self-test.

    tfq export --model=out/run --platform=linux --out=out/app
    tfq export --model=model_int8.tflite --platform=linux --labels=labels.txt --data=npz:examples.npz --out=out/app
    tfq export --model=model_uint8.tflite --metadata_only --task=image_classifier --labels=labels.txt --out=out/app

Reads a .tflite, or the last one in the folder of a `tfq run`. The bundle has the model with TFLite Metadata; io.json, a
table of its inputs and outputs with the preprocessing; golden vectors, which are inputs with the outputs that XNNPACK
gives for them; sources for each --platform that run the model, with a self-test on the golden vectors; and README.md
with accuracy, size and backends. These are taken from the evaluate.json or report.json next to the file, or from
--record.

The golden vectors are the first examples of --data, else those of the record's data, else random numbers. A platform
that cannot run the file refuses it, and the message has the conversion that works.

Self-tests that can run here are run; the exit code is 1 if one fails.

With --metadata_only it adds only the metadata. --task names a task of MediaPipe Tasks that will run the file; what the
task refuses, or would run wrongly, is an error.

Writes bundle/, bundle.zip and export.json to --out; with --metadata_only, MODEL_metadata.tflite instead of a bundle.
"""

from collections.abc import Sequence

from tfq import workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    exported = workflows.export(invocation.config)
    record = process.record(invocation, "export", **exported.to_dict())
    process.finish(invocation, record, exported.to_text())
    exported.check()


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="export", section="export", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
