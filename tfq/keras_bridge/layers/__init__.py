# SPDX-License-Identifier: Apache-2.0
"""Translate one layer to the tf_keras layer of the same name, to a layer of tfq, or with the user's function."""
