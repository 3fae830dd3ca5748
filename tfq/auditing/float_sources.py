# SPDX-License-Identifier: Apache-2.0
"""Accept a published `.tflite` as a float model: rewrite it so that it has float32 constants and only builtin ops.

Published files store weights as float16 or int8, sparse, or in composites. `float_source` replaces these forms by
float32 constants and ordinary ops, and says what the file had lost before.
"""

from collections.abc import Mapping

from tfq import tflite
from tfq.auditing.composition import Composition
from tfq.auditing.report import op_title
from tfq.auditing.schemes import FLOATS
from tfq.errors import InputError, warn
from tfq.text_table import listed
from tfq.tflite.binary import decoding
from tfq.tflite.op_types import INDEX, roles
from tfq.tflite.subgraphs import COMPOSITE

_REPLACED = ("DEQUANTIZE", "DENSIFY", "CAST", COMPOSITE)


def float_source(model: bytes, field: str = "model") -> bytes:
    """Return the float32 form of a flatbuffer, which computes the same function; the same bytes if it already is one.

    float16 and integer weights become float32 constants, sparse ones become dense, and composites are replaced by their
    decompositions. A TfqWarning says so if the stored weights are less precise than float32.

    Args:
        model: The flatbuffer, which may be untrusted.
        field: The config path or argument that it comes from, for errors.

    Raises:
        InputError: The file computes on integers or float16, or has no op that computes on real values.
        FlatbufferError: The bytes are damaged.
    """
    parsed = tflite.read(model)
    scheme = Composition(parsed).scheme
    ops = [op for graph in parsed.subgraphs for op in graph.ops]
    is_sparse = any(tensor.is_sparse for graph in parsed.subgraphs for tensor in graph.tensors)
    if scheme == "float32" and not is_sparse and not any(op.name in _REPLACED for op in ops):
        return model
    with decoding(field):
        constants = tflite.with_float_constants(tflite.with_inlined_composites(model))
    source = tflite.read(constants.content)
    result = Composition(source).scheme
    if result != "float32":
        raise InputError(
            f"expected a float32 .tflite, got one of scheme {scheme}{_reason(source, result)}. Pass the Keras model "
            "that it was converted from, or a float32, float16 or dynamic-range .tflite of it",
            field=field,
            expected="float32",
            got=scheme,
            limit="integer-tflite",
        )
    _warn(constants.stored, constants.hybrid_ops)
    return constants.content


def _reason(source: tflite.Model, scheme: str) -> str:
    """Return ", in which op ... computes on ..." for a file that is still not float32; empty for an integer model."""
    if scheme not in ("float16", "mixed", "dynamic_range"):
        return ""
    for graph in source.subgraphs:
        for op in graph.ops:
            types = [graph.tensors[index].dtype for _, _, index, role in roles(op) if role != INDEX]
            other = [dtype for dtype in types if dtype in FLOATS - {"float32"} or dtype in ("int8", "uint8", "int16")]
            if other:
                return f", in which {op_title(graph, op)} computes on {other[0]}"
    return ""


def _warn(stored: Mapping[str, int], hybrid_ops: tuple[str, ...]) -> None:
    """Warn about constants that lost precision when the file was written."""
    coarse = {kind: count for kind, count in stored.items() if not kind.endswith("float32")}
    if not coarse:
        return
    counts = listed([f"{count} {kind}" for kind, count in coarse.items()])
    message = (
        f"model: the file stores its constants in fewer bits ({counts}). They are used as float32 values, and keep the "
        "rounding error that they got when the file was written. Verification compares with this file. Pass the "
        "original float32 model if you have it"
    )
    if hybrid_ops:
        message += f". {listed(list(hybrid_ops))} rounded activations at run time too, and no longer do"
    warn(message)
