#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure how accurate a model stays with fewer and fewer bits, without training.

    tfq bits --model=model_float32.tflite --data=npz:examples.npz --keep=first_conv,logits --out=out/bits

Weights on each of --grids, activations, and both, from 8 bits to 1. Of what TFLite runs as it is, the flag of tfq
convert is told that makes it; all else is simulated in float. Writes bits.json and a page with the plots, bits.html. A
run that was killed goes on where it was.
"""

from collections.abc import Sequence

from tfq import artifacts, report, workflows
from tfq.cli import flags, process
from tfq.workflows.search import bits_on_data


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    workflows.check_given(config)
    out = process.out_dir(invocation)
    model = workflows.load(config, allow_code=invocation.allow_code)
    result = bits_on_data(model, config, out, told=lambda line: print(line, flush=True))
    record = process.record(invocation, "bits", **result.to_dict())
    page = artifacts.write_text(out / "bits.html", report.bits_page(record))
    process.finish(invocation, record, f"\n{result.to_text()}\n{page}")


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="bits", section="bits", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
