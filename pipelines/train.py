#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a model that tfq builds by name, or a Keras model from a file.

    tfq train --model=digits_cnn --data=digits --epochs=10 --out=out/train
    tfq train --model=model.keras --data=npz:examples.npz --loss=boxes=huber --loss_weights=boxes=0.1 --out=out/train
    tfq train --model=ds_cnn --data=npz:examples.npz --teacher=large.keras --out=out/train

Reads the train and val splits of --data, and measures the accuracy on the test split. The names for --model are those
of the files in models/, such as digits_cnn, ds_cnn or resnet8. A model from a file is trained further from its weights.
To compress a trained model of your own, skip this command.

With --teacher (which may occur several times), the model also learns from the outputs of other Keras models with the
same inputs and outputs. They are evaluated on the val split first, and train.json has their accuracy.

Writes <model>.keras (<model>_trained.keras for a file), and train.json with the pages train.html and train.md to --out.
With --keras=tf_keras (the default), a model that tfq builds can be pruned and trained with fake quantization.
"""

from collections.abc import Sequence

from tfq import artifacts, evaluation, workflows
from tfq.cli import flags, process


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    workflows.check_named(config, "train")
    workflows.check_model_file(config)
    artifacts.check_out_is_set(config.out)
    workflows.check_tensorflow(config)
    with process.out_dir(invocation) as out:
        model, details = workflows.train(config, allow_code=invocation.allow_code)
        path = workflows.save_keras(model, out / f"{workflows.trained_stem(config)}.keras")
        record = process.record(invocation, "train", file=path.name, **details)
        score = evaluation.score_text(details["test_unit"], details["test_accuracy"]) or "—"
        metric = details["test_metric"] or "accuracy"
        lines = [*details["data_notes"], f"{path}: {details['parameters']:,} parameters, test {metric} {score}"]
        for output, facts in details["test_outputs"].items():
            score = evaluation.score_text(facts["unit"], facts["accuracy"]) or "—"
            lines.append(f"  {output}: test {facts['metric']} {score}")
        process.finish(invocation, record, "\n".join(lines))


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="train", section="training", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
