# SPDX-License-Identifier: Apache-2.0
"""What becomes of one operation of keras.ops: an ordinary tf_keras layer, or one that calls Keras 3's own."""
