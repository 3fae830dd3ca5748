# SPDX-License-Identifier: Apache-2.0
"""The exception for a single layer or operation that cannot be translated from Keras 3 to tf_keras."""


class Untranslatable(Exception):
    """One layer or operation has no equivalent in tf_keras.

    A translator raises it for its own layer. It knows the reason and what the user can do, but not the layer's path in
    the model. The bridge catches all of them, adds the paths, and raises one InputError.
    """

    def __init__(self, reason: str) -> None:
        """Create the exception.

        Args:
            reason: What is not supported and what to do about it, without the layer's name.
        """
        super().__init__(reason)
        self.reason = reason
