# SPDX-License-Identifier: Apache-2.0
"""Single-purpose models in int8 and int16x8: each agrees with Keras, is reported as collapsed, or is refused."""

import os

import corpus_kinds
import corpus_layers
import corpus_operations
import numpy as np
import pytest
from corpus import CorpusModel, Outcome, Traced, by_name, compared, constant_slices, fault, outcome_of, sqnr
from corpus_checks import checked
from corpus_floats import FLOAT_INT8, FLOAT_INT16X8
from plain_runs import DoesNotRun, Output, run_plainly

from tfq.keras_bridge import import_keras

# One of each kind of op and of fault, for `make test`; the slow tests cover the others.
QUICK = (
    "layers.Conv2D_batch_normalization",
    "layers.DepthwiseConv2D",
    "layers.Conv2DTranspose",
    "layers.MaxPooling2D",
    "layers.LayerNormalization",
    "layers.UnitNormalization",
    "layers.PReLU",
    "layers.Softmax",
    "layers.Embedding",
    "layers.SimpleRNN",
    "layers.MultiHeadAttention",
    "ops.multiply",
    "ops.sum",
    "ops.concatenate",
    "ops.pad_value",
    "ops.softplus",
    "ops.cos",
    "ops.erf",
    "ops.argmax",
    "ops.scatter",
    "ops.diag",
    "kinds.compared_-2",
    "kinds.attention_padding",
    "kinds.mask_added_constant",
    "kinds.max_pool_of_padding",
    "kinds.dead_beside_head",
    "kinds.join_sigmoid",
    "kinds.ids_as_floats_keras",
    "kinds.many_scales",
    "kinds.squared_difference",
    "kinds.STFTSpectrogram_log",
)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", QUICK)
def test_the_quick_part_of_the_corpus_agrees_or_is_reported(name, scheme):
    checked(name, scheme)


@pytest.mark.parametrize(
    ("fix", "name"),
    [
        ("with_comparable_scales", "kinds.compared_-2"),
        ("with_comparable_scales", "kinds.compared_with_constant_3"),
        ("with_equal_copy_scales", "kinds.compared_-2"),
        ("with_symmetric_zero_fill", "ops.diag"),
        ("with_symmetric_zero_fill", "ops.scatter"),
    ],
)
def test_without_an_int8_fix_the_conversion_reports_its_model_as_wrong(fix, name, monkeypatch):
    case = by_name()[name]
    assert outcome_of(case, "int8").kind == "agrees"
    monkeypatch.setattr(f"tfq.conversion.int8_forms.{fix}", lambda model: model)
    assert outcome_of(case, "int8").kind == "collapsed"


def test_every_layer_of_keras_has_a_model_or_a_reason():
    keras = import_keras()
    public = {name for name in dir(keras.layers) if not name.startswith("_")}
    covered = {case.name.removeprefix("layers.").split("_")[0] for case in corpus_layers.models()}
    covered |= {case.name.removeprefix("kinds.").split("_")[0] for case in corpus_kinds.models()} & public
    same = {id(getattr(keras.layers, name)) for name in covered if hasattr(keras.layers, name)}
    open_ones = {name for name in public - covered if id(getattr(keras.layers, name)) not in same}
    assert open_ones == set(corpus_layers.LEFT_OUT)


def test_every_function_of_keras_ops_has_a_model_or_a_reason():
    ops = import_keras().ops
    modules = ("image", "linalg", "nn", "numpy")
    public = {name for name in dir(ops) if not name.startswith("_")} - set(modules)
    public |= {f"image.{name}" for name in dir(ops.image) if not name.startswith("_")}
    parts = {name for module in modules[1:] for name in dir(getattr(ops, module)) if not name.startswith("_")}
    assert parts <= public
    assert public - corpus_operations.covered(public) == set(corpus_operations.LEFT_OUT)


def test_the_corpus_is_large_and_its_names_are_distinct():
    names = [case.name for module in (corpus_kinds, corpus_layers, corpus_operations) for case in module.models()]
    assert len(names) == len(set(names)) > 300
    assert len(QUICK) == len(set(QUICK)) == 31 and set(QUICK) <= set(by_name())


class Abort:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return os.abort, ()


def test_an_aborting_child_is_an_error_and_tests_continue():
    with pytest.raises(DoesNotRun) as caught:
        run_plainly(b"", {"x": Abort()})
    assert "SIGABRT" in str(caught.value)


def test_a_damaged_file_does_not_run():
    with pytest.raises(DoesNotRun):
        run_plainly(b"TFL3" * 16, {"x": np.zeros((1, 2), np.float32)})


def traced_of(expected):
    return Traced(trace=None, samples={}, compared={}, outputs=("y",), expected=[expected])


def test_the_comparison_sees_noise_shapes_nan_and_other_classes():
    y = np.random.default_rng(0).normal(size=(20, 1, 4)).astype(np.float32)
    assert compared(traced_of(y), {"y": Output(y + 0.01, 0.0)})[1] == ""
    for wrong in (y + 0.2, y[:, :, :3], np.where(y > 0, np.nan, y)):
        assert compared(traced_of(y), {"y": Output(wrong, 0.0)})[1] != ""
    classes = np.arange(20).reshape(20, 1)
    assert compared(traced_of(classes), {"y": Output(classes, 0.0)}) == (1.0, "")
    assert compared(traced_of(classes), {"y": Output(classes % 15, 0.0)})[1] != ""
    assert sqnr(y, y) == np.inf and sqnr(0 * y, 0 * y + 1e-4) > 20 > sqnr(0 * y, y)


def test_a_constant_slice_is_detected_unless_the_op_fixes_the_scale():
    y = np.random.default_rng(0).normal(size=(20, 1, 4)).astype(np.float32)
    still = y.copy()
    still[..., 2] = 0
    assert constant_slices(y, Output(y, 0.1)) == []
    assert constant_slices(y, Output(still, 0.1)) == [2]
    assert constant_slices(y, Output(still, 1 / 256)) == []
    assert constant_slices(still, Output(still, 0.1)) == []


def test_only_reported_collapses_of_the_right_op_and_named_refusals_pass():
    case = CorpusModel(name="x", build=None, collapses={"int8": ("CONCATENATION",)}, refused={"int16x8": "SIN"})
    assert fault(case, "int8", Outcome("agrees", 30.0)) == ""
    assert fault(case, "int8", Outcome("collapsed", 3.0, "CONCATENATION")) == ""
    assert fault(case, "int16x8", Outcome("refused", detail="SIN has no kernel")) == ""
    wrong = [Outcome("differs", 3.0), Outcome("collapsed", 3.0, "ADD"), Outcome("does not run")]
    wrong += [Outcome("refused", detail="SIN"), Outcome("agrees", 30.0, "ADD")]
    assert all(fault(case, "int8", outcome) for outcome in wrong)
    assert fault(case, "int16x8", Outcome("refused", detail="something went wrong"))


def test_only_the_declared_float_ops_pass():
    case = CorpusModel(name="x", build=None, float_ops={"int8": ("COS",)})
    assert fault(case, "int8", Outcome("agrees", 30.0, float_ops=("COS",))) == ""
    assert fault(case, "int8", Outcome("agrees", 30.0))
    assert fault(case, "int16x8", Outcome("agrees", 30.0, float_ops=("COS",)))


def test_every_model_with_float_ops_exists():
    names = {name for table in (FLOAT_INT8, FLOAT_INT16X8) for models in table.values() for name in models.split()}
    assert names <= set(by_name())
