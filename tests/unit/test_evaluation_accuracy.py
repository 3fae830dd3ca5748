# SPDX-License-Identifier: Apache-2.0
"""Complete evaluations of the golden digits models, compared with the interpreter and NumPy."""

import gzip
import json
import warnings

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import changed, golden
from messages import refused, warned
from sklearn.datasets import load_digits

from tfq import tflite
from tfq.config import EvaluationConfig
from tfq.errors import InputError, TfqWarning
from tfq.evaluation import evaluate_model, reference_outputs
from tfq.evaluation.paired import paired_difference

INT8, FLOAT = golden("digits_int8"), golden("digits_float32")
QUICK = EvaluationConfig(num_runs=0)
N = 60


@pytest.fixture(scope="module")
def digits():
    """Return (x, y): 60 of scikit-learn's digits in the model's own units, 0 to 16."""
    images, labels = load_digits(return_X_y=True)
    return images[:N].reshape(-1, 8, 8, 1).astype(np.float32), labels[:N]


def by_hand(model, x):
    """Return outputs as real values, computed by an interpreter in this process with its own scales."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for example in x:
        if source["dtype"] is np.int8:
            scale, zero_point = source["quantization"]
            example = np.clip(np.rint(example / np.float32(scale) + zero_point), -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], example[np.newaxis])
        interpreter.invoke()
        value = interpreter.get_tensor(sink["index"])[0].astype(np.float64)
        if sink["dtype"] is np.int8:
            scale, zero_point = sink["quantization"]
            value = (value - zero_point) * scale
        outputs.append(value)
    return np.array(outputs)


def test_every_number_is_that_of_the_interpreter_and_numpy(digits):
    x, y = digits
    config = EvaluationConfig(warmup_runs=1, num_runs=5)
    record = evaluate_model(INT8, (x, y), config, reference=FLOAT)
    ours, reference = by_hand(INT8, x), by_hand(FLOAT, x)
    assert record.accuracy == np.mean(ours.argmax(1) == y)
    assert record.reference_accuracy == np.mean(reference.argmax(1) == y)
    assert record.accuracy_drop == record.reference_accuracy - record.accuracy
    expected = paired_difference(ours.argmax(1) == y, reference.argmax(1) == y)
    assert record.accuracy_difference == expected.to_dict() and record.accuracy_difference_reason is None
    assert record.agreement == np.mean(ours.argmax(1) == reference.argmax(1))
    noise = np.sum((ours - reference) ** 2)
    assert record.output_sqnr_db == pytest.approx(10 * np.log10(np.sum(reference**2) / noise), abs=1e-3)
    assert (record.model_bytes, record.gzip_bytes) == (len(INT8), len(gzip.compress(INT8, 9, mtime=0)))
    assert (record.num_examples, record.compared, record.missing) == (N, N, 0)
    assert (record.total_ops, record.delegated_ops) == (9, 7)
    assert 0 < record.latency_p50_ms <= record.latency_p90_ms <= record.latency_p99_ms
    assert (record.clipped_input_fraction, record.unused_range_fraction) == (0.0, 0.0)
    assert record.skipped == {}
    assert json.loads(json.dumps(record.to_dict(), allow_nan=False)) == record.to_dict()


def test_a_bug_in_the_rounding_of_inputs_is_detected(digits, monkeypatch):
    x, y = digits
    x = x + np.random.default_rng(0).uniform(-0.03, 0.03, x.shape).astype(np.float32)
    right = evaluate_model(INT8, (x, y), QUICK, reference=by_hand_reference(x))
    monkeypatch.setattr(
        "tfq.evaluation.inputs.quantize",
        lambda x, scale, zero_point, dtype: np.clip(np.trunc(x / scale + zero_point), -128, 127).astype(dtype),
    )
    wrong = evaluate_model(INT8, (x, y), QUICK, reference=by_hand_reference(x))
    assert right.output_sqnr_db is None
    assert "identical" in right.output_sqnr_db_reason
    assert wrong.output_sqnr_db is not None


def by_hand_reference(x):
    """Return the int8 model's outputs, computed by an interpreter in this process, as reference outputs."""
    import dataclasses

    reference = reference_outputs(INT8, x)
    return dataclasses.replace(reference, outputs=(by_hand(INT8, x).astype(np.float32),))


def test_reference_outputs_are_shared_among_models_and_give_the_same_record(digits):
    reference = reference_outputs(FLOAT, digits, QUICK)
    shared = evaluate_model(INT8, digits, QUICK, reference=reference)
    assert shared == evaluate_model(INT8, digits, QUICK, reference=FLOAT)
    itself = evaluate_model(FLOAT, digits, QUICK, reference=reference)
    assert (itself.agreement, itself.accuracy_drop, itself.output_sqnr_db) == (1.0, 0.0, None)
    assert itself.output_sqnr_db_reason == itself.skipped["output_sqnr_db"]
    assert "identical" in itself.output_sqnr_db_reason
    x, y = digits
    with refused(InputError, field="reference", expected="outputs of the same data"):
        evaluate_model(INT8, (x[::-1], y[::-1]), QUICK, reference=reference)


def test_without_labels_accuracy_has_a_reason_and_the_rest_stands(digits):
    record = evaluate_model(INT8, digits[0], QUICK, reference=FLOAT)
    assert (record.accuracy, record.accuracy_drop, record.reference_accuracy) == (None, None, None)
    assert record.accuracy_reason == record.skipped["accuracy"] == "the data has no labels"
    assert record.agreement > 0.9
    assert record.output_sqnr_db > 10


