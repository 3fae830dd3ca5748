# SPDX-License-Identifier: Apache-2.0
"""Attention is bridged in its parts if it is standard: same function, fake quantization inside, weights returned."""

import numpy as np
import pytest
from messages import refused

import tfq
from tfq import tflite
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras, return_weights, to_tf_keras


def stirred(model, seed=0):
    """Change every weight, biases too, so that a misplaced one is detected."""
    rng = np.random.default_rng(seed)
    model.set_weights([array + 0.3 * rng.normal(size=array.shape).astype(array.dtype) for array in model.get_weights()])
    return model


def kinds(result, layer):
    return [type(result.model.get_layer(name)).__name__ for name in result.layer_map[layer]]


def crossed(keras, *, length=5, **options):
    """Return attention of a few queries over longer keys and values, all of different widths."""
    query, value, key = keras.Input((3, 6)), keras.Input((length, 7)), keras.Input((length, 4))
    y = keras.layers.MultiHeadAttention(2, 3, name="attention", **options)(query, value, key)
    return stirred(keras.Model([query, value, key], y))


CROSSED = [
    {},
    {"value_dim": 5, "output_shape": 9},
    {"use_bias": False, "kernel_regularizer": "l2"},
    {"dropout": 0.4, "trainable": False},
    {"length": None},
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, options) for kind in ("keras", "tf_keras") for options in CROSSED),
        ("keras", {"use_gate": True, "value_dim": 5, "output_shape": 9}),
    ],
    ids=str,
)
def test_plain_attention_becomes_projections_and_products_that_compute_the_same(kind, options):
    model = crossed(import_keras() if kind == "keras" else import_tf_keras(), **options)
    result = to_tf_keras(model)
    assert kinds(result, "attention").count("Dense") == 4 + options.get("use_gate", False)
    assert kinds(result, "attention").count("Dropout") == bool(options.get("dropout"))
    rng = np.random.default_rng(1)
    provided = [rng.normal(size=(2, *sizes)).astype("float32") for sizes in ((3, 6), (5, 7), (5, 4))]
    np.testing.assert_allclose(result.model(provided), model(provided, training=False), atol=1e-5)
    assert result.model.count_params() == model.count_params()
    trains = options.get("trainable", True)
    assert bool(result.model.trainable_weights) == trains
    assert bool(result.model.losses) == ("kernel_regularizer" in options)
    copy = import_tf_keras().models.clone_model(result.model)
    copy.set_weights([array + 1 for array in result.model.get_weights()])
    before = model.get_weights()
    return_weights(result, copy)
    for was, is_now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(is_now, was + 1, atol=1e-5)


GROUPED = [
    {},
    {"num_query_heads": 3, "num_key_value_heads": 1, "use_gate": True},
    {"use_bias": False, "use_gate": True, "kernel_regularizer": "l2"},
    {"num_key_value_heads": 6},
    {"dropout": 0.4, "trainable": False},
    {"length": None},
    {"queries": None, "length": None},
]


def grouped(*, queries=3, length=5, **options):
    """Return a model with grouped-query attention, by default six heads over two keys and values."""
    keras = import_keras()
    query, value, key = keras.Input((queries, 7)), keras.Input((length, 7)), keras.Input((length, 4))
    options = {"num_query_heads": 6, "num_key_value_heads": 2} | options
    y = keras.layers.GroupQueryAttention(head_dim=3, name="attention", **options)(query, value, key)
    return stirred(keras.Model([query, value, key], y))


@pytest.mark.parametrize("options", GROUPED, ids=str)
def test_grouped_query_attention_becomes_equal_projections_and_products(options):
    model = grouped(**options)
    result = to_tf_keras(model)
    assert kinds(result, "attention").count("Dense") == 4 + options.get("use_gate", False)
    rng = np.random.default_rng(1)
    provided = [rng.normal(size=(2, *sizes)).astype("float32") for sizes in ((3, 7), (5, 7), (5, 4))]
    np.testing.assert_allclose(result.model(provided), model(provided, training=False), atol=1e-5)
    assert result.model.count_params() == model.count_params()
    assert bool(result.model.trainable_weights) == options.get("trainable", True)
    assert bool(result.model.losses) == ("kernel_regularizer" in options)
    before = model.get_weights()
    result.model.set_weights([array + 1 for array in result.model.get_weights()])
    return_weights(result)
    for was, is_now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(is_now, was + 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "called", "word"),
    [
        ({"sliding_window": 2}, {}, "sliding_window=2"),
        ({"kernel_constraint": "non_neg"}, {}, "constraint"),
    ],
    ids=["window", "constrained"],
)
def test_grouped_query_attention_with_keras_3_options_is_refused(options, called, word):
    keras = import_keras()
    x = keras.Input((4, 6))
    layer = keras.layers.GroupQueryAttention(
        head_dim=3, num_query_heads=2, num_key_value_heads=1, name="attention", **options
    )
    with refused(tfq.InputError, field="model", got=("attention",), word=word):
        to_tf_keras(keras.Model(x, layer(x, x, **called)))


