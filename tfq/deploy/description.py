# SPDX-License-Identifier: Apache-2.0
"""Put what the user says about a model into its metadata: tfq's own entry, and TFLite Metadata."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfq import artifacts, evaluation, tflite
from tfq import data as datasets
from tfq.auditing import IoTable, io_table
from tfq.config import DataConfig, ExportConfig
from tfq.deploy.labels import first_examples, labels_of, read_labels
from tfq.deploy.mediapipe import mediapipe_problems
from tfq.deploy.metadata import DEFAULT_PATTERN, ModelDescription, build_metadata
from tfq.errors import InputError, ModelError, warn
from tfq.typing import PathOrBytes

_MAX_VOCABULARY_BYTES = 1 << 26


def with_metadata(
    content: bytes, table: IoTable, name: str, config: ExportConfig, labels: Mapping[str, Sequence[str]]
) -> bytes:
    """Return a `.tflite` with TFLite Metadata, merged into what it has.

    Args:
        content: The bytes of the file. It has been run: its structure is trusted.
        table: Its inputs and outputs.
        name: The name of the model, unless `config` has one.
        config: What the user says about it.
        labels: Output name -> class names.

    Raises:
        InputError: The description does not fit the model, or the MediaPipe task in `config.task` refuses the file.
    """
    about = description_of(config, name, labels, has_name=bool(table.metadata and table.metadata.name))
    _check_used(config, about, table)
    try:
        metadata, files = build_metadata(table, about)
    except InputError as error:
        field = f"export.{error.field}" if error.field and hasattr(config, error.field) else error.field
        raise InputError(
            f"export.{error}" if field != error.field else str(error),
            field=field,
            expected=error.expected,
            got=error.got,
        ) from error
    described = tflite.write_model_metadata(content, metadata, files)
    if config.task:
        _check_task(described, config.task)
    return described


def add_metadata(model: PathOrBytes, config: ExportConfig, *, name: str = "", data: DataConfig | None = None) -> bytes:
    """Return a `.tflite` with standard TFLite Metadata, merged into what it has; nothing else changes.

    Examples:
        >>> config = tfq.ExportConfig(labels="labels.txt", description="Classifies birds.", license="Apache-2.0")
        >>> described = tfq.add_metadata("model_int8.tflite", config)

    Args:
        model: The path or the bytes of the `.tflite`.
        config: What to say about it: texts, labels, kinds of inputs, tokenizer.
        name: The name of the model, unless `config` or the file has one; "" is the stem of the file.
        data: The preprocessing of the model's data, if the file does not record it, and their source, which may have
            class names.

    Returns:
        The bytes of the file with the metadata, and with labels and vocabulary after the flatbuffer.

    Raises:
        InputError: The file is not a `.tflite`, the description does not fit it, or the task in `config` refuses it.
        ModelError: The model crashes.
    """
    content = artifacts.content_of(model, "model")
    parsed = tflite.read(content)
    stem = name or ("model" if isinstance(model, (bytes, bytearray)) else Path(os.fspath(model)).stem)
    # In a child process, before the file is edited here.
    execution = evaluation.try_to_run(content)
    if execution.state == "fails":
        raise ModelError(f"the model cannot be described, because it {execution.to_text()}", field="model")
    content = with_preprocessing(content, data)
    class_names = first_examples(data, 1).class_names if data is not None and data.source else ()
    labels = labels_of(parsed, config, io_table(content), class_names)
    return with_metadata(content, io_table(content, labels), stem, config, labels)


def description_of(
    config: ExportConfig, name: str, labels: Mapping[str, Sequence[str]], *, has_name: bool
) -> ModelDescription:
    """Return what the user says about a model; a file that has a name keeps it unless the user gives another."""
    return ModelDescription(
        name=config.name or ("" if has_name else name),
        description=config.description,
        version=config.version,
        author=config.author,
        license=config.license,
        labels=labels,
        value_labels=read_labels(config.labels) if config.labels and config.detection_outputs else (),
        locale=config.locale,
        kinds=_kinds(config.kinds),
        sample_rate=config.sample_rate,
        audio_channels=config.audio_channels,
        tokenizer=config.tokenizer,
        vocabulary=read_vocabulary(config.vocabulary) if config.vocabulary else b"",
        pattern=config.pattern or DEFAULT_PATTERN,
        bert_inputs=config.bert_inputs,
        detection_outputs=config.detection_outputs,
    )


def read_vocabulary(path: str) -> bytes:
    """Return the content of a tokenizer's file.

    Raises:
        InputError: The file cannot be read, or is too large.
    """
    expected = "the vocabulary or the SentencePiece model of the tokenizer"
    return artifacts.read_bytes(path, expected, field="export.vocabulary", max_bytes=_MAX_VOCABULARY_BYTES)


def _check_used(config: ExportConfig, about: ModelDescription, table: IoTable) -> None:
    """Raise InputError if a setting is about a kind of input that the model does not have."""
    kinds = {*about.kinds.values(), *(tensor.content for tensor in table.inputs)}
    defaults = ExportConfig()
    needed = dict.fromkeys(("vocabulary", "tokenizer", "pattern"), "text")
    for name, kind in {**needed, "sample_rate": "audio", "audio_channels": "audio"}.items():
        value = getattr(config, name)
        if value != getattr(defaults, name) and kind not in kinds:
            inputs = ", ".join(tensor.name for tensor in table.inputs)
            raise InputError(
                f"export.{name}={artifacts.shown(str(value))} is not used, because no input is {kind}: name one "
                f"with export.kinds=INPUT={kind}; the inputs are {inputs}",
                field=f"export.{name}",
                expected=f"an input that is {kind}",
                got=value,
            )


def _kinds(values: Sequence[str]) -> dict[str, str]:
    kinds = {}
    for value in values:
        name, equals, kind = value.rpartition("=")
        if not equals:
            raise InputError(
                f"export.kinds: expected INPUT=KIND, such as image=image, got {value!r}",
                field="export.kinds",
                expected="INPUT=KIND",
                got=value,
            )
        kinds[name] = kind
    return kinds


def _check_task(content: bytes, task: str) -> None:
    table = io_table(content)
    problems = mediapipe_problems(table, table.metadata or tflite.ModelMetadata(), task)
    if problems:
        text = "; ".join(f"{problem.reason}: {problem.advice}" for problem in problems)
        raise InputError(
            f"export.task={task}: MediaPipe does not run this file as tfq does: {text}",
            field="export.task",
            expected=tuple(problem.advice for problem in problems),
            got=tuple(problem.reason for problem in problems),
            limit="refused-by-task",
        )


def with_preprocessing(content: bytes, config: DataConfig | None) -> bytes:
    """Return the file with the preprocessing of the data's settings in its metadata, unless they have none.

    Settings that differ from those in the file replace them, with a warning.
    """
    own = datasets.preprocessing_record(config or DataConfig())
    if own == datasets.preprocessing_record(DataConfig()):
        return content
    metadata = tflite.read_metadata(content) or {}
    recorded = metadata.get("preprocessing")
    if recorded == own:
        return content
    if recorded is not None and recorded != datasets.preprocessing_record(DataConfig()):
        warn(
            f"the model was converted with the preprocessing {recorded}, but the bundle uses {own}: use the same values"
        )
    changed = tflite.write_metadata(content, {**metadata, "preprocessing": own})
    return tflite.with_associated_files(changed, content)[0]
