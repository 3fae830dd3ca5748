# SPDX-License-Identifier: Apache-2.0
"""The one file that runs on the target: `python worker.py DIRECTORY`. NumPy and ai_edge_litert only, nothing of tfq.

DIRECTORY holds request.json, model.tflite and input_<i>.npy. The worker writes output_<i>.npy and then, whole or not at
all, result.json: {"error": {"kind": "input" or "interpreter", "message": ...}} or the result. Progress goes to stdout,
a line `progress <examples done>` now and then. Without a result.json the process has crashed.
"""

import json
import os
import resource
import sys
import time

# What `python FILE` puts there is this file's directory, whose modules could shadow a package's.
sys.path = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(os.path.abspath(__file__))]

import numpy as np  # noqa: E402

PROGRESS_SECONDS = 0.2


class InputMismatch(Exception):
    """The model does not take these arrays."""


def main(directory):
    """Do what DIRECTORY/request.json asks for. Returns the exit code, 0 whenever there is a result.json."""
    # A crash is an answer here, not something to debug from a core file in the user's directory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with open(os.path.join(directory, "request.json")) as file:
        request = json.load(file)
    try:
        result = run(directory, request)
    except InputMismatch as error:
        result = {"error": {"kind": "input", "message": str(error)}}
    except BrokenPipeError:
        return 1  # the parent is gone, and nobody waits for the outputs
    except Exception as error:
        result = {"error": {"kind": "interpreter", "message": f"{type(error).__name__}: {error}"}}
    temporary = os.path.join(directory, ".result.json")
    with open(temporary, "w") as file:
        json.dump(result, file, allow_nan=False)
    os.replace(temporary, os.path.join(directory, "result.json"))
    return 0


def run(directory, request):
    """Run all examples, then the timed inferences; writes the outputs, returns the result as JSON values."""
    inputs = [load(os.path.join(directory, f"input_{index}.npy")) for index in range(request["num_inputs"])]
    interpreter = make_interpreter(os.path.join(directory, "model.tflite"), request)
    details = interpreter.get_input_details()
    batch = prepare_inputs(interpreter, details, inputs)
    notes = []
    if batch > 1 and len(inputs[0]) % batch:
        notes.append(f"the model's batch is {batch}: the last one was filled up with copies of the last example")
    outputs = run_examples(interpreter, details, inputs, batch)
    for index, output in enumerate(outputs):
        np.save(os.path.join(directory, f"output_{index}.npy"), output)
    latencies = time_inferences(interpreter, details, inputs, batch, request["warmup_runs"], request["num_runs"])
    total, delegated, reason = count_ops(interpreter)
    if reason:
        notes.append(reason)
    return {
        "num_outputs": len(outputs),
        "latencies_ms": latencies,
        "total_ops": total,
        "delegated_ops": delegated,
        "machine": machine(),
        "notes": notes,
    }


def load(path):
    """An array of the file, read as it is used; a plain one, since slicing np.memmap costs more than an inference."""
    return np.asarray(np.load(path, mmap_mode="r"))


def make_interpreter(path, request):
    """An interpreter on the file, with XNNPACK or without any delegate."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN if request["xnnpack"] else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return Interpreter(path, num_threads=request["num_threads"], experimental_op_resolver_type=resolver)


def prepare_inputs(interpreter, details, inputs):
    """Check the arrays against the model, resize dynamic dimensions, allocate. Returns the model's own batch."""
    if len(inputs) != len(details):
        raise InputMismatch(f"the model has {len(details)} inputs, got {len(inputs)} arrays")
    batches = {int(detail["shape"][0]) if len(detail["shape"]) else 0 for detail in details}
    batch = batches.pop()
    if batches or batch < 1:
        shapes = [detail["shape"].tolist() for detail in details]
        raise InputMismatch(f"the model's inputs have shapes {shapes}: wanted one batch dimension in front of all")
    for detail, array in zip(details, inputs, strict=True):
        told = f"input {detail['name']!r}"
        if array.dtype != detail["dtype"]:
            raise InputMismatch(f"{told} takes {np.dtype(detail['dtype'])}, got {array.dtype}")
        shape, signature = detail["shape"].tolist(), detail["shape_signature"].tolist()
        wanted = [batch, *array.shape[1:]]
        if len(signature) != len(shape):
            signature = shape
        # The signature has -1 where the size is free.
        fits = len(wanted) == len(shape) and all(
            free in (-1, size) for size, free in zip(wanted, signature, strict=True)
        )
        if not fits:
            raise InputMismatch(f"{told} takes shape {shape} (batch first), got examples of {list(array.shape[1:])}")
        if wanted != shape:
            interpreter.resize_tensor_input(detail["index"], wanted)
    interpreter.allocate_tensors()
    return batch


