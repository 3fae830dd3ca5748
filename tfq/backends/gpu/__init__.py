# SPDX-License-Identifier: Apache-2.0
"""LiteRT's GPU accelerator on this machine's GPU, or on SwiftShader, a Vulkan driver that runs on the CPU."""
