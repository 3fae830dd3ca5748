#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Convert a Keras model or a float .tflite to an integer .tflite, full int8 by default.

    tfq convert --model=model.keras --data=npz:examples.npz --scheme=int8 --out=out/convert

--data is the representative dataset: its training examples, else those for validation, else those for testing. The
calibrated ranges are saved next to the result, in <model>_<scheme>_ranges.json, which --calibration.ranges accepts.

The result is verified: it is run next to the float model on up to 20 of these examples. Outputs that lost their
information (collapsed) are reported with the op, the cause and what other settings would give; with --strict that is an
error (exit code 1). --noverify skips it.
"""

from collections.abc import Sequence

from tfq import artifacts, auditing, workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    if workflows.needs_data(config.conversion):
        workflows.check_given(config)
    workflows.check_tensorflow(config)
    out = process.out_dir(invocation)
    model = workflows.load(config, allow_code=invocation.allow_code)
    built, details = workflows.convert(model, config)
    stem = f"{workflows.model_name(config)}_{config.conversion.scheme}"
    path = artifacts.write_bytes(out / f"{stem}.tflite", built.content)
    if built.ranges is not None:
        built.ranges.save(out / f"{stem}_ranges.json")
    report = auditing.audit_model(built.content, config.audit.for_conversion(config.conversion))
    record = process.record(invocation, "convert", file=path.name, audit=report.to_dict(), **details)
    lines = [f"{path}: {report.scheme}, {len(built.content):,} bytes"]
    if built.verification is not None:
        lines.append(built.verification.to_text())
    process.finish(invocation, record, "\n".join(lines))


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="convert", section="conversion", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
