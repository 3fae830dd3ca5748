# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: where fake quantization stands, its ranges, and what surrounds the training."""
