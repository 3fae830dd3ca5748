# SPDX-License-Identifier: Apache-2.0
"""Export the file of a config as an app bundle."""

from dataclasses import dataclass
from typing import Any

from tfq import artifacts, data, deploy
from tfq.config import RunConfig
from tfq.workflows.models import model_name, read_tflite


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written bundle, and the hash of the file that it was made from."""

    bundle: deploy.Bundle
    sha256: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "sha256": self.sha256,
            "bundle": self.bundle.to_dict(),
            "requirements": self.bundle.requirements(),
        }

    def to_text(self) -> str:
        """Return a summary for the terminal."""
        return self.bundle.to_text()

    def check(self) -> None:
        """Raise RequirementError if a self-test failed."""
        self.bundle.check()


def export(config: RunConfig) -> Exported:
    """Write the bundle of config.model into config.out; see `deploy.export_bundle`.

    Raises:
        InputError: The model, the labels, the data or the config cannot be used.
    """
    model_name(config)
    artifacts.check_out_is_set(config.out)
    deploy.check_settings(config.export)
    if config.data.source:
        data.check_readable(config.data)
    content = read_tflite(config)
    bundle = deploy.export_bundle(config.model, config.export, out=config.out, data=config.data, seed=config.seed)
    return Exported(bundle=bundle, sha256={"model": artifacts.sha256(content)})
