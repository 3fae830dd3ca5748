# SPDX-License-Identifier: Apache-2.0
"""The parts of families.py: which families, what is measured of each, what stock tfmot makes of it, and the table."""
