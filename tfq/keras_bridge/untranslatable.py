# SPDX-License-Identifier: Apache-2.0
"""The exception with which the translation of a single layer or operation from Keras 3 to tf_keras gives up."""


class Untranslatable(Exception):
    """One layer or operation has no equal in tf_keras.

    Raised by a translator for its own node only: it knows the reason and what the user can do, and not which layer it
    stands at. The bridge catches it, adds the name, gathers all of them and raises one InputError.

    Args:
        reason: What cannot be carried over and what to do about it, as one sentence without the layer's name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
