# SPDX-License-Identifier: Apache-2.0
"""A user's own metric in Python and as a plugin of the command line."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score

import tfq
from tfq import registry

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = """
# --8<-- [start:metric]
import numpy as np

import tfq


def update(state, outputs, labels):
    \"\"\"Add the examples, and the correct ones, of each class to the state.\"\"\"
    (probabilities,) = outputs
    num_classes = probabilities.shape[1]
    correct = labels[probabilities.argmax(axis=1) == labels]
    examples = np.bincount(labels, minlength=num_classes)
    counts = {"examples": examples, "correct": np.bincount(correct, minlength=num_classes)}
    return tfq.add_states(state, counts)


def finish(state):
    \"\"\"Return the mean recall of the classes that occur.\"\"\"
    occurs = state["examples"] > 0
    return float((state["correct"][occurs] / state["examples"][occurs]).mean())


def check(outputs, labels):
    (probabilities,) = outputs
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise tfq.InputError(
            "balanced_accuracy needs one label for each row of class probabilities",
            field="outputs",
            expected="(n, classes)",
            got=probabilities.shape,
        )


tfq.register(
    tfq.Metric(
        name="balanced_accuracy",
        help="mean over the classes of the fraction of their examples that is classified correctly",
        title="balanced accuracy",
        direction="higher",
        unit="fraction",
        contract=tfq.Contract(outputs="(n, classes)", labels="(n,) integers", predicts="classes", check=check),
        update=update,
        finish=finish,
    )
)
# --8<-- [end:metric]
"""


@pytest.fixture
def data():
    """Return (x, y) of 100 digits: 80 of the classes 0 to 4, and 20 of 5 to 9, half of which are labeled 9."""
    images, labels = load_digits(return_X_y=True)
    common, rare = np.flatnonzero(labels < 5)[:80], np.flatnonzero(labels > 4)[:20]
    labels[rare[:10]] = 9
    chosen = np.concatenate([common, rare])
    return images[chosen].reshape(-1, 8, 8, 1).astype(np.float32), labels[chosen]


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "balanced_accuracy.py"
    path.write_text(PLUGIN)
    return str(path)


def oracle(model, data):
    """Return balanced accuracy by scikit-learn, of predictions that a metric of a function recorded."""
    predicted = []

    def remember(outputs, labels):
        predicted.append(outputs.argmax(axis=1))
        return 0

    tfq.evaluate(model, data, tfq.EvaluationConfig(num_runs=0), metric=remember)
    return balanced_accuracy_score(data[1], predicted[0])


def test_a_registered_metric_is_computed_in_python(golden, data, plugin):
    model, config = (golden / "digits_int8.tflite").read_bytes(), tfq.EvaluationConfig(num_runs=0)
    floating = (golden / "digits_float32.tflite").read_bytes()
    with registry.temporary():
        registry.load_plugin(plugin)
        metric = registry.get(tfq.Metric, "balanced_accuracy")
        by_name = tfq.EvaluationConfig(num_runs=0, metric=("balanced_accuracy",))
        record = tfq.evaluate(model, data, by_name, reference=floating)
    assert record.accuracy == pytest.approx(oracle(model, data), abs=1e-12)
    assert record.reference_accuracy == pytest.approx(oracle(floating, data), abs=1e-12)
    assert record.accuracy_drop == record.reference_accuracy - record.accuracy
    assert record.accuracy != tfq.evaluate(model, data, config).accuracy
    assert record.agreement is not None
    assert tfq.evaluate(model, data, config, metric=metric).accuracy == record.accuracy
    with pytest.raises(tfq.InputError) as caught:
        tfq.evaluate((golden / "two_branches_float32.tflite").read_bytes(), data, config, metric=metric)
    assert (caught.value.field, caught.value.expected) == ("outputs", "(n, classes)")
    with pytest.raises(tfq.InputError) as caught:
        tfq.EvaluationConfig(metric=("balanced_accuracy",))
    assert caught.value.got == "balanced_accuracy"


def test_states_of_a_registered_metric_merge(plugin):
    rng = np.random.default_rng(0)
    outputs, labels = rng.random((50, 4)), rng.integers(0, 4, 50)
    with registry.temporary():
        registry.load_plugin(plugin)
        metric = registry.get(tfq.Metric, "balanced_accuracy")
    states = [metric.state_of((outputs[part],), labels[part]) for part in (slice(0, 20), slice(20, 50))]
    assert metric.value_of(metric.merge(*states)) == metric.compute((outputs,), labels)
    assert metric.compute((outputs,), labels) == pytest.approx(balanced_accuracy_score(labels, outputs.argmax(axis=1)))


def test_a_plugin_adds_a_metric_to_the_command_line(golden, data, plugin, tmp_path, tfq_cli):
    np.savez(tmp_path / "examples.npz", x_test=data[0], y_test=data[1])
    model = golden / "digits_int8.tflite"
    arguments = [f"--model={model}", f"--data=npz:{tmp_path / 'examples.npz'}", f"--plugin={plugin}", "--num_runs=0"]
    done = tfq_cli("evaluate", *arguments, "--metric=balanced_accuracy", f"--out={tmp_path}", "--format=json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    evaluation = record["evaluation"]
    assert evaluation["accuracy"] == pytest.approx(oracle(model.read_bytes(), data), abs=1e-12)
    facts = {"title": "balanced accuracy", "direction": "higher", "unit": "fraction", "interval": None}
    assert facts.items() <= evaluation["metrics"]["balanced_accuracy"].items()
    assert [plugin["source"] for plugin in record["plugins"]] == ["balanced_accuracy.py"]
    assert "balanced_accuracy" in tfq_cli("evaluate", *arguments, "--metric=balanced_acuracy").stderr
    assert "balanced_accuracy" in tfq_cli("evaluate", arguments[2], "--help").stdout
    without = [item for item in arguments if not item.startswith("--plugin")]
    assert tfq_cli("evaluate", *without, "--metric=balanced_accuracy", f"--out={tmp_path}").returncode == 2
