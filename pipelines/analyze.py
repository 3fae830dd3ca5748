#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare an int8 .tflite with its float .tflite op by op, and explain the loss of accuracy.

    tfq analyze --model=model_int8.tflite --reference=model_float32.tflite --data=npz:examples.npz --sensitivity

Reads both files, and examples of --data without their labels. Prints one line per input and op, then the causes:

    SQNR dB          signal-to-quantization-noise ratio of the output, inherited errors included (low values are bad)
    rounding alone   SQNR with only the rounding to this output's own scale
    values in range  SQNR of the values within the range: rounding, and inherited errors
    clipped values   SQNR of the values that the range clips
    worst weights    SQNR of the weights of the worst channel
    mean shift       largest mean error of a channel, relative to the standard deviation of the tensor
    max LSB          largest error in quantization steps
    clipped          fraction of the values that are clipped
    range used       fraction of the quantized range that the values span
    dead             number of channels whose values never reach half a quantization step
    alone dB         SQNR of the model's outputs with only this op quantized (--sensitivity)

--require.min_layer_sqnr_db sets a bound on every op; the exit code is 1 if one is below it. Ops that output only zeros
are not counted. With --out it writes analyze.json, analyze.html (plots, and the examples that differ) and analyze.md.
model_explorer_sqnr.json and model_explorer_sensitivity.json color the ops in Model Explorer (--node_data_paths).

    tfq analyze --model=model_int8.tflite --reference=model_float32.tflite --data=npz:examples.npz --explain --out=out

Also hides one part of an input at a time (occlusion saliency), and compares how the score of the predicted class falls
in both models: the rank correlation of the maps of each example. analyze.html shows the maps that disagree most.

    tfq analyze --model=model_float32.tflite --data=npz:examples.npz --bit_widths --out=out/analyze

Simulates the accuracy of the float model (--reference, or --model without --reference) with weights and activations of
8 bits down to 1, on each of --bit_widths.grids, without training. It needs a train and a test split; without labels,
models are compared with the float model, as in `tfq search`. For a combination that TFLite supports, the
flag of `tfq convert` that selects it is shown. Results are kept in --out, so an interrupted run resumes.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from tfq import analysis, artifacts, report, workflows
from tfq.cli import flags, process
from tfq.errors import InputError


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    workflows.check_named(config, "test")
    with_layers, with_bit_widths = bool(config.analysis.reference), config.analysis.bit_widths.enabled
    if config.analysis.require.min_layer_sqnr_db is not None and not with_layers:
        raise InputError(
            "analysis.require.min_layer_sqnr_db needs a model to compare with: set analysis.reference to the float "
            ".tflite that the model was converted from",
            field="analysis.require.min_layer_sqnr_db",
            expected="analysis.reference",
        )
    if config.analysis.explain.enabled and not with_layers:
        raise InputError(
            "analysis.explain needs a model to compare with: set analysis.reference to the float .tflite",
            field="analysis.reference",
            expected="a float .tflite",
        )
    if not with_layers and not with_bit_widths:
        raise InputError(
            "analysis.reference is missing: set it to the float .tflite that the model was converted from, or set "
            "analysis.bit_widths.enabled=True to measure only the float model",
            field="analysis.reference",
            expected="a float .tflite",
        )
    if with_bit_widths:
        artifacts.check_out_is_set(config.out)
    with process.out_dir(invocation) if config.out else contextlib.nullcontext() as out:
        _analyze(invocation, out)


def _analyze(invocation: flags.Invocation, out: Path | None) -> None:
    config = invocation.config
    with_layers, with_bit_widths = bool(config.analysis.reference), config.analysis.bit_widths.enabled
    results: dict[str, object] = {}
    texts, floating, analyzed = list[str](), None, None
    if with_layers:
        floating = workflows.load_flatbuffer(
            config.analysis.reference, config, field="analysis.reference", allow_code=invocation.allow_code
        )
        content = workflows.read_tflite(config)
        split = workflows.load_split(config.data, "test", limit=config.analysis.limit)
        analyzed = analysis.analyze(content, floating, split, config.analysis)
        asked = analysis.requirements_of(analyzed, config.analysis.require)
        results.update(analyzed.to_dict(), requirements=[item.to_dict() for item in asked])
        results |= workflows.differing_examples(floating, content, split, config.data) if out is not None else {}
        texts.append(analyzed.to_text())
        if config.analysis.explain.enabled:
            examples = workflows.load_split(config.data, "test", limit=config.analysis.explain.limit)
            explanation = analysis.explain(content, floating, examples, config.analysis.explain)
            results["explain"] = explanation.to_dict()
            texts.append(explanation.to_text())
    if with_bit_widths and out is not None:
        model = floating or workflows.load(config, allow_code=invocation.allow_code)
        measured = workflows.bit_widths_on_data(model, config, out)
        results["bit_widths"] = measured.to_dict()
        texts.append(measured.to_text())
    record = process.record(invocation, "analyze", **results)
    if out is not None:
        texts.append(str(out / "analyze.html"))
        if analyzed is not None:
            texts.append("\n".join(report.write_node_data(analyzed.to_dict(), {"model": config.model}, out)))
    process.finish(invocation, record, "\n\n".join(texts))
    if analyzed is not None:
        analysis.check_requirements(analyzed, config.analysis.require)


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="analyze", section="analysis", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