def chunk(array, start, batch):
    """`batch` examples from `start` on; past the end the last example again."""
    part = array[start : start + batch]
    if len(part) < batch:
        part = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
    return part


def run_examples(interpreter, details, inputs, batch):
    """The outputs of all examples, (n, ...) each; n from the inputs."""
    indices = [detail["index"] for detail in details]
    output_indices = [detail["index"] for detail in interpreter.get_output_details()]
    count, outputs, next_report = len(inputs[0]), [], time.monotonic() + PROGRESS_SECONDS
    for start in range(0, count, batch):
        for index, array in zip(indices, inputs, strict=True):
            interpreter.set_tensor(index, chunk(array, start, batch))
        # Examples are independent: no state of a recurrent layer goes from one to the next.
        interpreter.reset_all_variables()
        interpreter.invoke()
        for position, index in enumerate(output_indices):
            value = interpreter.get_tensor(index)
            if start == 0:
                outputs.append(np.empty((count, *per_example(value, batch).shape[1:]), value.dtype))
            store(outputs[position], start, per_example(value, batch), position)
        if time.monotonic() >= next_report:
            print(f"progress {min(start + batch, count)}", flush=True)
            next_report = time.monotonic() + PROGRESS_SECONDS
    return outputs


def per_example(value, batch):
    """An output with its examples along axis 0: as it is, or, of a batch of 1 that the model dropped, in a new axis."""
    if value.ndim and len(value) == batch:
        return value
    if batch == 1:
        return value[np.newaxis]
    raise ValueError(f"an output has shape {list(value.shape)}: wanted the model's batch of {batch} in front")


def store(output, start, value, position):
    """Put one chunk's output in its place."""
    if value.shape[1:] != output.shape[1:]:
        shapes = f"{list(output.shape[1:])} to {list(value.shape[1:])}"
        raise ValueError(f"the shape of output {position} changes from example to example ({shapes})")
    part = output[start : start + len(value)]
    part[...] = value[: len(part)]


def time_inferences(interpreter, details, inputs, batch, warmup_runs, num_runs):
    """Milliseconds of each of `num_runs` invokes alone, after `warmup_runs`; None when nothing is timed."""
    if not num_runs:
        return None
    latencies = []
    starts = range(0, len(inputs[0]), batch)
    for step in range(warmup_runs + num_runs):
        for detail, array in zip(details, inputs, strict=True):
            interpreter.set_tensor(detail["index"], chunk(array, starts[step % len(starts)], batch))
        interpreter.reset_all_variables()
        begin = time.perf_counter_ns()
        interpreter.invoke()
        end = time.perf_counter_ns()
        if step >= warmup_runs:
            latencies.append((end - begin) / 1e6)
    return latencies


def count_ops(interpreter):
    """(ops of the model, ops that a delegate took, None), or (None, None, why they cannot be counted).

    A delegate's node comes on top of the ops that it replaces; those are what its outputs are computed from, back to
    its inputs. `_get_ops_details` is private: read in ai-edge-litert 2.1.6 and 2.3.0.
    """
    try:
        ops = interpreter._get_ops_details()
        delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
        producers = {int(out): i for i, op in enumerate(ops) if op["op_name"] != "DELEGATE" for out in op["outputs"]}
        taken = set()
        for delegate in delegates:
            border = {int(tensor) for tensor in delegate["inputs"]}
            pending = [int(tensor) for tensor in delegate["outputs"]]
            while pending:
                tensor = pending.pop()
                op = producers.get(tensor)
                if tensor in border or op is None or op in taken:
                    continue
                taken.add(op)
                pending.extend(int(source) for source in ops[op]["inputs"])
        return len(ops) - len(delegates), len(taken), None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return None, None, f"delegated ops not counted: this ai-edge-litert does not list its ops ({error})"


def machine():
    """What ran: architecture, CPU, versions. No host names."""
    import ai_edge_litert

    cpu = None
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "CPU part"):
                    cpu = value.strip()
                    break
    except OSError:
        pass
    return {
        "machine": os.uname().machine,
        "cpu": cpu,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "numpy": np.__version__,
        "ai_edge_litert": getattr(ai_edge_litert, "__version__", None),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