def test_without_a_reference_or_timed_runs_the_record_says_so(digits):
    record = evaluate_model(INT8, digits, QUICK)
    assert (record.agreement, record.output_sqnr_db, record.compared) == (None, None, 0)
    assert record.latency_p50_ms is None
    assert set(record.skipped) == {"accuracy_drop", "agreement", "output_sqnr_db", "latency"}
    assert record.latency_reason == record.skipped["latency"]


def test_a_metric_takes_the_place_of_top1(digits):
    def mean_of_the_label(outputs, labels):
        return float(np.mean(outputs[np.arange(len(labels)), labels]))

    x, y = digits
    record = evaluate_model(INT8, (x, y), QUICK, reference=FLOAT, metric=mean_of_the_label)
    assert record.metric == "mean_of_the_label"
    assert record.accuracy == pytest.approx(by_hand(INT8, x)[np.arange(N), y].mean(), abs=1e-6)
    assert record.reference_accuracy == pytest.approx(by_hand(FLOAT, x)[np.arange(N), y].mean(), abs=1e-6)
    with refused(InputError, field="metric", expected="a finite number"):
        evaluate_model(INT8, (x, y), QUICK, metric=lambda outputs, labels: float("nan"))


def test_of_several_outputs_all_are_compared_and_the_first_is_scored(digits):
    def logits_too(model):
        graph = model.subgraphs[0]
        graph.outputs = [*graph.outputs, graph.operators[-1].inputs[0]]

    ours, reference = changed(INT8, logits_too), changed(FLOAT, logits_too)
    with warned("'probabilities'"):
        record = evaluate_model(ours, digits, QUICK, reference=reference)
    one = evaluate_model(INT8, digits, QUICK, reference=FLOAT)
    assert (record.accuracy, record.agreement) == (one.accuracy, one.agreement)
    assert len(record.outputs) == 2
    assert record.outputs[0]["sqnr_db"] == one.output_sqnr_db
    assert record.output_sqnr_db == min(output["sqnr_db"] for output in record.outputs)
    shapes = evaluate_model(ours, digits, QUICK, metric=lambda outputs, labels: len(outputs))
    assert shapes.accuracy == 2


def test_data_in_other_units_and_other_preprocessing_are_warned_of(digits):
    x, y = digits
    recorded = tflite.write_metadata(INT8, {"preprocessing": {"resize": [], "scale": 1.0, "offset": 0.0}})
    provided = {"resize": [], "scale": 0.0625, "offset": 0.0}
    with pytest.warns(TfqWarning) as message:
        record = evaluate_model(recorded, (x / 16, y), QUICK, preprocessing=provided)
    assert record.warnings == tuple(str(warning.message) for warning in message)
    assert "0.0625" in record.warnings[0]
    assert "94%" in record.warnings[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = {"resize": [], "scale": 1, "offset": 0}
        assert evaluate_model(recorded, (x, y), QUICK, preprocessing=same).warnings == ()
    with warned("clipped"):
        assert evaluate_model(INT8, (x * 16, y), QUICK).clipped_input_fraction > 0.3


def test_a_limit_beyond_the_data_is_reported(digits):
    assert evaluate_model(INT8, digits, EvaluationConfig(num_runs=0, limit=7)).num_examples == 7
    with warned("99"):
        record = evaluate_model(INT8, digits, EvaluationConfig(num_runs=0, limit=99))
    assert (record.num_examples, record.missing) == (N, 39)


def test_outputs_without_classes_have_no_accuracy_but_noise(digits):
    float_maps = golden("two_branches_float32")
    record = evaluate_model(float_maps, digits, QUICK, reference=float_maps)
    assert record.accuracy is None
    assert "evaluation.metric" in record.accuracy_reason
    assert record.agreement is None
    assert "identical" in record.output_sqnr_db_reason


def test_a_model_that_computes_nan_is_not_scored(digits):
    def poison(model):
        bias = next(tensor for tensor in model.subgraphs[0].tensors if np.array_equal(tensor.shape, [10]))
        model.buffers[bias.buffer].data = np.frombuffer(np.full(10, np.nan, "<f4").tobytes(), np.uint8)

    with refused(InputError, field="outputs", expected="numbers", word="'probabilities'"):
        evaluate_model(changed(FLOAT, poison), digits, QUICK)


@pytest.mark.parametrize(
    ("change", "field", "got", "word"),
    [
        (lambda x, y: (x[:, :7], y), "data", (7, 8, 1), "'image'"),
        (lambda x, y: (x, np.where(y == y[3], 10, y)), "labels", 10, "3"),
        (lambda x, y: (x, y[:-1]), "data", {"input 'x'": 60, "labels": 59}, "labels"),
        (lambda x, y: (x[:0], y[:0]), "data", 0, "empty"),
        (lambda x, y: (np.where(np.arange(N).reshape(-1, 1, 1, 1) == 5, np.nan, x), y), "x[5]", "NaN", "5"),
    ],
)
def test_bad_data_is_refused_with_what_is_wrong(digits, change, field, got, word):
    with refused(InputError, field=field, got=got, word=word):
        evaluate_model(INT8, change(*digits), QUICK)


def test_bad_models_and_references_are_refused(digits):
    with pytest.raises(InputError):
        evaluate_model(b"text, no flatbuffer", digits, QUICK)
    with pytest.raises(InputError) as caught:
        evaluate_model(INT8, digits, EvaluationConfig(backend="locla"))
    assert caught.value.got == "locla" and "local" in caught.value.expected
    with refused(InputError, field="reference", expected=(N, 10), got=(N, 8, 8, 4)):
        evaluate_model(INT8, digits, QUICK, reference=golden("two_branches_float32"))
