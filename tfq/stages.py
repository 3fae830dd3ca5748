# SPDX-License-Identifier: Apache-2.0
"""What each script does with a config: load, train, compress, convert, evaluate. Each stage calls its room."""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, data, evaluation, flatbuffer
from tfq.config import AUDIT_SCHEMES, AuditConfig, DataConfig, RunConfig
from tfq.errors import InputError, TfqWarning
from tfq.evaluation import EvaluationRecord, InstructionRecord, ParityRecord
from tfq.models import file_stem

MODEL_FILES = (".keras", ".h5", ".hdf5", ".tflite")


def is_file(model: str) -> bool:
    """Whether --model means a file, rather than the name of a model that tfq builds."""
    return model.endswith(MODEL_FILES) or "/" in model or Path(model).is_file()


def model_name(config: RunConfig) -> str:
    """The stem of every file written about --model: the file's own, or the model's name."""
    if not config.model:
        raise InputError("--model is missing: give a .keras, .h5 or .tflite file, or a name that tfq train knows")
    return Path(config.model).stem if is_file(config.model) else file_stem(config.model)


def check_model_file(config: RunConfig) -> None:
    """Raises InputError where --model means a file, and there is none."""
    path = Path(config.model)
    if is_file(config.model) and not path.is_file():
        trouble = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"--model={path} {trouble}: wanted a .keras, .h5 or .tflite file, or a model's name")


def load(config: RunConfig, *, allow_code: bool = False) -> Any:
    """--model as a Keras model, or as bytes where it is a .tflite file."""
    model_name(config)
    if config.model.endswith(".tflite"):
        return read_tflite(config)
    if is_file(config.model):
        from tfq.keras_bridge import load_model

        return load_model(config.model, allow_code=allow_code)
    raise InputError(
        f"--model={config.model} is no file, and a model that tfq builds has no weights yet: "
        f"train it first (tfq train --model={config.model}), and give the file that comes out"
    )


def read_tflite(config: RunConfig) -> bytes:
    """The bytes of the file in --model. Raises InputError where there is none."""
    model_name(config)
    return artifacts.read_bytes(config.model, "a .tflite file in --model")


def load_split(config: DataConfig, split: str, *, limit: int = 0) -> data.AnySplit:
    """`tfq.data.load_split`; what the source has to say of the split (held out of train, keys ignored) is a warning."""
    return _told(data.load_split(config, split, limit=limit))


def save_keras(model: Any, path: Path) -> Path:
    """Save a Keras model under `path` whole or not at all, in the format of its suffix.

    A quantization-aware trained model wants `.h5`: tf_keras' `.keras` loader cannot restore tfmot's wrappers
    (2.21: "Layer 'quantize_layer' expected 5 variables, but received 3").
    """
    with artifacts.staged(path) as temporary:
        model.save(temporary)
    return path


