# SPDX-License-Identifier: Apache-2.0
"""Every public function of a flatbuffer accepts its bytes, its path, or its path as a string."""

import dataclasses

import numpy as np
import pytest
from golden_models import GOLDEN, golden
from messages import refused

import tfq
from tfq.errors import InputError

INT8, FLOAT = "digits_int8", "digits_float32"
IMAGES = np.random.default_rng(0).uniform(0, 16, (8, 8, 8, 1)).astype(np.float32)
LABELLED = (IMAGES, np.arange(8) % 10)
UNTIMED = tfq.EvaluationConfig(num_runs=0)
AS_FLOAT = tfq.ConversionConfig(scheme="float32")


def evaluated(model, reference=None):
    record = tfq.evaluate(model, LABELLED, UNTIMED, reference=reference)
    return dataclasses.replace(record, machine={})


def benchmarked(model):
    config = tfq.BenchmarkConfig(num_runs=2, warmup_runs=0, min_secs=0.0, ops=False)
    return [item.model_bytes for item in tfq.benchmark({"a": model}, config).models]


# The call, its model, and the field of its errors.
CALLS = {
    "audit": (tfq.audit, INT8, "model"),
    "evaluate": (evaluated, INT8, "model"),
    "evaluate, reference": (lambda model: evaluated(golden(INT8), model), FLOAT, "reference"),
    "reference_outputs": (
        lambda model: [array.tolist() for array in tfq.reference_outputs(model, IMAGES).outputs],
        FLOAT,
        "model",
    ),
    "analyze, quantized": (lambda model: tfq.analyze(model, golden(FLOAT), IMAGES).to_dict(), INT8, "quantized"),
    "analyze, floating": (lambda model: tfq.analyze(golden(INT8), model, IMAGES).to_dict(), FLOAT, "floating"),
    "benchmark": (benchmarked, INT8, "models['a']"),
    "convert": (lambda model: tfq.convert(model, None, AS_FLOAT), FLOAT, "model"),
}
# The results of the last two are tested in tests/integration: they need a trained model, or minutes.
READS = {
    **CALLS,
    "find_int8": (lambda model: tfq.find_int8(model, LABELLED, LABELLED, LABELLED), FLOAT, "floating"),
    "qat_parity": (lambda model: tfq.qat_parity(None, model, IMAGES), INT8, "model"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bytes_and_paths_give_the_same_result(name):
    call, model, _ = CALLS[name]
    path = GOLDEN / f"{model}.tflite"
    expected = call(path.read_bytes())
    for source in (bytearray(path.read_bytes()), path, str(path)):
        assert call(source) == expected


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize(("file", "word"), [("missing.tflite", "exist"), ("", "directory"), ("empty.tflite", "empty")])
def test_a_path_without_a_model_is_an_input_error(tmp_path, name, file, word):
    call, _, field = READS[name]
    (tmp_path / "empty.tflite").touch()
    for source in (tmp_path / file, str(tmp_path / file)):
        with refused(InputError, field=field, got=str(tmp_path / file), word=word):
            call(source)


@pytest.mark.parametrize("name", READS)
def test_neither_bytes_nor_a_path_is_an_input_error(name):
    call, _, field = READS[name]
    with pytest.raises(InputError) as caught:
        call(7)
    assert caught.value.field == field and caught.value.got in ("int", "builtins.int")
