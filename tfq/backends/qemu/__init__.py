# SPDX-License-Identifier: Apache-2.0
"""Run models on emulated ARM CPUs: QEMU's user-mode emulation, a small arm64 system, and instruction counts."""
