# SPDX-License-Identifier: Apache-2.0
"""A whole run: its stages in order, each result kept on disk, so that a run which was killed goes on where it was."""

from tfq.recipe.run import require, run_recipe

__all__ = ["require", "run_recipe"]
