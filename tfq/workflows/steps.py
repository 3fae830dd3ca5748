# SPDX-License-Identifier: Apache-2.0
"""From --model to the flatbuffers of a run, stage by stage; each loads what it needs from the files of those before."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfq import artifacts, data, workflows
from tfq.config import ConversionConfig, RunConfig
from tfq.store import StageResult, StageStore

# What a stage calls its files: the name of --model, which the files in --out have, is not part of a stage's key.
FLATBUFFER = "model.tflite"
TRAINED, COMPRESSED, RETURNED = "trained.keras", "compressed.h5", "returned.keras"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A flatbuffer of the run: what it is, the name of its file in --out, its bytes.

    qat_parity: the comparison with the QAT model that it was made of; None where there was no QAT.
    """

    name: str
    file: str
    content: bytes
    qat_parity: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Run:
    """A run under way: its config, its directory, the results on disk, and what its record will say of the stages."""

    config: RunConfig
    out: Path
    store: StageStore
    allow_code: bool
    stages: list[dict[str, Any]] = field(default_factory=list)

    def stage(self, name: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> StageResult:
        """The stage's result, made now or found on disk; and its line in the record."""
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

    def found(self, name: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The details of such a stage, which have a place of their own in the record and are left out of its line."""
        details = self.stage(name, inputs, make).details
        self.stages[-1] = {**self.stages[-1], "details": {}}
        return details

    def skip(self, name: str, reason: str) -> None:
        """Records that a stage was left out, and why."""
        self.stages.append({"name": name, "seconds": 0.0, "skipped": reason, "resumed": False, "details": {}})

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """What --data holds now."""
        return data.source_fingerprint(self.config.data)

    @functools.cached_property
    def test(self) -> data.Split | data.SplitStream:
        """The examples to evaluate on."""
        return workflows.load_split(self.config.data, "test", limit=self.config.evaluation.limit)

    @functools.cached_property
    def name(self) -> str:
        """The stem of every file that the run writes."""
        return workflows.model_name(self.config)


class Loaded:
    """A model of the run: loaded and traced only if a stage needs it, and then once."""

    def __init__(self, config: RunConfig, *, allow_code: bool = False) -> None:
        self._config, self._allow_code = config, allow_code

    @functools.cached_property
    def model(self) -> Any:
        """A Keras model, or the bytes of a float .tflite."""
        return workflows.load(self._config, allow_code=self._allow_code)

    @functools.cached_property
    def traced(self) -> Any:
        """A Trace of it, or the bytes."""
        return workflows.trace_once(self.model, self._config)

    @functools.cached_property
    def sha256(self) -> str:
        """Of its file."""
        return artifacts.sha256_path(self._config.model)

    @property
    def is_flatbuffer(self) -> bool:
        return self._config.model.endswith(".tflite")


def _trained(run: Run) -> Loaded:
    """The model in --model, or, where that is a name, what training makes of it."""
    config = run.config
    if workflows.is_file(config.model):
        run.skip("train", f"{config.model} is a file: its weights are taken as they are")
        loaded = Loaded(config, allow_code=run.allow_code)
        own = Path(config.custom_objects)
        inputs = {
            "model": loaded.sha256,
            "compression": config.compression.to_dict(),
            "allow_code": run.allow_code,
            "custom_objects": [str(own), artifacts.sha256_path(own) if own.is_file() else None],
        }

        def check(directory: Path) -> dict[str, Any]:
            workflows.check_compressible(loaded.model, config)
            return {}

        run.stage("load", inputs, check)
        return loaded

    def make(directory: Path) -> dict[str, Any]:
        model, details = workflows.train(config)
        workflows.save_keras(model, directory / TRAINED)
        return details

    inputs = {"model": config.model, "training": config.training.to_dict(), **data_inputs(run)}
    return _published(run, run.stage("train", inputs, make).directory / TRAINED, f"{run.name}.keras")


def _compressed(run: Run, model: Loaded) -> tuple[Loaded, StageResult]:
    suffix = workflows.compression_suffix(run.config)

    def make(directory: Path) -> dict[str, Any]:
        compressed = workflows.compress(model.model, run.config)
        workflows.save_keras(compressed.model, directory / COMPRESSED)
        if compressed.user_model is not None:
            workflows.save_keras(compressed.user_model, directory / RETURNED)
        return compressed.details

    inputs = {"model": model.sha256, "compression": run.config.compression.to_dict(), **data_inputs(run)}
    result = run.stage(f"compress ({suffix.replace('_', ', ')})", inputs, make)
    if (result.directory / RETURNED).exists():
        artifacts.copy_file(result.directory / RETURNED, run.out / f"{run.name}_{suffix}.keras")
    return _published(run, result.directory / COMPRESSED, f"{run.name}_{suffix}.h5"), result


def _published(run: Run, made: Path, file: str) -> Loaded:
    """The Keras model that a stage made, in --out as `file`, to go on from as a later run would: from its file."""
    path = artifacts.copy_file(made, run.out / file)
    return Loaded(dataclasses.replace(run.config, model=str(path)), allow_code=run.allow_code)


def data_inputs(run: Run) -> dict[str, Any]:
    return {"data": run.config.data.to_dict(), "data_sha256": run.data_fingerprint, "seed": run.config.seed}


def make_flatbuffers(run: Run) -> tuple[list[Made], dict[str, float]]:
    """The flatbuffers: float32, the scheme's own, the same compressed; and the sparsity of the compressed layers."""
    config = run.config
    scheme = config.conversion.scheme
    model = _trained(run)
    made = [
        _converted(run, model, "float", "float32", stage="convert to float32"),
        _converted(run, model, f"ptq_{scheme}", scheme, stage=f"convert to {scheme}"),
    ]
    if not workflows.is_compressed(config):
        run.skip("compress", "neither pruning nor QAT is asked for")
        return made, {}
    if model.is_flatbuffer:
        run.skip("compress", "a .tflite cannot be trained: pruning and QAT want the Keras model")
        return made, {}
    compressed, result = _compressed(run, model)
    name = f"{workflows.compression_suffix(config)}_{scheme}"
    last = _converted(run, compressed, name, scheme, suffix=name, stage=f"convert the compressed to {scheme}")
    if config.compression.qat.enabled:
        last = dataclasses.replace(last, qat_parity=_qat_parity(run, compressed, last))
    return [*made, last], result.details["sparsity"]


def _qat_parity(run: Run, model: Loaded, made: Made) -> dict[str, Any]:
    def make(directory: Path) -> dict[str, Any]:
        return workflows.compare_with_qat_model(model.model, made.content, run.test)

    inputs = {
        "model": model.sha256,
        "flatbuffer": artifacts.sha256(made.content),
        "limit": run.config.evaluation.limit,
        **data_inputs(run),
    }
    return run.found("compare with the QAT model", inputs, make)


def _converted(run: Run, model: Loaded, name: str, scheme: str, *, stage: str, suffix: str = "") -> Made:
    conversion = run.config.conversion
    if scheme != conversion.scheme:  # the float32 one: what is said of the other's types and target is not for it
        conversion = ConversionConfig(scheme=scheme, batch_size=conversion.batch_size)
    elif getattr(model.traced, "has_fake_quant", False):  # repairs are for what was not trained for int8
        conversion = dataclasses.replace(conversion, repair=(), int4_layers=())
    config = dataclasses.replace(run.config, conversion=conversion)

    def make(directory: Path) -> dict[str, Any]:
        made, details = workflows.convert(model.traced, config)
        artifacts.write_bytes(directory / FLATBUFFER, made.content)
        return details

    inputs = {"model": model.sha256, "conversion": conversion.to_dict(), **data_inputs(run)}
    result = run.stage(stage, inputs, make)
    file = f"{run.name}_{suffix or scheme}.tflite"
    path = artifacts.copy_file(result.directory / FLATBUFFER, run.out / file)
    return Made(name=name, file=file, content=path.read_bytes())
