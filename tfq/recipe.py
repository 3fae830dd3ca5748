# SPDX-License-Identifier: Apache-2.0
"""The stages of a run, and the run that strings them together. Owns no numerics: each stage calls its room."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, data, evaluation, flatbuffer, report
from tfq.config import RunConfig
from tfq.errors import AuditError, InputError, RequirementError, TfqError, TfqWarning
from tfq.provenance import provenance

MODEL_FILES = (".keras", ".h5", ".hdf5", ".tflite")


def is_file(model: str) -> bool:
    """Whether --model means a file, rather than the name of a model that tfq builds."""
    return model.endswith(MODEL_FILES) or "/" in model or Path(model).exists()


def model_name(config: RunConfig) -> str:
    """The stem of every file written about --model: the file's own, or the model's name."""
    if not config.model:
        raise InputError("--model is missing: give a .keras, .h5 or .tflite file, or the name of a model that tfq builds")
    return Path(config.model).stem if is_file(config.model) else config.model


def load(config: RunConfig, *, allow_code: bool = False) -> Any:
    """--model as a Keras model, or as bytes where it is a .tflite file."""
    model_name(config)
    if config.model.endswith(".tflite"):
        return artifacts.read_bytes(config.model, "a .tflite file in --model")
    if is_file(config.model):
        from tfq.keras_bridge import load_model

        return load_model(config.model, allow_code=allow_code)
    raise InputError(
        f"--model={config.model} is no file, and a model that tfq builds has no weights yet: "
        f"train it first (tfq train --model={config.model}), and give the file that comes out"
    )


def save_keras(model: Any, path: Path) -> Path:
    """Save a Keras model under `path` whole or not at all."""
    with artifacts.staged(path) as temporary:
        model.save(temporary)
    return path


def train(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """The model that --model names, built and trained on --data; and what a record says of it."""
    from tfq import models
    from tfq.keras_bridge import import_keras, import_tf_keras
    from tfq.training import deterministic, train_model

    name = model_name(config)
    if is_file(name):
        raise InputError(f"--model={name}: train builds a model by name, this is a file")
    training, validation = data.load_split(config.data, "train"), data.load_split(config.data, "val")
    keras = import_keras() if config.training.keras == "keras" else import_tf_keras()
    with deterministic(config.seed):
        model = models.build(name, keras)
        history = train_model(model, training, validation, config.training, seed=config.seed)
    return model, {
        "parameters": int(model.count_params()),
        "history": history,
        "preprocessing": data.preprocessing_record(config.data),
        "test_accuracy": _keras_accuracy(model, data.load_split(config.data, "test")),
        "sha256": {"data": {training.name: training.sha256()}},
    }


def compression_suffix(config: RunConfig) -> str:
    """pruned_qat, pruned or qat: what `compress` is to do. InputError when that is nothing."""
    done = [
        word
        for word, step in (("pruned", config.compression.prune), ("qat", config.compression.qat))
        if step.enabled
    ]
    if not done:
        raise InputError("both --noprune and --noqat: there is nothing to do")
    return "_".join(done)


def compress(model: Any, config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """`model` pruned and quantization-aware trained on --data, as config.compression says; and its record."""
    from tfq.compression import measure_sparsity, prune_model, qat_model
    from tfq.keras_bridge import require_tf_keras
    from tfq.training import deterministic, train_model

    if isinstance(model, bytes):
        raise InputError(f"--model={config.model}: pruning and QAT train a Keras model, and a .tflite cannot be trained")
    compression_suffix(config)
    require_tf_keras(model, "pruning and quantization-aware training")
    settings = config.compression
    training, validation = data.load_split(config.data, "train"), data.load_split(config.data, "val")
    histories: dict[str, Any] = {}

    def fit(step: str) -> Callable[[Any, list[Any]], None]:
        def loop(stepped: Any, callbacks: list[Any]) -> None:
            histories[step] = train_model(
                stepped, training, validation, settings.train, seed=config.seed, callbacks=callbacks
            )

        return loop

    with deterministic(config.seed):
        if settings.prune.enabled:
            model = prune_model(model, fit("prune"), settings.prune)
        if settings.qat.enabled:
            model = qat_model(model, fit("qat"), settings.qat)
    return model, {
        "history": histories,
        "sparsity": measure_sparsity(model),
        "preprocessing": data.preprocessing_record(config.data),
        "sha256": {"data": {training.name: training.sha256()}},
    }


def convert(model: Any, config: RunConfig) -> tuple[bytes, dict[str, Any]]:
    """`model` (Keras, a Trace, or float flatbuffer bytes) as config.conversion says; and its record."""
    from tfq.conversion import convert_model

    preprocessing = data.preprocessing_record(config.data)
    details: dict[str, Any] = {"preprocessing": preprocessing, "representative_dataset": None}
    dataset = None
    if config.conversion.scheme == "int8" and not _carries_ranges(model):
        dataset = data.load_calibration_split(config.data)
        details["representative_dataset"] = {"split": dataset.name, "examples": dataset.num_examples}
        details["sha256"] = {"data": {dataset.name: dataset.sha256()}}
    return convert_model(model, dataset, config.conversion, preprocessing=preprocessing), details


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation and the comparisons between runners that went with it."""

    evaluation: evaluation.EvaluationRecord
    parity: dict[str, evaluation.ParityRecord | str]
    sha256: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a runner that could not be had is {"not_run": its reason}."""
        return {
            "sha256": self.sha256,
            "evaluation": self.evaluation.to_dict(),
            "parity": {
                runner: {"not_run": outcome} if isinstance(outcome, str) else outcome.to_dict()
                for runner, outcome in self.parity.items()
            },
        }

    def to_text(self) -> str:
        """For the terminal: the evaluation, then a line a runner."""
        lines = [self.evaluation.to_text()]
        lines += [
            f"{runner}: not run: {outcome}" if isinstance(outcome, str) else outcome.to_text()
            for runner, outcome in self.parity.items()
        ]
        return "\n".join(lines)


def evaluate(
    model: bytes, config: RunConfig, *, reference: Any = None, parity: bool = True, test: data.Split | None = None
) -> Evaluated:
    """`model` on the test split of --data, on --runner; then the same inputs on each of --parity_runners.

    reference: float flatbuffer bytes, or ReferenceOutputs; without it, the file in --reference if there is one.
    An emulated --runner is compared with `local` besides.
    """
    settings = config.evaluation
    flatbuffer.read(model)
    test = test or data.load_split(config.data, "test")
    if reference is None and settings.reference:
        reference = artifacts.read_bytes(settings.reference, "a float .tflite file in --reference")
    record = evaluation.evaluate_model(
        model, test, settings, reference=reference, preprocessing=data.preprocessing_record(config.data)
    )
    others = list(settings.parity_runners) if parity else []
    if settings.runner != "local" and "local" not in others:
        others.append("local")
    comparisons: dict[str, evaluation.ParityRecord | str] = {}
    for other in others:
        comparisons[other] = evaluation.compare_runners_or_reason(model, test, settings, other)
    return Evaluated(
        evaluation=record,
        parity=comparisons,
        sha256={"model": artifacts.sha256(model), "data": {test.name: test.sha256()}},
    )


class _Stages:
    """Times each stage of a run and remembers what it was skipped for."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def run(self, name: str, stage: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
        start = time.perf_counter()
        value, details = stage()
        self.records.append(
            {"name": name, "seconds": round(time.perf_counter() - start, 3), "skipped": None, "details": details}
        )
        return value

    def skip(self, name: str, reason: str) -> None:
        self.records.append({"name": name, "seconds": 0.0, "skipped": reason, "details": {}})


