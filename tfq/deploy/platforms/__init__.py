# SPDX-License-Identifier: Apache-2.0
"""The platforms that bundles have sources for, one file each. Importing this package registers them."""

import tfq.deploy.platforms.linux  # noqa: F401
from tfq.deploy.platform import Platform

__all__ = ["Platform"]
