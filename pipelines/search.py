#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find the cheapest int8 .tflite within an accuracy budget, without training.

    tfq search --model=model_float32.tflite --data=npz:examples.npz --budget.max_accuracy_drop=0.005 --out=out/search

Reads a float .tflite, .keras or .h5 file or a SavedModel directory, and the train, val and test splits of --data.
Tries calibration methods, then post-training techniques, then keeping the most sensitive layers in float (in
int16 first, with --conversion.quantizer=litert), until a candidate is within the budget. Candidates are calibrated on
the train split and compared on the val split. The chosen one is evaluated on the test split, with the 95% interval of
its difference to the float model.

Without class labels, candidates are compared with the float model: by the fraction of examples with its class or, if no
output is known to predict a class, by the fraction of examples whose outputs have an SQNR of at least
--budget.min_sqnr_db. A warning and the record say so, and --budget.max_accuracy_drop bounds the rest of that fraction.

With --pareto_points, all calibration methods and techniques are tried, and layers then get their own levels (float,
int16, int8, int4 ...) by integer programming, for several sizes of the file. All these files are converted and compared
on the val split, with greedy assignments of the same sizes. The most accurate file within the budget is chosen, or the
smallest one if the budget bounds no cost.

Writes <model>_search_int8.tflite, and search.json with the pages search.html and search.md to --out. An interrupted
search resumes. The exit code is 1 if no candidate is within the budget; the best candidate is written anyway.
"""

from collections.abc import Sequence

from tfq import artifacts, workflows
from tfq.cli import flags, process
from tfq.errors import RequirementError


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    workflows.check_named(config, "train")
    artifacts.check_out_is_set(config.out)
    workflows.check_tensorflow(config)
    with process.out_dir(invocation) as out:
        model = workflows.load(config, allow_code=invocation.allow_code)
        result = workflows.search_on_data(model, config, out)
        path = artifacts.write_bytes(out / f"{workflows.model_name(config)}_search_int8.tflite", result.content)
        record = process.record(invocation, "search", file=path.name, **result.to_dict())
        process.finish(invocation, record, f"\n{result.to_text()}\n{path}")
        if not result.holds:
            raise RequirementError(f"no candidate is within the budget: {'; '.join(result.chosen.missed)}")


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="search", section="search", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
