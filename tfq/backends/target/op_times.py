# SPDX-License-Identifier: Apache-2.0
"""Mode "op_times": measure each op with LiteRT's profiler, including the ops that XNNPACK executes.

The Python interpreter does not expose the profiler, but the C API of libLiteRt.so, which is part of the same wheel,
does. The declarations follow LiteRT's litert/c headers and were tested with the wheels of 2.1.6 and 2.3.0. Anything
unexpected raises an exception, and a crash affects only this process.
"""

import ctypes
import importlib.util
import os
import time

from . import session

CPU = 1  # kLiteRtHwAcceleratorCpu
WRITE = 1  # kLiteRtTensorBufferLockModeWrite
PROGRESS_SECONDS = 0.2
MAX_EVENTS = 2000  # the profiler's buffer holds 2048 events and drops later ones
OP, DELEGATE_OPS = 2, (4, 8)  # event types: an op of the graph; one inside a delegate
KNOWN_TYPES = {1 << bit for bit in range(9)}
Pointer = ctypes.c_void_p


class Event(ctypes.Structure):
    """ProfiledEventData. Times are in microseconds; `first` is the index of an op, `second` that of its subgraph."""

    _fields_ = [
        ("tag", Pointer),
        ("type", ctypes.c_int),
        ("start", ctypes.c_uint64),
        ("elapsed", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


class Layout(ctypes.Structure):
    """LiteRtLayout. The lower 7 bits of `head` are the rank."""

    _fields_ = [("head", ctypes.c_uint32), ("dimensions", ctypes.c_int32 * 8), ("strides", ctypes.c_uint32 * 8)]


class RankedType(ctypes.Structure):
    """LiteRtRankedTensorType, with spare bytes in case it is larger."""

    _fields_ = [("element_type", ctypes.c_uint32), ("layout", Layout), ("spare", ctypes.c_uint8 * 256)]

    @property
    def shape(self):
        """Dimensions of the tensor; -1 if dynamic."""
        return self.layout.dimensions[: self.layout.head & 0x7F]


class Library:
    """libLiteRt.so, with calls that raise an exception if the status is not 0."""

    def __init__(self):
        """Load the library. Importing the package would load other libraries, too."""
        spec = importlib.util.find_spec("ai_edge_litert")
        if spec is None or spec.origin is None:
            raise RuntimeError("ai-edge-litert is not installed")
        self._library = ctypes.CDLL(os.path.join(os.path.dirname(spec.origin), "libLiteRt.so"))

    def call(self, name, *arguments):
        """Call function `name`. Raise RuntimeError if it fails."""
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status:
            raise RuntimeError(f"{name} returned status {status}")

    def get(self, name, *arguments, type=Pointer):
        """Call function `name` with a pointer as an additional last argument, and return the value written there."""
        out = type()
        self.call(name, *arguments, ctypes.byref(out))
        return out if type is Pointer else out.value


class Compiled:
    """A model that LiteRT has prepared for the CPU."""

    def __init__(self, path, options):
        """Compile the model at `path`. `options`: identifier of LiteRT's options -> their text, as bytes and str."""
        self.library = library = Library()
        self.environment = library.get("LiteRtCreateEnvironment", ctypes.c_int(0), None)
        self.model = library.get("LiteRtCreateModelFromFile", self.environment, os.fsencode(path))
        table = library.get("LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", table, ctypes.c_int(CPU))
        self._keep, self._payloads = ctypes.CFUNCTYPE(None, Pointer)(lambda payload: None), []
        for identifier, text in options.items():
            self._add_option(table, identifier, text)
        self.compiled = library.get("LiteRtCreateCompiledModel", self.environment, self.model, table)

    def _add_option(self, options, identifier, text):
        payload = ctypes.create_string_buffer(text.encode())
        self._payloads.append(payload)
        opaque = self.library.get("LiteRtCreateOpaqueOptions", identifier, payload, self._keep)
        self.library.call("LiteRtAddOpaqueOptions", options, opaque)


class Profiled(Compiled):
    """A compiled model with its profiler and buffers."""

    def __init__(self, path, inputs, kernels, num_threads):
        """Compile the model at `path` with profiling, and fill its inputs, a dictionary by tensor index."""
        xnnpack = f'kernel_mode = "{kernels}"\nnum_threads = {num_threads}\n'
        super().__init__(path, {b"runtime_options_string": "enable_profiling = true\n", b"xnnpack": xnnpack})
        library = self.library
        self.profiler = library.get("LiteRtCompiledModelGetProfiler", self.compiled)
        if not self.profiler:
            raise RuntimeError("this LiteRT has no profiler")
        self.signature = library.get("LiteRtGetModelSignature", self.model, ctypes.c_size_t(0))
        self.inputs, self.outputs = self._buffers("Input", inputs), self._buffers("Output", None)

    def run(self):
        """Run one inference."""
        sides = [part for side in (self.inputs, self.outputs) for part in (ctypes.c_size_t(len(side)), side)]
        self.library.call("LiteRtRunCompiledModel", self.compiled, ctypes.c_size_t(0), *sides)

    def events(self):
        """Run one inference, and return [(tag, type, index, subgraph, microseconds)] of its steps in order."""
        self.library.call("LiteRtResetProfiler", self.profiler)
        self.library.call("LiteRtStartProfiler", self.profiler)
        self.run()
        self.library.call("LiteRtStopProfiler", self.profiler)
        count = self.library.get("LiteRtGetNumProfilerEvents", self.profiler, type=ctypes.c_int)
        if not 0 < count < MAX_EVENTS:
            raise RuntimeError(f"the profiler has {count} events of one inference, expected 1 to {MAX_EVENTS - 1}")
        events = (Event * count)()
        self.library.call("LiteRtGetProfilerEvents", self.profiler, ctypes.c_int(count), events)
        # If the layout differs, these fields have arbitrary values. Check them before following the tags' pointers.
        if any(event.type not in KNOWN_TYPES or event.source not in (0, 1, 2) for event in events):
            raise RuntimeError("this LiteRT's profiler events have another layout")
        return [
            (_text(event.tag), event.type, event.first, event.second, event.elapsed)
            for event in events
            if event.type in (OP, *DELEGATE_OPS)
        ]

    def _buffers(self, side, values):
        """Return a buffer for each input or output of the signature. Inputs are filled by their tensor index."""
        count = self.library.get(f"LiteRtGetNumSignature{side}s", self.signature, type=ctypes.c_size_t)
        buffers = []
        for position in map(ctypes.c_size_t, range(count)):
            tensor = self.library.get(f"LiteRtGetSignature{side}TensorByIndex", self.signature, position)
            type = RankedType()
            self.library.call("LiteRtGetRankedTensorType", tensor, ctypes.byref(type))
            if -1 in type.shape:
                self._set_shape(type, position, None if values is None else values[self._index(tensor)])
            requirements = self.library.get(
                f"LiteRtGetCompiledModel{side}BufferRequirements", self.compiled, ctypes.c_size_t(0), position
            )
            buffer = self.library.get(
                "LiteRtCreateManagedTensorBufferFromRequirements", self.environment, ctypes.byref(type), requirements
            )
            if values is not None:
                self._fill(buffer, values[self._index(tensor)])
            buffers.append(buffer)
        return (Pointer * count)(*buffers)

    def _index(self, tensor):
        return self.library.get("LiteRtGetTensorIndex", tensor, type=ctypes.c_uint32)

    def _set_shape(self, type, position, value):
        """Set dynamic dimensions: those of an input from its value, those of an output from the resized inputs."""
        if value is None:
            layouts = (Layout * (position.value + 1))()
            arguments = (ctypes.c_size_t(len(layouts)), layouts, ctypes.c_bool(True))
            self.library.call(
                "LiteRtGetCompiledModelOutputTensorLayouts", self.compiled, ctypes.c_size_t(0), *arguments
            )
            type.layout = layouts[position.value]
            return
        for axis, size in enumerate(value.shape):
            type.layout.dimensions[axis] = size
        self.library.call(
            "LiteRtCompiledModelResizeInputTensorNonStrict",
            self.compiled,
            ctypes.c_size_t(0),
            position,
            type.layout.dimensions,
            ctypes.c_size_t(value.ndim),
        )

    def _fill(self, buffer, value):
        size = self.library.get("LiteRtGetTensorBufferPackedSize", buffer, type=ctypes.c_size_t)
        if size != value.nbytes:
            raise RuntimeError(f"an input has {size} bytes, got {value.nbytes}")
        address = Pointer()
        self.library.call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), ctypes.c_int(WRITE))
        ctypes.memmove(address, value.tobytes(), size)
        self.library.call("LiteRtUnlockTensorBuffer", buffer)


