# SPDX-License-Identifier: Apache-2.0
"""Mode "samples": run a few samples of any shape one by one, and return all outputs.

`inputs.npz` holds an array `<sample>_<input>` for each sample and input, in the model's own dtypes, with the batch
dimension, if the model has one. `outputs.npz` gets `<sample>_<output>`. Unlike the mode "examples", this one needs no
batch dimension, and outputs may change their shape from sample to sample.
"""

import os

import ai_edge_litert.interpreter  # noqa: F401  imported before the model loads, so that a failure is not blamed on it
import numpy as np

from . import session


def run(directory, request):
    """Run `num_samples` samples. Returns the number of outputs and the machine."""
    session.limit_memory(request["memory_bytes"])
    interpreter = session.make_interpreter(os.path.join(directory, "model.tflite"), request)
    details = interpreter.get_input_details()
    outputs = [detail["index"] for detail in interpreter.get_output_details()]
    results, shapes = {}, None
    with np.load(os.path.join(directory, "inputs.npz")) as inputs:
        for sample in range(request["num_samples"]):
            arrays = [inputs[f"{sample}_{index}"] for index in range(len(details))]
            if shapes != [array.shape for array in arrays]:
                shapes = [array.shape for array in arrays]
                resize(interpreter, details, arrays)
            for detail, array in zip(details, arrays, strict=True):
                interpreter.set_tensor(detail["index"], array)
            interpreter.reset_all_variables()
            interpreter.invoke()
            for position, index in enumerate(outputs):
                value = interpreter.get_tensor(index)
                if value.dtype.kind not in "biufc":
                    raise ValueError(f"output {position} has dtype {value.dtype}, expected numbers")
                results[f"{sample}_{position}"] = value
            print(f"progress {sample + 1}", flush=True)
    np.savez(os.path.join(directory, "outputs.npz"), **results)
    return {"num_outputs": len(outputs), "machine": session.machine()}


def resize(interpreter, details, arrays):
    """Resize the inputs to the shapes of the arrays where they differ, and allocate the tensors."""
    for detail, array in zip(details, arrays, strict=True):
        if detail["shape"].tolist() != list(array.shape):
            interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
