#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure the latency of one or more .tflite files, and list the most expensive ops.

    tfq benchmark --model=model_int8.tflite --against=model_float32.tflite
    tfq benchmark --model=model_int8.tflite --kernels=xnnpack,builtin --num_threads=1
    tfq benchmark --model=model_int8.tflite --backend=tflm --require.max_arena_bytes=65536

Reads the .tflite files and runs them alternately in one process, so that ratios between them are comparable. The inputs
are random numbers, or the first test examples of --data. A --backend that does not measure time reports what it has
instead: qemu:CPU counts instructions, tflm records the tensor arena, ethos-u55-128 estimates memory and cycles.
--require.* set bounds on these costs; the exit code is 1 if a model misses one.

With --out it writes benchmark.json, and the pages benchmark.html and benchmark.md. model_explorer_time.json colors the
ops of the model in Model Explorer (--node_data_paths); there is such a file for each other model too.
"""

from collections.abc import Sequence

from tfq import artifacts, data, evaluation, report, workflows
from tfq.backends import make_backend
from tfq.cli import flags, process
from tfq.config import DataConfig
from tfq.errors import warn
from tfq.evaluation.benchmark import NUM_INPUTS


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    contents = [workflows.read_tflite(config)]
    contents += [workflows.read_flatbuffer(path, "benchmark.against") for path in config.benchmark.against]
    names = evaluation.model_names([config.model, *config.benchmark.against])
    models = dict(zip(names, contents, strict=True))
    make_backend(config.benchmark.backend, field="benchmark.backend")  # report an unknown backend before loading data
    examples = load_examples(config.data)
    results = evaluation.benchmark_models(models, config.benchmark, data=examples, seed=config.seed)
    if config.data.source:
        for name, reason in results.input_mismatches.items():
            warn(f"{name} runs on random numbers: {reason}")
    record = process.record(
        invocation,
        "benchmark",
        sha256={
            "model": artifacts.sha256(contents[0]),
            "against": {name: artifacts.sha256(models[name]) for name in names[1:]},
            "data": {} if examples is None else {f"{examples.name}[:{examples.num_examples}]": examples.sha256()},
        },
        **results.to_record(),
        requirements=[
            {"model": name, **item.to_dict()}
            for name, items in evaluation.benchmark_requirements(results, config.benchmark.require).items()
            for item in items
        ],
    )
    texts = [results.to_text()]
    if config.out:
        with process.out_dir(invocation) as out:
            texts += report.write_node_data(results.to_dict(), models, out)
    process.finish(invocation, record, "\n".join(texts))
    evaluation.check_benchmark_requirements(results, config.benchmark.require)


def load_examples(config: DataConfig) -> data.Split | None:
    """Return the first test examples of --data, or None if there is no --data."""
    if not config.source:
        return None
    split = workflows.load_split(config, "test", limit=NUM_INPUTS)
    return split if isinstance(split, data.Split) else next(split.pieces())


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="benchmark", section="benchmark", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
