# SPDX-License-Identifier: Apache-2.0
"""Tensors that are used as indices stay exact. Oracle: Keras, compared with a plain interpreter."""

import warnings

import keras
import numpy as np
import pytest
import tf_keras
from interpreted import answers_of, sqnr_db

import tfq
from tfq import tflite
from tfq.conversion import exact_indices, quantize
from tfq.tflite.index_values import quantized_indices

NUM_IDS = 1000
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, NUM_IDS, size=(160, 5)).astype("float32")
REALS = RNG.normal(size=(160, 5)).astype("float32")
L, ops = keras.layers, keras.ops


def embedding_first(module):
    module.utils.set_random_seed(1)
    length = {"input_length": 5} if module is tf_keras else {}
    first = module.layers.Embedding(NUM_IDS, 4, **length)
    model = module.Sequential([first, module.layers.Flatten(), module.layers.Dense(3, name="p")])
    if not model.built:
        model(IDS[:1])
    return model


def functional(body):
    keras.utils.set_random_seed(1)
    x = L.Input((5,), name="x")
    return keras.Model(x, L.Dense(3)(L.Flatten()(body(x))))


def embedding(x):
    return L.Embedding(NUM_IDS, 4)(x)


COMPUTED = {
    "rescaled": (lambda x: embedding(L.Rescaling(100.0)(x)), IDS / 100 + 0.001),
    "rounded": (lambda x: embedding(ops.round(x * 100)), IDS / 100),
    "sliced": (lambda x: ops.concatenate([L.Flatten()(embedding(x[:, :2])), x[:, 2:] / NUM_IDS], -1), IDS),
    "read twice": (lambda x: ops.concatenate([L.Flatten()(embedding(x)), L.Dense(4)(x / NUM_IDS)], -1), IDS),
    "buckets": (lambda x: L.Embedding(4, 4)(L.Discretization([-1.0, 0.0, 1.0])(x)), REALS),
    "a dense layer's": (lambda x: embedding(ops.round(L.Dense(1)(x) * 30 + 300)), REALS),
}


def converted(model, data, **config):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        content = tfq.convert(model, data[:120], tfq.ConversionConfig(**config))
    graph = tflite.read(content).main_subgraph
    assert quantized_indices(graph) == ()
    return content, graph, [str(item.message) for item in caught if item.category is tfq.TfqWarning]


@pytest.mark.parametrize("module", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("config", [{}, {"scheme": "int16x8"}, {"quantizer": "litert"}], ids=str)
def test_float_ids_of_an_embedding_become_whole_numbers(module, config):
    model = embedding_first(module)
    content, graph, messages = converted(model, IDS, **config)
    assert [tensor.dtype for tensor in graph.input_tensors] == ["int32"]
    assert [message for message in messages if "int32" in message]
    assert tfq.audit(content, tfq.AuditConfig(require=config.get("scheme", "full_int8"))).ok
    assert sqnr_db(model.predict(IDS, verbose=0), answers_of(content, IDS)) > 28
    # The user still feeds floats.
    assert tfq.evaluate(content, (IDS[:20], None)).num_examples == 20


def test_float_ids_stay_float_where_the_config_asks_for_it():
    model = embedding_first(keras)
    content, graph, _ = converted(model, IDS, inference_input_type="float32")
    assert [tensor.dtype for tensor in graph.input_tensors] == ["float32"]
    assert sqnr_db(model.predict(IDS, verbose=0), answers_of(content, IDS)) > 28


def test_fractional_ids_are_truncated_as_in_keras():
    model, data = embedding_first(keras), IDS + 0.7
    content, graph, _ = converted(model, data)
    assert [tensor.dtype for tensor in graph.input_tensors] == ["float32"]
    assert sqnr_db(model.predict(data, verbose=0), answers_of(content, data)) > 28


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, config) for name in COMPUTED for config in ({}, {"scheme": "int16x8"})),
        *((name, {"quantizer": "litert"}) for name in ("read twice", "a dense layer's")),
    ],
    ids=str,
)
def test_ops_that_compute_indices_from_floats_stay_float_and_are_named(name, config):
    body, data = COMPUTED[name]
    model = functional(body)
    content, _, messages = converted(model, data, **config)
    assert [message for message in messages if "indices" in message]
    assert sqnr_db(model.predict(data, verbose=0), answers_of(content, data)) > 30


def test_integer_ids_have_an_int16x8_form():
    keras.utils.set_random_seed(1)
    x = L.Input((5,), dtype="int32")
    model = keras.Model(x, L.Dense(3)(L.Flatten()(embedding(x))))
    content, graph, _ = converted(model, IDS.astype("int32"), scheme="int16x8")
    assert [tensor.dtype for tensor in graph.input_tensors] == ["int32"]
    assert sqnr_db(model.predict(IDS, verbose=0), answers_of(content, IDS)) > 30


def test_indices_of_an_argmax_leave_its_scores_quantized():
    model = functional(lambda x: L.Embedding(5, 4)(ops.argmax(x * 2, -1)))
    content, _, messages = converted(model, REALS)
    assert not [message for message in messages if "indices" in message]
    assert tfq.audit(content).input_types == ("int8",)


def test_without_the_fix_the_audit_and_the_outputs_show_the_fault(monkeypatch):
    monkeypatch.setattr(quantize, "with_integer_inputs", lambda model, samples, config: (model, samples))
    monkeypatch.setattr(exact_indices, "_float_index_ops", lambda graph: [])
    model = embedding_first(keras)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = tfq.convert(model, IDS[:120])
    kinds = {finding.kind for finding in tfq.audit(content, tfq.AuditConfig(allow_float=("*",))).failures}
    assert kinds == {"quantized_index"}
    assert sqnr_db(model.predict(IDS, verbose=0), answers_of(content, IDS)) < 5
