# SPDX-License-Identifier: Apache-2.0
"""A user's own pruning criterion as a plugin."""

import numpy as np

import tfq
from tfq import registry
from tfq.keras_bridge import import_tf_keras

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = """
# --8<-- [start:pruning_criterion]
import numpy as np

import tfq


def of_weights(model, kernels, examples):
    \"\"\"Return a function that returns the scores, which are random and do not change.\"\"\"
    draws = np.random.default_rng(0)
    scores = {name: [draws.random(item.shape) for item in weights] for name, weights in kernels.items()}
    return lambda: scores


def of_channels(model, graph, channels, examples):
    \"\"\"Return a random score for each set of coupled channels.\"\"\"
    draws = np.random.default_rng(0)
    return {int(root): draws.random() for site in graph.sites for root in channels.roots(site.outputs)}


tfq.register(
    tfq.PruningCriterion(
        name="random",
        help="random weights: a baseline",
        needs="nothing",
        of_weights=of_weights,
        of_channels=of_channels,
    )
)
# --8<-- [end:pruning_criterion]
"""


def test_a_registered_criterion_chooses_weights_and_channels(tmp_path):
    (tmp_path / "random.py").write_text(PLUGIN)
    layers = import_tf_keras().layers
    model = import_tf_keras().Sequential([layers.Dense(8, name="a", input_shape=(8,)), layers.Dense(4, name="b")])

    def fit(model, callbacks):
        model.compile(import_tf_keras().optimizers.SGD(0.0), "mse")
        model.fit(np.ones((8, 8)), np.ones((8, 4)), batch_size=2, callbacks=callbacks, verbose=0)

    with registry.temporary():
        registry.load_plugin(str(tmp_path / "random.py"))
        pruned = tfq.prune(model, fit, tfq.PruneConfig(criterion="random"))
        config = tfq.StructuredPruningConfig(criterion="random", target_cost=0.6, channel_multiple=1)
        small = tfq.prune_structured(model, config=config)
    before = np.abs(model.get_layer("a").kernel.numpy())
    kept = pruned.get_layer("a").kernel.numpy() != 0
    assert kept.mean() == 0.5 and before[kept].min() < before[~kept].max()
    assert small.removed["a"][0] < 8
