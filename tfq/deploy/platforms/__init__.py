# SPDX-License-Identifier: Apache-2.0
"""The platforms that bundles have sources for, one file each. Importing this package registers them."""

import tfq.deploy.platforms.android
import tfq.deploy.platforms.ios
import tfq.deploy.platforms.linux
import tfq.deploy.platforms.micro
import tfq.deploy.platforms.web  # noqa: F401
from tfq.deploy.platform import Platform

__all__ = ["Platform"]
