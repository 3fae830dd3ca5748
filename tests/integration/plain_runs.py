# SPDX-License-Identifier: Apache-2.0
"""A plain interpreter as an oracle: a file runs in a forked child, quantized here and not by tfq."""

import multiprocessing
import signal
from dataclasses import dataclass

import numpy as np

# 1/256 is what the kernels of SOFTMAX and LOGISTIC require, 1/128 those of TANH and L2_NORMALIZATION; with int16
# activations it is 1/32768 for all of them.
FIXED_SCALES = (1 / 256, 1 / 128, 1 / 32768)
SECONDS = 60


@dataclass(frozen=True)
class Output:
    """One output for all samples: its dequantized values, and its scale in the file (0: not quantized)."""

    values: np.ndarray
    scale: float


class DoesNotRun(Exception):
    """The interpreter refused the file, or a signal killed the child."""


def run_plainly(content: bytes, samples: dict[str, np.ndarray]) -> dict[str, Output]:
    """Run the signature of a flatbuffer on every sample, one at a time, with batch size 1.

    Args:
        content: A flatbuffer with one signature.
        samples: An array (n, ...) for each input of the signature.

    Returns:
        The outputs by their names in the signature, with the samples along axis 0.

    Raises:
        DoesNotRun: The file cannot be run; the message is the interpreter's own, or the signal's name.
    """
    # A fork of this process would inherit TensorFlow's threads; the fork server has none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "numpy", "ai_edge_litert.interpreter", "plain_runs"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, content, samples), daemon=True)
    child.start()
    theirs.close()
    try:
        answer = ours.recv() if ours.poll(SECONDS) else "it did not end"
    except EOFError:
        child.join()
        number = -(child.exitcode or 0)
        answer = signal.Signals(number).name if number > 0 else f"exit code {child.exitcode}"
    if child.is_alive():
        child.kill()
    child.join()
    if isinstance(answer, str):
        raise DoesNotRun(answer)
    return answer


def _answer(connection, content: bytes, samples: dict[str, np.ndarray]) -> None:
    try:
        connection.send(_run(content, samples))
    except (RuntimeError, ValueError) as error:
        connection.send(f"{error}")


def _run(content: bytes, samples: dict[str, np.ndarray]) -> dict[str, Output]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner()
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    rows: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    for number in range(len(next(iter(samples.values())))):
        feed = {name: _quantized(samples[name][number : number + 1], detail) for name, detail in inputs.items()}
        for name, array in runner(**feed).items():
            rows[name].append(_dequantized(array, outputs[name]))
    return {name: Output(np.stack(rows[name]), float(outputs[name]["quantization"][0])) for name in outputs}


def _quantized(values: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    dtype = detail["dtype"]
    if scale == 0 or not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(dtype)


def _dequantized(array: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if scale == 0 or not np.issubdtype(array.dtype, np.integer):
        return array.copy()
    return ((array.astype(np.float64) - zero_point) * scale).astype(np.float32)
