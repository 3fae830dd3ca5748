# SPDX-License-Identifier: Apache-2.0
"""Convert a flatbuffer with several signatures: calibrate each subgraph with its own data, then merge the results.

Calibration, the techniques and the verification work on the main subgraph. So the subgraph of each signature is
converted as a separate file, and the results are merged. Equal constants are stored once in the merged file.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfq import tflite
from tfq.artifacts import sha256
from tfq.config import ConversionConfig
from tfq.config.input_shapes import parse_input_shapes
from tfq.conversion.quantize import Conversion
from tfq.conversion.verified import verified
from tfq.errors import InputError
from tfq.evaluation.verification import Problem, Verification
from tfq.patterns import explicit, fits_op, included, like, op_address, parse_address
from tfq.ptq.calibration import Ranges

# (float flatbuffer of one subgraph, its dataset, config) -> its conversion.
Convert = Callable[[bytes, Any, ConversionConfig], Conversion]


def has_several_signatures(model: bytes) -> bool:
    """Check whether the signatures of the flatbuffer lead to more than one subgraph."""
    return len(tflite.signature_keys(tflite.read(model))) > 1


def convert_each_signature(model: bytes, dataset: Any, config: ConversionConfig, convert: Convert) -> Conversion:
    """Convert the subgraph of each signature with its own data, and merge the results.

    Args:
        model: A float flatbuffer with several signatures (`has_several_signatures`).
        dataset: {signature: samples}, with samples for each subgraph, in any form of a representative dataset.
        config: A pattern must match a layer of at least one subgraph.
        convert: Converts a flatbuffer of one subgraph.

    Returns:
        The merged flatbuffer, with the evidence to verify its main subgraph. The others are verified here.

    Raises:
        InputError: A signature has no data, or the config names a file of ranges, which belongs to one subgraph.
    """
    parsed = tflite.read(model)
    data = data_of_signatures(parsed, dataset)
    if config.calibration.ranges:
        raise InputError(
            "conversion.calibration.ranges: a file of ranges belongs to one subgraph, but the model has several "
            f"signatures ({tflite.listed_signatures(parsed)}). Pass a representative_dataset for each signature",
            field="conversion.calibration.ranges",
            expected="",
            got=config.calibration.ranges,
        )
    results: dict[int, Conversion] = {}
    for subgraph in data:
        own = _own_config(parsed, subgraph, config)
        part = convert(tflite.extract_subgraph(model, subgraph), data[subgraph], own)
        results[subgraph] = verified(part, own) if subgraph and config.verify else part
    keys = {subgraph: names[0] for subgraph, names in tflite.signature_keys(parsed).items()}
    return dataclasses.replace(
        results[0],
        content=_merged_content(results),
        ranges=_merged_ranges(model, results),
        verification=_verifications(results, keys),
        techniques={keys[subgraph]: dict(item.techniques) for subgraph, item in results.items() if item.techniques},
    )


def _verifications(results: Mapping[int, Conversion], keys: Mapping[int, str]) -> Verification | None:
    """Return the verification of all subgraphs except the main one; each message names the signature."""
    verifications = {keys[subgraph]: item.verification for subgraph, item in results.items() if item.verification}
    if not verifications:
        return None

    def named(level: str) -> tuple[Problem, ...]:
        return tuple(
            dataclasses.replace(problem, message=f"signature {key!r}: {problem.message}")
            for key, item in verifications.items()
            for problem in getattr(item, level)
        )

    first = next(iter(verifications.values()))
    return dataclasses.replace(first, collapsed=named("collapsed"), notes=named("notes"))


def data_of_signatures(model: tflite.Model, dataset: Any) -> dict[int, Any]:
    """Return {subgraph: its samples} for a dataset {signature: samples}.

    Raises:
        InputError: The dataset is not a mapping, has no samples for a signature, or has an unknown signature.
    """
    keys = tflite.signature_keys(model)
    listed = tflite.listed_signatures(model)
    if not all(keys.values()):
        raise InputError(
            f"the model has several entry points ({listed}), and one of them has no signature, so no data can be "
            "assigned to it. Add a signature with tfq.tflite.add_signature",
            field="model",
            expected="a signature for each subgraph",
            limit="no-signature",
        )
    provided = dict(dataset) if isinstance(dataset, Mapping) else {}
    missing = [names[0] for names in keys.values() if provided.keys().isdisjoint(names)]
    unknown = [name for name in provided if not any(name in names for names in keys.values())]
    if missing or unknown:
        problem = (
            f"there are no samples for {', '.join(map(repr, missing))}"
            if missing
            else f"no signature is named {unknown[0]!r}"
        )
        raise InputError(
            f"representative_dataset: {problem}. The model has the signatures {listed}; pass {{signature: samples}} "
            "with samples for each, or choose one of them with conversion.signature",
            field="representative_dataset",
            expected=tuple(names[0] for names in keys.values()),
            got=tuple(provided) or type(dataset).__name__,
        )
    return {subgraph: next(provided[name] for name in names if name in provided) for subgraph, names in keys.items()}


def _own_config(model: tflite.Model, subgraph: int, config: ConversionConfig) -> ConversionConfig:
    """Return `config` with the patterns that match an op of the subgraph, and op numbers as in its separate file.

    A pattern that matches nothing stays in the config of the main subgraph, whose conversion rejects it with the names
    to choose from.
    """

    def own(patterns: Iterable[str]) -> tuple[str, ...]:
        named = explicit(patterns)
        return tuple(_in_separate_file(item, subgraph) for item in named if subgraph in _matching(model, item))

    methods = [text.rpartition("=") for text in config.calibration.tensors]
    tensors = [f"{item}={method}" for pattern, _, method in methods for item in own([pattern.strip()])]
    return dataclasses.replace(
        config,
        float_layers=own(config.float_layers),
        int16_layers=own(config.int16_layers),
        per_tensor_layers=own(config.per_tensor_layers),
        int4_layers=own(config.int4_layers),
        calibration=dataclasses.replace(config.calibration, tensors=tuple(tensors)),
        input_shapes=tuple(_own_shapes(model, subgraph, config.input_shapes)),
        signature="",
    )


def _own_shapes(model: tflite.Model, subgraph: int, input_shapes: Sequence[str]) -> Iterator[str]:
    """Yield the items of `conversion.input_shapes` for the subgraph; the main one gets those that no subgraph has."""
    inputs = {item.subgraph: set(item.inputs) for item in model.signatures}
    for text, item in zip(input_shapes, parse_input_shapes(input_shapes), strict=True):
        owners = {index for index, names in inputs.items() if item.name in names}
        if subgraph in (owners or {model.main_subgraph.index}):
            yield text


def _in_separate_file(pattern: str, subgraph: int) -> str:
    address = parse_address(pattern)
    return like(pattern, op_address(0, address[1])) if address and address[0] == subgraph else pattern


def _matching(model: tflite.Model, pattern: str) -> set[int]:
    """Return the subgraphs in which the pattern matches an op or an input; the main one if it matches none."""
    subgraphs = tflite.signature_keys(model)
    if address := parse_address(pattern):
        return {address[0]} if address[0] in subgraphs else {model.main_subgraph.index}
    results = set()
    for subgraph in subgraphs:
        graph = model.subgraphs[subgraph]
        named = [(graph.tensors[index].name, graph.tensors[index].name) for index in graph.inputs]
        named += [(layer, graph.tensors[index].name) for index, layer in graph.layers_by_output.items()]
        if any(fits_op(layer, (tensor,), (included(pattern),)) for layer, tensor in named):
            results.add(subgraph)
    return results or {model.main_subgraph.index}


def _merged_content(results: Mapping[int, Conversion]) -> bytes:
    """Return the merged flatbuffer, with the main subgraph's metadata and the op numbers of all subgraphs."""
    content = tflite.merge_subgraphs([item.content for item in results.values()])
    metadata = tflite.read_metadata(content) or {}
    addressed = {
        op_address(subgraph, (parse_address(pattern) or (0, 0))[1]): names
        for subgraph, item in results.items()
        for pattern, names in (tflite.read_metadata(item.content) or {}).get(tflite.ADDRESSED_OPS, {}).items()
    }
    return tflite.write_metadata(content, {**metadata, tflite.ADDRESSED_OPS: addressed}) if addressed else content


def _merged_ranges(model: bytes, results: Mapping[int, Conversion]) -> Ranges | None:
    """Return the ranges of all subgraphs by (subgraph, tensor)."""
    parts = {subgraph: item.ranges for subgraph, item in results.items() if item.ranges is not None}
    if not parts:
        return None
    return Ranges(
        tensors={(subgraph, key[1]): item for subgraph, part in parts.items() for key, item in part.tensors.items()},
        num_samples=sum(part.num_samples for part in parts.values()),
        model_sha256=sha256(model),
        data_sha256=tuple(digest for part in parts.values() for digest in part.data_sha256),
    )