def run_recipe(config: RunConfig, *, allow_code: bool = False) -> dict[str, Any]:
    """Everything that `config` says, into config.out; returns the record that report.json holds.

    Raises InputError before any work where the config cannot be carried out. A missed requirement does not raise here:
    the record carries it, and `require(record)` raises.
    """
    out = artifacts.make_out_dir(config.out)
    name = model_name(config)
    evaluation.check_runners(config.evaluation)
    told: list[str] = []
    with warnings.catch_warnings(record=False):
        warnings.simplefilter("always", TfqWarning)
        show = warnings.showwarning

        def remember(message: Any, category: Any, *rest: Any, **named: Any) -> None:
            if issubclass(category, TfqWarning):
                told.append(str(message))
            show(message, category, *rest, **named)

        warnings.showwarning = remember
        stages = _Stages()
        flatbuffers, sparsity = _make_flatbuffers(config, name, stages, allow_code)
        files = {kind: f"{name}_{suffix}.tflite" for kind, suffix in flatbuffers.suffixes.items()}
        for kind, content in flatbuffers.contents.items():
            artifacts.write_bytes(out / files[kind], content)
        results = _examine(flatbuffers.contents, config, stages)
    record = {
        **provenance(),
        "script": "run",
        "config": config.to_dict(),
        "config_hash": config.config_hash(),
        "seed": config.seed,
        "sha256": flatbuffers.sha256,
        "stages": stages.records,
        "models": [{"name": kind, "file": files[kind], **result} for kind, result in results.items()],
        "sparsity": sparsity,
        "warnings": list(dict.fromkeys(told)),
    }
    report.write_report(record, out)
    return record


@dataclass(kw_only=True)
class _Flatbuffers:
    contents: dict[str, bytes]
    suffixes: dict[str, str]
    sha256: dict[str, Any]


