# SPDX-License-Identifier: Apache-2.0
"""Translate one operation of keras.ops to an ordinary tf_keras layer, or to a layer that calls Keras 3's operation."""
