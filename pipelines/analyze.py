#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare an int8 .tflite with its float one layer by layer, and explain what costs accuracy.

    tfq analyze --model=model_int8.tflite --reference=model_float32.tflite --data=npz:examples.npz --sensitivity

A line a layer: signal to error of what it gives, beside what rounding alone would leave; the largest error in steps;
what its range cuts off and how much of it is used; channels that never leave one code. "alone" is the signal to error
of the model's outputs with this layer alone quantized. With --out it writes analyze.json, and analyze.html with plots.

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
    floating = None
    if with_layers:
        floating = artifacts.read_bytes(config.analysis.reference, "a float .tflite", field="analysis.reference")
        content = workflows.read_tflite(config)
        split = workflows.load_split(config.data, "test", limit=config.analysis.limit)
        analyzed = analysis.analyze(content, floating, split, config.analysis)
        results.update(analyzed.to_dict())
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


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="analyze", section="analysis", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
