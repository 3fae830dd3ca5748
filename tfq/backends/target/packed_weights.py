# SPDX-License-Identifier: Apache-2.0
"""Measure XNNPACK's packed weights, the copies of constants that it makes in its kernels' layout.

XNNPACK packs the constants of convolutions and dense layers when a model is prepared. It can write them to a file, its
weight cache, which LiteRT offers as an option of XNNPACK. The file begins with three 8-byte integers:
a version, the position of the list of buffers, and the length of this list. The buffers are between byte 128 and the
list, each aligned to 128 bytes. Read in LiteRT's tflite/delegates/xnnpack/weight_cache.h; tested with ai-edge-litert
2.3.0.

The cache holds each buffer once. Without a cache, XNNPACK packs weights that several ops share once per op.
"""

import json
import os
import struct

from . import op_times, session

HEADER, DATA_BEGIN = struct.Struct("<QQQ"), 128


def measure(directory, num_threads):
    """Return {"bytes": size of the packed weights}, or {"reason": why they were not measured}.

    The model is prepared in a fork, because that needs memory, and a crash of LiteRT must not end this process. This
    process must have only one thread.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            session.die_with(parent)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # LiteRT lists the accelerators that this machine lacks
            os.write(writing, json.dumps(_prepare(directory, num_threads)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as file:
        content = file.read()
    _, status = os.waitpid(pid, 0)
    if content:
        return json.loads(content)
    return {"reason": f"LiteRT ended with status {os.waitstatus_to_exitcode(status)} when it prepared the model"}


def _prepare(directory, num_threads):
    os.chdir(directory)  # so that no character of the path needs to be quoted in the option
    path = ".weights"  # hidden: files whose names begin with a dot do not leave a board
    try:
        option = f'kernel_mode = "xnnpack"\nnum_threads = {num_threads}\nweight_cache_file_path = "{path}"\n'
        op_times.Compiled("model.tflite", {b"xnnpack": option})
        return {"bytes": read_size(path)}
    except FileNotFoundError:
        return {"reason": "this LiteRT writes no weight cache"}
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {error}"}
    finally:
        if os.path.exists(path):
            os.remove(path)


def read_size(path):
    """Return the bytes of the buffers in a weight cache, with their alignment.

    Raises:
        ValueError: The file has another layout.
    """
    with open(path, "rb") as file:
        content = file.read(HEADER.size)
    size = os.path.getsize(path)
    if len(content) == HEADER.size:
        _, begin, length = HEADER.unpack(content)
        if begin >= DATA_BEGIN and begin + length == size:
            return begin - DATA_BEGIN
    raise ValueError(f"the weight cache of {size:,} bytes has another layout than that of ai-edge-litert 2.3.0")
