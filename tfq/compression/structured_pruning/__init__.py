# SPDX-License-Identifier: Apache-2.0
"""Structured pruning: remove whole filters, and rebuild the model with fewer channels."""
