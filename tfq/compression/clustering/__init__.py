# SPDX-License-Identifier: Apache-2.0
"""Kernels of a few values, which compress well: chosen, trained, kept in QAT, counted in the flatbuffer."""
