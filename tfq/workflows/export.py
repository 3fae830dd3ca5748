# SPDX-License-Identifier: Apache-2.0
"""Export the file of a config: as an app bundle, or only with TFLite Metadata."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, auditing, data, deploy
from tfq.config import RunConfig
from tfq.errors import InputError, warn
from tfq.workflows.models import model_name, read_tflite


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote.

    Attributes:
        bundle: The bundle; None if only metadata was added.
        file: The file with metadata; None for a bundle.
        table: The inputs and outputs of `file` as text.
        sha256: The hash of the file that was exported.
    """

    bundle: deploy.Bundle | None
    file: Path | None = None
    table: str = ""
    sha256: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "sha256": self.sha256,
            "bundle": None if self.bundle is None else self.bundle.to_dict(),
            "file": None if self.file is None else self.file.name,
            "requirements": [] if self.bundle is None else self.bundle.requirements(),
        }

    def to_text(self) -> str:
        """Return a summary for the terminal."""
        return f"{self.table}\n{self.file}" if self.bundle is None else self.bundle.to_text()

    def check(self) -> None:
        """Raise RequirementError if a self-test failed."""
        if self.bundle is not None:
            self.bundle.check()


def export(config: RunConfig) -> Exported:
    """Write the bundle of config.model into config.out; see `deploy.export_bundle` and `deploy.add_metadata`.

    The model is a `.tflite`, or the folder of a `tfq run`: that is its last `.tflite`.

    Raises:
        InputError: The model, the labels, the data or the config cannot be used.
    """
    config = dataclasses.replace(config, model=_file_of_run(config.model))
    name = model_name(config)
    artifacts.check_out_is_set(config.out)
    deploy.check_settings(config.export)
    if config.export.metadata_only and config.export.platform:
        warn("export.platform is not used, because export.metadata_only is True: no bundle is written")
    if config.data.source:
        data.check_readable(config.data)
    content = read_tflite(config)
    sha256 = {"model": artifacts.sha256(content)}
    if not config.export.metadata_only:
        bundle = deploy.export_bundle(config.model, config.export, out=config.out, data=config.data, seed=config.seed)
        return Exported(bundle=bundle, sha256=sha256)
    described = deploy.add_metadata(content, config.export, name=name, data=config.data)
    out = artifacts.make_out_dir(config.out)
    with artifacts.locked_directory(out):
        file = artifacts.write_bytes(out / f"{name}_metadata.tflite", described)
    return Exported(bundle=None, file=file, table=auditing.io_table(described).to_text(), sha256=sha256)


def _file_of_run(model: str) -> str:
    """Return the path of the last `.tflite` of a run if `model` is its folder; else `model` itself."""
    if not model or not Path(model).is_dir():
        return model
    record = Path(model, "report.json")
    if not record.is_file():
        raise InputError(
            f"model: the folder {artifacts.shown(model)} has no report.json: expected a .tflite, or the folder of a "
            "complete tfq run",
            field="model",
            expected="a .tflite, or the folder of a run",
            got=model,
        )
    content = artifacts.read_json(record, field="model")
    models = content.get("models") if isinstance(content, Mapping) else None
    files = [item.get("file") for item in models if isinstance(item, Mapping)] if isinstance(models, list) else []
    if not files or not isinstance(files[-1], str) or Path(files[-1]).name != files[-1]:
        raise InputError(
            f"model: {artifacts.shown(record)} has no .tflite: expected the folder of a complete tfq run, or a .tflite",
            field="model",
            expected="the folder of a run",
            got=model,
        )
    return str(Path(model, files[-1]))
