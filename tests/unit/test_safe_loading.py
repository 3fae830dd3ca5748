# SPDX-License-Identifier: Apache-2.0
"""Parts of a Keras model's config that are refused, found without TensorFlow."""

import copy

import pytest
from messages import refused

from tfq.errors import InputError
from tfq.keras_bridge.loading.inspection import CodeFinding, contains_tfmot, find_code, refuse_code
from tfq.keras_bridge.loading.model_file import ModelFile

DENSE = {
    "module": "keras.layers",
    "class_name": "Dense",
    "config": {
        "name": "head",
        "units": 3,
        "activation": "softmax",
        "dtype": {
            "module": "keras",
            "class_name": "DTypePolicy",
            "config": {"name": "float32"},
            "registered_name": None,
        },
        "kernel_initializer": {
            "module": "keras.initializers",
            "class_name": "GlorotUniform",
            "config": {"seed": None},
            "registered_name": None,
        },
    },
    "registered_name": None,
}

LAMBDA = {
    "class_name": "Lambda",
    "config": {"name": "evil", "function": ["4wEAAAA=", None, None]},
    "module": "keras.layers",
}


def model_of(*layers):
    return {
        "class_name": "Functional",
        "module": "keras.src.models.functional",
        "config": {"name": "m", "layers": list(layers)},
    }


def dense(**changes):
    layer = copy.deepcopy(DENSE)
    config = changes.pop("config", {})
    layer.update(changes)
    layer["config"].update(config)
    return layer


def findings_of(*layers, registered=frozenset()):
    return find_code(model_of(*layers), registered)


def reasons_of(*layers, registered=frozenset()):
    return [finding.reason for finding in findings_of(*layers, registered=registered)]


def test_a_plain_model_of_keras_3_has_no_findings():
    assert find_code(model_of(DENSE)) == ()


def test_a_plain_model_of_keras_2_without_modules_has_no_findings():
    layer = {"class_name": "Conv2D", "name": "c", "config": {"name": "c", "dtype": "float32", "activation": "relu"}}
    assert find_code({"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}) == ()
    # Keras 2.0 had a plain list as the config of a Sequential.
    assert find_code({"class_name": "Sequential", "config": [layer]}) == ()


def test_a_lambda_layer_is_found_with_its_name():
    (finding,) = findings_of(LAMBDA)
    assert finding.layer == "m/evil" and "Python" in finding.reason
    assert finding.to_dict() == {"layer": "m/evil", "reason": finding.reason}


@pytest.mark.parametrize("wrapper", ["TimeDistributed", "Bidirectional", "SpectralNormalization"])
def test_a_lambda_inside_a_wrapper_is_found(wrapper):
    outer = {"class_name": wrapper, "module": "keras.layers", "config": {"name": "w", "layer": LAMBDA}}
    assert [finding.layer for finding in findings_of(outer)] == ["m/w/evil"]


def test_a_lambda_two_models_deep_is_found_with_its_path():
    inner = {"class_name": "Sequential", "module": "keras", "config": {"name": "inner", "layers": [LAMBDA]}}
    assert [finding.layer for finding in findings_of(model_of(inner))] == ["m/m/inner/evil"]


def test_a_lambda_nested_in_a_harmless_layers_config_is_found():
    hidden = dense(
        config={"bias_initializer": {"a": [[{"b": {"class_name": "__lambda__", "config": {"value": "x"}}}]]}}
    )
    assert reasons_of(hidden) == ["it contains the bytecode of a Python lambda"]


@pytest.mark.parametrize(
    "kind",
    [
        "TFSMLayer",
        "TorchModuleWrapper",
        "JaxLayer",
        "FlaxLayer",
        "TensorFlowOpLayer",
        "DenseFeatures",
        "InstanceMethod",
    ],
)
def test_layers_that_run_what_the_file_names_are_refused(kind):
    assert len(reasons_of(dense(class_name=kind))) == 1


@pytest.mark.parametrize(
    "function",
    [
        {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"},
        {"class_name": "function", "module": "builtins", "config": "eval", "registered_name": "eval"},
        {"class_name": "function", "module": "keras.utils", "config": "get_file", "registered_name": "get_file"},
        {"class_name": "function", "module": "keras.config", "config": "enable_unsafe_deserialization"},
        {"class_name": "function", "module": None, "config": "mine", "registered_name": "mine"},
        {"class_name": "function", "module": "keras.activations", "config": ["relu"]},
    ],
)
def test_a_python_function_in_place_of_an_activation_is_refused(function):
    (reason,) = reasons_of(dense(config={"activation": function}))
    assert "Python" in reason


def test_keras_own_activation_as_a_function_object_is_taken():
    function = {"class_name": "function", "module": "builtins", "config": "relu", "registered_name": "relu"}
    assert reasons_of(dense(config={"activation": function})) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"module": "os", "class_name": "system"},
        {"module": "subprocess", "class_name": "Popen"},
        {"module": "my_package", "class_name": "Dense"},
        {"module": "keras.layers", "class_name": "MyDense"},
        {"module": "keras.utils", "class_name": "get_file"},
        {"module": "keras_evil.layers", "class_name": "Dense"},
        {"module": "keras.layers/../x", "class_name": "Dense"},
        {"module": None, "class_name": "MyDense", "registered_name": "pkg>MyDense"},
        {"module": 7, "class_name": "Dense"},
        {"module": "keras.layers", "class_name": "Dense.__init__"},
        {"class_name": ["Dense"]},
        {"module": "keras.src.ops.core", "class_name": "Map"},
        {"module": "keras.src.ops.numpy.os", "class_name": "system"},
    ],
)
def test_classes_that_are_not_keras_own_are_refused(changes):
    assert len(reasons_of(dense(**changes))) == 1


