# SPDX-License-Identifier: Apache-2.0
"""The stages of a whole run, in order. Each result is stored, so that an interrupted run resumes."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tfq import artifacts, auditing, data, deploy, evaluation, progress, registry, report, workflows
from tfq.backends import make_backend
from tfq.config import AuditConfig, BenchmarkRequireConfig, ConversionConfig, ExportConfig, RobustnessConfig, RunConfig
from tfq.errors import BackendError, InputError, RequirementError, TfqError, remembered_warnings, warn
from tfq.evaluation.benchmark import NUM_INPUTS
from tfq.provenance import cpu, record_of
from tfq.robustness.inputs import check_corruptions
from tfq.store import StageResult, StageStore, keeping_parts
from tfq.workflows.stage_keys import settings_for_key

# The files of a stage. They do not contain the name of the model, which is not part of the key of a stage.
FLATBUFFER = "model.tflite"
TRAINED, COMPRESSED, RETURNED = "trained.keras", "compressed.h5", "returned.keras"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A flatbuffer of the run.

    Attributes:
        name: What it is, such as "ptq_int8".
        file: The name of its file in config.out.
        content: Its bytes.
        verification: The comparison with its float twin on calibration samples; None for the float flatbuffer.
        qat_parity: The comparison with the QAT model that it was converted from; None without QAT.
        trained_int4: The layers that were trained with 4-bit weights.
    """

    name: str
    file: str
    content: bytes
    verification: dict[str, Any] | None = None
    qat_parity: dict[str, Any] | None = None
    trained_int4: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Run:
    """The state of a run: its config, its directory, the results on disk, and the stages for its record."""

    config: RunConfig
    out: Path
    store: StageStore
    allow_code: bool
    stages: list[dict[str, Any]] = field(default_factory=list)

    def stage(self, name: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> StageResult:
        """Return the result of a stage, from disk or computed by `make`, and add the stage to the record."""
        result = self.store.run(name, inputs, make)
        self.stages.append(
            {
                "name": name,
                "seconds": result.seconds,
                "skipped": None,
                "resumed": result.resumed,
                "details": result.details,
            }
        )
        return result

    def details(self, name: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Return the details of a stage, which the record has elsewhere and its entry of the stage leaves out."""
        details = self.stage(name, inputs, make).details
        self.stages[-1] = {**self.stages[-1], "details": {}}
        return details

    def skip(self, name: str, reason: str) -> None:
        """Add a stage to the record that was skipped, with the reason."""
        self.stages.append({"name": name, "seconds": 0.0, "skipped": reason, "resumed": False, "details": {}})

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """The fingerprint of what config.data contains now."""
        return data.source_fingerprint(self.config.data)

    @functools.cached_property
    def test(self) -> data.Split | data.SplitStream:
        """The test examples."""
        return workflows.load_split(self.config.data, "test", limit=self.config.evaluation.limit)

    @functools.cached_property
    def name(self) -> str:
        """The stem of the files that the run writes."""
        return workflows.model_name(self.config)


class Loaded:
    """A model of the run, loaded and traced once, when a stage needs it.

    Attributes:
        no_layers: Why the model cannot be compressed by training; "" if it can.
    """

    def __init__(self, config: RunConfig, *, allow_code: bool = False) -> None:
        """Load nothing yet; see `workflows.load` for the arguments."""
        self._config, self._allow_code = config, allow_code
        self.no_layers = ""

    @functools.cached_property
    def model(self) -> Any:
        """The Keras model, or the bytes of a float .tflite."""
        return workflows.load(self._config, allow_code=self._allow_code)

    @functools.cached_property
    def traced(self) -> Any:
        """The Trace of the model, or the bytes."""
        return workflows.trace_once(self.model, self._config)

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of the model's file."""
        return artifacts.sha256_path(self._config.model)


def _trained(run: Run) -> Loaded:
    """Return the model in the file config.model, or train the model of that name."""
    config = run.config
    if workflows.is_file(config.model):
        run.skip("train", f"{config.model} is a file: its weights are used unchanged")
        loaded = Loaded(config, allow_code=run.allow_code)
        inputs = {
            "model": loaded.sha256,
            "compression": settings_for_key(config.compression),
            "allow_code": run.allow_code,
            "plugins": [plugin.sha256 for plugin in registry.load_plugins(config.plugin)],
        }

        def check(directory: Path) -> dict[str, Any]:
            workflows.check_compressible(loaded.model, config)
            return {"no_layers": workflows.why_no_layers(loaded.model)}

        loaded.no_layers = run.details("load", inputs, check)["no_layers"]
        return loaded

    def make(directory: Path) -> dict[str, Any]:
        model, details = workflows.train(config, allow_code=run.allow_code)
        workflows.save_keras(model, directory / TRAINED)
        return details

    inputs = {
        "model": config.model,
        "training": settings_for_key(config.training),
        **data_inputs(run),
    }
    return _published(run, run.stage("train", inputs, make).directory / TRAINED, f"{run.name}.keras")


def _compressed(run: Run, model: Loaded) -> tuple[Loaded, StageResult]:
    suffix = workflows.compression_suffix(run.config)

    def make(directory: Path) -> dict[str, Any]:
        compressed = workflows.compress(model.model, run.config, allow_code=run.allow_code)
        workflows.save_keras(compressed.model, directory / COMPRESSED)
        if compressed.user_model is not None:
            workflows.save_keras(compressed.user_model, directory / RETURNED)
        return compressed.details

    inputs = {
        "model": model.sha256,
        "compression": settings_for_key(run.config.compression),
        **data_inputs(run),
    }
    result = run.stage(f"compress ({suffix.replace('_', ', ')})", inputs, make)
    if (result.directory / RETURNED).exists():
        artifacts.copy_file(result.directory / RETURNED, run.out / f"{run.name}_{suffix}.keras")
    return _published(run, result.directory / COMPRESSED, f"{run.name}_{suffix}.h5"), result


def _published(run: Run, built: Path, file: str) -> Loaded:
    """Copy the Keras model of a stage to config.out as `file`, and return it as loaded from there.

    A later run continues from the same file.
    """
    path = artifacts.copy_file(built, run.out / file)
    return Loaded(dataclasses.replace(run.config, model=str(path)), allow_code=run.allow_code)


def data_inputs(run: Run) -> dict[str, Any]:
    """Return the inputs of a stage that reads config.data."""
    return {"data": settings_for_key(run.config.data), "data_sha256": run.data_fingerprint, "seed": run.config.seed}


def make_flatbuffers(run: Run) -> tuple[list[Built], dict[str, float]]:
    """Return the flatbuffers (float32, quantized, and compressed and quantized) and {compressed layer: sparsity}."""
    config = run.config
    scheme = config.conversion.scheme
    model = _trained(run)
    built = [
        _converted(run, model, "float", "float32", stage="convert to float32"),
        _converted(run, model, f"ptq_{scheme}", scheme, stage=f"convert to {scheme}"),
    ]
    if not workflows.is_compressed(config):
        run.skip("compress", "no step of compression is enabled")
        return built, {}
    if model.no_layers:
        run.skip("compress", model.no_layers)
        warn(f"the compress stage is skipped: {model.no_layers}")
        return built, {}
    compressed, result = _compressed(run, model)
    name = f"{workflows.compression_suffix(config)}_{scheme}"
    last = _converted(run, compressed, name, scheme, suffix=name, stage=f"convert the compressed model to {scheme}")
    if config.compression.qat.enabled:
        last = dataclasses.replace(last, qat_parity=_qat_parity(run, compressed, last))
    return [*built, last], result.details["sparsity"]


def _qat_parity(run: Run, model: Loaded, built: Built) -> dict[str, Any]:
    def make(directory: Path) -> dict[str, Any]:
        return workflows.compare_with_qat_model(model.model, built.content, run.test)

    inputs = {
        "model": model.sha256,
        "flatbuffer": artifacts.sha256(built.content),
        "limit": run.config.evaluation.limit,
        **data_inputs(run),
    }
    return run.details("compare with the QAT model", inputs, make)


def _converted(run: Run, model: Loaded, name: str, scheme: str, *, stage: str, suffix: str = "") -> Built:
    conversion = run.config.conversion
    if scheme != conversion.scheme:  # float32: the types and the target of the config are for the other scheme
        conversion = ConversionConfig(
            scheme=scheme,
            batch_size=conversion.batch_size,
            input_shapes=conversion.input_shapes,
            signature=conversion.signature,
        )
    elif getattr(model.traced, "has_fake_quant", False):  # techniques would undo the training
        conversion = dataclasses.replace(conversion, techniques=(), int4_layers=())
    config = dataclasses.replace(run.config, conversion=conversion)

    def make(directory: Path) -> dict[str, Any]:
        with keeping_parts(lambda: run.store):
            built, details = workflows.convert(model.traced, config)
        artifacts.write_bytes(directory / FLATBUFFER, built.content)
        return details

    inputs = {"model": model.sha256, "conversion": settings_for_key(conversion), **data_inputs(run)}
    result = run.stage(stage, inputs, make)
    file = f"{run.name}_{suffix or scheme}.tflite"
    path = artifacts.copy_file(result.directory / FLATBUFFER, run.out / file)
    return Built(
        name=name,
        file=file,
        content=path.read_bytes(),
        verification=result.details["verification"],
        trained_int4=tuple(result.details.get("trained_int4", ())),
    )


def run_recipe(config: RunConfig, *, allow_code: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Run the whole pipeline: train or load, convert, compress, audit, evaluate, benchmark, export and report.

    Builds and trains a model by name, or loads one from a file. Converts it to float32 and int8, prunes it and trains
    it quantization-aware, and converts that to int8. Audits, evaluates and benchmarks all three flatbuffers, and writes
    the reports to `config.out`. If `config.export` has platforms, it writes an app bundle of the last flatbuffer.
    Results of finished stages are kept in `config.out/.stages`. A later run reuses those with the same inputs, so an
    interrupted run resumes. Only one run writes to `config.out` at a time; a second one waits.

    A missed requirement does not raise here: the record contains it, and `tfq.workflows.run.require(record)` raises.

    Examples:
        >>> data = tfq.DataConfig(source="npz:examples.npz")
        >>> record = tfq.run(tfq.RunConfig(model="model.keras", data=data, out="out"))

    Args:
        config: The settings of all stages.
        allow_code: Whether code inside the model file (Lambda layers, custom classes) may run; see `load_model`.
        fresh: Whether to delete the results of earlier runs instead of reusing them.

    Returns:
        The record, as in `config.out/report.json`.

    Raises:
        InputError: The config cannot be carried out. This is checked before any work starts.
        BackendError: A backend failed. The report of the finished part has been written.
        TfqError: No bundle could be written, for example because a platform refuses the flatbuffer. The report has been
            written.
    """
    out = artifacts.make_out_dir(config.out)
    workflows.model_name(config)
    _check(config)
    with artifacts.locked_directory(out), remembered_warnings() as messages:
        run = Run(config=config, out=out, store=StageStore(out, fresh=fresh), allow_code=allow_code)
        if config.evaluation.robustness.enabled:
            check_corruptions(run.test, config.evaluation.robustness)
        return _run_stages(run, messages)


def _run_stages(run: Run, messages: list[str]) -> dict[str, Any]:
    built, sparsity = make_flatbuffers(run)
    results: list[dict[str, Any]] = []
    benchmark, robustness, failure = None, None, cast(TfqError | None, None)
    try:
        _examine(built, run, results)
        robustness = _robustness(built, run, results)
        benchmark = _benchmark(built, run)
    except BackendError as error:  # the report contains the finished part
        failure = error
        messages.append(f"the run ended early: {error}")
    models = [
        # There are fewer results than flatbuffers if the run ended early.
        {
            "name": item.name,
            "file": item.file,
            **result,
            "verification": item.verification,
            "qat_parity": item.qat_parity,
        }
        for item, result in zip(built, results, strict=False)
    ]
    record = record_of(
        "run",
        run.config,
        sha256=_merged_hashes(run.stages, results),
        stages=run.stages,
        models=models,
        requirements=_requirements(models, run.config),
        benchmark=benchmark,
        robustness=robustness,
        sparsity=sparsity,
        warnings=list(dict.fromkeys(messages)),
    )
    if run.config.export.platform and failure is None:
        failure = _export(run, built[-1], record)
        record["warnings"] = list(dict.fromkeys(messages))
    with progress.stage("writing the report"):
        report.write_report(record, run.out)
    if failure:
        raise failure
    run.store.forget_unused()
    return record


def _export(run: Run, built: Built, record: dict[str, Any]) -> TfqError | None:
    """Write the bundle of a flatbuffer, and add it to the record; return the error if that failed.

    A platform that refuses the file does not undo the run: the report is written before the error is raised.
    """
    start = time.monotonic()
    try:
        bundle = deploy.export_bundle(
            built.content,
            run.config.export,
            out=run.out,
            data=run.config.data,
            name=Path(built.file).stem,
            record=record,
            seed=run.config.seed,
        )
    except TfqError as error:
        warn(f"no bundle was written: {error}")
        return error
    seconds = time.monotonic() - start
    run.stages.append({"name": "export", "seconds": seconds, "skipped": None, "resumed": False, "details": {}})
    record["bundle"] = {"model": built.file, **bundle.to_dict()}
    record["requirements"] += [{"file": built.file, **item} for item in bundle.requirements()]
    return None


def _check(config: RunConfig) -> None:
    """Raise InputError, before any work, for settings that a run ignores, and for missing models and backends."""
    if config.conversion.scheme == "float32":
        raise InputError(
            "conversion.scheme=float32: a run always converts to float32; choose the scheme of the other flatbuffer",
            field="conversion.scheme",
            expected="another scheme",
            got="float32",
        )
    if config.conversion.scheme != "int8" and config.compression.qat.enabled:
        raise InputError(
            f"conversion.scheme={config.conversion.scheme}: quantization-aware training needs int8: "
            "disable it (compression.qat.enabled=False), or set the scheme to int8",
            field="conversion.scheme",
            expected="int8",
            got=config.conversion.scheme,
        )
    if config.compression.qat.enabled and not config.conversion.per_channel:
        raise InputError(
            "conversion.per_channel=False: quantization-aware training uses a scale for each channel of a convolution: "
            "set it to True, or disable training (compression.qat.enabled=False)",
            field="conversion.per_channel",
            expected=True,
            got=False,
        )
    if config.evaluation.reference:
        raise InputError(
            "evaluation.reference is not used by a run, which compares with its own float32 flatbuffer: remove it",
            field="evaluation.reference",
            expected="",
            got=config.evaluation.reference,
        )
    if config.benchmark.against:
        raise InputError(
            "benchmark.against is not used by a run, which times its own flatbuffers: remove it",
            field="benchmark.against",
            expected=(),
            got=config.benchmark.against,
        )
    if config.benchmark.require != BenchmarkRequireConfig():
        raise InputError(
            "benchmark.require is not used by a run: set the same bounds in evaluation.require",
            field="benchmark.require",
            expected=BenchmarkRequireConfig(),
            got=config.benchmark.require,
        )
    if config.export != ExportConfig():
        deploy.check_settings(config.export)
    workflows.check_named(config, "train")
    workflows.check_model_file(config)
    evaluation.check_backends(config.evaluation, needs_outputs="a run")
    evaluation.check_metric(config.evaluation)


def _merged_hashes(records: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the hashes of all stages: that of config.model, and {split: that of its examples}."""
    merged: dict[str, Any] = {"model": None, "data": {}}
    for hashes in [stage["details"].pop("sha256", None) for stage in records]:
        if hashes:
            merged = {"model": hashes["model"], "data": merged["data"] | hashes["data"]}
    for result in results:
        merged["data"] |= result["sha256"]["data"]
    return merged


def _requirements(models: list[dict[str, Any]], config: RunConfig) -> list[dict[str, Any]]:
    """Return all requirements of each flatbuffer except the float one, with its file, value and verdict."""
    return [
        {"file": model["file"], **asked.to_dict()}
        for model in models
        if model["name"] != "float"
        for asked in (
            *auditing.requirements_of(model["audit"], config.audit),
            *evaluation.requirements_on_backends(
                model["evaluation"], model["portability"], config.evaluation, model["digest"]
            ),
        )
    ]


def require(record: dict[str, Any]) -> None:
    """Raise RequirementError with all requirements of the config that the record of a run does not meet."""
    config = RunConfig.from_dict(record["config"])
    missed = []
    for model in record["models"]:
        if model["name"] == "float":
            continue
        if config.audit.require and not model["audit"]["ok"]:
            missed.append(f"{model['file']} is not {config.audit.require}: tfq audit shows the reasons")
        missed += [
            f"{model['file']}: {reason}"
            for reason in evaluation.missed_on_backends(
                model["evaluation"], model["portability"], config.evaluation, model.get("digest")
            )
        ]
    missed += [
        f"the self-test {test['name']} of the bundle failed: {test['detail']}"
        for test in (record.get("bundle") or {}).get("self_tests", ())
        if test["status"] == "failed"
    ]
    if missed:
        raise RequirementError("; ".join(missed))


def _examine(built: list[Built], run: Run, results: list[dict[str, Any]]) -> None:
    """Audit and evaluate every flatbuffer into `results`; the first one, in float, is the reference for all."""
    config = run.config
    # All flatbuffers run on the same corrupted inputs, in a stage after this one.
    settings = dataclasses.replace(config.evaluation, robustness=RobustnessConfig())
    clean = dataclasses.replace(config, evaluation=settings)

    @functools.cache
    def reference() -> Any:
        return evaluation.reference_outputs(built[0].content, run.test, config.evaluation)

    for item in built:
        audit = config.audit.for_conversion(config.conversion, item.trained_int4)

        def make(directory: Path, result: Built = item, audit: AuditConfig = audit) -> dict[str, Any]:
            audited = auditing.audit_model(result.content, audit)
            evaluated = workflows.evaluate(result.content, clean, reference=reference(), test=run.test)
            return {"audit": audited.to_dict(), **evaluated.to_dict()}

        inputs = {
            "model": artifacts.sha256(item.content),
            "reference": artifacts.sha256(built[0].content),
            "audit": settings_for_key(audit),
            "evaluation": settings_for_key(settings),
            "plugins": [plugin.sha256 for plugin in registry.plugins()],
            "machine": _machine(config.evaluation.backend, *evaluation.chosen_backends(config.evaluation)[0]),
            **data_inputs(run),
        }
        results.append(run.details(f"evaluate {item.name}", inputs, make))


def _robustness(built: list[Built], run: Run, results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Evaluate all flatbuffers on the same corrupted inputs, and add the means to their evaluations in `results`."""
    settings = run.config.evaluation
    if not settings.robustness.enabled:
        return None
    models = {item.name: item.content for item in built}

    def make(directory: Path) -> dict[str, Any]:
        return workflows.corrupted(models, run.config, run.test, reference=built[0].name).to_dict()

    inputs = {
        "models": {name: artifacts.sha256(content) for name, content in models.items()},
        "evaluation": {**settings_for_key(settings), "backends": None},
        "plugins": [plugin.sha256 for plugin in registry.plugins()],
        "machine": _machine(settings.backend),
        **data_inputs(run),
    }
    record = run.details("evaluate on corrupted inputs", inputs, make)
    for item, result in zip(built, results, strict=True):
        result["evaluation"] = {**result["evaluation"], **workflows.robustness_fields(record, item.name)}
    return record


def _machine(*backends: str) -> dict[str, Any]:
    """Return what a measurement depends on besides its config.

    These are the CPU, the cores of this process, and for each backend its fingerprint and why it cannot run here: when
    it can run later, the stored "not run" is no longer used.
    """
    results: dict[str, Any] = {"cpu": cpu(), "cores": len(os.sched_getaffinity(0))}
    for name in backends:
        backend = make_backend(name)
        results[name] = [backend.unavailable(), *backend.fingerprint()]
    return results


def _benchmark(built: list[Built], run: Run) -> dict[str, Any]:
    """Time all flatbuffers side by side."""

    def make(directory: Path) -> dict[str, Any]:
        models = {item.name: item.content for item in built}
        # As many as `tfq benchmark` uses: more inputs would come from a colder cache.
        first = next(run.test.pieces()).take(NUM_INPUTS)
        return evaluation.benchmark_models(models, run.config.benchmark, data=first, seed=run.config.seed).to_dict()

    inputs = {
        "models": {item.name: artifacts.sha256(item.content) for item in built},
        "benchmark": settings_for_key(run.config.benchmark),
        "machine": _machine(run.config.benchmark.backend),
        **data_inputs(run),
    }
    return run.details("benchmark", inputs, make)
