# SPDX-License-Identifier: Apache-2.0
"""Compare an int8 flatbuffer with the QAT model that it was converted from, layer by layer."""

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
from tfq.keras_bridge.strategies import in_strategy
from tfq.typing import Data, KerasModel, PathOrBytes

DEFAULT_LIMIT = 256
# Two steps, because a fixed-point kernel may round once more than the QAT model, and once in the other direction.
DEFAULT_TOLERANCE_LSB = 2.0
# Memory limits for the quantized intermediate tensors and for the QAT model's float values, and for examples per batch.
_CODE_BYTES, _FLOAT_BYTES, _LARGEST_BATCH = 256 << 20, 256 << 20, 64


@in_strategy
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
    """A comparison of a QAT model with its flatbuffer, with the results so far."""

    def __init__(self, traced: Trace, model: bytes, kernels: str, examples: Split) -> None:
        """Match the tensors, and check that model, flatbuffer and examples are consistent.

        Args:
            traced: The traced QAT model.
            model: The flatbuffer.
            kernels: The kernels that run the flatbuffer.
            examples: One or two examples for the checks.
        """
        self._traced, self._model, self._kernels = traced, model, kernels
        self._parsed = tflite.read(model)
        self._graph = self._parsed.main_subgraph
        self._reference = ReferenceGraph(traced)
        name = traced.model.name
        if not self._reference.has_fake_quant():
            raise InputError(
                f"{name!r} has no fake quantization: expected the result of quantization-aware training "
                "(tfq.qat) that the flatbuffer was converted from",
                field="qat_model",
                expected="fake quantization",
                got=name,
            )
        prepare_inputs(self._parsed, examples)
        inputs = _in_order_of(self._reference.inputs, traced.input_names, self._parsed.input_names, "inputs")
        self._output_values = _in_order_of(
            self._reference.outputs, traced.output_names, self._parsed.output_names, "outputs"
        )
        named = candidates(self._graph, self._reference, inputs)
        shapes = self._shapes(list({value for values in named.values() for value in values}), examples)
        matches, self._skipped = match(self._graph, self._reference, named, shapes)
        check_origin(matches, named, name)
        self._layers = [LayerTally(item) for item in matches]
        self._outputs = output_tallies(self._parsed)
        self._exposed, self._exposed_indices = tflite.expose_tensors(model, [item.tensor.index for item in matches])
        self._values = sum(item.values_per_example for item in matches)
        self._num_examples = self._num_changed_outputs = 0

    def add(self, split: Split) -> None:
        """Compare on more examples."""
        values = [layer.match.value for layer in self._layers]
        with self._reference.evaluator() as whole_model, self._reference.evaluator(values) as per_layer:
            for part in _chunks(split, _CODE_BYTES // self._values):
                inputs = self._inputs(whole_model, part)
                answers, exposed = self._run(self._model, inputs), self._run(self._exposed, inputs)
                # Users run the flatbuffer without exposed tensors. Different outputs mean that other kernels ran.
                self._num_changed_outputs += sum(int((a != b).sum()) for a, b in zip(answers, exposed, strict=False))
                quantized = dict(zip((*self._graph.inputs, *self._exposed_indices), (*inputs, *exposed), strict=True))
                decoded = decode_outputs(self._parsed, answers)
                step = min(_LARGEST_BATCH, max(1, _FLOAT_BYTES // (16 * self._values)))
                for start in range(0, part.num_examples, step):
                    chosen = slice(start, start + step)
                    fed = [array[chosen] for array in self._bound(part)]
                    batch_values = {index: array[chosen] for index, array in quantized.items()}
                    outputs, layers = self._compare(whole_model, per_layer, fed, batch_values)
                    for tally, reference_values, got in zip(self._outputs, outputs, decoded, strict=True):
                        tally.add(reference_values, np.asarray(got[chosen], np.float32), layers)
                self._num_examples += part.num_examples

    def record(self, tolerance_lsb: float) -> QATParity:
        """Return the results."""
        layers = tuple(layer.record(tolerance_lsb) for layer in self._layers)
        notes = []
        if self._num_changed_outputs:
            notes.append(
                f"{self._num_changed_outputs} output values change when intermediate tensors are exposed: the layers "
                f"were measured with kernels that users do not run ({self._kernels})"
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
        """Return the shape of each value for one example.

        Values that are not float, or that do not grow with the number of examples, are left out.
        """
        with self._reference.evaluator() as whole_model:
            single, all_arrays = (whole_model.run(values, self._bound(item)) for item in (examples.take(1), examples))
        return {
            value: first.shape
            for value, first, array in zip(values, single, all_arrays, strict=True)
            if first.dtype.kind == "f" and array.size == first.size * examples.num_examples
        }

    def _inputs(self, whole_model: Evaluator, part: Split) -> tuple[NDArray, ...]:
        """Return the inputs of the flatbuffer.

        If the QAT model fake-quantizes an input with the same scale and zero point, its quantized values are used.
        Otherwise `prepare_inputs` might round values in the middle between two integers differently.
        """
        arrays = dict(zip(self._graph.inputs, prepare_inputs(self._parsed, part).arrays, strict=True))
        rounded = [
            layer.match
            for layer in self._layers
            if layer.match.op == "input" and layer.match.rounded and layer.match.expected_grid is None
        ]
        values = whole_model.run([item.value for item in rounded], self._bound(part)) if rounded else []
        for item, value in zip(rounded, values, strict=True):
            like, tensor = arrays[item.tensor.index], item.tensor
            quantized = np.rint(value / np.float64(tensor.scale[0])) + tensor.zero_point[0]
            limits = np.iinfo(like.dtype)
            arrays[tensor.index] = np.clip(quantized, limits.min, limits.max).astype(like.dtype).reshape(like.shape)
        return tuple(arrays.values())

    def _compare(
        self, whole_model: Evaluator, per_layer: Evaluator, fed: list[NDArray], quantized_values: dict[int, NDArray]
    ) -> tuple[list[NDArray], dict[int, NDArray]]:
        """Add a batch to the results of every layer.

        Args:
            whole_model: Evaluator of the QAT model.
            per_layer: Evaluator that is fed with the flatbuffer's values.
            fed: Inputs of the QAT model.
            quantized_values: Tensor index -> quantized values of the flatbuffer.

        Returns:
            (outputs of the QAT model in the flatbuffer's order, tensor index -> value of the QAT model).
        """
        values = [layer.match.value for layer in self._layers]
        result = whole_model.run([*values, *self._output_values], fed)
        arrays = [quantized_values[layer.match.tensor.index] for layer in self._layers]
        reals = [
            layer.reals(array).reshape(reference_values.shape)
            for layer, array, reference_values in zip(self._layers, arrays, result, strict=False)
        ]
        predicted = per_layer.run(values, fed, reals)
        for layer, array, reference_values, expected in zip(self._layers, arrays, result, predicted, strict=False):
            layer.add(array, reference_values, expected)
        indices = [layer.match.tensor.index for layer in self._layers]
        return result[len(values) :], dict(zip(indices, result, strict=False))

    def _bound(self, split: Split) -> list[NDArray]:
        return bind_inputs(split.inputs, self._traced.input_names)

    def _run(self, model: bytes, inputs: tuple[NDArray, ...]) -> tuple[NDArray, ...]:
        request = RunRequest(model=model, inputs=inputs, kernels=self._kernels)
        return make_backend(HOST).assess(request).computed_outputs()

    def _layers_without_tensor(self, layers: tuple[LayerParity, ...]) -> dict[str, str]:
        compared = {layer.layer for layer in layers}
        fused_into = {name: layer.layer for layer in layers for name in layer.layers}
        return {
            name: f"part of {fused_into[name]}" if name in fused_into else "the flatbuffer has no tensor for it"
            for name in self._traced.keras_layers
            if name not in compared
        }


def _traced(model: Any) -> Trace:
    require_tf_keras(model, "qat_parity")
    built_in = model.inputs[0].shape[0] if getattr(model, "inputs", None) else None
    if built_in is not None:
        raise InputError(
            f"{model.name!r} has a fixed batch size of {built_in}: expected a model that accepts any batch size. Build "
            "its Input without batch_size",
            field="qat_model",
            expected="no batch size",
            got=built_in,
            limit="parity-batch",
        )
    return trace(model, 0)


def _in_order_of(values: Sequence[str], names: Sequence[str], other_names: Sequence[str], kind: str) -> list[str]:
    """Return `values`, which have these `names`, in the order of `other_names`; unchanged if the names differ."""
    if len(values) != len(other_names):
        raise InputError(
            f"the QAT model has {len(values)} {kind} ({', '.join(names)}), but the flatbuffer has {len(other_names)} "
            f"({', '.join(other_names)}): it was converted from another model",
            field="model",
            expected=list(names),
            got=list(other_names),
        )
    return [values[names.index(name)] for name in other_names] if set(names) == set(other_names) else list(values)


def _chunks(split: Split, size: int) -> Iterator[Split]:
    """Yield the examples in order, in chunks of at most `size` examples (at least 1)."""
    size = max(1, size)
    for start in range(0, split.num_examples, size):
        chosen = slice(start, start + size)
        yield dataclasses.replace(
            split, inputs={name: array[chosen] for name, array in split.inputs.items()}, labels=None
        )
