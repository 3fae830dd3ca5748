# SPDX-License-Identifier: Apache-2.0
"""A plain ai_edge_litert interpreter as an oracle, independent of tfq."""

import numpy as np


def answers_of(content: bytes, data, output: int = 0):
    """Return the dequantized values of an output for `data`, one example at a time, with states reset before each."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (input_details,), output_details = interpreter.get_input_details(), interpreter.get_output_details()[output]
    results = []
    for example in data:
        interpreter.reset_all_variables()
        interpreter.set_tensor(input_details["index"], _stored(example[None], input_details))
        interpreter.invoke()
        results.append(interpreter.get_tensor(output_details["index"])[0])
    (scale, zero_point), values = output_details["quantization"], np.stack(results)
    return (values.astype("float64") - zero_point) * scale if scale else values


def run_in_batches(content: bytes, data, batch_size: int, output: int = 0):
    """Return the dequantized values of an output, `batch_size` examples at a time; the last batch is padded with 0."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (input_details,), output_details = interpreter.get_input_details(), interpreter.get_output_details()[output]
    results = []
    for start in range(0, len(data), batch_size):
        batch = np.zeros((batch_size, *data.shape[1:]), data.dtype)
        batch[: len(data) - start] = data[start : start + batch_size]
        interpreter.set_tensor(input_details["index"], _stored(batch, input_details))
        interpreter.invoke()
        results.append(interpreter.get_tensor(output_details["index"]))
    (scale, zero_point), values = output_details["quantization"], np.concatenate(results)[: len(data)]
    return (values.astype("float64") - zero_point) * scale if scale else values


def outputs_by_name(content: bytes, inputs: dict, signature: str | None = None, batch_size: int = 1) -> dict:
    """Return {output: dequantized values} of a signature for {input: array (n, ...)}, `batch_size` rows at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(signature)
    details, sinks = runner.get_input_details(), runner.get_output_details()
    results = []
    for start in range(0, len(next(iter(inputs.values()))), batch_size):
        rows = {name: array[start : start + batch_size] for name, array in inputs.items()}
        results.append(runner(**{name: _stored(array, details[name]) for name, array in rows.items()}))
    joined = {name: np.concatenate([result[name] for result in results]) for name in sinks}
    for name, values in joined.items():
        scale, zero_point = sinks[name]["quantization"]
        joined[name] = (values.astype("float64") - zero_point) * scale if scale else values
    return joined


def _stored(values, details):
    (scale, zero_point), dtype = details["quantization"], details["dtype"]
    if not scale:
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max).astype(dtype)


def sqnr_db(expected, got) -> float:
    """Return 10 log10 of the variance of `expected` over the mean squared error of `got`."""
    expected, got = np.asarray(expected, "float64"), np.asarray(got, "float64")
    assert expected.shape == got.shape
    return float(10 * np.log10(expected.var() / max(((expected - got) ** 2).mean(), 1e-30)))
