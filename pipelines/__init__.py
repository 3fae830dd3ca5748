# SPDX-License-Identifier: Apache-2.0
"""The scripts: flags -> config -> tfq calls -> exit code."""
