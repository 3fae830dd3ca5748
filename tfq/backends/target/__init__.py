# SPDX-License-Identifier: Apache-2.0
"""Code that runs on the target; see __main__.py. It imports nothing from the rest of tfq."""
