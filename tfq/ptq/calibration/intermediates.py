# SPDX-License-Identifier: Apache-2.0
"""Ranges inside of fused ops: a sequence LSTM's gates, which only TensorFlow's own calibrator can look into.

The one file that touches `tensorflow.lite.python.optimize.calibrator`, read in 2.21.0.
"""

from collections.abc import Mapping, Sequence

from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import InputError


def intermediate_ranges(
    model: bytes, samples: Sequence[Mapping[str, NDArray]]
) -> dict[tuple[int, int], tuple[float, float]]:
    """(subgraph, tensor) -> (minimum, maximum) over `samples` of the intermediate tensors of its ops.

    Empty where no op has any; TensorFlow is not loaded then.
    """
    parsed = tflite.read(model)
    graph = parsed.main_subgraph
    wanted = {(graph.index, tensor) for op in graph.ops for tensor in op.intermediates if tensor != tflite.ABSENT}
    if not wanted:
        return {}
    from tensorflow.lite.python.optimize import calibrator

    # The calibrator takes lists, in the subgraph's own order.
    feed = ([sample[name] for name in parsed.input_names] for sample in samples)
    try:
        calibrated = calibrator.Calibrator(calibrator.add_intermediate_tensors(model)).calibrate(lambda: feed)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"TensorFlow's calibrator cannot run the model on the representative dataset: {error}"
        ) from error
    return {key: ends for key, ends in tflite.read_ranges(bytes(calibrated)).items() if key in wanted}
