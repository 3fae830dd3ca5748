#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Show what differs between two .tflite files.

    tfq compare A.tflite B.tflite
    tfq compare A.tflite B.tflite --out=out/compare --require.no_differences

A is the reference (--reference), B the file that is compared with it (--model). Their schemes may differ: float and
int8, for example. Ops are matched by the names of their outputs, by Keras layer, by topology and by position; the
output says how many were matched by each. Shown are, largest differences first: inputs and outputs, signatures,
metadata, labels, ops and their options, weights as real numbers (SQNR, largest error, zeros), scales of activations.

The files are not run, except with --data: then the SQNR and the agreement of their outputs are shown too. The exit
code is 0, whatever differs, unless a requirement (--require.*) is not met.

    tfq compare --baseline=baseline.json out/evaluate.json
    tfq compare --baseline=baseline.json model_int8.tflite

With --baseline it compares a record with an earlier one, figure by figure, as a gate for CI: the exit code is 1 if a
figure is worse by more than its --tolerance, or is missing, or if the data or the inputs and outputs of the model
changed. It names the layer or the field that is responsible. A .tflite is evaluated first, with the settings of the
baseline.

    tfq compare old/evaluate.json new/evaluate.json

Two records are compared in the same way, and the exit code is 0.

With --out it writes compare.json, compare.html and compare.md; with --baseline also junit.xml and summary.md.
"""

from collections.abc import Sequence

from tfq import artifacts, comparison, data, progress, workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    if config.comparison.baseline:
        comparison.check_unset(config.comparison, ("require",), "it applies to two .tflite files")
        _gate(invocation)
        return
    comparison.check_unset(config.comparison, ("update_baseline", "baseline_model"), "it needs comparison.baseline")
    with progress.stage("reading both files"):
        reference = comparison.read_subject(config.comparison.reference, "comparison.reference")
        model = comparison.read_subject(config.model, "model")
    comparison.check_same_kind(reference, model)
    if reference.flatbuffer is not None and model.flatbuffer is not None:
        comparison.check_unset(config.comparison, ("tolerance", "ignore", "strict"), "it applies to records")
        _compare_models(invocation, reference.flatbuffer, model.flatbuffer)
    elif reference.record is not None and model.record is not None:
        comparison.check_unset(config.comparison, ("require",), "it applies to two .tflite files")
        result = comparison.gate_records(model.record, reference.record, config.comparison)
        record = process.record(invocation, "compare", gate=result.to_dict(), requirements=[])
        process.finish(invocation, record, comparison.to_text(result))


def _compare_models(invocation: flags.Invocation, reference: bytes, model: bytes) -> None:
    config = invocation.config
    if config.data.source:
        data.check_readable(config.data, "test")
    with progress.stage("comparing them"):
        compared = comparison.compare_models(reference, model)
    outputs = workflows.compare_outputs(reference, model, config)
    asked = comparison.requirements_of(compared, config.comparison.require)
    record = process.record(
        invocation,
        "compare",
        sha256={"model": artifacts.sha256(model), "reference": artifacts.sha256(reference)},
        comparison=compared.to_dict(),
        evaluation=outputs and outputs.to_dict(),
        requirements=[item.to_dict() for item in asked],
    )
    texts = [compared.to_text(), *([comparison.outputs_text(outputs)] if outputs else [])]
    process.finish(invocation, record, "\n".join(texts))
    comparison.check_requirements(compared, config.comparison.require)


def _gate(invocation: flags.Invocation) -> None:
    """Compare a record, or the evaluation of a file, with the record in --baseline."""
    settings = invocation.config.comparison
    gated = workflows.compare_with_baseline(invocation.config)
    result = gated.gate
    text = "there was no baseline" if result is None else comparison.to_text(result)
    if settings.update_baseline:
        workflows.write_baseline(settings.baseline, gated.record)
        text += f"\nwrote the new baseline {artifacts.shown(settings.baseline)}"
    record = process.record(invocation, "compare", gate=result and result.to_dict(), requirements=[])
    if result is not None and invocation.config.out:
        with process.out_dir(invocation) as out:
            artifacts.write_bytes(out / "junit.xml", comparison.to_junit(result))
            artifacts.write_text(out / "summary.md", comparison.to_markdown(result))
    process.finish(invocation, record, text)
    if result is not None and not settings.update_baseline:
        comparison.check_gate(result)


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="compare", section="comparison", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
