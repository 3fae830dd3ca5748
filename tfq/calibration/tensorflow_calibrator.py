# SPDX-License-Identifier: Apache-2.0
"""Global minimum and maximum by TensorFlow's own calibrator.

The one file that touches `tensorflow.lite.python.optimize.calibrator`, read in 2.21.0.
"""

from tfq import flatbuffer
from tfq.calibration.ranges import Ranges, Samples
from tfq.errors import InputError

# Ops that run other subgraphs; the calibrator of 2.21 dies of a WHILE by a segmentation fault.
_CONTROL_FLOW = ("WHILE", "IF", "CALL_ONCE", "STABLEHLO_WHILE")


def tensorflow_min_max(model: bytes, samples: Samples) -> Ranges:
    """Ranges of the float flatbuffer `model` over `samples`, the same to the bit as TFLiteConverter finds them.

    Of a residual ADD one input's range is often recorded too wide (measured on 2.21; ops that work in place are
    suspected): it costs resolution, never saturation.
    """
    from tensorflow.lite.python.optimize import calibrator

    parsed = flatbuffer.read(model)
    loops = [
        f"{op.name} ({op.keras_layer or 'no layer'})" for op in parsed.main_subgraph.ops if op.name in _CONTROL_FLOW
    ]
    if loops:
        raise InputError(
            f"TensorFlow's calibrator crashes on control flow, and the model holds {', '.join(loops)}: give the Keras "
            "model, whose recurrent layers are unrolled (ConvLSTM of tf_keras and loops of your own are not), or "
            "convert to a scheme that needs no ranges: dynamic, float16"
        )
    names = parsed.input_names
    # The calibrator takes lists, in the subgraph's own order.
    feed = ([sample[name] for name in names] for sample in samples)
    try:
        calibrated = calibrator.Calibrator(calibrator.add_intermediate_tensors(model)).calibrate(lambda: feed)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"TensorFlow's calibrator cannot run the model on the representative dataset: {error}"
        ) from error
    return Ranges(values=flatbuffer.read_ranges(bytes(calibrated)), method="tensorflow", num_samples=len(samples))
