#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare clustered weights of tfq and tfmot after the same training: accuracy, and size after gzip.

    python benchmarks/clustering.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' [--epochs=1]
        [--clusters=16,8,4] [--seed=0] [--limit=0]

`dense` is the model trained for as long without clusters. All models are converted to int8 after training with the same
calibration samples. Accuracy is that of the flatbuffer on the test split. "values" is the largest number of distinct
quantized values of a layer's weights in the flatbuffer. tfmot runs as its guide describes: with k-means++ centroids
for a whole kernel, and separately for each channel (per channel). A layer that tfmot refuses ends its run with the
reason. --limit is for trying the script.
"""

import argparse
import gzip
import os
import warnings
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from compression_training import Phase, copied, exit_with, fit_for

import tfq
from tfq.compression import unique_weights_in_flatbuffer
from tfq.compression.training import deterministic
from tfq.keras_bridge import import_tfmot

TFMOT = {"tfmot": {}, "tfmot per channel": {"cluster_per_channel": True}}


def trained(name: str, clusters: int, model: Any, fit: Any) -> Any:
    """Return `model` trained with this number of clusters, by tfq or by tfmot."""
    if name == "dense":
        dense = copied(model)
        fit(dense, [])
        return dense
    if name == "tfq":
        return tfq.cluster(model, fit, tfq.ClusterConfig(number_of_clusters=clusters))
    clustering = import_tfmot().clustering.keras
    # A copy, because tfmot moves the layers of its input into the new model and changes them.
    wrapped = clustering.cluster_weights(
        copied(model),
        number_of_clusters=clusters,
        cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
        **TFMOT[name],
    )
    fit(wrapped, [])
    return clustering.strip_clustering(wrapped)


def main() -> int:
    arguments = parsed()
    warnings.simplefilter("once", tfq.TfqWarning)
    model, data = tfq.load_model(arguments.model), tfq.DataConfig(source=arguments.data)
    splits = {split: tfq.load_split(data, split, limit=arguments.limit) for split in ("train", "val", "test")}
    samples = splits["train"].take(tfq.ConversionConfig().num_calibration_samples)
    phase = Phase(arguments.epochs, 128, arguments.learning_rate)
    counts = [int(count) for count in arguments.clusters.split(",")]
    runs = [("dense", 0), *((name, count) for count in counts for name in ("tfq", *TFMOT))]
    print("| | clusters | accuracy | values | gzip | of dense |\n|---|---|---|---|---|---|")
    dense = None
    for name, count in runs:
        with deterministic(arguments.seed):
            try:
                built = tfq.convert(
                    trained(name, count, model, fit_for(splits, phase, arguments.seed, None, {})), samples
                )
            except (ValueError, TypeError, AttributeError) as error:
                print(f"| {name} | {count} | {type(error).__name__}: {error} | | | |", flush=True)
                continue
        accuracy = tfq.evaluate(built, splits["test"], tfq.EvaluationConfig(num_runs=0)).accuracy
        size = len(gzip.compress(built, 9, mtime=0))
        dense = dense or size
        quantized = max(unique_weights_in_flatbuffer(built).values())
        print(f"| {name} | {count or ''} | {accuracy:.2%} | {quantized} | {size:,} | {size / dense:.1%} |", flush=True)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--clusters", default="16,8,4")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="decayed along a cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="examples of each split; 0 is all")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, __file__)
