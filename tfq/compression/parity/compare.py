# SPDX-License-Identifier: Apache-2.0
"""The int8 flatbuffer beside the QAT model that it came from, layer by layer."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import content_of
from tfq.backends import HOST, RunRequest, make_backend
from tfq.compression.parity.match import Evaluator, ReferenceGraph, candidates, check_origin, match
from tfq.compression.parity.record import LayerParity, LayerTally, QATParity, output_tallies
from tfq.conversion.tracing import Trace, trace
from tfq.data import Split, as_split, bind_inputs
from tfq.errors import InputError
from tfq.evaluation import decode_outputs, prepare_inputs
from tfq.keras_bridge import require_tf_keras
from tfq.typing import Data, KerasModel, PathOrBytes

DEFAULT_LIMIT = 256
# Two, for a kernel in fixed point may round once more than the QAT model does, and once the other way.
DEFAULT_TOLERANCE_LSB = 2.0
# Codes of intermediate tensors that are kept at a time, and float values of the QAT model beside them.
_CODE_BYTES, _FLOAT_BYTES, _LARGEST_BATCH = 256 << 20, 256 << 20, 64


def qat_parity(
    qat_model: KerasModel,
    model: PathOrBytes,
    data: Data,
    *,
    limit: int = DEFAULT_LIMIT,
    tolerance_lsb: float = DEFAULT_TOLERANCE_LSB,
    kernels: str = "xnnpack",
) -> QATParity:
    """Compare a QAT model with the int8 flatbuffer that it was converted to, layer by layer on the same examples.

    All quantized tensors are compared whose layer in the QAT model is known by name, in two ways:

    - Cumulative: with the QAT model run as a whole. Errors grow with depth, and one wrong early layer affects all later
      ones.
    - Local: with the ops of the QAT model between this tensor and the compared tensors before it, computed on the
      flatbuffer's own dequantized values. This error is the layer's own; its inputs explain none of it.

    A layer departs if its local error exceeds `tolerance_lsb` steps in any value of any example. A step is the scale of
    the tensor, or the finer step to which the QAT model rounds this value. A layer also departs if the tensor's scale
    and zero point differ from those of the range that the QAT model rounds to there, unless they are those of another
    compared tensor to which an op like CONCATENATION ties it. `first_departure` is the first departing layer in the
    order of the ops. The cumulative error cannot identify it, because it also jumps at layers that only amplify the
    errors of their inputs.

    The comparison needs a few hundred megabytes of memory at most, whatever the size of the model and the number of
    examples.

    Examples:
        >>> quantized = tfq.qat(model, fit, calibration=x)
        >>> print(tfq.qat_parity(quantized, tfq.convert(quantized), x).to_text())

    Args:
        qat_model: The result of `qat`: a tf_keras model with fake quantization.
        model: The flatbuffer, `convert(qat_model)`: its bytes or its path.
        data: Examples, preprocessed as for the QAT model, in any form that `evaluate` accepts.
        limit: The number of examples to compare on; 0 means all.
        tolerance_lsb: The largest accepted local error, in quantization steps.
        kernels: The kernels that run the flatbuffer: "xnnpack" (what applications use by default), "builtin" (TFLite's
            optimized kernels without a delegate) or "reference".

    Returns:
        The comparison of each layer and of each output.

    Raises:
        InputError: The model has no fake quantization, the flatbuffer is not quantized or is not of this model, or the
            data does not fit or contains NaN.
    """
    content = content_of(model, "model", "an int8 .tflite file")
    require_tf_keras(qat_model, "qat_parity")
    if tolerance_lsb <= 0:
        raise InputError(
            f"tolerance_lsb={tolerance_lsb}: expected more than 0",
            field="tolerance_lsb",
            expected="more than 0",
            got=tolerance_lsb,
        )
    split = as_split(data, limit=limit)
    comparison = _Comparison(_traced(qat_model), content, kernels, next(split.pieces()).take(2))
    for piece in split.pieces():
        comparison.add(piece)
    return comparison.record(tolerance_lsb)


class _Comparison:
    """A QAT model and its flatbuffer, and what was found so far."""

    def __init__(self, traced: Trace, model: bytes, kernels: str, examples: Split) -> None:
        """examples: one or two, that everything is tried with before anything runs at length."""
        self._traced, self._model, self._kernels = traced, model, kernels
        self._parsed = tflite.read(model)
        self._graph = self._parsed.main_subgraph
        self._reference = ReferenceGraph(traced)
        if not self._reference.has_fake_quant():
            raise InputError(
                f"{traced.model.name!r} has no fake quantization: expected the model out of quantization-aware "
                f"training "
                "(tfq.qat), which the flatbuffer was converted from",
                field="qat_model",
                expected="fake quantization",
                got=traced.model.name,
            )
        prepare_inputs(self._parsed, examples)
        inputs = _paired(self._reference.inputs, traced.input_names, self._parsed.input_names, "inputs")
        self._answers = _paired(self._reference.outputs, traced.output_names, self._parsed.output_names, "outputs")
        named = candidates(self._graph, self._reference, inputs)
        shapes = self._shapes(list({value for values in named.values() for value in values}), examples)
        matches, self._skipped = match(self._graph, self._reference, named, shapes)
        check_origin(matches, named, traced.model.name)
        self._layers = [LayerTally(item) for item in matches]
        self._outputs = output_tallies(self._parsed)
        self._exposed, self._places = tflite.expose_tensors(model, [item.tensor.index for item in matches])
        self._values = sum(item.numbers for item in matches)
        self._num_examples = self._unlike = 0

    def add(self, split: Split) -> None:
        """Compare on more examples."""
        values = [layer.match.value for layer in self._layers]
        with self._reference.evaluator() as own, self._reference.evaluator(values) as local:
            for part in _parts(split, _CODE_BYTES // self._values):
                inputs = self._inputs(own, part)
                answers, exposed = self._run(self._model, inputs), self._run(self._exposed, inputs)
                # Users run it with nothing exposed: were the kernels others then, its answers would be.
                self._unlike += sum(int((a != b).sum()) for a, b in zip(answers, exposed, strict=False))
                quantized = dict(zip((*self._graph.inputs, *self._places), (*inputs, *exposed), strict=True))
                decoded = decode_outputs(self._parsed, answers)
                step = min(_LARGEST_BATCH, max(1, _FLOAT_BYTES // (16 * self._values)))
                for start in range(0, part.num_examples, step):
                    chosen = slice(start, start + step)
                    fed = [array[chosen] for array in self._bound(part)]
                    chosen_codes = {index: array[chosen] for index, array in quantized.items()}
                    provided, layers = self._compare(own, local, fed, chosen_codes)
                    for tally, wanted, got in zip(self._outputs, provided, decoded, strict=True):
                        tally.add(wanted, np.asarray(got[chosen], np.float32), layers)
                self._num_examples += part.num_examples

    def record(self, tolerance_lsb: float) -> QATParity:
        """What was found."""
        layers = tuple(layer.record(tolerance_lsb) for layer in self._layers)
        notes = []
        if self._unlike:
            notes.append(
                f"{self._unlike} output codes are others when intermediate tensors are exposed: the layers were "
                f"measured with kernels that users do not run ({self._kernels})"
            )
        return QATParity(
            num_examples=self._num_examples,
            kernels=self._kernels,
            tolerance_lsb=tolerance_lsb,
            layers=layers,
            outputs=tuple(tally.record(layers) for tally in self._outputs),
            skipped=self._layers_without_tensor(layers) | self._skipped,
            notes=tuple(notes),
        )

    def _shapes(self, values: list[str], examples: Split) -> dict[str, tuple[int, ...]]:
        """That of each of the QAT model's values for one example; not of conditions, and of what examples share."""
        with self._reference.evaluator() as own:
            one, all_of_them = (own.run(values, self._bound(item)) for item in (examples.take(1), examples))
        return {
            value: first.shape
            for value, first, all_values in zip(values, one, all_of_them, strict=True)
            if first.dtype.kind == "f" and all_values.size == first.size * examples.num_examples
        }

    def _inputs(self, own: Evaluator, part: Split) -> tuple[NDArray, ...]:
        """What the flatbuffer is fed: of an input that the QAT model rounds to the same grid, the codes of that.

        The harness rounds what lies between two codes otherwise, and neither is wrong: it is no part of the model.
        """
        arrays = dict(zip(self._graph.inputs, prepare_inputs(self._parsed, part).arrays, strict=True))
        rounded = [
            layer.match
            for layer in self._layers
            if layer.match.op == "input" and layer.match.rounded and layer.match.wanted_grid is None
        ]
        values = own.run([item.value for item in rounded], self._bound(part)) if rounded else []
        for item, value in zip(rounded, values, strict=True):
            like, tensor = arrays[item.tensor.index], item.tensor
            quantized = np.rint(value / np.float64(tensor.scale[0])) + tensor.zero_point[0]
            limits = np.iinfo(like.dtype)
            arrays[tensor.index] = np.clip(quantized, limits.min, limits.max).astype(like.dtype).reshape(like.shape)
        return tuple(arrays.values())

    def _compare(
        self, own: Evaluator, local: Evaluator, fed: list[NDArray], codes: dict[int, NDArray]
    ) -> tuple[list[NDArray], dict[int, NDArray]]:
        """Adds a batch to every layer; gives the QAT model's outputs in the flatbuffer's order, values by tensor."""
        values = [layer.match.value for layer in self._layers]
        result = own.run([*values, *self._answers], fed)
        arrays = [codes[layer.match.tensor.index] for layer in self._layers]
        reals = [
            layer.reals(array).reshape(wanted.shape)
            for layer, array, wanted in zip(self._layers, arrays, result, strict=False)
        ]
        predicted = local.run(values, fed, reals)
        for layer, array, wanted, expected in zip(self._layers, arrays, result, predicted, strict=False):
            layer.add(array, wanted, expected)
        indices = [layer.match.tensor.index for layer in self._layers]
        return result[len(values) :], dict(zip(indices, result, strict=False))

    def _bound(self, split: Split) -> list[NDArray]:
        return bind_inputs(split.inputs, self._traced.input_names)

    def _run(self, model: bytes, inputs: tuple[NDArray, ...]) -> tuple[NDArray, ...]:
        request = RunRequest(model=model, inputs=inputs, kernels=self._kernels)
        return make_backend(HOST).assess(request).computed_outputs()

    def _layers_without_tensor(self, layers: tuple[LayerParity, ...]) -> dict[str, str]:
        own = {layer.layer for layer in layers}
        within = {name: layer.layer for layer in layers for name in layer.layers}
        return {
            name: f"part of {within[name]}" if name in within else "the flatbuffer has no tensor of it"
            for name in self._traced.keras_layers
            if name not in own
        }


