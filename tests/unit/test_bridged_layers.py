# SPDX-License-Identifier: Apache-2.0
"""The registered layers and their facts, without TensorFlow."""

import subprocess
import sys

import pytest

from tfq import registry
from tfq.compression.structured_pruning.rules import FOLLOWED_BY_NAME, RULES
from tfq.errors import InputError
from tfq.keras_bridge import BridgedLayer


def test_every_channel_rule_exists_and_is_used():
    used = {entry.channels for entry in registry.entries(BridgedLayer).values()}
    assert used == RULES.keys() | set(FOLLOWED_BY_NAME)


def test_a_layer_that_cannot_be_translated_says_why():
    lookup = registry.get(BridgedLayer, "StringLookup")
    assert lookup.translate is None and "data pipeline" in lookup.help


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"qat": "outputs_only"}, "qat"),
        ({"qat": "weights_and_output"}, "qat_weights"),
        ({"qat_weights": {"kernel": (-1,)}}, "qat_weights"),
        ({"qat": "converter"}, "qat_reason"),
        ({"channels": "per_channel"}, "channel_weights"),
        ({"keras_class": dict}, "keras_class"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(facts, field):
    with pytest.raises(InputError) as refused:
        BridgedLayer(name="Mine", help="a test's", **facts)
    assert refused.value.field == field


def test_registering_the_layers_imports_no_tensorflow():
    program = "import sys, tfq.keras_bridge.layers.translate\n"
    program += "print({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
