# SPDX-License-Identifier: Apache-2.0
"""The layers and the kinds of fault of the corpus, all of them, in int8 and int16x8."""

import pytest
from corpus import SCHEMES, by_name
from corpus_checks import checked

NAMES = [name for name in by_name() if not name.startswith("ops.")]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_agrees_or_is_reported(name, scheme):
    checked(name, scheme)
