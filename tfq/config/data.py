# SPDX-License-Identifier: Apache-2.0
"""Settings of the data: its source and its preprocessing."""

from dataclasses import dataclass

from tfq.config.base import Config, setting
from tfq.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Settings of the data: its source, and its preprocessing for the float model."""

    source: str = setting(
        "",
        "source of the examples: NAME or NAME:ADDRESS, such as npz:examples.npz",
        choices_of="data_source",
        names_section=True,
    )
    resize: tuple[int, ...] = setting(
        (), "height,width in pixels to resize images to; empty keeps their size", minimum=1
    )
    scale: float = setting(1.0, "factor applied to every input value: the model receives x * scale + offset")
    offset: float = setting(0.0, "added to every input value after scaling")
    ignore_label: int | None = setting(
        None,
        "label of positions to leave out of the loss and the metrics of a segmentation, often 255; empty: every label "
        "is a class",
        minimum=0,
    )
    label_resize: tuple[int, ...] = setting(
        (),
        "height,width in pixels to resize maps of classes to, with the nearest value; for a model whose output is "
        "smaller than its input",
        minimum=1,
    )
    image_key: str = setting("image", "key of the encoded image in a TFRecord Example")
    label_key: str = setting(
        "label",
        "key of the integer label in a TFRecord Example, or the column of the labels in a CSV table; empty if there "
        "are no labels",
    )
    sample_rate: int = setting(
        0, "samples per second that recordings are resampled to; 0 keeps their rate, which must be the same", minimum=0
    )
    window_secs: float = setting(
        0.0, "seconds of a recording that one example has; 0 takes whole recordings, of one length", minimum=0
    )
    hop_secs: float = setting(
        0.0, "seconds between the starts of two windows of a recording; 0 is window_secs, without overlap", minimum=0
    )
    max_memory_mb: int = setting(
        2048, "megabytes that a split may use in memory; a larger split is streamed", minimum=1
    )

    def check_source(self) -> None:
        """Check that a source is given.

        Raises:
            InputError: `source` is empty.
        """
        if not self.source:
            raise InputError(
                "data.source is missing: expected a data source, such as npz:examples.npz or folder:DIR",
                field="data.source",
                expected="a data source",
                got="",
            )
