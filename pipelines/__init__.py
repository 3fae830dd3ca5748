# SPDX-License-Identifier: Apache-2.0
"""The commands: flags -> config -> tfq calls -> exit code."""
