# SPDX-License-Identifier: Apache-2.0
"""Parts of families.py: the families, their measurements, the results of stock tfmot, and the table."""