def train(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """The model that --model names, built and trained on --data; and what a record says of it."""
    from tfq import models
    from tfq.keras_bridge import import_keras, import_tf_keras
    from tfq.training import deterministic, train_model

    model_name(config)
    if is_file(config.model):
        raise InputError(f"--model={config.model}: train builds a model by its name, and this is a file")
    training, validation = load_split(config.data, "train"), load_split(config.data, "val")
    try:
        test = load_split(config.data, "test")
    except data.MissingSplitError:
        test = None
    keras = import_keras() if config.training.keras == "keras" else import_tf_keras()
    with deterministic(config.seed):
        classes = data.count_classes([split for split in (training, validation, test) if split is not None])
        model = models.build(config.model, keras, data.example_shape(training), classes)
        history = train_model(model, training, validation, config.training, seed=config.seed)
    return model, {
        "parameters": int(model.count_params()),
        "history": history,
        "preprocessing": data.preprocessing_record(config.data),
        **_keras_scores(model, test),
        "sha256": _hashes(config, train=training, val=validation, test=test),
    }


def compression_suffix(config: RunConfig) -> str:
    """pruned_qat, pruned or qat: what `compress` is to do. InputError when that is nothing."""
    done = [
        word for word, step in (("pruned", config.compression.prune), ("qat", config.compression.qat)) if step.enabled
    ]
    if not done:
        raise InputError("both --noprune and --noqat: there is nothing to do")
    return "_".join(done)


def check_compressible(model: Any, config: RunConfig) -> None:
    """Raises InputError, before any work, where config asks for a compression that this model cannot have."""
    from tfq.compression import check_quantizable, pruning_plan
    from tfq.keras_bridge import require_tf_keras

    prune, qat = config.compression.prune, config.compression.qat
    if isinstance(model, bytes) or not (prune.enabled or qat.enabled):
        return
    require_tf_keras(model, "pruning and quantization-aware training")
    if prune.enabled:
        pruning_plan(model, prune)
    if qat.enabled:
        check_quantizable(model, preserve_sparsity=prune.enabled and qat.preserve_sparsity)


def compress(model: Any, config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """`model` pruned and quantization-aware trained on --data, as config.compression says; and its record."""
    from tfq.compression import measure_sparsity, prune_model, pruning_plan, qat_model
    from tfq.training import deterministic, train_model

    if isinstance(model, bytes):
        raise InputError(f"--model={config.model}: a .tflite cannot be trained: give the Keras model")
    compression_suffix(config)
    check_compressible(model, config)
    settings = config.compression
    training, validation = load_split(config.data, "train"), load_split(config.data, "val")
    histories: dict[str, Any] = {}
    plan = pruning_plan(model, settings.prune).to_dict() if settings.prune.enabled else None

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
        "pruning_plan": plan,
        "history": histories,
        "sparsity": measure_sparsity(model),
        "preprocessing": data.preprocessing_record(config.data),
        "sha256": _hashes(config, train=training, val=validation),
    }


def convert(model: Any, config: RunConfig) -> tuple[bytes, dict[str, Any]]:
    """`model` (Keras, a Trace, or float flatbuffer bytes) as config.conversion says; and its record."""
    from tfq.conversion import convert_model

    preprocessing = data.preprocessing_record(config.data)
    traced = trace_once(model, config)
    dataset, told, diagnostics, hashes = None, None, None, _hashes(config)
    if config.conversion.needs_ranges and (isinstance(traced, bytes) or not traced.has_fake_quant):
        dataset = _told(data.load_calibration_split(config.data, limit=config.conversion.calibration_steps))
        told = {"split": dataset.name, "examples": dataset.num_examples}
        diagnostics = data.diagnose(dataset, lambda: data.load_split(config.data, dataset.name))
        for finding in diagnostics.findings:
            warnings.warn(finding, TfqWarning, stacklevel=2)
        hashes = _hashes(config, **{f"{dataset.name}[:{dataset.num_examples}]": dataset})
    content = convert_model(traced, dataset, config.conversion, preprocessing=preprocessing)
    return content, {
        "preprocessing": preprocessing,
        "representative_dataset": told,
        "diagnostics": None if diagnostics is None else diagnostics.to_dict(),
        "sha256": hashes,
    }


def audit_config(config: RunConfig) -> AuditConfig:
    """What to hold a flatbuffer against that config.conversion has made, unless told: its target, or its scheme."""
    made = config.conversion
    scheme = next(name for name, scheme in AUDIT_SCHEMES.items() if scheme == made.scheme)
    return dataclasses.replace(
        config.audit,
        require=config.audit.require or made.target or scheme,
        inference_input_type=made.inference_input_type or config.audit.inference_input_type,
        inference_output_type=made.inference_output_type or config.audit.inference_output_type,
    )


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation and the comparisons between runners that went with it."""

    evaluation: EvaluationRecord
    parity: dict[str, ParityRecord | str]
    instructions: dict[str, InstructionRecord | str]
    sha256: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a runner that could not be had is {"not_run": its reason}."""
        return {
            "sha256": self.sha256,
            "evaluation": self.evaluation.to_dict(),
            "instructions": evaluation.instructions_to_dict(self.instructions),
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
        lines += [
            f"{runner}: instructions not counted: {outcome}" if isinstance(outcome, str) else outcome.to_text()
            for runner, outcome in self.instructions.items()
        ]
        return "\n".join(lines)


def evaluate(
    model: bytes, config: RunConfig, *, reference: Any = None, parity: bool = True, test: data.AnySplit | None = None
) -> Evaluated:
    """`model` on the test split of --data, on --runner; then the same inputs on each of --parity_runners.

    reference: float flatbuffer bytes, or ReferenceOutputs; without it, the file in --reference if there is one.
    An emulated --runner is compared with `local` besides; on every emulated one, instructions are counted.
    """
    settings = config.evaluation
    evaluation.check_runners(settings)
    evaluation.check_metric(settings)
    flatbuffer.read(model)
    test = test or load_split(config.data, "test", limit=settings.limit)
    hashes: dict[str, Any] = {"model": artifacts.sha256(model), "data": {test.name: test.sha256()}}
    if reference is None and settings.reference:
        reference = artifacts.read_bytes(settings.reference, "a float .tflite file in --reference")
        hashes["reference"] = artifacts.sha256(reference)
    record = evaluation.evaluate_model(
        model, test, settings, reference=reference, preprocessing=data.preprocessing_record(config.data)
    )
    others = list(settings.parity_runners) if parity else []
    if settings.runner != "local" and "local" not in others:
        others.append("local")
    comparisons: dict[str, ParityRecord | str] = {}
    for other in others:
        comparisons[other] = evaluation.compare_runners_or_reason(model, test, settings, other)
    counted = evaluation.count_on_runners(
        model,
        (settings.runner, *settings.parity_runners),
        test,
        kernels="xnnpack" if settings.xnnpack else "builtin",
        timeout_secs=settings.timeout_secs,
    )
    return Evaluated(evaluation=record, parity=comparisons, instructions=counted, sha256=hashes)


def trace_once(model: Any, config: RunConfig) -> Any:
    """One traced function for all the conversions of a Keras model; a Trace and bytes are given back as they are."""
    from tfq.conversion import Trace, trace

    return model if isinstance(model, (bytes, Trace)) else trace(model, config.conversion.batch_size)


def _told(split: data.AnySplit) -> data.AnySplit:
    for note in split.notes:
        warnings.warn(note, TfqWarning, stacklevel=3)
    return split


def _hashes(config: RunConfig, **splits: data.AnySplit | None) -> dict[str, Any]:
    """SHA-256 of the file in --model (None for a name), and of each split, preprocessed, by its name here."""
    return {
        "model": artifacts.sha256_file(config.model) if is_file(config.model) else None,
        "data": {name: split.sha256() for name, split in splits.items() if split is not None},
    }


def _keras_scores(model: Any, test: data.AnySplit | None) -> dict[str, Any]:
    """What a Keras model with one output gets on the test split: None where there is none, or it has no labels."""
    from tfq.training import predict, reconstructs

    if test is None:
        return {"test_metric": None, "test_accuracy": None}
    scores = evaluation.score_outputs(predict(model, test), test, reconstructs=reconstructs(model))
    return {"test_metric": scores["metric"], "test_accuracy": scores["accuracy"]}
