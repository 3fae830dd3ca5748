# SPDX-License-Identifier: Apache-2.0
"""The check of one corpus model in one scheme, which the quick and the slow tests share."""

from corpus import by_name, fault, outcome_of


def checked(name: str, scheme: str) -> None:
    """Fail unless the corpus model agrees with Keras, is reported as collapsed, or is refused by name."""
    case = by_name()[name]
    assert fault(case, scheme, outcome_of(case, scheme)) == ""
