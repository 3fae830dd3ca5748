# SPDX-License-Identifier: Apache-2.0
"""Unstructured, block and m:n magnitude pruning: masks, schedules, layer-wise sparsity allocation."""
