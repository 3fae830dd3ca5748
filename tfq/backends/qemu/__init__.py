# SPDX-License-Identifier: Apache-2.0
"""ARM without a device: QEMU's user-mode emulation, the arm64 system that it runs on, and counted instructions."""
