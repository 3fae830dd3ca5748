# SPDX-License-Identifier: Apache-2.0
"""LiteRT's GPU accelerator with the methods of LiteRT's interpreter that the modes of this folder call.

`CompiledModel` runs a flatbuffer on WebGPU, whose implementation Dawn needs a Vulkan driver. This follows
ai-edge-litert 2.3.0. No API returns the adapter's name, the ops that stay on the CPU and errors of the GPU: the runtime
writes them on C's stderr, which is a file in the children of `tfq.backends.child`.
"""

import ctypes
import math
import os
import re

import numpy as np

from . import session
from .tflm import stderr_since, stderr_size

LOADER, DRIVER = "libvulkan.so.1", "vk_swiftshader_icd.json"
ADAPTER = re.compile(r"Selected adapter: (.+?), arch=(.*?), vendor=(.*?), backend=(.*?), adapterType=([^\n]*)")
# An op that stays on the CPU, and the reason: "TILE: Operation is not supported."
REFUSALS = re.compile(r"^ERROR: Following operations are not supported by GPU delegate:\n((?:[A-Z0-9_]+: .*\n)+)", re.M)
ON_GPU = re.compile(r"^(No|\d+) operations will run on the GPU", re.M)
# Lines of severity E of the GPU's log, and of its warnings about shapes. Results after an error are undefined.
FAULT = re.compile(r"^E\d{4} [^\]]*?\] (.+)$", re.M)
SUSPECT = re.compile(r"^W\d{4} .*?gpu_model_builder[^\]]*\] (.+)$", re.M)
# The end of a RuntimeError of LiteRT, after the places in its source code.
REASON = re.compile(r"└ (?!ERROR: \[)(.+)")
SHOWN = 3
# The types of LiteRT's buffers for Python.
BUFFER_TYPES = (np.float32, np.float16, np.int8, np.uint8, np.int32, np.bool_)


class Interpreter:
    """A flatbuffer that is compiled for the GPU; if the GPU refuses some ops, for GPU and CPU."""

    def __init__(self, path, request):
        """Compile the flatbuffer.

        Args:
            path: The flatbuffer.
            request: Its entry "vulkan" is the folder of SwiftShader's driver and Vulkan's loader; None for the drivers
                of this system.

        Raises:
            RuntimeError: The runtime refuses the flatbuffer, or finds no GPU.
        """
        load_vulkan(request["vulkan"])
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator

        with open(path, "rb") as file:
            model = schema.Model.GetRootAs(file.read())
        self.graph, self.start = model.Subgraphs(0), stderr_size()
        self.is_complete = True
        try:
            self.compiled = CompiledModel.from_file(path, hardware_accel=HardwareAccelerator.GPU)
        except RuntimeError:
            if "No adapters found" in stderr_since(self.start):
                raise
            self.is_complete, self.start = False, stderr_size()
            both = HardwareAccelerator.GPU | HardwareAccelerator.CPU
            try:
                self.compiled = CompiledModel.from_file(path, hardware_accel=both)
            except RuntimeError as error:
                log = stderr_since(self.start)
                raise RuntimeError("; ".join([*REASON.findall(str(error)), *faults(log)]) or str(error)) from error
        self.is_complete = self.is_complete and self.compiled.is_fully_accelerated()
        self._bind(model)

    def _bind(self, model):
        """Find the buffers of subgraph 0 by the names of its signature."""
        key, names = signature_of_main(model)
        keys = list(self.compiled.get_signature_list())
        if (key is None and len(keys) != 1) or (key is not None and key not in keys):
            raise RuntimeError(f"the runtime does not list the signature of subgraph 0, only {keys}")
        self.signature = self.compiled.get_signature_index(keys[0] if key is None else key)
        listed = self.compiled.get_signature_by_index(self.signature)
        graph = self.graph
        self.inputs = [graph.Inputs(index) for index in range(graph.InputsLength())]
        self.outputs = [graph.Outputs(index) for index in range(graph.OutputsLength())]
        self.buffers, self.places = [], []
        self.shapes: dict[int, list[int]] = {}
        for own, place, create, describe in (
            (self.inputs, "inputs", self.compiled.create_input_buffers, self.compiled.get_input_tensor_details),
            (self.outputs, "outputs", self.compiled.create_output_buffers, self.compiled.get_output_tensor_details),
        ):
            # Without a signature, the runtime lists the tensors in the order of the subgraph.
            tensors = own if names is None else [names[place][name] for name in listed[place]]
            buffers, details = create(self.signature), describe(listed["key"])
            if len(tensors) != len(buffers) or set(tensors) != set(own):
                raise RuntimeError(f"the runtime has {len(buffers)} {place}, expected {len(set(own))}")
            self.buffers.append(buffers)
            self.places.append(dict(zip(tensors, buffers, strict=True)))
            # The file may have other shapes for tensors after an input.
            self.shapes |= {tensor: details[name]["shape"] for tensor, name in zip(tensors, listed[place], strict=True)}
            for tensor in own:
                if dtype_of(self.graph.Tensors(tensor).Type()) not in BUFFER_TYPES:
                    detail = self._detail(tensor)
                    raise RuntimeError(
                        f"{place[:-1]} {detail['name']!r} is {detail['dtype'].__name__}, and the buffers of LiteRT's "
                        f"GPU accelerator hold only {', '.join(kind.__name__ for kind in BUFFER_TYPES)}"
                    )

    def get_input_details(self):
        """Return index, name, dtype, shape and shape signature of each input."""
        return [self._detail(tensor) for tensor in self.inputs]

    def get_output_details(self):
        """Return index, name, dtype, shape and shape signature of each output."""
        return [self._detail(tensor) for tensor in self.outputs]

    def _detail(self, index):
        tensor = self.graph.Tensors(index)
        shape = np.asarray(self.shapes[index], np.int32)
        signature = tensor.ShapeSignatureAsNumpy() if tensor.ShapeSignatureLength() else shape
        name = (tensor.Name() or b"").decode(errors="replace")
        dtype = dtype_of(tensor.Type())
        return {"index": index, "name": name, "dtype": dtype, "shape": shape, "shape_signature": np.asarray(signature)}

    def resize_tensor_input(self, index, shape):
        """Refuse another shape: the runtime compiles the model for the shapes in the file."""
        raise session.InputMismatch(
            f"input {self._detail(index)['name']!r} has shape {list(self.shapes[index])} in the file, got "
            f"{list(shape)}. The GPU accelerator runs only the shapes in the file. Convert with fixed sizes"
        )

    def allocate_tensors(self):
        """Do nothing: the buffers are allocated."""

    def set_tensor(self, index, array):
        """Set an input. The runtime does not check sizes, and ignores that a part of a buffer is not written."""
        shape = self.shapes[index]
        if array.size != math.prod(shape):
            raise session.InputMismatch(f"input tensor {index} has shape {list(shape)}, got {list(array.shape)}")
        self.places[0][index].write(np.ascontiguousarray(array))

    def get_tensor(self, index):
        """Return a copy of an output."""
        shape, dtype = self.shapes[index], dtype_of(self.graph.Tensors(index).Type())
        return np.array(self.places[1][index].read(math.prod(shape), dtype)).reshape(shape)

    def reset_all_variables(self):
        """Do nothing: the accelerator refuses variables."""

    def invoke(self):
        """Run an inference."""
        self.compiled.run_by_index(self.signature, *self.buffers)

    def op_counts(self):
        """Return (number of ops, ops on the GPU or None, why these are unknown)."""
        total = self.graph.OperatorsLength()
        if self.is_complete:
            return total, total, None
        accelerated = ops_on_gpu(stderr_since(self.start))
        if accelerated is None:
            return total, None, "the runtime does not say how many ops run on the GPU"
        return total, min(accelerated, total), None

    def facts(self):
        """Return the adapter, and what the runtime has logged about this model.

        Raises:
            RuntimeError: The GPU reported an error, so the outputs are undefined.
        """
        log = stderr_since(self.start)
        if errors := faults(log):
            more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
            raise RuntimeError(
                f"the GPU reported errors, so its outputs are undefined: {'; '.join(errors[:SHOWN])}{more}"
            )
        notes = [f"LiteRT warns: {line}. The outputs may be wrong" for line in dict.fromkeys(SUSPECT.findall(log))]
        return {"machine": {"gpu": adapter_of(log)}, "unaccelerated": refused_ops(log), "notes": notes}


