# SPDX-License-Identifier: Apache-2.0
"""Export a `.tflite` as an app bundle: the model with metadata, io.json, golden vectors, sources and README.md."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import artifacts, auditing, progress, registry, tflite
from tfq import data as datasets
from tfq.config import DataConfig, ExportConfig
from tfq.deploy.app_code import large_recorded_differences
from tfq.deploy.description import read_vocabulary, with_metadata, with_preprocessing
from tfq.deploy.files import MANIFEST_FILE, manifest, replaceable, staged_folder, write_files, zip_bytes
from tfq.deploy.golden import SourceExamples, golden_vectors, random_source
from tfq.deploy.labels import first_examples, labels_of, read_labels
from tfq.deploy.platform import (
    GOLDEN_FILE,
    IO_FILE,
    LABELS_FILE,
    MODEL_FILE,
    BundleContents,
    Candidate,
    Platform,
    SelfTestResult,
)
from tfq.deploy.readme import readme
from tfq.deploy.results import RECORDS, Results, checked_results, read_results, tolerance_of
from tfq.errors import InputError, RequirementError, remembered_warnings, warn
from tfq.notebook import NotebookRecord
from tfq.requirement import Requirement
from tfq.typing import PathOrBytes

FOLDER = "bundle"


@dataclass(frozen=True, kw_only=True)
class Bundle(NotebookRecord):
    """A written bundle.

    Attributes:
        folder: Its folder.
        zip: The archive of the same files; None if none was asked for.
        files: {path in the bundle: SHA-256}.
        platforms: The platforms that it has sources for.
        self_tests: The results of the self-tests.
        golden: What the golden vectors are, how many there are, and whether they are real data.
        notes: What is missing in the bundle and how to get it, and warnings about its platforms.
    """

    folder: Path
    zip: Path | None
    files: Mapping[str, str]
    platforms: tuple[str, ...]
    self_tests: tuple[SelfTestResult, ...]
    golden: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for a record."""
        return {
            "folder": self.folder.name,
            "zip": None if self.zip is None else self.zip.name,
            "files": dict(self.files),
            "platforms": list(self.platforms),
            "self_tests": [result.to_dict() for result in self.self_tests],
            "golden": dict(self.golden),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return a summary for the terminal."""
        lines = [f"{self.folder}: {len(self.files)} files for {', '.join(self.platforms)}"]
        lines += [f"self-test {result.name}: {result.status} ({result.detail})" for result in self.self_tests]
        return "\n".join([*lines, *self.notes])

    def requirements(self) -> list[dict[str, Any]]:
        """Return an entry of a record's `requirements` for each self-test that ran."""
        return [
            Requirement(
                name="self_test",
                bound=f"{result.name} passes",
                value=result.status,
                holds=result.status == "passed",
                reason=None if result.status == "passed" else result.detail,
            ).to_dict()
            for result in self.self_tests
            if result.status != "not run"
        ]

    def check(self) -> None:
        """Raise RequirementError if a self-test failed."""
        failed = [result for result in self.self_tests if result.status == "failed"]
        if failed:
            raise RequirementError(
                "; ".join(f"the self-test {result.name} failed: {result.detail}" for result in failed),
                field="export.self_test",
                expected="passed",
                got=[result.name for result in failed],
            )


def export_bundle(
    model: PathOrBytes,
    config: ExportConfig,
    *,
    out: str | os.PathLike[str],
    data: DataConfig | Mapping[str, NDArray] | NDArray | None = None,
    name: str = "",
    record: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Bundle:
    """Write an app bundle of a `.tflite` into the folder `out/bundle`, and as `out/bundle.zip`.

    The bundle has the model with TFLite Metadata, a table of its inputs and outputs (io.json), golden vectors, sources
    for each platform with a self-test, and a README.md. The self-tests that can run on this machine are run.

    Examples:
        >>> config = tfq.ExportConfig(platform=("linux",), labels="labels.txt")
        >>> bundle = tfq.export_bundle("model_int8.tflite", config, out="out", data=tfq.DataConfig(source="npz:x.npz"))
        >>> bundle.check()  # raises RequirementError if a self-test failed

    Args:
        model: The path or the bytes of the `.tflite`.
        config: The platforms, the labels and the texts of the metadata.
        out: The directory to write to. A bundle that is there is replaced; files in it that tfq did not write stay.
        data: Examples for the golden vectors: a data source, or arrays (n, ...) before preprocessing, by input name if
            there are several. None takes the data that the record of the file's evaluation names, or random numbers.
        name: The name of the model; "" is the stem of the file.
        record: The record of `tfq evaluate` or `tfq run` with the results of this file; None looks for evaluate.json
            and report.json next to the file.
        seed: The seed of random golden vectors.

    Returns:
        What was written, and the results of the self-tests.

    Raises:
        InputError: The file is not a `.tflite`, a platform refuses it, labels or data do not fit it, or `out` has a
            bundle that was changed, or something else in its place.
        ModelError: The model does not run on this machine.
        TfqError: A file cannot be written; an earlier bundle is unchanged.
    """
    if config.metadata_only:
        raise InputError(
            "export.metadata_only is True, but a bundle was asked for: set it to False, or call tfq.add_metadata",
            field="export.metadata_only",
            expected=False,
            got=True,
        )
    content = artifacts.content_of(model, "model")
    folder = None if isinstance(model, (bytes, bytearray, memoryview)) else Path(model).absolute().parent
    stem = name or ("model" if folder is None else Path(os.fspath(model)).stem)  # type: ignore[arg-type]
    platforms = chosen_platforms(config)
    target = artifacts.make_out_dir(out) / FOLDER
    replaceable(target)
    parsed = tflite.read(content)
    results = _results(content, config, folder, record)
    examples, config_of_data = _examples(parsed, data, results, config.num_golden)
    changed = with_preprocessing(content, config_of_data)
    contents, notes = _contents(
        stem, changed, config, examples, results, platforms, seed, source_sha256=artifacts.sha256(content)
    )
    with artifacts.locked_directory(target.parent):
        return _write(contents, platforms, target, config, notes)


def chosen_platforms(config: ExportConfig) -> tuple[Platform, ...]:
    """Return the platforms of a config, each once.

    Raises:
        InputError: There is none.
    """
    if not config.platform:
        names = registry.names("platform")
        raise InputError(
            f"export.platform is missing: choose from {', '.join(names)}",
            field="export.platform",
            expected=names,
            got=(),
        )
    return tuple(registry.get(Platform, name, field="export.platform") for name in dict.fromkeys(config.platform))


def check_settings(config: ExportConfig) -> None:
    """Check the settings of a bundle before any work: the platforms, and the files with labels and vocabulary.

    Raises:
        InputError: A setting cannot be used.
    """
    if config.labels:
        read_labels(config.labels)
    if config.vocabulary:
        read_vocabulary(config.vocabulary)
    if not config.metadata_only:
        chosen_platforms(config)


def _results(content: bytes, config: ExportConfig, folder: Path | None, record: Mapping[str, Any] | None) -> Results:
    sha256 = artifacts.sha256(content)
    if record is None:
        return read_results(sha256, config.record, folder)
    results = checked_results(record, sha256, RECORDS[-1] if "models" in record else RECORDS[0], field="record")
    if results is None:
        raise InputError(
            "record has no results of this model: expected the record of a command that evaluated it",
            field="record",
            expected=sha256,
        )
    return results


def _examples(
    model: tflite.Model,
    provided: DataConfig | Mapping[str, NDArray] | NDArray | None,
    results: Results,
    count: int,
) -> tuple[datasets.Split | None, DataConfig | None]:
    """Return the examples of the golden vectors before preprocessing, and the settings of their source.

    Both are None if they are unknown.
    """
    needed = count * (datasets.batch_size_of(model) or 1)
    if provided is not None and not isinstance(provided, DataConfig):
        arrays = provided if isinstance(provided, Mapping) else {datasets.UNNAMED: provided}
        inputs = {name: _first(np.asarray(array), name, needed) for name, array in arrays.items()}
        return datasets.Split(name="golden", inputs=inputs, labels=None, source="arrays of the caller"), None
    config = provided if provided is not None and provided.source else _recorded_data(results)
    return (first_examples(config, needed), config) if config is not None else (None, provided)


def _first(array: NDArray, name: str, count: int) -> NDArray:
    if array.ndim == 0:
        raise InputError(
            f"data: the array {name!r} is a single value: expected an array (n, ...) with an example in each row",
            field="data",
            expected="(n, ...)",
            got=(),
        )
    return array[:count]


def _recorded_data(results: Results) -> DataConfig | None:
    """Return the data settings of the record, if its source can be read here."""
    if not results.data.get("source"):
        return None
    try:
        config = DataConfig.from_dict(results.data)
        datasets.check_readable(config)
    except InputError as error:
        warn(f"the data of {results.record} cannot be read here ({error})")
        return None
    return config


def _contents(
    stem: str,
    content: bytes,
    config: ExportConfig,
    examples: datasets.Split | None,
    results: Results,
    platforms: Sequence[Platform],
    seed: int,
    *,
    source_sha256: str,
) -> tuple[BundleContents, tuple[str, ...]]:
    model = tflite.read(content)
    table = auditing.io_table(content)
    labels = labels_of(model, config, table, () if examples is None else examples.class_names)
    table = auditing.io_table(content, labels)
    io = table.to_dict()
    refuse_problems(Candidate(content=content, model=model, io=io), platforms)
    source = random_source(model, io, config.num_golden, seed) if examples is None else _source_of(examples)
    # The file runs in a child process before it is edited here, so that a damaged one fails there.
    golden = golden_vectors(content, model, source, io, tolerance_of(results))
    described = with_metadata(content, table, stem, config, labels)
    notes = []
    if not source.is_real:
        notes = ["golden vectors: random numbers, not real data: set data.source to examples"]
        warn("the golden vectors are random numbers, because no data is named: set data.source to real examples")
    notes += [f"accuracy and backends: {results.missing}: name a record in export.record"] if results.missing else []
    io = auditing.io_table(described, labels).to_dict()
    contents = BundleContents(
        name=stem,
        model=described,
        io=io,
        golden=golden,
        labels=next(
            (tuple(entry[key]) for key in ("labels", "value_labels") for entry in io["outputs"] if entry[key]), ()
        ),
        results=results,
        source_sha256=source_sha256,
        parsed=tflite.read(described),
    )
    return contents, tuple(notes)


def _source_of(examples: datasets.Split) -> SourceExamples:
    return SourceExamples(
        inputs=examples.inputs,
        labels=examples.labels,
        description=f"the first examples of {examples.source} ({examples.name})",
        is_real=True,
    )


def refuse_problems(candidate: Candidate, platforms: Sequence[Platform]) -> None:
    """Raise InputError with everything that the platforms refuse, and the conversions that they can run."""
    problems = [(platform, problem) for platform in platforms for problem in platform.check(candidate)]
    if problems:
        text = "; ".join(f"{platform.title}: {problem.reason}: {problem.advice}" for platform, problem in problems)
        raise InputError(
            f"the file cannot be exported for {', '.join(dict.fromkeys(item.name for item, _ in problems))}: {text}",
            field="export.platform",
            expected=tuple(problem.advice for _, problem in problems),
            got=tuple(problem.reason for _, problem in problems),
            limit="refused-by-platform",
        )


def bundle_files(contents: BundleContents, platforms: Sequence[Platform]) -> dict[str, bytes]:
    """Return all files of a bundle except README.md: {path: content}."""
    files = {
        MODEL_FILE: contents.model,
        IO_FILE: _json(contents.io),
        GOLDEN_FILE: _json(contents.golden.document),
        **contents.golden.files,
    }
    if contents.labels:
        files[LABELS_FILE] = "".join(f"{label}\n" for label in contents.labels).encode()
    for platform in platforms:
        for path, content in platform.sources(contents).items():
            if files.setdefault(path, content) != content:
                raise AssertionError(f"platform {platform.name} writes {path} with another content")
    return files


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _write(
    contents: BundleContents,
    platforms: Sequence[Platform],
    target: Path,
    config: ExportConfig,
    notes: tuple[str, ...],
) -> Bundle:
    with remembered_warnings() as warnings:
        for message in large_recorded_differences(contents):
            warn(message)
        files = bundle_files(contents, platforms)
    with progress.stage("writing the bundle"), staged_folder(target, replaceable(target)) as fresh:
        write_files(fresh, files)
        self_tests = run_self_tests(platforms, fresh, run=config.self_test)
        files["README.md"] = readme(contents, platforms, self_tests, warnings).encode()
        files[MANIFEST_FILE] = manifest(files)
        write_files(fresh, {name: files[name] for name in ("README.md", MANIFEST_FILE)})
        archive = zip_bytes(files, FOLDER) if config.zip else None
    path = target.with_suffix(".zip")
    if archive is not None:
        artifacts.write_bytes(path, archive)
    else:
        path.unlink(missing_ok=True)  # an archive of an earlier bundle
    return Bundle(
        folder=target,
        zip=None if archive is None else path,
        files={name: artifacts.sha256(content) for name, content in sorted(files.items())},
        platforms=tuple(platform.name for platform in platforms),
        self_tests=self_tests,
        golden={
            "data": contents.golden.document["data"],
            "is_real": contents.golden.document["is_real"],
            "count": len(contents.golden.examples),
        },
        notes=(*notes, *warnings),
    )


def run_self_tests(platforms: Sequence[Platform], folder: Path, *, run: bool = True) -> tuple[SelfTestResult, ...]:
    """Return the results of the self-tests of all platforms; with `run` False, none of them runs."""
    results = []
    for platform in platforms:
        for test in platform.self_tests:
            if not run:
                reason = "export.self_test is False"
                results.append(SelfTestResult(name=test.name, status="not run", detail=reason))
                continue
            with progress.stage(f"running the self-test {test.name}"):
                results.append(test.result(folder))
    return tuple(results)
