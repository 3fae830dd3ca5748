# SPDX-License-Identifier: Apache-2.0
"""What becomes of one layer: tf_keras' own of that name, one of ours, or what the user's translator makes."""
