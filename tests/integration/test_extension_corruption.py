# SPDX-License-Identifier: Apache-2.0
"""A user's own corruption as a plugin."""

import numpy as np

import tfq
from tfq import registry
from tfq.robustness import corrupt

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = """
# --8<-- [start:corruption]
import tfq


def apply(image, parameter, draws, limits):
    \"\"\"Cover the left part of the image with black, as a finger does.\"\"\"
    covered = image.copy()
    covered[:, : int(parameter * image.shape[1])] = limits[0]
    return covered


tfq.register(
    tfq.Corruption(
        name="finger",
        help="a finger in front of the lens",
        kind="image",
        apply=apply,
        parameters={"": (0.1, 0.2, 0.3, 0.4, 0.5)},
        unit="fraction of the width",
    )
)
# --8<-- [end:corruption]
"""


def test_registered_corruption_is_applied_by_severity(tmp_path):
    file = tmp_path / "finger.py"
    file.write_text(PLUGIN)
    with registry.temporary():
        registry.load_plugin(str(file))
        config = tfq.RobustnessConfig(corruptions=("finger",))
        finger = registry.get(tfq.Corruption, config.corruptions[0])
        result = corrupt(np.ones((1, 10, 10, 3), np.float32), finger, 3, limits=(-1, 1))
    assert (result[0, :, :3] == -1).all() and (result[0, :, 3:] == 1).all()
