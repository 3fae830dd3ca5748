# SPDX-License-Identifier: Apache-2.0
"""The mode "op_times": what LiteRT's own profiler tells of each op, with XNNPACK's of those that it took over.

The interpreter's Python class does not reach the profiler; the C interface of libLiteRt.so, which the same wheel holds,
does. Its declarations were read in LiteRT's litert/c headers and tried with the wheels of 2.1.6 and 2.3.0; anything
unexpected raises, and a crash is that of this process alone.
"""

import ctypes
import importlib.util
import os
import time

from . import session

CPU = 1  # kLiteRtHwAcceleratorCpu
WRITE = 1  # kLiteRtTensorBufferLockModeWrite
PROGRESS_SECONDS = 0.2
MOST_EVENTS = 2000  # the profiler's buffer holds 2048, and drops what comes after
OP, DELEGATE_OPS = 2, (4, 8)  # event types: an op of the graph; one inside a delegate
KNOWN_TYPES = {1 << bit for bit in range(9)}
Pointer = ctypes.c_void_p


class Event(ctypes.Structure):
    """ProfiledEventData: microseconds; `first` is the index of an op, `second` of its subgraph."""

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
    """LiteRtLayout; 7 bits of `head` are the rank."""

    _fields_ = [("head", ctypes.c_uint32), ("dimensions", ctypes.c_int32 * 8), ("strides", ctypes.c_uint32 * 8)]


class RankedType(ctypes.Structure):
    """LiteRtRankedTensorType, with room to spare."""

    _fields_ = [("element_type", ctypes.c_uint32), ("layout", Layout), ("spare", ctypes.c_uint8 * 256)]

    @property
    def shape(self):
        return self.layout.dimensions[: self.layout.head & 0x7F]


class Library:
    """libLiteRt.so: calls that raise on a status other than 0."""

    def __init__(self):
        # Looked for, not imported: the package would load its own libraries, which nothing here needs.
        spec = importlib.util.find_spec("ai_edge_litert")
        if spec is None or spec.origin is None:
            raise RuntimeError("ai-edge-litert is not installed")
        self._library = ctypes.CDLL(os.path.join(os.path.dirname(spec.origin), "libLiteRt.so"))

    def call(self, name, *arguments):
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status:
            raise RuntimeError(f"{name} returns status {status}")

    def get(self, name, *arguments, type=Pointer):
        """What the function writes where its last argument points."""
        out = type()
        self.call(name, *arguments, ctypes.byref(out))
        return out if type is Pointer else out.value


