# SPDX-License-Identifier: Apache-2.0
"""Parts of keras_hub_models.py."""
