# SPDX-License-Identifier: Apache-2.0
"""Post-training quantization on the float flatbuffer: calibration, and techniques that recover accuracy."""
