#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare an int8 .tflite with its float one op by op, and explain what costs accuracy.

    tfq analyze --model=model_int8.tflite --reference=model_float32.tflite --data=npz:examples.npz --sensitivity

One line for each input and op: the signal to error of its output; what its own grid would allow; the part of rounding
and that of clipping; the worst channel of its weights; the largest mean shift of a channel, relative to the standard
deviation; the largest error in steps; the fraction of values that is cut off; how much of the range is used; channels
that never leave one quantized value. "alone" is the signal to error of the model's outputs with this op alone
quantized. With --out it writes analyze.json, and analyze.html with plots.

    tfq analyze --model=model_int8.tflite --reference=... --data=... --require.min_layer_sqnr_db=15

Exit code 1 if the output of any op is worse than that; ops that are 0 on all samples are not counted.

    tfq analyze --model=model_float32.tflite --data=npz:examples.npz --bit_widths --out=out/analyze

Accuracy with weights on each of --bit_widths.grids, activations, and both, from 8 bits to 1, simulated in float without
training, on the float model (--reference, or --model without one). If TFLite runs a combination as it is, the flag of
tfq convert that makes it is shown. It needs --out, where results are kept: a run that was interrupted resumes.
"""

from collections.abc import Sequence

from tfq import analysis, artifacts, report, workflows
from tfq.cli import flags, process
from tfq.errors import InputError
from tfq.workflows.search import bit_widths_on_data


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    workflows.check_given(config)
    with_layers, with_bit_widths = bool(config.analysis.reference), config.analysis.bit_widths.enabled
    if config.analysis.require.min_layer_sqnr_db is not None and not with_layers:
        raise InputError(
            "analysis.require.min_layer_sqnr_db needs a model to compare with: set analysis.reference to the float "
            ".tflite that the model was made of",
            field="analysis.require.min_layer_sqnr_db",
            expected="analysis.reference",
        )
    if not with_layers and not with_bit_widths:
        raise InputError(
            "analysis.reference is missing: give the float .tflite that the model was made of, or "
            "analysis.bit_widths.enabled=True to measure the float model alone",
            field="analysis.reference",
            expected="a float .tflite",
        )
    out = process.out_dir(invocation) if with_bit_widths or config.out else None
    results: dict[str, object] = {}
    texts = []
    floating, analyzed = None, None
    if with_layers:
        floating = artifacts.read_bytes(config.analysis.reference, "a float .tflite", field="analysis.reference")
        content = workflows.read_tflite(config)
        split = workflows.load_split(config.data, "test", limit=config.analysis.limit)
        analyzed = analysis.analyze(content, floating, split, config.analysis)
        asked = analysis.requirements_of(analyzed, config.analysis.require)
        results.update(analyzed.to_dict(), requirements=[item.to_dict() for item in asked])
        texts.append(analyzed.to_text())
    if with_bit_widths and out is not None:
        model = floating or workflows.load(config, allow_code=invocation.allow_code)
        measured = bit_widths_on_data(model, config, out, told=lambda line: print(line, flush=True))
        results["bit_widths"] = measured.to_dict()
        texts.append(measured.to_text())
    record = process.record(invocation, "analyze", **results)
    if out is not None:
        page = artifacts.write_text(out / "analyze.html", report.analysis_page(record))
        texts.append(str(page))
    process.finish(invocation, record, "\n\n".join(texts))
    if analyzed is not None:
        analysis.check_requirements(analyzed, config.analysis.require)


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="analyze", section="analysis", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
