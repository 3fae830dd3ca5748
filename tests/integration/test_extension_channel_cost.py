# SPDX-License-Identifier: Apache-2.0
"""A user's own cost of channels as a plugin."""

import tfq
from tfq import registry
from tfq.keras_bridge import import_tf_keras

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = """
# --8<-- [start:channel_cost]
import tfq


def measure(graph):
    \"\"\"Return a function that counts the weights of all layers: their multiply-adds at one position.\"\"\"

    def total(counts):
        pairs = zip(graph.sites, counts.inputs, counts.outputs, strict=True)
        return sum(term.macs(ins, outs) // term.positions for site, ins, outs in pairs for term in site.terms)

    return total


tfq.register(tfq.ChannelCost(name="weights", help="weights of kernels", unit="weights", measure=measure))
# --8<-- [end:channel_cost]
"""


def test_a_registered_cost_limits_what_structured_pruning_keeps(tmp_path):
    (tmp_path / "weights.py").write_text(PLUGIN)
    layers = import_tf_keras().layers
    model = import_tf_keras().Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(16, 3), layers.GlobalAveragePooling2D(), layers.Dense(4)]
    )
    with registry.temporary():
        registry.load_plugin(str(tmp_path / "weights.py"))
        config = tfq.StructuredPruningConfig(cost="weights", target_cost=0.5, channel_multiple=1)
        result = tfq.prune_structured(model, config=config)
    assert result.cost_before == 9 * 3 * 16 + 16 * 4
    assert result.cost_after == sum(w.size for w in result.model.get_weights() if w.ndim > 1) <= result.cost_before / 2
