# SPDX-License-Identifier: Apache-2.0
"""The support tables of the documentation: Keras layers, keras.ops, TFLite ops, and what tfq refuses.

The tables come from the registries and from the tables that the tests check: the corpus of single-purpose models
(tests/integration/corpus_*.py), the operations that the bridge translates (tests/integration/keras_operations.py), and
the conversions of one-op models (tests/one_op_conversions.py).
"""

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = ("int8", "int16x8")
WITH_FLOATS = "yes, with float ops"


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the heading."""
    heading, *others = rows
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (heading, *others)]
    return "\n".join([lines[0], "|---" * len(heading) + "|", *lines[1:]]) + "\n"


def code(names: Iterable[str]) -> str:
    """Return names as code, separated by spaces."""
    return " ".join(f"`{name}`" for name in names)


@functools.cache
def _test_module(name: str) -> Any:
    """Import a module of the tests."""
    for folder in ("tests/integration", "tests"):
        if str(ROOT / folder) not in sys.path:
            sys.path.append(str(ROOT / folder))
    return __import__(name)


@functools.cache
def _corpus_names() -> tuple[str, ...]:
    modules = (_test_module(name) for name in ("corpus_kinds", "corpus_layers", "corpus_operations"))
    return tuple(case.name for module in modules for case in module.models())


def conversion(models: Iterable[str], scheme: str) -> str:
    """Return how corpus models convert.

    "yes", "yes, with float ops" and their names, the op of a collapse that is reported, or what a refusal names.
    """
    results = []
    for model in models:
        collapses, refused = _test_module("corpus_declared").declared(model)
        if scheme in refused:
            results.append(f"refused: {refused[scheme]}")
        elif scheme in collapses:
            results.append(f"may collapse: {', '.join(collapses[scheme])}")
        elif floats := _test_module("corpus_floats").float_ops(model).get(scheme):
            results.append(f"{WITH_FLOATS}: {', '.join(floats)}")
        else:
            results.append("yes")
    return "; ".join(dict.fromkeys(results)) or "-"


def layer_columns(name: str) -> dict[str, str]:
    """Return how the corpus models of a Keras layer convert, as columns of the table of layers."""
    own = [case for case in _corpus_names() if case.split(".")[0] == "layers"]
    kinds = [case for case in _corpus_names() if case.split(".")[0] == "kinds" and name[:1].isupper()]
    models = [case for case in [*own, *kinds] if case.partition(".")[2].split("_")[0] == name]
    return {f"to {scheme}": conversion(models, scheme) for scheme in SCHEMES}


def operations() -> str:
    """Return the table of calls of keras.ops: the tf_keras layer that they become, and whether they convert to int8."""
    tree = ast.parse((ROOT / "tests" / "integration" / "keras_operations.py").read_text())
    results = {"INT8": "yes", "FLOAT": "an op stays float", "NO_TFLITE": "refused: TFLite has no such op"}
    tables = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    rows = [("call", "tf_keras layer", "int8")]
    for table, result in results.items():
        for call, kind in _pairs(tables[table]):
            rows.append((f"`{call}`", f"`{kind}`", result))
    return markdown_table(rows)


def _pairs(table: ast.Dict) -> Iterator[tuple[str, str]]:
    """Yield (call, name of the layer) for each (lambda, layer) of a table."""
    for value in table.values:
        if isinstance(value, ast.Tuple) and isinstance(value.elts[0], ast.Lambda):
            kind = value.elts[1].value if isinstance(value.elts[1], ast.Constant) else "KerasOperation"
            yield ast.unparse(_OpsName().visit(value.elts[0].body)), str(kind)


class _OpsName(ast.NodeTransformer):
    """Writes `ops` for the parameter `o` of a lambda."""

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name("ops", node.ctx) if node.id == "o" else node


def functions() -> str:
    """Return the table of functions of keras.ops that have a corpus model, by the result of their conversion.

    not_supported.md says why functions are refused.
    """
    models: dict[str, list[str]] = {}
    for case in _corpus_names():
        kind, _, name = case.partition(".")
        if kind == "ops":
            models.setdefault(name, []).append(case)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, cases in models.items():
        details = (conversion(cases, scheme) for scheme in SCHEMES)
        groups.setdefault(tuple(_without_names(result) for result in details), []).append(name)
    rows = [("int8", "int16x8", "models")]
    rows += [(*key, code(sorted(names))) for key, names in sorted(groups.items(), key=lambda item: -len(item[1]))]
    return markdown_table(rows)


def _without_names(result: str) -> str:
    """Return a result of `conversion` without the ops that it names, except those of a collapse."""
    return next((kind for kind in ("refused", WITH_FLOATS) if result.startswith(kind)), result)


def tflite_ops() -> str:
    """Return the table of TFLite ops: their conversion to int8 and int16x8, and the types that each target runs."""
    from tfq import registry
    from tfq.auditing import Target
    from tfq.conversion.recurrent import _FLOAT_ONLY, _RECURRENT

    recurrent = {name: ("float" if name in _FLOAT_ONLY else "int8", "refused") for name in _RECURRENT}
    declared = {**_test_module("one_op_conversions").CONVERSIONS, **recurrent}
    targets = registry.entries(Target).values()
    names = sorted({*declared, *(name for target in targets for name in _target_ops(target))})
    rows = [("op", *SCHEMES, *(target.name for target in targets))]
    for name in names:
        results = declared.get(name, ("not tested",) * len(SCHEMES))
        rows.append((f"`{name}`", *results, *(_types_of(target, name) for target in targets)))
    return markdown_table(rows)


def _target_ops(target: Any) -> frozenset[str]:
    return target.integer_ops | target.float_ops | target.hybrid_ops | target.index_ops


def _types_of(target: Any, name: str) -> str:
    """Return the types of activations on which a target runs an op."""
    if target.ops_by_type:
        return ", ".join(dtype for dtype, ops in target.ops_by_type.items() if name in ops) or "-"
    sets = {
        "int8": target.integer_ops,
        "float": target.float_ops,
        "float with int8 weights": target.hybrid_ops,
        "indices": target.index_ops,
    }
    return ", ".join(title for title, ops in sets.items() if name in ops) or "-"


def layers_without_translation() -> str:
    """Return the table of Keras layers that the bridge refuses, with the reason; layers of tf_keras are left out."""
    from tfq import registry
    from tfq.keras_bridge import BridgedLayer

    groups: dict[str, list[str]] = {}
    for entry in registry.entries(BridgedLayer).values():
        if entry.translate is None and not entry.help.startswith(("only in tf_keras", "a layer of tfq")):
            groups.setdefault(entry.help, []).append(entry.name)
    return markdown_table([("Keras layers", "reason and alternative"), *((code(n), h) for h, n in groups.items())])


def layers_unknown() -> str:
    """Return the table of the Keras 3 layers that have no `BridgedLayer`: how their corpus models convert."""
    from tfq import registry
    from tfq.keras_bridge import BridgedLayer, import_keras

    layers, base = import_keras().layers, import_keras().layers.Layer
    known = registry.entries(BridgedLayer)
    names = {value.__name__ for value in vars(layers).values() if isinstance(value, type) and issubclass(value, base)}
    unknown = sorted(names - set(known) - {"Layer", "InputLayer", "Wrapper"})
    return markdown_table(
        [("layer", "to int8", "to int16x8"), *((f"`{name}`", *layer_columns(name).values()) for name in unknown)]
    )


def code_in_files() -> str:
    """Return the table of the layer classes that a model file may not contain without allow_code."""
    from tfq.keras_bridge.loading.custom_objects import REFUSED_CLASSES

    return markdown_table([("class", "reason"), *((f"`{name}`", why) for name, why in REFUSED_CLASSES.items())])


def operations_refused() -> str:
    """Return the table of the operation classes that the bridge refuses: how the models of their functions convert."""
    from tfq.keras_bridge.loading.custom_objects import REFUSED_OPERATIONS

    rows = [("operation", "function", "to int8", "to int16x8")]
    for name in sorted(REFUSED_OPERATIONS):
        function = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        models = [case for case in _corpus_names() if case == f"ops.{function}"]
        rows.append((f"`{name}`", f"`ops.{function}`", *(conversion(models, scheme) for scheme in SCHEMES)))
    return markdown_table(rows)


_PIPELINE = "do it in the data pipeline"
_ERF = "ops.tanh(x * (1.1284 + 0.10091 * x * x))"
# Word of the refusal (a key of corpus_declared.REFUSED) -> what to use instead. tests/integration/test_not_supported.py
# converts the expressions.
ALTERNATIVES = {
    "WHILE": "a Python loop with a fixed number of steps instead of `fori_loop`, `scan` and `while_loop`; "
    "`ops.vectorized_map` instead of `map`",
    "switch_case": "`ops.where`, which computes both branches",
    "tf.Acos": "`ops.arctan2(ops.sqrt(1 - x * x), x)`; arctan2 stays float",
    "tf.Acosh": "`ops.log(x + ops.sqrt(x * x - 1))`",
    "tf.AsString": _PIPELINE,
    "tf.Asin": "`ops.arctan2(x, ops.sqrt(1 - x * x))`; arctan2 stays float",
    "tf.Asinh": "`ops.log(x + ops.sqrt(x * x + 1))`",
    "tf.Atan": "`ops.arctan2(x, ops.ones_like(x))`; arctan2 stays float",
    "tf.Atanh": "`0.5 * (ops.log(1 + x) - ops.log(1 - x))`",
    "tf.AvgPool3D": "`TimeDistributed(AveragePooling2D(n))`, `Reshape((depth, -1))`, `AveragePooling1D(n)`, `Reshape`",
    "tf.BitwiseAnd": "`x < 0` instead of `signbit`",
    "tf.Complex": "`ops.rfft` or `ops.stft` for real inputs; they stay float",
    "tf.Cosh": "`0.5 * (ops.exp(x) + ops.exp(-x))`",
    "tf.DenseBincount": "`ops.one_hot(x, n)`; for several categories, `ops.max(ops.one_hot(x, n), axis=1)`",
    "tf.Erf": f"`{_ERF}`. For GELU, call `ops.gelu(x)`, which is converted",
    "tf.Erfc": f"`1 - {_ERF}`",
    "tf.ExtractImagePatches": "`ops.image.extract_patches`; the order of its values differs",
    "tf.HSVToRGB": _PIPELINE,
    "tf.ImageProjectiveTransformV3": _PIPELINE,
    "tf.MatrixDiagPartV3": "`ops.sum(x * ops.eye(n), axis=-1)` for the main diagonal",
    "tf.MaxPool3D": "`TimeDistributed(MaxPooling2D(n))`, `Reshape((depth, -1))`, `MaxPooling1D(n)`, `Reshape`",
    "tf.Placeholder": _PIPELINE,
    "tf.RGBToHSV": _PIPELINE,
    "tf.ResizeBicubic": '`interpolation="bilinear"`; the values differ, so train with it',
    "tf.Sinh": "`0.5 * (ops.exp(x) - ops.exp(-x))`",
    "tf.StatelessRandomGetKeyCounter": _PIPELINE,
    "tf.Tan": "`ops.sin(x) / ops.cos(x)`; sin and cos stay float",
}


def models_not_convertible() -> str:
    """Return the table of Keras layers and functions whose conversion is refused, by the op that the error names."""
    declared = _test_module("corpus_declared").REFUSED
    rows = [("the error contains", "layers and functions", "what to do instead")]
    for word, models in declared.items():
        if names := [name for name in models.split() if not name.startswith("kinds.")]:
            rows.append((f"`{word}`", code(names), ALTERNATIVES.get(word, "-")))
    return markdown_table(rows)


def recurrent_ops() -> str:
    """Return the TFLite ops of recurrent layers that have no int8 form, as code."""
    from tfq.conversion.recurrent import _FLOAT_ONLY

    return code(sorted(_FLOAT_ONLY)) + "\n"


def custom_ops() -> str:
    """Return the table of custom ops that an audit knows."""
    from tfq.tflite.op_types import COMPILED_OPS, CUSTOM_KERNELS

    rows = [("custom op", "who runs it")]
    rows += [(code([name]), f"{owner}, in float32") for name, owner in sorted(CUSTOM_KERNELS.items())]
    rows += [(code([name]), device) for name, device in sorted(COMPILED_OPS.items())]
    return markdown_table(rows)


def figures() -> str:
    """Return the table of the figures that the gate compares, with their default tolerances."""
    from tfq.evaluation.figures import FIGURES

    rows = [("figure", "what it is", "worse is", "tolerance", "what else changes it", "bound in `require`")]
    for figure in FIGURES:
        worse = "lower" if figure.direction == "higher" else "higher"
        bounds = code([name for name in (figure.bound, *figure.other_bounds) if name]) or "-"
        tolerance = f"{figure.tolerance} {figure.unit}" if not figure.tolerance.is_relative else str(figure.tolerance)
        tolerance = "never gated" if figure.unit == "ms" or figure.name == "examples_per_second" else tolerance
        rows.append((f"`{figure.name}`", figure.help, worse, tolerance, figure.noise, bounds))
    return markdown_table(rows)


def metrics() -> str:
    """Return the table of metrics: what they accept, and how their intervals are computed."""
    from tfq import registry
    from tfq.evaluation.metric import Metric

    examples = _test_module("metric_examples").EXAMPLES
    better = {"higher": "higher", "lower": "lower", None: "-"}
    rows = [("metric", "outputs", "labels", "better", "unit", "interval of a difference", "table")]
    for metric in registry.entries(Metric).values():
        outputs, labels = examples[metric.name]
        interval = "bootstrap"
        if metric.examples is not None:
            is_right = metric.examples(metric.select(outputs), labels).dtype.kind == "b"
            interval = "score" if is_right else "Student's t"
        table = metric.table_of(metric.state_of(outputs, labels))
        what = "-" if metric.table is None else "by class, if there are several"
        if table is not None:
            what = "by class" if table.classes else "bins of confidence"
        contract, unit = metric.contract, metric.unit.replace("_", " ")
        rows.append(
            (f"`{metric.name}`", contract.outputs, contract.labels, better[metric.direction], unit, interval, what)
        )
    return markdown_table(rows)


TABLES = {
    table.__name__: table
    for table in (
        operations,
        functions,
        tflite_ops,
        layers_without_translation,
        layers_unknown,
        code_in_files,
        operations_refused,
        models_not_convertible,
        recurrent_ops,
        custom_ops,
        figures,
        metrics,
    )
}
