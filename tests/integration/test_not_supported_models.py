# SPDX-License-Identifier: Apache-2.0
"""Rows of docs/not_supported.md that no other test covers: each is refused with its `limit`, and its remedy works."""

import numpy as np
import pytest
from messages import refused, warned

import tfq
from tfq import tflite, workflows
from tfq.conversion.litert import quantize_by_litert
from tfq.conversion.quantize import quantize_flatbuffer
from tfq.keras_bridge import SavedModel, import_keras, import_tensorflow, import_tf_keras, import_tfmot
from tfq.store import StageStore
from tfq.workflows import run as run_module

keras, tf_keras, tf = import_keras(), import_tf_keras(), import_tensorflow()
X = np.random.default_rng(0).uniform(-1, 1, (8, 4)).astype("float32")
FLOAT = tfq.ConversionConfig(scheme="float32")


def dense(module=tf_keras, **options):
    inputs = module.Input((4,), **options)
    return module.Model(inputs, module.layers.Dense(3, name="head")(inputs))


def never(model, callbacks):
    pytest.fail("trained")


def test_arguments_of_call_without_names():
    class Starred(keras.Model):
        def call(self, *args):
            return args[0] * 2.0

    with refused(tfq.InputError, field="model", word="Starred", limit="unnamed-arguments"):
        tfq.convert(Starred(), X, FLOAT)


def test_sparse_outputs():
    class Sparse(tf_keras.layers.Layer):
        def call(self, x):
            return tf.sparse.from_dense(x)

    inputs = tf_keras.Input((4,))
    sparse = Sparse(name="sparse")(inputs)
    with refused(tfq.InputError, field="model", got="SparseTensor", limit="output-not-dense"):
        tfq.convert(tf_keras.Model(inputs, sparse), None, FLOAT)


def test_functions_without_a_tflite_op():
    inputs = keras.Input((4,))
    with refused(tfq.InputError, field="model", word="tf.Erf", limit="no-tflite-op"):
        tfq.convert(keras.Model(inputs, keras.ops.erf(inputs)), None, FLOAT)


@pytest.mark.parametrize(
    ("quantize", "fails"),
    [
        (lambda *args: quantize_by_litert(args[0], {}, args[1]), "litert_quantizer.quantizer.Quantizer.quantize"),
        (quantize_flatbuffer, "tfq.conversion.quantize._to_int8"),
    ],
    ids=["litert", "tensorflow"],
)
def test_ops_that_a_quantizer_rejects(quantize, fails, golden, monkeypatch):
    def reject(*args, **kwargs):
        raise RuntimeError("op #3 is unknown")

    monkeypatch.setattr(fails, reject)
    with refused(tfq.InputError, field="model", word="#3", limit="quantizer-rejects"):
        quantize((golden / "digits_float32.tflite").read_bytes(), tfq.ConversionConfig(quantizer="litert"))


def test_two_activations_with_one_name_in_litert_quantizer(golden):
    edited = tflite.unpack((golden / "digits_float32.tflite").read_bytes())
    for tensor in edited.subgraphs[0].tensors:
        tensor.name = b"same"
    model = tflite.pack(edited, 10_000)
    ranges = {(0, op.outputs[0]): (-1.0, 1.0) for op in tflite.read(model).main_subgraph.ops}
    with refused(tfq.InputError, field="conversion.quantizer", word="'same'", limit="equal-tensor-names"):
        quantize_by_litert(model, ranges, tfq.ConversionConfig(quantizer="litert"))


def test_a_model_of_one_strategy_in_the_scope_of_another():
    one, other = tf.distribute.MirroredStrategy(["CPU:0"]), tf.distribute.OneDeviceStrategy("CPU:0")
    with one.scope():
        model = dense()
    with other.scope(), refused(tfq.InputError, field="model", got="OneDeviceStrategy", limit="other-strategy"):
        tfq.qat(model, never)


def test_constants_of_other_float_types():
    inputs = tf_keras.Input((4,))
    hidden = tf_keras.layers.Dense(3, dtype="float64", name="double")(inputs)
    model = tf_keras.Model(inputs, hidden * tf.constant([0.25], tf.float64))
    with refused(tfq.InputError, field="model", limit="float64-casts"):
        tfq.qat(model, never)


def test_clustered_attention_of_tfmot():
    tfmot = import_tfmot()
    inputs = tf_keras.Input((4, 4))
    model = tf_keras.Model(inputs, tf_keras.layers.MultiHeadAttention(1, 2, name="attention")(inputs, inputs))
    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    clustered = tfmot.clustering.keras.cluster_weights(model, number_of_clusters=2, cluster_centroids_init=linear)
    with refused(tfq.InputError, field="model", word="attention", limit="tfmot-attention"):
        tfq.convert(clustered, None, FLOAT)
    assert tfq.convert(tfmot.clustering.keras.strip_clustering(clustered), None, FLOAT)


def test_parity_of_a_model_with_a_fixed_batch(golden):
    with refused(tfq.InputError, field="qat_model", got=1, limit="parity-batch"):
        tfq.qat_parity(dense(batch_size=1), (golden / "digits_int8.tflite").read_bytes(), X)


def test_a_saved_model_without_a_signature(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with refused(tfq.InputError, field="model", limit="no-signature"):
        tfq.convert(tmp_path, None, FLOAT)


@pytest.mark.parametrize(
    ("placeholder", "limit"), [("placeholder", "tensorflow-1"), ("sparse_placeholder", "sparse-signature")]
)
def test_variables_and_sparse_inputs_of_tensorflow_1(placeholder, limit, tmp_path):
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = getattr(v1, placeholder)(tf.float32, (None, 4), name="x")
        y = x * v1.get_variable("scale", initializer=2.0, use_resource=True)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": x}, {"y": y})
    with refused(tfq.InputError, field="model", limit=limit):
        tfq.convert(tmp_path / "old", None, FLOAT)


class Own(keras.Model):
    def call(self, x):
        return x * 2.0


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (lambda path: b"a .tflite", ".tflite"),
        (lambda path: SavedModel(path=path, signatures=(), meta_graph=None, checkpoint={}), "SavedModel"),
        (lambda path: Own(name="own"), "Own"),
        (lambda path: dense(), None),
    ],
    ids=["tflite", "saved_model", "subclassed", "functional"],
)
def test_a_run_skips_the_training_of_models_without_layers(model, word, tmp_path, monkeypatch):
    monkeypatch.setattr(workflows, "load", lambda config, allow_code: model(tmp_path))
    monkeypatch.setattr(run_module, "_converted", lambda run, model, name, scheme, **_: name)
    monkeypatch.setattr(run_module, "_compressed", lambda run, model: pytest.fail("not skipped"))
    (tmp_path / "model.keras").write_bytes(b"weights")
    config = tfq.RunConfig(model=str(tmp_path / "model.keras"), out=str(tmp_path), data=tfq.DataConfig(source="digits"))
    run = run_module.Run(config=config, out=tmp_path, store=StageStore(tmp_path), allow_code=False)
    if word is None:
        with pytest.raises(pytest.fail.Exception):
            run_module.make_flatbuffers(run)
        return
    with warned(word):
        built, _ = run_module.make_flatbuffers(run)
    assert built == ["float", "ptq_int8"]
    assert word in run.stages[-1]["skipped"]