def load_vulkan(folder):
    """Load Vulkan's loader for the runtime, which opens it by its name; `folder` is None for the system's."""
    if folder is not None:
        os.environ["VK_ICD_FILENAMES"] = os.path.join(folder, DRIVER)
        os.environ.pop("VK_DRIVER_FILES", None)
        ctypes.CDLL(os.path.join(folder, LOADER), ctypes.RTLD_GLOBAL)


def adapter_of(log):
    """Return {"name", "arch", "vendor", "backend", "type"} of the adapter that the runtime chose; None if unknown."""
    match = ADAPTER.search(log)
    return match and dict(
        zip(("name", "arch", "vendor", "backend", "type"), map(str.strip, match.groups()), strict=True)
    )


def refused_ops(log):
    """Return {name of an op: the runtime's reasons} of the ops that the GPU refuses."""
    result: dict[str, list[str]] = {}
    for block in REFUSALS.findall(log):
        for line in block.splitlines():
            name, _, reason = line.partition(": ")
            result.setdefault(name, []).append(reason)
    return {name: " ".join(dict.fromkeys(reasons)) for name, reasons in result.items()}


def ops_on_gpu(log):
    """Return how many ops run on the GPU if not all do; None if the log does not say it."""
    match = ON_GPU.search(log)
    return match and (0 if match[1] == "No" else int(match[1]))


def faults(log):
    """Return the distinct errors of the GPU's log."""
    return list(dict.fromkeys(FAULT.findall(log)))


def signature_of_main(model):
    """Return (key, {"inputs" and "outputs": {name: tensor}}) of subgraph 0; (None, None) if the file has no signature.

    Raises:
        RuntimeError: The file has signatures, but none of subgraph 0.
    """
    signatures = [model.SignatureDefs(index) for index in range(model.SignatureDefsLength())]
    if not signatures:
        return None, None
    for signature in signatures:
        if signature.SubgraphIndex() == 0:
            maps = {
                "inputs": [signature.Inputs(index) for index in range(signature.InputsLength())],
                "outputs": [signature.Outputs(index) for index in range(signature.OutputsLength())],
            }
            names = {
                place: {entry.Name().decode(): entry.TensorIndex() for entry in entries}
                for place, entries in maps.items()
            }
            return signature.SignatureKey().decode(), names
    raise RuntimeError("the file has signatures, but none of subgraph 0")


def dtype_of(number):
    """Return NumPy's type for a type of the schema.

    Raises:
        RuntimeError: The type has no values for NumPy.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    try:
        return np.dtype(names[number]).type
    except TypeError as error:
        raise RuntimeError(f"a tensor has type {names[number]}, expected numbers") from error
