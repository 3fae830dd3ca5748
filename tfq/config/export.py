# SPDX-License-Identifier: Apache-2.0
"""Settings of an app bundle: platforms, labels, metadata and golden vectors."""

from dataclasses import dataclass

from tfq.config.base import Config, setting

TASKS = ("image_classifier", "image_segmenter", "object_detector", "audio_classifier", "text_classifier")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Settings of an app bundle: platforms, labels, metadata and golden vectors."""

    platform: tuple[str, ...] = setting(
        (), "platforms of the apps that the bundle has sources for", choices_of="platform"
    )
    metadata_only: bool = setting(False, "write only the .tflite with TFLite Metadata, and no bundle")
    task: str = setting(
        "",
        "task of MediaPipe Tasks that will run the file; what it refuses is refused before anything is written",
        choices=("", *TASKS),
    )
    labels: str = setting(
        "",
        "text file with the name of one class per line, in the order of the output; empty uses the labels in the "
        "file's metadata, else the class names of the data source",
        path_of="text",
    )
    name: str = setting("", "name of the model in its metadata; empty is the name of the file")
    description: str = setting("", "what the model does, for its metadata")
    author: str = setting("", "author of the model, for its metadata")
    license: str = setting("", "license of the model, for its metadata")
    version: str = setting("", "version of the model, for its metadata")
    record: str = setting(
        "",
        "evaluate.json or report.json with the results of the file; empty looks next to the file",
        path_of="json",
    )
    num_golden: int = setting(3, "number of golden vectors: inputs with the outputs that they give", minimum=1)
    self_test: bool = setting(True, "run the self-tests of the bundle that this machine can run")
    zip: bool = setting(True, "also write the bundle as a .zip file")
