# SPDX-License-Identifier: Apache-2.0
"""A bridge that makes a mistake: what tests of its check share."""

from tfq.keras_bridge import bridge


def copy_wrongly(monkeypatch, layer):
    """From here on the bridge copies the weights of the layer of this name one percent too large."""
    real = bridge.copy_weights

    def wrong(theirs, translation, where):
        real(theirs, translation, where)
        if theirs.name == layer:
            for ours in translation.weighted:
                ours.set_weights([array * 1.01 for array in ours.get_weights()])

    monkeypatch.setattr(bridge, "copy_weights", wrong)