def test_an_operation_of_keras_3_graphs_is_taken():
    assert reasons_of(dense(module="keras.src.ops.numpy", class_name="Add", registered_name="Add")) == []


def test_a_registered_class_or_function_is_the_users_own():
    mine = dense(module=None, class_name="MyDense", registered_name="pkg>MyDense")
    assert reasons_of(mine, registered={"pkg>MyDense"}) == []
    old_format = {"class_name": "pkg>MyDense", "config": {"name": "x"}}
    assert reasons_of(old_format, registered={"pkg>MyDense"}) == []
    function = {"class_name": "function", "module": "mine", "config": "pkg>act", "registered_name": "pkg>act"}
    assert reasons_of(dense(config={"activation": function}), registered={"pkg>act"}) == []


def test_a_registered_name_does_not_hide_a_lambda_or_function():
    assert reasons_of({**LAMBDA, "registered_name": "pkg>MyDense"}, registered={"pkg>MyDense"})
    # Keras looks functions up by `config`, so a known registered_name proves nothing.
    function = {"class_name": "function", "module": "os", "config": "system", "registered_name": "pkg>act"}
    assert reasons_of(dense(config={"activation": function}), registered={"pkg>act"})
    # Keras 2's old format has no modules and ignores registered_name.
    assert reasons_of({"class_name": "X", "config": {}, "registered_name": "pkg>act"}, registered={"pkg>act"})


@pytest.mark.parametrize("function", ["math.add", "__operators__.getitem", "nn.relu6", "compat.v1.transpose", "cast"])
def test_arithmetic_of_tensorflow_is_taken(function):
    assert reasons_of({"class_name": "TFOpLambda", "config": {"name": "op", "function": function}}) == []


@pytest.mark.parametrize(
    "function",
    ["io.write_file", "io.read_file", "py_function", "numpy_function", "raw_ops.WriteFile", "saved_model.load", None],
)
def test_other_functions_of_tensorflow_are_refused(function):
    (reason,) = reasons_of({"class_name": "TFOpLambda", "config": {"name": "op", "function": function}})
    assert "TensorFlow" in reason


def test_a_vocabulary_may_be_a_list_but_not_a_path():
    assert reasons_of(dense(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}))
    assert reasons_of(dense(class_name="StringLookup", config={"vocabulary": ["a", "b"]})) == []


def test_a_type_spec_is_taken_for_tensors_only():
    spec = {
        "class_name": "__typespec__",
        "module": "tensorflow.python.framework.tensor",
        "spec_name": "TensorSpec",
        "config": [],
    }
    assert reasons_of(spec) == []
    assert reasons_of({**spec, "module": "os"})
    assert reasons_of({**spec, "spec_name": "Other"})


def test_everything_is_reported_at_once(tmp_path):
    config = model_of(
        LAMBDA, dense(module="os"), dense(config={"name": "third", "activation": {"class_name": "__lambda__"}})
    )
    file = ModelFile(path=tmp_path / "m.keras", container="keras", keras_version="3.1", config=config, content=b"")
    with pytest.raises(InputError) as caught:
        refuse_code(file)
    message = str(caught.value)
    assert "3 object(s)" in message and "allow_code" in message and "m.keras" in message
    for name in ("m/evil", "m/head", "m/third"):
        assert repr(name) in message


def test_a_config_without_a_class_name_is_not_a_model(tmp_path):
    file = ModelFile(path=tmp_path / "m.keras", container="keras", keras_version="3.1", config={}, content=b"")
    with refused(InputError, field="model", word="class_name"):
        refuse_code(file)


def test_nesting_deeper_than_pythons_stack_is_walked():
    config = LAMBDA
    for _ in range(5000):
        config = {"x": [config]}
    assert find_code(config) == (CodeFinding(layer="evil", reason=findings_of(LAMBDA)[0].reason),)


def test_a_class_name_that_is_no_text_is_not_a_class_of_tfmot():
    nodes = [{"class_name": {"a": 1}, "module": "keras"}, {"class_name": ["QuantizeWrapperV2"], "module": None}]
    assert not contains_tfmot({"layers": nodes})
    assert contains_tfmot({"layers": [*nodes, {"class_name": "QuantizeWrapperV2"}]})
