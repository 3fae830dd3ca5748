#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find the cheapest int8 .tflite of a model that keeps a budget, without training.

    tfq search --model=model_float32.tflite --data=npz:examples.npz --budget.max_accuracy_drop=0.005 --out=out/search

The candidates are calibration methods, then post-training techniques, then the most sensitive layers in float, until
one keeps the budget. It is chosen on the validation split and reported on the test split, with paired intervals. Writes
search.json and the chosen .tflite. A search that was killed resumes. Exits 1 where no candidate keeps the budget; the
best one is written all the same.
"""

from collections.abc import Sequence

from tfq import artifacts, workflows
from tfq.cli import flags, process
from tfq.errors import RequirementError
from tfq.workflows.search import search_on_data


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    workflows.check_given(config)
    workflows.check_tensorflow(config)
    out = process.out_dir(invocation)
    model = workflows.load(config, allow_code=invocation.allow_code)
    result = search_on_data(model, config, out, told=lambda line: print(line, flush=True))
    path = artifacts.write_bytes(out / f"{workflows.model_name(config)}_search_int8.tflite", result.content)
    record = process.record(invocation, "search", file=path.name, **result.to_dict())
    process.finish(invocation, record, f"\n{result.to_text()}\n{path}")
    if not result.holds:
        raise RequirementError(f"no candidate keeps the budget: {'; '.join(result.chosen.missed)}")


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="search", section="search", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
