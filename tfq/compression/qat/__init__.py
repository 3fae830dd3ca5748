# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: placement of fake quantization, range estimators, and training."""
