#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Prune and quantization-aware train a tf_keras model on --data, and save it in --out.

    tfq compress --model=out/train/digits_cnn.keras --data=digits --prune.final_sparsity=0.5 --out=out/compress

The file is <model>_pruned_qat.h5, or _pruned or _qat when --noqat or --noprune leaves one out.
"""

from collections.abc import Sequence

from tfq import flags, scripts, stages


def main(invocation: flags.Invocation) -> None:
    config = invocation.config
    out = scripts.out_dir(invocation)
    model = stages.load(config, allow_code=invocation.allow_code)
    model, details = stages.compress(model, config)
    path = stages.save_keras(model, out / f"{stages.model_name(config)}_{stages.compression_suffix(config)}.h5")
    record = scripts.record(invocation, "compress", file=path.name, **details)
    lines = [f"{path}: fraction of zeros by layer"]
    lines += [f"  {share:6.1%}  {layer}" for layer, share in details["sparsity"].items()]
    scripts.finish(invocation, record, "\n".join(lines))


def cli(arguments: Sequence[str] | None = None) -> None:
    scripts.run_script(main, script="compress", section="compression", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
