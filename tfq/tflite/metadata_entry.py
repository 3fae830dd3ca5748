# SPDX-License-Identifier: Apache-2.0
"""TFLite Metadata in a `.tflite` file: read, write and merge it, together with the files that it names."""

import dataclasses
from collections.abc import Mapping

from tfq.errors import FlatbufferError, InputError, warn
from tfq.tflite.associated_files import append_files, associated_files
from tfq.tflite.edit import edit_model
from tfq.tflite.model_metadata import IDENTIFIER, TFLITE_METADATA, ModelMetadata, newest
from tfq.tflite.reader import read
from tfq.tflite.table_codec import read_table, write_table

_WHERE = "TFLite Metadata"


def decode_model_metadata(content: bytes) -> ModelMetadata:
    """Return the metadata in the bytes of a TFLITE_METADATA entry, which may be untrusted.

    Raises:
        FlatbufferError: They are damaged, or are not TFLite Metadata.
    """
    metadata, losses = read_table(ModelMetadata, content, IDENTIFIER, _WHERE)
    return dataclasses.replace(metadata, losses=losses)


def encode_model_metadata(metadata: ModelMetadata) -> bytes:
    """Return the bytes of a TFLITE_METADATA entry; equal metadata gives equal bytes.

    `min_parser_version` is set to the version that the fields need, unless it is a newer one.

    Raises:
        InputError: A value has the wrong type or is outside of its range.
    """
    version = newest(metadata.needed_parser_version, metadata.min_parser_version)
    return write_table(dataclasses.replace(metadata, min_parser_version=version), IDENTIFIER, _WHERE)


def read_model_metadata(model: bytes) -> ModelMetadata | None:
    """Return the TFLite Metadata of a `.tflite` file, or None if it has none; `model` may be untrusted.

    Raises:
        FlatbufferError: The file or its metadata is damaged.
    """
    span = read(model).metadata.get(TFLITE_METADATA)
    return None if span is None else decode_model_metadata(model[span[0] : span[0] + span[1]])


def write_model_metadata(model: bytes, metadata: ModelMetadata, files: Mapping[str, bytes] | None = None) -> bytes:
    """Return `model` with TFLite Metadata, merged into the metadata and files that it has.

    Existing metadata stays where `metadata` has an empty field (see `SchemaTable.merged`). An existing file stays
    unless `files` has one of that name, or only replaced metadata named it. A TfqWarning says what existing metadata
    is lost because tfq cannot read it. The rest of the model is unchanged; equal arguments give equal bytes.

    Args:
        model: A trusted `.tflite` file.
        metadata: The metadata to add.
        files: Name -> content of the files that `metadata` names, as far as the model does not have them.

    Raises:
        InputError: The metadata describes more inputs or outputs than the model has, names a file that is neither in
            `files` nor in the model, or has a wrong value.
    """
    existing = _readable_metadata(model)
    merged = existing.merged(metadata) if existing else metadata
    _check_counts(model, merged)
    content = encode_model_metadata(merged)
    present = associated_files(model)
    dropped = {*(existing.file_names if existing else ())} - {*merged.file_names}
    results = {name: content for name, content in present.items() if name not in dropped} | dict(files or {})
    missing = [name for name in merged.file_names if name not in results]
    if missing:
        raise InputError(
            f"metadata: it names the file {missing[0]!r}, which is neither provided nor in the model: pass its content",
            field="files",
            expected=merged.file_names,
            got=tuple(results),
        )
    edited = edit_model(model, entries={TFLITE_METADATA: content}, keep_files=False)
    return append_files(edited, results)


def _readable_metadata(model: bytes) -> ModelMetadata | None:
    """Return the metadata of the model. A TfqWarning says what of it will be lost, which may be all."""
    try:
        metadata = read_model_metadata(model)
    except FlatbufferError as error:
        read(model)
        warn(f"model: its TFLite Metadata is damaged and is replaced: {error}")
        return None
    for loss in metadata.losses if metadata else ():
        warn(f"model: a part of its TFLite Metadata is lost, because tfq cannot read it: {loss}")
    return metadata


def _check_counts(model: bytes, metadata: ModelMetadata) -> None:
    main = read(model).main_subgraph
    for side, tensors, described in (
        ("inputs", main.inputs, metadata.inputs),
        ("outputs", main.outputs, metadata.outputs),
    ):
        if described and len(described) != len(tensors):
            raise InputError(
                f"metadata: it describes {len(described)} {side}, but the model has {len(tensors)}. Describe each one",
                field=f"metadata.{side}",
                expected=len(tensors),
                got=len(described),
            )
