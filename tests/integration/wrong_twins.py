# SPDX-License-Identifier: Apache-2.0
"""A bridge with a mistake, shared by tests of its check."""

from tfq.keras_bridge import bridge


def copy_wrongly(monkeypatch, layer):
    """Make the bridge copy the weights of the layer of this name one percent too large from now on."""
    real = bridge.copy_weights

    def wrong(theirs, translation, where):
        real(theirs, translation, where)
        if theirs.name == layer:
            for ours in translation.weighted:
                ours.set_weights([array * 1.01 for array in ours.get_weights()])

    monkeypatch.setattr(bridge, "copy_weights", wrong)
