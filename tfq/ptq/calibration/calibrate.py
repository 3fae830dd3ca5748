# SPDX-License-Identifier: Apache-2.0
"""Calibrate a float flatbuffer in one call.

Touches `AddIntermediateTensors` and the `CalibrationWrapper` of `_pywrap_tensorflow_lite_calibration_wrapper` (its
Prepare, FeedTensor and Calibrate), read in TensorFlow 2.21.0.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import sha256
from tfq.config import CalibrationConfig
from tfq.errors import InputError
from tfq.ptq.calibration.methods import choose_ranges, needs_histograms
from tfq.ptq.calibration.observer import observe
from tfq.ptq.calibration.ranges import Ranges, TensorRange

# Fused recurrent ops whose int8 form has ranges for tensors inside of the op, which the float form leaves out.
_WITH_INTERMEDIATES = frozenset({"UNIDIRECTIONAL_SEQUENCE_LSTM"})
# Those whose states have ranges.
_WITH_STATES = frozenset({"UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"})


def with_intermediate_tensors(model: bytes) -> bytes:
    """Return `model` with the tensors inside of its fused recurrent ops declared, so that they can carry ranges.

    TensorFlow's quantizer reads the ranges of an LSTM's hidden state from there. Other models are returned as they are,
    without loading TensorFlow.
    """
    ops = [op for graph in tflite.read(model).subgraphs for op in graph.ops if op.name in _WITH_INTERMEDIATES]
    if all(op.intermediates for op in ops):
        return model
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    return bytes(wrapper.AddIntermediateTensors(model))


def intermediate_ranges(
    model: bytes, samples: Sequence[Mapping[str, NDArray]]
) -> dict[tuple[int, int], tuple[float, float]]:
    """Return (subgraph, tensor) -> (minimum, maximum) over `samples` of intermediate tensors and states of its ops.

    Empty where no op has any; TensorFlow is not loaded then.
    """
    parsed = tflite.read(model)
    graph = parsed.main_subgraph
    wanted = {(graph.index, tensor) for op in graph.ops for tensor in op.intermediates if tensor != tflite.ABSENT}
    wanted |= {(graph.index, tensor) for op in graph.ops for tensor in _states(graph, op)}
    if not wanted:
        return {}
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    calibrator = wrapper.CalibrationWrapper(model, [], [])
    try:
        for sample in samples:
            # It takes lists, in the subgraph's own order. Prepare resets the states: examples are independent.
            arrays = [sample[name] for name in parsed.input_names]
            calibrator.Prepare([list(array.shape) for array in arrays])
            calibrator.FeedTensor(arrays)
        calibrated = calibrator.Calibrate()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"TensorFlow's calibrator cannot run the model on the representative dataset: {error}",
            field="representative_dataset",
        ) from error
    return {key: ends for key, ends in tflite.read_ranges(bytes(calibrated)).items() if key in wanted}


def with_lstm_state_ranges(
    graph: tflite.Subgraph, ranges: Mapping[tuple[int, int], TensorRange]
) -> dict[tuple[int, int], TensorRange]:
    """Return `ranges` in which the hidden state of each fused LSTM has the range of its output.

    The output is the hidden state of each step. With ranges of their own the kernel would read its last step by
    another scale: 10 dB were measured.
    """
    results = dict(ranges)
    for op in graph.ops:
        if op.name != "UNIDIRECTIONAL_SEQUENCE_LSTM" or len(op.intermediates) <= _HIDDEN_INTERMEDIATE:
            continue
        output = results.get((graph.index, op.outputs[0]))
        if output is None:
            continue
        has_projection = len(op.inputs) > _PROJECTION and op.inputs[_PROJECTION] != tflite.ABSENT
        tied = [op.inputs[_HIDDEN_STATE]]
        # A projection stands between the cell's own output, which this one describes, and the hidden state.
        tied += [] if has_projection else [op.intermediates[_HIDDEN_INTERMEDIATE]]
        for index in tied:
            results[graph.index, index] = replace(output, name=graph.tensors[index].name)
    return results


# Places of UNIDIRECTIONAL_SEQUENCE_LSTM: of inputs the projection weights and the hidden state, and of intermediates
# the one that describes the hidden state.
_PROJECTION, _HIDDEN_STATE, _HIDDEN_INTERMEDIATE = 16, 18, 4


def _states(graph: tflite.Subgraph, op: tflite.Op) -> list[int]:
    """Return the variable tensors that the int8 form of `op` carries from step to step."""
    if op.name not in _WITH_STATES or (op.name in _WITH_INTERMEDIATES and not op.intermediates):
        return []
    return [index for index in op.inputs if index != tflite.ABSENT and graph.tensors[index].is_variable]


# Ops that run other subgraphs, whose tensors nobody sees from outside.
_CONTROL_FLOW = ("WHILE", "IF", "CALL_ONCE", "STABLEHLO_WHILE")


def calibrate(
    model: bytes, samples: Sequence[Mapping[str, NDArray]], config: CalibrationConfig | None = None
) -> Ranges:
    """Return the activation ranges of the float flatbuffer `model` over `samples` (by input name, batch 1).

    config: the method; one whose `ranges` names a file gives these back.
    Raises InputError on a model with control flow, on samples that it does not run on, and on ranges that were found
    with another model.
    """
    return calibrate_with_outputs(model, samples, config)[0]


Outputs = dict[int, tuple[NDArray, ...]]


def calibrate_with_outputs(
    model: bytes,
    samples: Sequence[Mapping[str, NDArray]],
    config: CalibrationConfig | None = None,
    keep: Collection[int] = (),
) -> tuple[Ranges, Outputs]:
    """Calibrate as `calibrate` does; return as well the outputs of `model` for the samples whose numbers are in `keep`.

    Ranges that come from a file leave nothing to run: there are no outputs then.
    """
    config = config or CalibrationConfig()
    if config.ranges:
        return load_ranges(model, config.ranges), {}
    check_no_control_flow(model)
    seen = observe(model, samples, histograms=needs_histograms(config), total=len(samples), keep=keep)
    return _with_intermediates(model, samples, choose_ranges(seen, config)), seen.outputs


def _with_intermediates(model: bytes, samples: Sequence[Mapping[str, NDArray]], ranges: Ranges) -> Ranges:
    """Add the ranges of the intermediate tensors inside of fused ops."""
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
    """What an earlier calibration of the float flatbuffer `model` left at `path`. Raises InputError on another's."""
    ranges = Ranges.load(path)
    if ranges.model_sha256 != sha256(model):
        raise InputError(
            f"{path}: the ranges are of another float flatbuffer ({ranges.model_sha256[:12]}, this one is "
            f"{sha256(model)[:12]}): calibrate this model, or give the one that they were found with",
            field="conversion.calibration.ranges",
            expected=sha256(model),
            got=ranges.model_sha256,
        )
    return ranges


def check_no_control_flow(model: bytes) -> None:
    """Raise InputError if the flatbuffer holds a loop or a branch."""
    ops = tflite.read(model).main_subgraph.ops
    loops = [f"{op.name} ({op.keras_layer or 'no layer'})" for op in ops if op.name in _CONTROL_FLOW]
    if loops:
        raise InputError(
            f"calibration does not see inside of control flow, and the model holds {', '.join(loops)}: give the Keras "
            "model, whose recurrent layers are unrolled (ConvLSTM of tf_keras and loops of your own are not), or "
            "convert to a scheme that needs no ranges: dynamic_range, float16",
            field="model",
            expected="no control flow",
            got=tuple(loops),
        )
