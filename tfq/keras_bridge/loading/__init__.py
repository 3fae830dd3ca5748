# SPDX-License-Identifier: Apache-2.0
"""Model files: read and inspected before any Keras sees them, then loaded by the Keras that wrote them."""