def _make_flatbuffers(
    config: RunConfig, name: str, stages: _Stages, allow_code: bool
) -> tuple[_Flatbuffers, dict[str, float]]:
    """Train or load, then float, PTQ int8 and compressed int8 flatbuffers, by name."""
    import dataclasses

    out = Path(config.out)
    hashes: dict[str, Any] = {"model": None, "data": {}}
    if is_file(config.model):
        stages.skip("train", f"{config.model} is a file: its weights are taken as they are")
        model = stages.run("load", lambda: (load(config, allow_code=allow_code), {}))
        hashes["model"] = artifacts.sha256_file(config.model)
    else:
        model = stages.run("train", lambda: train(config))
        save_keras(model, out / f"{name}.keras")
    floating = dataclasses.replace(config, conversion=dataclasses.replace(config.conversion, scheme="float32"))
    integer = dataclasses.replace(config, conversion=dataclasses.replace(config.conversion, scheme="int8"))
    traced = _trace_once(model, config)
    contents = {
        "float": stages.run("convert to float32", lambda: convert(traced, floating)),
        "ptq_int8": stages.run("convert to int8", lambda: convert(traced, integer)),
    }
    suffixes = {"float": "float32", "ptq_int8": "int8"}
    sparsity: dict[str, float] = {}
    if not (config.compression.prune.enabled or config.compression.qat.enabled):
        stages.skip("compress", "neither pruning nor QAT is asked for")
    elif isinstance(model, bytes):
        stages.skip("compress", "a .tflite cannot be trained: pruning and QAT want the Keras model")
    else:
        suffix = compression_suffix(config)
        compressed = stages.run(f"compress ({suffix.replace('_', ', ')})", lambda: compress(model, config))
        sparsity = stages.records[-1]["details"]["sparsity"]
        save_keras(compressed, out / f"{name}_{suffix}.keras")
        contents[f"{suffix}_int8"] = stages.run(
            "convert the compressed to int8", lambda: convert(_trace_once(compressed, config), integer)
        )
        suffixes[f"{suffix}_int8"] = f"{suffix}_int8"
    for stage in stages.records:
        hashes["data"] |= stage["details"].pop("sha256", {}).get("data", {})
    return _Flatbuffers(contents=contents, suffixes=suffixes, sha256=hashes), sparsity


def _trace_once(model: Any, config: RunConfig) -> Any:
    """One traced function for all the conversions of a model; bytes are what they are."""
    if isinstance(model, bytes):
        return model
    from tfq.conversion import trace

    return trace(model, config.conversion.batch_size)


def _examine(contents: dict[str, bytes], config: RunConfig, stages: _Stages) -> dict[str, dict[str, Any]]:
    """Audit and evaluate every flatbuffer; the float one is the reference of the others."""
    test = data.load_split(config.data, "test")
    reference = evaluation.reference_outputs(contents["float"], test, config.evaluation)
    results: dict[str, dict[str, Any]] = {}
    for kind, content in contents.items():
        audited = flatbuffer.audit_model(content, config.audit)

        def stage(kind: str = kind, content: bytes = content) -> tuple[Evaluated, dict[str, Any]]:
            return evaluate(content, config, reference=reference, parity=kind != "float", test=test), {}

        evaluated = stages.run(f"evaluate {kind}", stage)
        results[kind] = {"audit": audited.to_dict(), **evaluated.to_dict()}
    return results


def require(record: dict[str, Any]) -> None:
    """Raise AuditError or RequirementError where the record of a run misses what its config requires."""
    config = RunConfig.from_dict(record["config"])
    missed = []
    for model in record["models"]:
        if model["name"] == "float":
            continue
        if config.audit.require and not model["audit"]["ok"]:
            raise AuditError(f"{model['file']} is not {config.audit.require}: tfq audit --model={config.out}/{model['file']}")
        missed += [
            f"{model['file']}: {reason}"
            for reason in evaluation.missed_requirements(model["evaluation"], config.evaluation.require)
        ]
    if missed:
        raise RequirementError("; ".join(missed))


def _carries_ranges(model: Any) -> bool:
    """Whether the model comes out of quantization-aware training."""
    from tfq.conversion import Trace, trace

    if isinstance(model, bytes):
        return False
    return (model if isinstance(model, Trace) else trace(model)).has_fake_quant


def _keras_accuracy(model: Any, test: data.Split) -> float | None:
    """Top-1 of a Keras model on a labelled split; None without labels."""
    if test.labels is None:
        return None
    from tfq.evaluation import top1

    outputs = model.predict(list(test.inputs.values()), verbose=0)
    if not isinstance(outputs, (list, dict)):
        return float(top1(outputs, test.labels))
    raise TfqError("a model with several outputs has no one accuracy: evaluate its .tflite")
