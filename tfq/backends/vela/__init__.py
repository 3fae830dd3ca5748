# SPDX-License-Identifier: Apache-2.0
"""Estimates for Arm's Ethos-U NPUs by Arm's compiler Vela."""
