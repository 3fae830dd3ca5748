# SPDX-License-Identifier: Apache-2.0
"""Where examples come from."""

from dataclasses import dataclass

from tfq.config.base import Config, setting
from tfq.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where examples come from and what is done to them before the model sees them."""

    source: str = setting(
        "",
        "where the examples come from: NAME, or NAME:ADDRESS as in npz:PATH",
        choices_of="data_source",
        names_section=True,
    )
    resize: tuple[int, ...] = setting(
        (), "height,width in pixels to resize images to; empty keeps their size", minimum=1
    )
    scale: float = setting(1.0, "factor on every input value; the model is fed x * scale + offset")
    offset: float = setting(0.0, "added to every input value after the scale")
    image_key: str = setting("image", "name of the encoded image in a TFRecord Example")
    label_key: str = setting("label", "name of the integer label in a TFRecord Example; empty: no labels")
    max_memory_mb: int = setting(
        2048, "megabytes that a split may take in memory; a larger one is streamed in pieces", minimum=1
    )

    def check_source(self) -> None:
        """Check that a source is given.

        Raises:
            InputError: `source` is empty.
        """
        if not self.source:
            raise InputError(
                "data.source is missing: name the data set, such as npz:examples.npz or folder:DIR",
                field="data.source",
                expected="a data source",
                got="",
            )
