# SPDX-License-Identifier: Apache-2.0
"""Compare a quantization-aware trained model with its flatbuffer, layer by layer."""