def _traced(model: Any) -> Trace:
    require_tf_keras(model, "qat_parity")
    built_in = model.inputs[0].shape[0] if getattr(model, "inputs", None) else None
    if built_in is not None:
        raise InputError(
            f"{model.name!r} has the batch size {built_in} built in: expected a model without one, to run it on "
            f"batches "
            "of any size: build its Input without batch_size",
            field="qat_model",
            expected="no batch size",
            got=built_in,
        )
    return trace(model, 0)


def _paired(values: Sequence[str], names: Sequence[str], wanted: Sequence[str], what: str) -> list[str]:
    """`values`, called `names`, in the order of the `wanted` names; as they are where the names are others."""
    if len(values) != len(wanted):
        raise InputError(
            f"the QAT model has {len(values)} {what} ({', '.join(names)}), the flatbuffer {len(wanted)} "
            f"({', '.join(wanted)}): it was converted from another model",
            field="model",
            expected=list(names),
            got=list(wanted),
        )
    return [values[names.index(name)] for name in wanted] if set(names) == set(wanted) else list(values)


def _parts(split: Split, most: int) -> Iterator[Split]:
    """The examples in their order, at most `most` at a time, but at least one."""
    most = max(1, most)
    for start in range(0, split.num_examples, most):
        chosen = slice(start, start + most)
        yield dataclasses.replace(
            split, inputs={name: array[chosen] for name, array in split.inputs.items()}, labels=None
        )
