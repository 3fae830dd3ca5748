# SPDX-License-Identifier: Apache-2.0
"""Read and inspect a model file without running it, then load it with the Keras version that wrote it."""
