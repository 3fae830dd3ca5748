# SPDX-License-Identifier: Apache-2.0
"""Whole filters taken out: which go together, which go first, and the smaller model that is left."""
