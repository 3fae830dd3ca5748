# SPDX-License-Identifier: Apache-2.0
"""Global minimum and maximum by TensorFlow's own calibrator.

The one file that touches `tensorflow.lite.python.optimize.calibrator`, read in 2.21.0.
"""

from tfq import flatbuffer
from tfq.calibration.ranges import Ranges, Samples
from tfq.errors import InputError


def tensorflow_min_max(model: bytes, samples: Samples) -> Ranges:
    """Ranges of the float flatbuffer `model` over `samples`, the same to the bit as TFLiteConverter finds them.

    Of a residual ADD one input's range is often recorded too wide (measured on 2.21; ops that work in place are
    suspected): it costs resolution, never saturation.
    """
    from tensorflow.lite.python.optimize import calibrator

    graph = flatbuffer.read(model).subgraphs[0]
    names = _input_names(model)
    # Interpreter inputs are fed as a list, in the subgraph's own order.
    feed = ([sample[names[index]] for index in graph.inputs] for sample in samples)
    try:
        calibrated = calibrator.Calibrator(calibrator.add_intermediate_tensors(model)).calibrate(lambda: feed)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"TensorFlow's calibrator cannot run the model on the representative dataset: {error}"
        ) from error
    return Ranges(values=flatbuffer.read_ranges(bytes(calibrated)), method="tensorflow", num_samples=len(samples))


def _input_names(model: bytes) -> dict[int, str]:
    parsed = flatbuffer.read(model)
    for signature in parsed.signatures[:1]:
        return {index: name for name, index in signature.inputs.items()}
    return {index: parsed.subgraphs[0].tensors[index].name for index in parsed.subgraphs[0].inputs}