def with_mask_of_a_recurrent_layer(keras, x):
    embedded = keras.layers.Embedding(9, 6, mask_zero=True)(x)
    embedded = keras.layers.SimpleRNN(6, return_sequences=True)(embedded)
    return keras.layers.MultiHeadAttention(2, 3, name="attention")(embedded, embedded)


def with_scores(keras, x):
    embedded = keras.layers.Embedding(9, 6)(x)
    y, scores = keras.layers.MultiHeadAttention(2, 3, name="attention")(
        embedded, embedded, return_attention_scores=True
    )
    return keras.layers.Concatenate()([keras.layers.Flatten()(y), keras.layers.Flatten()(scores)])


def constrained(keras, x):
    embedded = keras.layers.Embedding(9, 6)(x)
    return keras.layers.MultiHeadAttention(2, 3, kernel_constraint="non_neg", name="attention")(embedded, embedded)


@pytest.mark.parametrize("build", [with_mask_of_a_recurrent_layer, with_scores, constrained])
@pytest.mark.parametrize("kind", ["keras", "tf_keras"])
def test_any_other_attention_stays_whole(kind, build):
    keras = import_keras() if kind == "keras" else import_tf_keras()
    x = keras.Input((4,), dtype="int32")
    model = keras.Model(x, build(keras, x))
    result = to_tf_keras(model)
    assert kinds(result, "attention") == ["MultiHeadAttention"]
    assert (result.model is model) == (kind == "tf_keras")


def test_an_outer_mask_keeps_attention_of_an_inner_model_whole():
    keras = import_keras()
    inside = keras.Input((4, 6))
    inner = keras.Model(inside, keras.layers.MultiHeadAttention(2, 3, name="attention")(inside, inside), name="inner")
    x = keras.Input((4,), dtype="int32")
    model = stirred(keras.Model(x, inner(keras.layers.Embedding(9, 6, mask_zero=True)(x))))
    result = to_tf_keras(model)
    assert kinds(result, "inner/attention") == ["MultiHeadAttention"]
    provided = np.array([[1, 2, 0, 0], [3, 0, 0, 0]], "int32")
    np.testing.assert_allclose(result.model(provided), model(provided), atol=1e-5)


def test_attention_in_a_wrapped_model_stays_whole_and_returns_weights():
    keras = import_keras()
    inside = keras.Input((4, 6))
    inner = keras.Model(inside, keras.layers.MultiHeadAttention(2, 3)(inside, inside))
    x = keras.Input((2, 4, 6))
    model = stirred(keras.Model(x, keras.layers.TimeDistributed(inner)(x)))
    result = to_tf_keras(model)
    before = model.get_weights()
    result.model.set_weights([array + 1 for array in result.model.get_weights()])
    return_weights(result)
    for was, is_now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(is_now, was + 1, atol=1e-5)


def test_parts_take_no_name_of_the_users_own_layers():
    keras = import_keras()
    x = inputs = keras.Input((4, 6))
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.Dense(6, name="attention_query")(x)
    result = to_tf_keras(keras.Model(inputs, x))
    assert result.layer_map["attention_query"] == ("attention_query",)
    assert "attention_query_1" in result.layer_map["attention"]


def kept(count=8, places=6):
    return (np.arange(places) < np.random.default_rng(2).integers(0, places + 1, (count, 1))).astype("int32")


