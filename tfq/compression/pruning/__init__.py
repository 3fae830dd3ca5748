# SPDX-License-Identifier: Apache-2.0
"""Zeros among the weights: which weights, when, how many, and what they gain."""
