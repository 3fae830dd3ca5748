#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Prune, cluster and quantization-aware train a Keras model.

    tfq compress --model=out/train/digits_cnn.keras --data=digits --prune.final_sparsity=0.5 --out=out/compress
    tfq compress --model=model.keras --preflight

Writes a tf_keras model for `tfq convert`, <model>_pruned_qat.h5, called by what was done (filtered, pruned, clustered,
qat); of a Keras 3 model also <model>_pruned_qat.keras, the model as it was given with the trained weights in it.
--preflight says what each layer can take and what of it would stay float in an int8 .tflite, and exits 1 where one
cannot be taken at all.
"""

from collections.abc import Sequence

from tfq import workflows
from tfq.cli import flags, process
from tfq.errors import RequirementError


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    if invocation.preflight:
        preflight(invocation)
        return
    workflows.check_given(config)
    workflows.compression_suffix(config)
    workflows.check_tensorflow(config)
    out = process.out_dir(invocation)
    model = workflows.load(config, allow_code=invocation.allow_code)
    compressed = workflows.compress(model, config)
    stem = f"{workflows.model_name(config)}_{workflows.compression_suffix(config)}"
    path = workflows.save_keras(compressed.model, out / f"{stem}.h5")
    details = compressed.details
    lines = [*details["data_notes"], f"{path}: fraction of zeros by layer"]
    lines += [f"  {fraction:6.1%}  {layer}" for layer, fraction in details["sparsity"].items()]
    if details["clusters"]:
        lines.append("int8 codes of its weights by clustered layer")
        lines += [f"  {count:6}  {layer}" for layer, count in details["clusters"].items()]
    if compressed.user_model is not None:
        path_of_yours = workflows.save_keras(compressed.user_model, out / f"{stem}.keras")
        lines.append(f"{path_of_yours}: your own Keras 3 model with the trained weights")
    record = process.record(invocation, "compress", file=path.name, **details)
    process.finish(invocation, record, "\n".join(lines))


def preflight(invocation: flags.Invocation) -> None:
    config = invocation.config
    table = workflows.preflight_with_flatbuffer(workflows.load(config, allow_code=invocation.allow_code), config)
    process.finish(invocation, process.record(invocation, "preflight", preflight=table.to_dict()), table.to_text())
    if not table.ok:
        raise RequirementError(f"--model={config.model} has layers that cannot be compressed: see the table")


def cli(arguments: Sequence[str] | None = None) -> None:
    process.run_command(main, command="compress", section="compression", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
