# SPDX-License-Identifier: Apache-2.0
"""Outputs that predict a class: recognized by the op that computes them and by their values."""

import dataclasses

import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq import tflite
from tfq.compression.parity.record import OutputTally
from tfq.errors import InputError
from tfq.evaluation.classes import agreement, is_class_vector
from tfq.tflite import Op, Subgraph, Tensor

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(20, 4)).astype(np.float32)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def graph(*ops):
    """Return a chain of (op name, shape of its output)."""
    tensors = [
        Tensor(index=i, name=str(i), shape=shape, shape_signature=shape, dtype="float32")
        for i, shape in enumerate([(1, 8), *(shape for _, shape in ops)])
    ]
    records = [Op(index=i, name=name, version=1, inputs=(i,), outputs=(i + 1,)) for i, (name, _) in enumerate(ops)]
    return Subgraph(
        index=0, name="main", tensors=tuple(tensors), ops=tuple(records), inputs=(0,), outputs=(len(records),)
    )


def says_classes(ops, values):
    chain = graph(*ops)
    return is_class_vector(chain, chain.outputs[0], np.asarray(values))


@pytest.mark.parametrize(
    ("ops", "values"),
    [
        ([("SOFTMAX", (1, 4))], softmax(LOGITS)),
        ([("SOFTMAX", (1, 4)), ("QUANTIZE", (1, 4)), ("DEQUANTIZE", (1, 4))], softmax(LOGITS)[:1]),
        ([("LOG_SOFTMAX", (1, 4)), ("RESHAPE", (1, 1, 4, 1))], np.log(softmax(LOGITS)).reshape(-1, 1, 4, 1)),
        ([("SOFTMAX", (64, 3)), ("RESHAPE", (1, 8, 8, 3))], softmax(RNG.normal(size=(2, 8, 8, 3)))),
        ([("DIV", (1, 4))], softmax(LOGITS)),
        ([("TRANSPOSE", (1, 8, 8, 3))], softmax(RNG.normal(size=(2, 8, 8, 3)))),
        ([("LOGISTIC", (1, 1))], [[0.2], [0.9]]),
        ([("LOGISTIC", (1, 1)), ("RESHAPE", (1,))], [0.2, 0.9]),
        ([("ARG_MAX", (1,)), ("CAST", (1,))], np.array([3, 1, 2], np.int32)),
    ],
    ids=["softmax", "quantized", "log", "segmentation", "softmax in parts", "moved axis", "sigmoid", "flat", "argmax"],
)
def test_an_output_that_says_a_class_counts(ops, values):
    assert says_classes(ops, values)


@pytest.mark.parametrize(
    ("ops", "values"),
    [
        ([("FULLY_CONNECTED", (1, 4))], LOGITS),
        ([("LOGISTIC", (1, 4))], softmax(LOGITS)),
        ([("FULLY_CONNECTED", (1, 4))], np.abs(LOGITS)),
        ([("FULLY_CONNECTED", (1, 1))], [[0.2], [0.9]]),
        ([("LOGISTIC", (1, 8, 8, 1))], RNG.random((2, 8, 8, 1))),
        ([("SOFTMAX", (1, 64)), ("RESHAPE", (1, 8, 8))], softmax(RNG.normal(size=(2, 64))).reshape(2, 8, 8)),
        ([("SOFTMAX", (1, 4)), ("CONCATENATION", (1, 8))], np.hstack([softmax(LOGITS), LOGITS])),
        ([("SOFTMAX", (1, 4)), ("FULLY_CONNECTED", (1, 4))], LOGITS),
        ([("FULLY_CONNECTED", (1, 4))], softmax(LOGITS)[:1]),
        ([("SOFTMAX", (1, 1))], np.ones((5, 1))),
        ([("SUM", (1, 4))], np.array([[3, 1, 2, 0]], np.int32)),
        ([("SOFTMAX", (1, 4))], np.zeros((0, 4))),
    ],
    ids=[
        "logits or boxes",
        "labels that do not exclude",
        "positive",
        "one number",
        "mask",
        "spatial softmax",
        "boxes and scores",
        "after the softmax",
        "one row of sum 1",
        "one class",
        "integers",
        "no examples",
    ],
)
def test_an_output_of_numbers_does_not_count(ops, values):
    assert not says_classes(ops, values)


@pytest.mark.parametrize("name", ["digits_float32", "digits_int8", "digits_int8_uint8_io", "digits_int8_float_io"])
def test_the_digits_model_says_classes_in_every_form(name):
    main = tflite.read(golden(name)).main_subgraph
    values = softmax(RNG.normal(size=(5, 10)))
    assert is_class_vector(main, main.outputs[0], values)
    # The same file without the op that indicates it, and with values that do not.
    bare = dataclasses.replace(main, ops=tuple(op for op in main.ops if op.name != "SOFTMAX"))
    assert not is_class_vector(bare, main.outputs[0], values * 2)


def test_agreement_counts_examples_and_positions():
    ours, theirs = np.array([[3.0, 1], [0, 2], [5, 5]]), np.array([[9.0, 1], [4, 2], [1, 0]])
    assert agreement(ours, theirs) == 2 / 3
    pixels = RNG.normal(size=(2, 5, 6, 3))
    other = RNG.normal(size=(2, 5, 6, 3))
    assert agreement(pixels, other) == np.mean(pixels.argmax(-1) == other.argmax(-1))
    assert agreement(np.array([[0.4], [0.6]]), np.array([[0.1], [0.2]])) == 0.5
    assert agreement(np.array([3, 1, 2]), np.array([3, 1, 0])) == 2 / 3


def test_agreement_of_other_shapes_or_nan_is_refused():
    with refused(InputError, field="outputs", expected=(2, 3), got=(2, 4)):
        agreement(np.zeros((2, 4)), np.zeros((2, 3)))
    with refused(InputError, field="outputs"):
        agreement(np.full((2, 4), np.nan), np.zeros((2, 4)))


@pytest.mark.parametrize(("op", "says_class"), [("SOFTMAX", True), ("FULLY_CONNECTED", False)])
def test_qat_parity_compares_classes_of_outputs_that_say_one_only(op, says_class):
    chain = graph((op, (1, 4)))
    tensors = [dataclasses.replace(tensor, dtype="int8", scale=(1 / 256,), zero_point=(0,)) for tensor in chain.tensors]
    tally = OutputTally("y", tensors[1], dataclasses.replace(chain, tensors=tuple(tensors)))
    own, got = LOGITS, LOGITS[:, ::-1].copy()
    tally.add(own, got, {})
    message = tally.record([])
    expected = np.mean(own.argmax(axis=1) == got.argmax(axis=1)) if says_class else None
    assert message.top1_agreement == expected and bool(message.disagreements) == says_class
