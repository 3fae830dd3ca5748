# SPDX-License-Identifier: Apache-2.0
"""A thousand damaged copies of a correct .tflite: each gives an answer quickly, and none ends this process."""

import time
import warnings
from collections import Counter

import numpy as np
import pytest
from flatbuffer_mutations import mutants

import tfq
from tfq.analysis import analyze
from tfq.config import AnalysisConfig, EvaluationConfig
from tfq.errors import FlatbufferError, TfqError
from tfq.evaluation import evaluate_model

MUTATIONS, INTERPRETED, ANALYZED, LONGEST_SECS = 1000, 100, 50, 5.0
IMAGES = np.random.default_rng(0).uniform(0, 16, (4, 8, 8, 1)).astype(np.float32)
ANALYSIS = AnalysisConfig(sensitivity=False)
CONFIG = EvaluationConfig(warmup_runs=1, num_runs=3)


def answer(call) -> str:
    """Return "result" or the error's name. All exceptions except errors of exit code 1 or 2 propagate."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
        message = "result"
    except TfqError as error:
        assert error.exit_code in (1, 2), f"exit code {error.exit_code}: {error}"
        assert "\n" not in str(error)
        message = type(error).__name__
    assert time.monotonic() - start < LONGEST_SECS
    return message


@pytest.mark.parametrize("name", ["digits_int8", "digits_float32"])
def test_every_damaged_model_is_answered(name, golden):
    audited, interpreted, analyzed = Counter(), Counter(), Counter()
    quantized, floating = ((golden / f"digits_{scheme}.tflite").read_bytes() for scheme in ("int8", "float32"))
    for mutant in mutants((golden / f"{name}.tflite").read_bytes(), MUTATIONS, f"damaged {name}"):
        message = answer(lambda mutant=mutant: tfq.audit(mutant, execute=False).to_dict())
        audited[message] += 1
        # An unreadable file never reaches an interpreter.
        if message != FlatbufferError.__name__ and interpreted.total() < INTERPRETED:
            assert answer(lambda mutant=mutant: tfq.audit(mutant).to_dict()) == message
            message = answer(lambda mutant=mutant: evaluate_model(mutant, (IMAGES, np.arange(4)), CONFIG).to_dict())
            interpreted[message] += 1
            if analyzed.total() < ANALYZED:
                pair = (mutant, floating) if name == "digits_int8" else (quantized, mutant)
                analyzed[answer(lambda pair=pair: analyze(*pair, IMAGES, ANALYSIS).to_text())] += 1
    assert audited.total() == MUTATIONS
    assert (interpreted.total(), analyzed.total()) == (INTERPRETED, ANALYZED)
    # All outcomes must occur, otherwise this tests nothing.
    assert min(audited["result"], audited["FlatbufferError"]) > MUTATIONS // 10
    assert min(interpreted["result"], interpreted["ModelError"]) > INTERPRETED // 20
    assert min(analyzed["result"], ANALYZED - analyzed["result"]) > ANALYZED // 20
