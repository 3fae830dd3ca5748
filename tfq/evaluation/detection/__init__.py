# SPDX-License-Identifier: Apache-2.0
"""Object detection: outputs to boxes, non-maximum suppression, and COCO's mean average precision."""
