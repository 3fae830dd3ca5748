#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Convert a Keras model or a float .tflite to a quantized .tflite, full int8 by default.

    tfq convert --model=model.keras --data=npz:examples.npz --out=out/convert
    tfq convert --model=model.keras --data=folder:photos --data.resize=224,224 --scheme=int8 --out=out/convert

Reads a .keras, .h5 or float .tflite file or a SavedModel directory, and --data as the representative dataset for
calibration: the first --num_calibration_samples examples of its train split, or of val or test if there is no train
split. Labels are not needed. Schemes other than int8 and int16x8 need no data, nor does a quantization-aware trained
model. --input_shapes fixes sizes that the model leaves open, --signature chooses the signature of a SavedModel.
A .tflite that has the scheme already is accepted if --target needs another form of some ops: only these are replaced.

Writes <model>_<scheme>.tflite, the calibrated ranges in <model>_<scheme>_ranges.json (for --calibration.ranges), and
convert.json with its pages to --out.

The result is verified: it is run next to the float model on up to 20 of the examples. Outputs that lost their
information (collapsed) are reported with the op, the cause and what other settings would give. With --strict they are
an error with exit code 1. --noverify skips the verification.

The techniques reconstruction and range_tuning can take minutes. If the command is killed in one of them, the same
command resumes there; until it ends, the file after the last part is kept in --out/.stages.
"""

from collections.abc import Sequence

from tfq import artifacts, auditing, workflows
from tfq.cli import flags, process
from tfq.store import StageStore, keeping_parts


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    # A quantization-aware trained model (.h5), and a quantized file of which a target needs another form, need no data.
    # Whether it is one is known after it is loaded.
    maybe_without = (".h5", ".hdf5", *([".tflite"] if config.conversion.target else []))
    if workflows.needs_data(config.conversion) and (config.data.source or not config.model.endswith(maybe_without)):
        workflows.check_named(config, "train")
    artifacts.check_out_is_set(config.out)
    workflows.check_tensorflow(config)
    with process.out_dir(invocation) as out:
        model = workflows.load(config, allow_code=invocation.allow_code)
        with keeping_parts(lambda: StageStore(out)):
            built, details = workflows.convert(model, config)
        stem = f"{workflows.model_name(config)}_{config.conversion.scheme}"
        path = artifacts.write_bytes(out / f"{stem}.tflite", built.content)
        if built.ranges is not None:
            built.ranges.save(out / f"{stem}_ranges.json")
        audit = config.audit.for_conversion(config.conversion, built.trained_int4)
        report = auditing.audit_model(built.content, audit)
        record = process.record(invocation, "convert", file=path.name, audit=report.to_dict(), **details)
        lines = [f"{path}: {report.scheme}, {len(built.content):,} bytes"]
        if built.verification is not None:
            lines.append(built.verification.to_text())
        process.finish(invocation, record, "\n".join(lines))


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="convert", section="conversion", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
