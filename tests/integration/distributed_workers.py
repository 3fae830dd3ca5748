# SPDX-License-Identifier: Apache-2.0
"""One of two workers of a MultiWorkerMirroredStrategy: QAT and pruning, a refused conversion, and the saved model.

Usage: distributed_workers.py FILE, with TF_CONFIG set
"""

import json
import sys
import warnings

import tensorflow as tf

STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()

import tf_keras  # noqa: E402 - the strategy must exist before anything else uses TensorFlow
from distributed_steps import X, Y, build  # noqa: E402

import tfq  # noqa: E402

warnings.simplefilter("ignore")


def fit(model, callbacks):
    """Train on a data set that the workers divide."""
    model.compile(tf_keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    model.fit(
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).with_options(options), callbacks=callbacks, verbose=0
    )


with STRATEGY.scope():
    start = build(trained_statistics=True)
pruned = tfq.prune(start, fit, tfq.PruneConfig(final_sparsity=0.5, end_step=1))
result = tfq.qat(pruned, fit, calibration=X)
try:
    tfq.convert(result)
    refused = None
except tfq.InputError as error:
    refused = error.limit
result.save(sys.argv[1])
sums = [float(abs(weight).sum()) for weight in result.get_weights()]
print(json.dumps({"refused": refused, "sums": sums, "sparsity": tfq.compression.measure_sparsity(result)}))