class Profiled:
    """A compiled model with its profiler, buffers and inputs."""

    def __init__(self, path, inputs, kernels, num_threads):
        self.library = library = Library()
        self.environment = library.get("LiteRtCreateEnvironment", ctypes.c_int(0), None)
        self.model = library.get("LiteRtCreateModelFromFile", self.environment, os.fsencode(path))
        options = library.get("LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", options, ctypes.c_int(CPU))
        self._keep, self._payloads = ctypes.CFUNCTYPE(None, Pointer)(lambda payload: None), []
        self._add_option(options, b"runtime_options_string", "enable_profiling = true\n")
        self._add_option(options, b"xnnpack", f'kernel_mode = "{kernels}"\nnum_threads = {num_threads}\n')
        self.compiled = library.get("LiteRtCreateCompiledModel", self.environment, self.model, options)
        self.profiler = library.get("LiteRtCompiledModelGetProfiler", self.compiled)
        if not self.profiler:
            raise RuntimeError("this LiteRT gives no profiler")
        self.signature = library.get("LiteRtGetModelSignature", self.model, ctypes.c_size_t(0))
        self.inputs, self.outputs = self._buffers("Input", inputs), self._buffers("Output", None)

    def run(self):
        """One inference."""
        sides = [part for side in (self.inputs, self.outputs) for part in (ctypes.c_size_t(len(side)), side)]
        self.library.call("LiteRtRunCompiledModel", self.compiled, ctypes.c_size_t(0), *sides)

    def events(self):
        """[(tag, type, index, subgraph, microseconds)] of one inference, in order."""
        self.library.call("LiteRtResetProfiler", self.profiler)
        self.library.call("LiteRtStartProfiler", self.profiler)
        self.run()
        self.library.call("LiteRtStopProfiler", self.profiler)
        count = self.library.get("LiteRtGetNumProfilerEvents", self.profiler, type=ctypes.c_int)
        if not 0 < count < MOST_EVENTS:
            raise RuntimeError(f"the profiler holds {count} events of one inference: expected 1 to {MOST_EVENTS - 1}")
        events = (Event * count)()
        self.library.call("LiteRtGetProfilerEvents", self.profiler, ctypes.c_int(count), events)
        # Of another layout these would be anything; only then are the tags followed.
        if any(event.type not in KNOWN_TYPES or event.source not in (0, 1, 2) for event in events):
            raise RuntimeError("this LiteRT's profiler events have another layout")
        return [
            (_text(event.tag), event.type, event.first, event.second, event.elapsed)
            for event in events
            if event.type in (OP, *DELEGATE_OPS)
        ]

    def _add_option(self, options, identifier, text):
        payload = ctypes.create_string_buffer(text.encode())
        self._payloads.append(payload)
        opaque = self.library.get("LiteRtCreateOpaqueOptions", identifier, payload, self._keep)
        self.library.call("LiteRtAddOpaqueOptions", options, opaque)

    def _buffers(self, side, values):
        """A buffer for each input or output of the signature; inputs are filled by the index of their tensor."""
        count = self.library.get(f"LiteRtGetNumSignature{side}s", self.signature, type=ctypes.c_size_t)
        built = []
        for place in map(ctypes.c_size_t, range(count)):
            tensor = self.library.get(f"LiteRtGetSignature{side}TensorByIndex", self.signature, place)
            type = RankedType()
            self.library.call("LiteRtGetRankedTensorType", tensor, ctypes.byref(type))
            if -1 in type.shape:
                self._give_shape(type, place, None if values is None else values[self._index(tensor)])
            wanted = self.library.get(
                f"LiteRtGetCompiledModel{side}BufferRequirements", self.compiled, ctypes.c_size_t(0), place
            )
            buffer = self.library.get(
                "LiteRtCreateManagedTensorBufferFromRequirements", self.environment, ctypes.byref(type), wanted
            )
            if values is not None:
                self._fill(buffer, values[self._index(tensor)])
            built.append(buffer)
        return (Pointer * count)(*built)

    def _index(self, tensor):
        return self.library.get("LiteRtGetTensorIndex", tensor, type=ctypes.c_uint32)

    def _give_shape(self, type, place, value):
        """Dimensions that the file leaves open: of an input as it is fed, of an output as it then comes out."""
        if value is None:
            layouts = (Layout * (place.value + 1))()
            arguments = (ctypes.c_size_t(len(layouts)), layouts, ctypes.c_bool(True))
            self.library.call(
                "LiteRtGetCompiledModelOutputTensorLayouts", self.compiled, ctypes.c_size_t(0), *arguments
            )
            type.layout = layouts[place.value]
            return
        for axis, size in enumerate(value.shape):
            type.layout.dimensions[axis] = size
        self.library.call(
            "LiteRtCompiledModelResizeInputTensorNonStrict",
            self.compiled,
            ctypes.c_size_t(0),
            place,
            type.layout.dimensions,
            ctypes.c_size_t(value.ndim),
        )

    def _fill(self, buffer, value):
        size = self.library.get("LiteRtGetTensorBufferPackedSize", buffer, type=ctypes.c_size_t)
        if size != value.nbytes:
            raise RuntimeError(f"an input takes {size} bytes, got {value.nbytes}")
        address = Pointer()
        self.library.call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), ctypes.c_int(WRITE))
        ctypes.memmove(address, value.tobytes(), size)
        self.library.call("LiteRtUnlockTensorBuffer", buffer)


def _text(pointer):
    return ctypes.string_at(pointer).decode("utf-8", "replace")


def run(directory, request):
    """Profile inferences of the first inputs: {"events": [[tag, type, index, subgraph, mean ms]], "num_runs": n}.

    Where this LiteRT is not what is expected here, {"reason": why}: not the model's fault.
    """
    try:
        return profile(directory, request)
    except (AttributeError, OSError, RuntimeError) as error:
        return {"reason": str(error)}


def profile(directory, request):
    """What `run` returns. Raises RuntimeError, OSError or AttributeError where the library does otherwise."""
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
            raise RuntimeError("the profiler tells of other ops from one inference to the next")
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