def _text(pointer):
    return ctypes.string_at(pointer).decode("utf-8", "replace")


def run(directory, request):
    """Profile inferences of the first inputs.

    Returns:
        {"events": [[tag, type, index, subgraph, mean ms]], "num_runs": n}, or {"reason": why} if this version of LiteRT
        differs from what is expected here.
    """
    session.limit_memory(request.get("memory_bytes"))
    try:
        return profile(directory, request)
    except (AttributeError, OSError, RuntimeError) as error:
        return {"reason": str(error)}


def profile(directory, request):
    """Profile inferences as in `run`. Raise RuntimeError, OSError or AttributeError if the library differs."""
    values = {
        index: session.load(os.path.join(directory, name))[0]
        for index, name in zip(request["tensors"], request["inputs"], strict=True)
    }
    path = os.path.join(directory, request["model"])
    profiled = Profiled(path, values, request["kernels"], request["num_threads"])
    for _ in range(1 + request["warmup_runs"]):
        profiled.run()
    first, sums, runs, next_report = [], [], 0, 0.0
    begin = time.monotonic()
    while runs < request["num_runs"] or time.monotonic() - begin < request["min_secs"]:
        events = profiled.events()
        names = [event[:4] for event in events]
        if not runs:
            first, sums = names, [0] * len(names)
        if names != first:
            raise RuntimeError("the profiler reported different ops in two inferences")
        sums = [total + event[4] for total, event in zip(sums, events, strict=True)]
        runs += 1
        spent = time.monotonic() - begin
        done = min(1, runs / request["num_runs"], spent / request["min_secs"] if request["min_secs"] else 1)
        if spent >= next_report:
            print(f"progress {int(100 * done)}", flush=True)
            next_report = spent + PROGRESS_SECONDS
    return {
        "events": [[*name, total / runs / 1000] for name, total in zip(first, sums, strict=True)],
        "num_runs": runs,
    }
