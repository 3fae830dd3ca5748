# SPDX-License-Identifier: Apache-2.0
"""Calibrate a float flatbuffer in one call.

Private TensorFlow symbols used here: `AddIntermediateTensors` and `CalibrationWrapper` (Prepare, FeedTensor, Calibrate)
of `_pywrap_tensorflow_lite_calibration_wrapper`, as of TensorFlow 2.21.0.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import sha256
from tfq.config import CalibrationConfig
from tfq.errors import InputError
from tfq.isolation import QUANTIZER_ADVICE, isolated
from tfq.progress import stage
from tfq.ptq.calibration.histogram import UnknownQuantileError
from tfq.ptq.calibration.methods import choose_ranges, needed_tails, needs_histograms
from tfq.ptq.calibration.observer import observe
from tfq.ptq.calibration.ranges import Ranges, TensorRange
from tfq.text_table import listed
from tfq.tflite.op_types import CUSTOM_KERNELS, FIXED_OUTPUT_SCALES

# Fused recurrent ops whose int8 form needs ranges of tensors inside the op, which the float form does not declare.
_WITH_INTERMEDIATES = frozenset({"UNIDIRECTIONAL_SEQUENCE_LSTM"})
# Fused recurrent ops whose state tensors need ranges.
_WITH_STATES = frozenset({"UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"})


def with_intermediate_tensors(model: bytes) -> bytes:
    """Return `model` with the tensors inside its fused recurrent ops declared, so that they can have ranges.

    TensorFlow's quantizer reads the range of an LSTM's hidden state from them. Models without such ops are returned
    unchanged, and TensorFlow is not loaded.
    """
    ops = [op for graph in tflite.read(model).subgraphs for op in graph.ops if op.name in _WITH_INTERMEDIATES]
    if all(op.intermediates for op in ops):
        return model
    return _add_intermediate_tensors(model)


@isolated("TensorFlow's calibrator", advice=QUANTIZER_ADVICE)
def _add_intermediate_tensors(model: bytes) -> bytes:
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    return bytes(wrapper.AddIntermediateTensors(model))


def intermediate_ranges(
    model: bytes, samples: Sequence[Mapping[str, NDArray]]
) -> dict[tuple[int, int], tuple[float, float]]:
    """Return the ranges of the intermediate and state tensors of fused recurrent ops over `samples`.

    Args:
        model: A float flatbuffer, as `with_intermediate_tensors` returns it.
        samples: {input name: array of the model's batch size}.

    Returns:
        {(subgraph, tensor): (minimum, maximum)}. If no op has such tensors, it is empty, and TensorFlow is not loaded.

    Raises:
        InputError: TensorFlow's calibrator cannot run the model on the samples.
    """
    parsed = tflite.read(model)
    graph = parsed.main_subgraph
    requested = {(graph.index, tensor) for op in graph.ops for tensor in op.intermediates if tensor != tflite.ABSENT}
    requested |= {(graph.index, tensor) for op in graph.ops for tensor in _states(graph, op)}
    if not requested:
        return {}
    try:
        # The calibrator reads lists in the order of the subgraph's inputs.
        calibrated = _calibrated(model, [[sample[name] for name in parsed.input_names] for sample in samples])
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "calibration: TensorFlow's calibrator cannot run the model on the representative dataset. Check the shapes "
            f"and types of the samples. TensorFlow says: {error}",
            field="representative_dataset",
        ) from error
    return {key: ends for key, ends in tflite.read_ranges(calibrated).items() if key in requested}


@isolated("TensorFlow's calibrator", advice=QUANTIZER_ADVICE)
def _calibrated(model: bytes, samples: Sequence[Sequence[NDArray]]) -> bytes:
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    calibrator = wrapper.CalibrationWrapper(model, [], [])
    for arrays in samples:
        # Prepare resets the states, because samples are independent.
        calibrator.Prepare([list(array.shape) for array in arrays])
        calibrator.FeedTensor(list(arrays))
    return bytes(calibrator.Calibrate())


def lstm_states(graph: tflite.Subgraph) -> dict[int, int]:
    """Return {tensor: output} for the tensors inside fused LSTMs that hold the hidden state.

    The output of an LSTM is its hidden state. If the two had different scales, the kernel would read the hidden state
    of the previous step with the wrong scale (measured: 10 dB).
    """
    results = {}
    for op in graph.ops:
        if op.name != "UNIDIRECTIONAL_SEQUENCE_LSTM" or len(op.intermediates) <= _HIDDEN_INTERMEDIATE:
            continue
        has_projection = len(op.inputs) > _PROJECTION and op.inputs[_PROJECTION] != tflite.ABSENT
        results[op.inputs[_HIDDEN_STATE]] = op.outputs[0]
        # With a projection, this intermediate is the cell's output before the projection, not the hidden state.
        if not has_projection:
            results[op.intermediates[_HIDDEN_INTERMEDIATE]] = op.outputs[0]
    return results


def with_lstm_state_ranges(
    graph: tflite.Subgraph, ranges: Mapping[tuple[int, int], TensorRange]
) -> dict[tuple[int, int], TensorRange]:
    """Return `ranges` with the range of each fused LSTM's output also for its hidden state."""
    results = dict(ranges)
    for state, output in lstm_states(graph).items():
        if (graph.index, output) in results:
            results[graph.index, state] = replace(results[graph.index, output], name=graph.tensors[state].name)
    return results


# Positions in UNIDIRECTIONAL_SEQUENCE_LSTM: the projection weights and the hidden state among its inputs, the hidden
# state among its intermediates.
_PROJECTION, _HIDDEN_STATE, _HIDDEN_INTERMEDIATE = 16, 18, 4


def _states(graph: tflite.Subgraph, op: tflite.Op) -> list[int]:
    """Return the variable tensors that the int8 form of `op` carries from step to step."""
    if op.name not in _WITH_STATES or (op.name in _WITH_INTERMEDIATES and not op.intermediates):
        return []
    return [index for index in op.inputs if index != tflite.ABSENT and graph.tensors[index].is_variable]


# Ops whose int8 output has a fixed scale, and whose values calibration need not see (`fixed_ranges`).
_BOUNDED = ("LOGISTIC", "TANH")
# Ops that run other subgraphs, whose tensors cannot be observed.
_CONTROL_FLOW = ("WHILE", "IF", "CALL_ONCE", "STABLEHLO_WHILE")


def calibrate(
    model: bytes, samples: Sequence[Mapping[str, NDArray]], config: CalibrationConfig | None = None
) -> Ranges:
    """Return the activation ranges of a float flatbuffer.

    Args:
        model: A float flatbuffer.
        samples: {input name: array of the model's batch size}.
        config: The calibration method. If its `ranges` names a file, the ranges are loaded from it instead.

    Raises:
        InputError: The model has control flow or does not run on the samples, or the file has the ranges of another
            model.
    """
    return calibrate_with_outputs(model, samples, config)[0]


Outputs = dict[int, tuple[NDArray, ...]]


@stage("calibrating")
def calibrate_with_outputs(
    model: bytes,
    samples: Sequence[Mapping[str, NDArray]],
    config: CalibrationConfig | None = None,
    keep: Collection[int] = (),
    num_samples: int | None = None,
    *,
    fixed_scales: bool = False,
) -> tuple[Ranges, Outputs]:
    """Calibrate as `calibrate` does, and also return outputs of the float model.

    Args:
        model: A float flatbuffer.
        samples: {input name: array of the model's batch size}.
        config: As in `calibrate`.
        keep: Indices of `samples` whose outputs are returned.
        num_samples: As in `observe`.
        fixed_scales: Whether the ranges are for an int8 file without float layers. Then inner outputs of LOGISTIC and
            TANH whose scale does not depend on their values are not observed, which is faster: they have the range of
            this scale, and the method "fixed". Not used if `config.tensors` selects methods.

    Returns:
        The ranges, and {index of a sample: outputs}. The latter is empty if the ranges come from a file, because then
        the model is not run.
    """
    config = config or CalibrationConfig()
    if config.ranges:
        return load_ranges(model, config.ranges), {}
    check_no_control_flow(model)
    check_custom_ops(model)
    fixed = fixed_ranges(model) if fixed_scales and not config.tensors else {}
    for tails in (needed_tails(config), 0.0):
        seen = observe(
            model,
            samples,
            histograms=needs_histograms(config),
            total=len(samples),
            keep=keep,
            num_samples=num_samples,
            tails=tails,
            leave_out=fixed,
        )
        with contextlib.suppress(UnknownQuantileError):
            ranges = _with_fixed(model, choose_ranges(seen, config), fixed)
            break
    return _with_intermediates(model, samples, ranges), seen.outputs


def fixed_ranges(model: bytes) -> dict[int, TensorRange]:
    """Return the ranges of the main subgraph's tensors whose int8 scale does not depend on their values.

    These are inner outputs of LOGISTIC and TANH that are only multiplied with other activations. Other readers, such as
    a concatenation, may need another scale, which calibration chooses.
    """
    graph = tflite.read(model).main_subgraph
    readers = graph.readers

    def is_multiplied(op: tflite.Op) -> bool:
        return op.name == "MUL" and not any(graph.tensors[index].is_constant for index in op.inputs)

    results = {}
    for op in graph.ops:
        if op.name not in _BOUNDED or op.outputs[0] in graph.outputs or op.outputs[0] not in readers:
            continue
        if graph.tensors[op.outputs[0]].dtype == "float32" and all(map(is_multiplied, readers[op.outputs[0]])):
            scale, zero_point = FIXED_OUTPUT_SCALES[op.name]["int8"]
            low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
            results[op.outputs[0]] = TensorRange(
                name=graph.tensors[op.outputs[0]].name,
                layer=op.keras_layer,
                minimum=low,
                maximum=high,
                observed_minimum=low,
                observed_maximum=high,
                method="fixed",
            )
    return results


def _with_fixed(model: bytes, ranges: Ranges, fixed: Mapping[int, TensorRange]) -> Ranges:
    """Add the ranges that were not observed, in the order of the graph."""
    if not fixed:
        return ranges
    graph = tflite.read(model).main_subgraph
    tensors = {**ranges.tensors, **{(graph.index, index): item for index, item in fixed.items()}}
    order = dict.fromkeys(
        (graph.index, index) for index in (*graph.inputs, *(i for op in graph.ops for i in op.outputs))
    )
    return replace(ranges, tensors={key: tensors[key] for key in order if key in tensors})


def _with_intermediates(model: bytes, samples: Sequence[Mapping[str, NDArray]], ranges: Ranges) -> Ranges:
    """Add the ranges of the intermediate and state tensors of fused ops."""
    inner = intermediate_ranges(model, samples)
    if not inner:
        return ranges
    graph = tflite.read(model).main_subgraph
    layers = {index: op.keras_layer for op in graph.ops for index in (*op.intermediates, *_states(graph, op))}
    results = {
        key: TensorRange(
            name=graph.tensors[key[1]].name,
            layer=layers[key[1]],
            minimum=ends[0],
            maximum=ends[1],
            observed_minimum=ends[0],
            observed_maximum=ends[1],
            method="min_max",
        )
        for key, ends in inner.items()
    }
    return Ranges(
        tensors=with_lstm_state_ranges(graph, {**ranges.tensors, **results}),
        num_samples=ranges.num_samples,
        model_sha256=ranges.model_sha256,
        data_sha256=ranges.data_sha256,
    )


def load_ranges(model: bytes, path: str) -> Ranges:
    """Load the ranges of the float flatbuffer `model` that `Ranges.save` wrote to `path`.

    Raises:
        InputError: The file is not valid, or has the ranges of another flatbuffer.
    """
    ranges = Ranges.load(path)
    if ranges.model_sha256 != sha256(model):
        raise InputError(
            f"{path}: these ranges belong to another float flatbuffer (SHA-256 {ranges.model_sha256[:12]}..., this one "
            f"has {sha256(model)[:12]}...). Calibrate this model, or convert the model that the ranges belong to",
            field="conversion.calibration.ranges",
            expected=sha256(model),
            got=ranges.model_sha256,
        )
    return ranges


def check_custom_ops(model: bytes) -> None:
    """Raise InputError if the flatbuffer has custom ops without a kernel here, so that it cannot be calibrated."""
    graph = tflite.read(model).main_subgraph
    ops = [op for op in graph.ops if op.name == "CUSTOM" and op.custom_code not in CUSTOM_KERNELS]
    if ops:
        named = listed([f"{op.custom_code} ({graph.layer_of(op)})" for op in ops])
        raise InputError(
            f"calibration runs the model, but no kernel here runs its custom ops: {named}. Cut the model before them, "
            "or use a scheme that needs no ranges (dynamic_range, float16)",
            field="model",
            expected="ops with a kernel",
            got=tuple(op.custom_code for op in ops),
            limit="custom-ops",
        )


def check_no_control_flow(model: bytes) -> None:
    """Raise InputError if the flatbuffer has a loop, a branch, or variables that are initialized by CALL_ONCE."""
    ops = tflite.read(model).main_subgraph.ops
    if any(op.name == "CALL_ONCE" for op in ops):
        raise InputError(
            "calibration: the model keeps a state in variables or tables (CALL_ONCE), whose ranges cannot be observed "
            "on single samples. Export the model with the state as an input and an output, or use a scheme that needs "
            "no ranges (dynamic_range, float16)",
            field="model",
            expected="no variables",
            got=("CALL_ONCE",),
            limit="tflite-state",
        )
    loops = [f"{op.name} ({op.keras_layer or 'no layer'})" for op in ops if op.name in _CONTROL_FLOW]
    if loops:
        raise InputError(
            f"calibration cannot observe tensors inside control flow, but the model has {', '.join(loops)}. Pass the "
            "Keras model, because tfq unrolls its recurrent layers (except ConvLSTM of tf_keras and loops that you "
            "wrote), or use a scheme that needs no ranges (dynamic_range, float16)",
            field="model",
            expected="no control flow",
            got=tuple(loops),
            limit="control-flow",
        )
