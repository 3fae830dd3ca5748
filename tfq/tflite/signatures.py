# SPDX-License-Identifier: Apache-2.0
"""Flatbuffers with several signatures over several subgraphs: extract one subgraph, and merge such files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.tflite.edit import (
    edit_model,
    operator_name,
    pack,
    remove_unused_constants,
    remove_unused_operator_codes,
    unpack,
)
from tfq.tflite.reader import read
from tfq.tflite.records import Model, Signature
from tfq.tflite.subgraphs import keep_subgraphs

# Ops that run other subgraphs of the file, by the index in their options.
_CALLING = ("IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE", "STABLEHLO_COMPOSITE")


def signature_keys(model: Model) -> dict[int, tuple[str, ...]]:
    """Return {subgraph: keys of its signatures} of all subgraphs that a caller can run.

    The main subgraph is included even without a signature, because interpreters run it unless a caller chooses one.
    """
    keys: dict[int, tuple[str, ...]] = {model.main_subgraph.index: ()}
    for signature in model.signatures:
        keys[signature.subgraph] = (*keys.get(signature.subgraph, ()), signature.key)
    return dict(sorted(keys.items()))


def listed_signatures(model: Model) -> str:
    """Return a list for messages: "'encode' (subgraph 0), 'score' (subgraph 1)"."""
    keys = signature_keys(model)
    return ", ".join(f"{' and '.join(map(repr, keys[index])) or 'no name'} (subgraph {index})" for index in keys)


def main_subgraph_note(model: Model, done: str) -> str | None:
    """Return a sentence saying that only the main subgraph was `done`, or None if a caller can run no other."""
    if len(signature_keys(model)) == 1:
        return None
    return f"the file has several signatures, {listed_signatures(model)}: only subgraph 0 was {done}"


def extract_subgraph(data: bytes, index: int) -> bytes:
    """Return the flatbuffer `data` reduced to subgraph `index` and its signatures; `data` is trusted.

    Raises:
        InputError: An op of the subgraph runs another subgraph.
    """
    model = unpack(data)
    graph = model.subgraphs[index]
    calling = sorted({name for op in graph.operators if (name := operator_name(model, op)) in _CALLING})
    if calling:
        raise InputError(
            f"subgraph {index} contains {', '.join(calling)}, which run other subgraphs. Schemes with ranges convert "
            "each signature separately: use a scheme without ranges (dynamic_range, float16)",
            field="model",
            expected="no control flow",
            got=tuple(calling),
            limit="control-flow",
        )
    model.subgraphs = [graph]
    model.signatureDefs = [item for item in model.signatureDefs or [] if item.subgraphIndex == index]
    for signature in model.signatureDefs:
        signature.subgraphIndex = 0
    remove_unused_operator_codes(model)
    remove_unused_constants(model)
    return pack(model, len(data))


def select_signature(data: bytes, key: str) -> bytes:
    """Return the flatbuffer `data` reduced to signature `key`, whose subgraph becomes the main one; `data` is trusted.

    Subgraphs that its ops run are kept.

    Raises:
        InputError: The file has no such signature. The message lists those that it has.
    """
    model = unpack(data)
    chosen = [item for item in model.signatureDefs or [] if _text(item.signatureKey) == key]
    if not chosen:
        parsed = read(data)
        keys = tuple(signature.key for signature in parsed.signatures)
        advice = f"It has {listed_signatures(parsed)}" if keys else "It has none: leave the setting empty"
        raise InputError(
            f"conversion.signature: the file has no signature {key!r}. {advice}",
            field="conversion.signature",
            expected=keys,
            got=key,
        )
    model.signatureDefs = chosen[:1]
    keep_subgraphs(model, [chosen[0].subgraphIndex])
    remove_unused_operator_codes(model)
    remove_unused_constants(model)
    return pack(model, len(data))


def restore_signatures(data: bytes, original: bytes) -> bytes:
    """Return `data` with all signatures of `original`, a file with the same inputs and outputs in the same order.

    TensorFlow's quantizer (2.21) keeps only one of several signatures of a subgraph, and loses names of inputs and
    outputs if tensors have equal names. Both files are trusted.

    Raises:
        InputError: A subgraph has a different number of inputs or outputs than in the original.
    """
    expected, got = read(original), read(data)
    if _positions(expected).items() <= _positions(got).items():
        return data
    for signature in expected.signatures:
        before, after = expected.subgraphs[signature.subgraph], got.subgraphs[signature.subgraph]
        sides = ((before.inputs, after.inputs), (before.outputs, after.outputs))
        if any(len(old) != len(new) for old, new in sides):
            raise InputError(
                f"signature {signature.key!r}: the quantized model has a different number of inputs or "
                f"outputs than the float model",
                field="model",
                expected=tuple(len(old) for old, _ in sides),
                got=tuple(len(new) for _, new in sides),
            )
        inputs, outputs = (dict(zip(old, new, strict=True)) for old, new in sides)
        moved = Signature(
            key=signature.key,
            subgraph=signature.subgraph,
            inputs={name: inputs[index] for name, index in signature.inputs.items()},
            outputs={name: outputs[index] for name, index in signature.outputs.items()},
        )
        data = edit_model(data, signature=moved)
    return data


def _positions(model: Model) -> dict[str, tuple[int, tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]]:
    """Return {signature: (subgraph, (name, position) of its inputs, and of its outputs)}."""
    results = {}
    for signature in model.signatures:
        graph = model.subgraphs[signature.subgraph]
        inputs, outputs = (
            tuple(sorted((name, ends.index(tensor)) for name, tensor in names.items() if tensor in ends))
            for names, ends in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs))
        )
        results[signature.key] = (signature.subgraph, inputs, outputs)
    return results


def merge_subgraphs(parts: Sequence[bytes]) -> bytes:
    """Return one flatbuffer with the main subgraphs and the signatures of all `parts`, in their order.

    Equal constants are stored once. Metadata and description are those of the first part. `parts` are trusted.
    """
    merged = unpack(parts[0])
    known: dict[bytes, int] = {}
    for number, buffer in enumerate(merged.buffers):
        known.setdefault(_content(buffer), number)
    for number, part in enumerate(parts[1:], start=1):
        model = unpack(part)
        graph = model.subgraphs[0]
        for op in graph.operators:
            op.opcodeIndex = _code(merged, model.operatorCodes[op.opcodeIndex])
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            content = _content(buffer)
            if content and content not in known:
                known[content] = len(merged.buffers)
                merged.buffers.append(buffer)
            tensor.buffer = known[content] if content else 0
        merged.subgraphs.append(graph)
        for signature in model.signatureDefs or []:
            signature.subgraphIndex = number
            merged.signatureDefs = [*(merged.signatureDefs or []), signature]
    return pack(merged, sum(map(len, parts)))


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def _content(buffer: Any) -> bytes:
    return b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()


def _code(model: Any, code: Any) -> int:
    """Return the index of an equal operator code of `model`, after adding it if it is missing."""
    for index, other in enumerate(model.operatorCodes):
        if (other.builtinCode, other.version, other.customCode) == (code.builtinCode, code.version, code.customCode):
            return index
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