def masked(keras, layer, form):
    """Return (model, its inputs): attention whose mask has this form."""
    x, keep = keras.Input((6, 5), name="x"), keras.Input((6,), dtype="int32", name="keep")
    half = np.tril(np.ones((6, 6), bool)) & (np.arange(6) > 1)[:, None]
    called = {
        "causal": {"use_causal_mask": True},
        "constant": {"attention_mask": half[None]},
        "of keys": {"attention_mask": keras.ops.expand_dims(keep, 1) if hasattr(keras, "ops") else keep[:, None, :]},
        "both": {"use_causal_mask": True},
    }
    called["both"] |= called["of keys"]
    model = stirred(keras.Model([x, keep], [layer(x, x, **called[form]), keras.layers.Flatten()(keep)]))
    return model, [np.random.default_rng(3).normal(size=(8, 6, 5)).astype("float32"), kept()]


MASKED = [
    *((kind, form) for kind in ("keras", "grouped", "dropout") for form in ("causal", "constant", "of keys", "both")),
    ("tf_keras", "causal"),
]


@pytest.mark.parametrize(("kind", "form"), MASKED)
def test_masked_attention_comes_over_in_parts_that_compute_the_same(kind, form):
    keras = import_tf_keras() if kind == "tf_keras" else import_keras()
    if kind == "grouped":
        layer = keras.layers.GroupQueryAttention(3, 4, 2, name="attention")
    else:
        layer = keras.layers.MultiHeadAttention(2, 3, dropout=0.3 * (kind == "dropout"), name="attention")
    model, provided = masked(keras, layer, form)
    result = to_tf_keras(model)
    assert kinds(result, "attention").count("MaskedScores") == 1
    np.testing.assert_allclose(result.model(provided)[0], np.asarray(model(provided)[0]), atol=1e-5)


def embedded_ids(keras, end):
    """Return two blocks of attention over ids of which 0 is padding; later layers decide who else reads the mask."""
    layers = keras.layers
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Dense(8, name="dense")(layers.Embedding(9, 8, mask_zero=True, name="embedding")(ids))
    for name in ("attention", "second"):
        x = layers.Add(name=f"{name}_joined")([x, layers.MultiHeadAttention(2, 4, name=name)(x, x)])
    x = {"flatten": layers.Flatten, "average": layers.GlobalAveragePooling1D, "recurrent": lambda: layers.SimpleRNN(3)}[
        end
    ]()(x)
    return keras.Model(ids, layers.Dense(3, name="head")(x))


def padded_ids(count=64):
    rng = np.random.default_rng(4)
    return np.where(np.arange(6) < rng.integers(1, 7, (count, 1)), rng.integers(1, 9, (count, 6)), 0).astype("int32")


@pytest.mark.parametrize("end", ["flatten", "average", "recurrent"])
@pytest.mark.parametrize("kind", ["keras", "tf_keras"])
def test_implicit_masks_become_tensors_and_attention_its_parts(kind, end):
    model = stirred(embedded_ids(import_keras() if kind == "keras" else import_tf_keras(), end))
    result = to_tf_keras(model)
    assert kinds(result, "attention").count("MaskedScores") == 1
    np.testing.assert_allclose(result.model(padded_ids()), np.asarray(model(padded_ids())), rtol=1e-4, atol=1e-4)
    rows = {row.name: row.qat for row in tfq.preflight(result).layers}
    assert {rows[name] for name in ("embedding", "dense", "attention", "attention_joined", "head")} == {"qat"}
    assert end == "flatten" or "ptq_only" in rows.values()


@pytest.mark.parametrize("kind", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_attention_with_implicit_masks_is_trained_and_the_flatbuffer_computes_it(kind):
    keras, tf_keras = import_keras() if kind == "keras" else import_tf_keras(), import_tf_keras()
    ids = padded_ids()

    def fit(trained, callbacks):
        trained.compile(tf_keras.optimizers.Adam(1e-3), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        trained.fit(ids, ids[:, 0] % 3, epochs=1, callbacks=callbacks, verbose=0)

    with deterministic(0):
        keras.utils.set_random_seed(0)
        aware = tfq.qat(to_tf_keras(embedded_ids(keras, "flatten")).model, fit, calibration=ids)
        contents = tfq.convert(aware)  # no samples: every tensor already has a range
    assert tfq.qat_parity(aware, contents, ids).to_dict()["logit_sqnr_db"] > 30


def plain_layer(layers):
    return layers.MultiHeadAttention(2, 8, name="attention")


def grouped_layer(layers):
    return layers.GroupQueryAttention(
        head_dim=4, num_query_heads=4, num_key_value_heads=2, use_gate=True, name="attention"
    )


def vision_transformer(keras, attention=plain_layer, **called):
    layers = keras.layers
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 4, strides=4, name="patches")(x))
    y = attention(layers)(x, x, **called)
    x = layers.Add(name="joined")([x, y])
    y = layers.Dense(32, activation="relu", name="wide")(x)
    x = layers.Add(name="out")([x, layers.Dense(16, name="narrow")(y)])
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x)))


