#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Show what differs between two .tflite files.

    tfq compare A.tflite B.tflite
    tfq compare A.tflite B.tflite --out=out/compare --require.no_differences

Reads both files without running them. A is the reference (--reference), B the model (--model).

With --out it writes compare.json.
"""

from collections.abc import Sequence

from tfq import artifacts, comparison, data, progress, workflows
from tfq.cli import flags, process
from tfq.errors import InputError


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    with progress.stage("reading both files"):
        reference = comparison.read_subject(config.comparison.reference, "comparison.reference")
        model = comparison.read_subject(config.model, "model")
    comparison.check_same_kind(reference, model)
    if reference.flatbuffer is None or model.flatbuffer is None:
        raise InputError(f"model={artifacts.shown(model.path)} is {model.kind}, expected a .tflite file", field="model")
    _compare_models(invocation, reference.flatbuffer, model.flatbuffer)


def _compare_models(invocation: flags.Invocation, reference: bytes, model: bytes) -> None:
    config = invocation.config
    if config.data.source:
        data.check_readable(config.data, "test")
    compared = comparison.compare_models(reference, model)
    outputs = workflows.compare_outputs(reference, model, config)
    asked = comparison.requirements_of(compared, config.comparison.require)
    record = process.record(
        invocation,
        "compare",
        comparison=compared.to_dict(),
        evaluation=outputs and outputs.to_dict(),
        requirements=[item.to_dict() for item in asked],
    )
    texts = [compared.to_text(), *([outputs.to_text()] if outputs else [])]
    process.finish(invocation, record, "\n\n".join(texts))
    comparison.check_requirements(compared, config.comparison.require)


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="compare", section="comparison", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
