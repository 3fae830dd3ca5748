# SPDX-License-Identifier: Apache-2.0
"""Two Kerases and tfmot in one process. Their interaction runs in fresh processes, because imports cannot be undone."""

import os
import subprocess
import sys
import types

from messages import refused

from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot, model_kind, require_tf_keras


def run(code, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    inherited["TF_CPP_MIN_LOG_LEVEL"] = "3"
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


IMPORT_ALL = "from tfq.keras_bridge import *; import_tfmot(); import_tf_keras(); import_keras(); import os"


def test_tf_dot_keras_stays_keras_3_if_used_before_tfmot():
    run(
        "import tensorflow as tf; before = tf.keras.layers.Dense; assert before.__module__.startswith('keras.')\n"
        f"{IMPORT_ALL}\n"
        "def check():\n"
        "    assert tf.keras.layers.Dense is before\n"
        "    assert tf.compat.v1.keras.__name__.startswith('keras'), tf.compat.v1.keras\n"
        "    assert 'TF_USE_LEGACY_KERAS' not in os.environ\n"
        "check()\n"
        "tfmot, tf_keras = import_tfmot(), import_tf_keras()\n"
        "lstm = tf_keras.Sequential([tf_keras.layers.LSTM(2, input_shape=(3, 2)), tf_keras.layers.Dense(1)])\n"
        "assert isinstance(tfmot.sparsity.keras.prune_low_magnitude(lstm), tf_keras.Model)\n"
        "dense = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(3,))])\n"
        "assert isinstance(tfmot.quantization.keras.quantize_model(dense), tf_keras.Model)\n"
        "check()"
    )


def test_tf_dot_keras_is_keras_3_if_used_after_tfmot():
    run(
        f"{IMPORT_ALL}\n"
        "import tensorflow as tf, keras\n"
        "assert tf.keras.layers.Dense is keras.layers.Dense\n"
        "assert tf.keras.__version__.startswith('3.')\n"
        "from tensorflow.keras.layers import Conv2D; assert Conv2D is keras.layers.Conv2D\n"
        "assert 'TF_USE_LEGACY_KERAS' not in os.environ"
    )


def test_a_user_who_chose_the_legacy_keras_keeps_the_choice():
    run(
        f"{IMPORT_ALL}\n"
        "assert os.environ['TF_USE_LEGACY_KERAS'] == '1'\n"
        "import tensorflow as tf, tf_keras, keras\n"
        "assert tf.keras.layers.Dense is tf_keras.layers.Dense\n"
        "assert keras.__version__.startswith('3.')",
        TF_USE_LEGACY_KERAS="1",
    )


def test_plain_tfmot_does_change_the_users_keras():
    # The result of the tests above if import_tfmot did nothing: the check can fail.
    answer = run(
        "import tensorflow as tf, tensorflow_model_optimization, os\n"
        "print(os.environ['TF_USE_LEGACY_KERAS'], tf.keras.layers.Dense.__module__)"
    )
    assert answer.split()[0] == "1" and answer.split()[1].startswith("tf_keras.")


def test_another_backend_of_keras_3_is_an_error_that_says_so(monkeypatch):
    fake = types.ModuleType("keras")
    fake.__version__ = "3.9.0"
    fake.config = types.SimpleNamespace(backend=lambda: "jax")
    monkeypatch.setitem(sys.modules, "keras", fake)
    with refused(TfqError, field="KERAS_BACKEND", expected="tensorflow", got="jax"):
        import_keras()


def test_missing_packages_are_errors_that_say_what_to_install(monkeypatch):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tf_keras", None)
        with refused(TfqError, field="tf-keras"):
            import_tf_keras()
    for name in ("distutils", "distutils.version"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorflow_model_optimization"]:
        monkeypatch.delitem(sys.modules, name)
    with refused(TfqError, field="setuptools"):
        import_tfmot()
    assert "TF_USE_LEGACY_KERAS" not in os.environ


def test_a_model_is_identified_by_its_keras():
    for module, kind in ((import_tf_keras(), "tf_keras"), (import_keras(), "keras")):
        assert model_kind(module.Sequential([module.layers.Dense(1)])) == kind


def test_objects_that_are_not_models_are_refused():
    with refused(InputError, field="model", got="builtins.str"):
        model_kind("model.h5")
    with refused(InputError, field="model", expected=("tf_keras", "keras")):
        model_kind(import_keras().layers.Dense(1))


def test_a_keras_3_model_is_refused_where_tfmot_is_needed():
    keras = import_keras()
    model = keras.Sequential([keras.layers.Dense(1)], name="mine")
    with refused(InputError, field="model", expected="tf_keras", got="mine", word="pruning"):
        require_tf_keras(model, "pruning")
    tf_keras = import_tf_keras()
    require_tf_keras(tf_keras.Sequential([tf_keras.layers.Dense(1)]), "pruning")
