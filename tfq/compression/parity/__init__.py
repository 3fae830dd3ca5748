# SPDX-License-Identifier: Apache-2.0
"""A quantization-aware trained model beside the flatbuffer that was made of it, layer by layer."""