def blobs(n, seed):
    """Return smooth images of four classes: a bright corner each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    x = rng.normal(0, 0.3, (n, 16, 16, 3))
    for corner in range(4):
        row, column = 8 * (corner // 2), 8 * (corner % 2)
        x[labels == corner, row : row + 8, column : column + 8] += 1
    return x.astype("float32"), labels


@pytest.mark.parametrize(
    ("attention", "query", "called"),
    [
        (plain_layer, "query_dense", {}),
        pytest.param(grouped_layer, "_query_dense", {"use_causal_mask": True}, id="grouped, causal"),
        pytest.param(grouped_layer, "_query_dense", {}, id="grouped", marks=pytest.mark.slow),
        pytest.param(
            plain_layer,
            "query_dense",
            {"attention_mask": np.tri(16, dtype=bool)[None, ::-1]},
            id="masked",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_attention_is_pruned_and_fake_quantized_and_the_flatbuffer_computes_it(attention, query, called):
    keras, tf_keras = import_keras(), import_tf_keras()
    x, labels = blobs(256, 0)
    with deterministic(0):
        keras.utils.set_random_seed(0)
        model = vision_transformer(keras, attention, **called)

        def fit(trained, callbacks):
            loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            trained.compile(tf_keras.optimizers.Adam(3e-3), loss)
            trained.fit(x, labels, epochs=3, batch_size=32, callbacks=callbacks, verbose=0)

        result = to_tf_keras(model)
        pruned = tfq.prune(result.model, fit, tfq.PruneConfig(final_sparsity=0.5))
        aware = tfq.qat(pruned, fit, calibration=x[:200])
        contents = tfq.convert(aware)  # no samples: every tensor already has a range
    assert tfq.audit(contents, tfq.AuditConfig(require="full_int8")).ok
    test_x, test_labels = blobs(256, 1)
    evaluated = tfq.evaluate(contents, (test_x, test_labels), tfq.EvaluationConfig(num_runs=0))
    assert evaluated.accuracy > 0.95
    parity = tfq.qat_parity(aware, contents, test_x).to_dict()
    assert parity["logit_sqnr_db"] > 30 and parity["first_departure"] is None
    softmaxes = [op for op in tflite.read(contents).main_subgraph.ops if op.name == "SOFTMAX"]
    chosen = [op for op in tflite.read(contents).main_subgraph.ops if op.name.startswith("SELECT")]
    assert len(softmaxes) == 1 and bool(chosen) == bool(called)
    return_weights(result, aware)
    kernel = getattr(model.get_layer("attention"), query).kernel
    assert np.mean(np.asarray(kernel) == 0) == pytest.approx(0.5, abs=0.01)


def test_preflight_has_one_row_for_attention_and_says_it_is_trained():
    [row] = [item for item in tfq.preflight(vision_transformer(import_keras())).layers if item.name == "attention"]
    assert (row.kind, row.qat, row.prunable) == ("MultiHeadAttention", "qat", True)


def test_shared_masked_attention_is_split_unless_its_calls_differ():
    keras = import_keras()
    x, mask = keras.Input((3, 4)), keras.Input((3, 3), dtype="int32")
    alike, unlike = (keras.layers.MultiHeadAttention(2, 2, name=name) for name in ("alike", "unlike"))
    y = alike(alike(x, x, attention_mask=mask), x, attention_mask=mask)
    result = to_tf_keras(stirred(keras.Model([x, mask], y)))  # compares the outputs
    assert result.max_difference < 1e-6 and "Dense" in kinds(result, "alike")
    y = unlike(unlike(x, x, attention_mask=mask), x)
    assert kinds(to_tf_keras(stirred(keras.Model([x, mask], y))), "unlike") == ["MultiHeadAttention"]


def test_integer_masks_are_compared_on_zeros_and_ones():
    keras = import_keras()
    scores, mask = keras.Input((3, 4)), keras.Input((4,), dtype="int32")
    y = keras.layers.Softmax()(keras.layers.Dense(4)(scores), mask=keras.ops.minimum(mask[:, None], 9))
    assert to_tf_keras(stirred(keras.Model([scores, mask], y))).max_difference < 1e-6
