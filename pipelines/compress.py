#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Prune, cluster and quantization-aware train a Keras model.

    tfq compress --model=model.keras --data=npz:examples.npz --prune.final_sparsity=0.5 --out=out/compress
    tfq compress --model=model.keras --preflight

Reads a .keras or .h5 file, and the train split of --data with labels, on which each step trains. By default the model
is pruned and then trained with fake quantization; --noprune, --noqat, --cluster and --structured_pruning choose the
steps.

With --teacher (which may occur several times), each step also learns from the outputs of other Keras models with the
same inputs and outputs; --qat.distillation and its siblings learn from the model before the step.

Writes <model>_<steps>.h5 to --out, a tf_keras model for `tfq convert`; <steps> is pruned_qat by default. For a Keras 3
model it also writes <model>_<steps>.keras: your own model with the trained weights. The details are in compress.json,
and in the pages compress.html and compress.md.

--preflight needs no data and trains nothing. It reports for each layer whether it can be pruned and trained with fake
quantization, and which of its ops would stay float in an int8 .tflite. The exit code is 1 if a layer is unsupported.
"""

from collections.abc import Sequence

from tfq import artifacts, workflows
from tfq.cli import flags, process
from tfq.errors import InputError, RequirementError


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    if config.model.endswith(".tflite"):
        raise InputError(
            f"model={config.model} is a .tflite file, which cannot be trained: expected the Keras model that it was "
            "converted from",
            field="model",
            expected="a Keras model",
            got=config.model,
        )
    if invocation.preflight:
        preflight(invocation)
        return
    workflows.check_named(config, "train")
    workflows.compression_suffix(config)
    artifacts.check_out_is_set(config.out)
    workflows.check_tensorflow(config)
    with process.out_dir(invocation) as out:
        model = workflows.load(config, allow_code=invocation.allow_code)
        compressed = workflows.compress(model, config, allow_code=invocation.allow_code)
        stem = f"{workflows.model_name(config)}_{workflows.compression_suffix(config)}"
        path = workflows.save_keras(compressed.model, out / f"{stem}.h5")
        details = compressed.details
        lines = [*details["data_notes"], str(path)]
        if config.compression.prune.enabled:
            lines.append("fraction of zeros by layer")
            lines += [f"  {fraction:6.1%}  {layer}" for layer, fraction in details["sparsity"].items()]
        if details["clusters"]:
            lines.append("number of quantized weight values by clustered layer")
            lines += [f"  {count:6}  {layer}" for layer, count in details["clusters"].items()]
        if compressed.user_model is not None:
            user_path = workflows.save_keras(compressed.user_model, out / f"{stem}.keras")
            lines.append(f"{user_path}: your own model with the trained weights")
        record = process.record(invocation, "compress", file=path.name, **details)
        process.finish(invocation, record, "\n".join(lines))


def preflight(invocation: flags.Invocation) -> None:
    """Report what compression can do with each layer, without training."""
    config = invocation.config
    table = workflows.preflight_with_flatbuffer(workflows.load(config, allow_code=invocation.allow_code), config)
    process.finish(invocation, process.record(invocation, "preflight", preflight=table.to_dict()), table.to_text())
    if not table.ok:
        raise RequirementError(f"--model={config.model} has layers that cannot be compressed: see the table")


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="compress", section="compression", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
