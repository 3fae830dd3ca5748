# SPDX-License-Identifier: Apache-2.0
"""The command line: dispatch, signals and exit codes, quiet output, and the config tree as flags."""
