# SPDX-License-Identifier: Apache-2.0
"""Settings of an app bundle: platforms, labels, metadata and golden vectors."""

from dataclasses import dataclass

from tfq.config.base import Config, setting

INPUT_KINDS = ("image", "audio", "text", "plain")
# The names of the tasks and tokenizers that `tfq.deploy` defines; a test compares them.
TASKS = ("image_classifier", "image_segmenter", "object_detector", "audio_classifier", "text_classifier")
TOKENIZERS = ("regex", "wordpiece", "sentencepiece")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Settings of an app bundle: platforms, labels, metadata and golden vectors."""

    platform: tuple[str, ...] = setting(
        (), "platforms of the apps that the bundle has sources for", choices_of="platform"
    )
    metadata_only: bool = setting(False, "write only a .tflite with TFLite Metadata, and no bundle")
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
    locale: str = setting("", 'language of the labels, such as "en", for the metadata')
    kinds: tuple[str, ...] = setting(
        (),
        "what an input of the model is, as INPUT=KIND; by default, an input of shape (batch, height, width, 1 or 3) is "
        "an image, and others are plain numbers",
        choices=INPUT_KINDS,
        keyed=True,
    )
    sample_rate: int = setting(0, "sample rate of audio inputs in Hz", minimum=0)
    audio_channels: int = setting(1, "number of channels of audio inputs", minimum=1)
    tokenizer: str = setting("", "how text becomes the token numbers of a text input", choices=("", *TOKENIZERS))
    vocabulary: str = setting("", "text file or SentencePiece model that the tokenizer uses", path_of="text")
    pattern: str = setting(
        "", "regular expression at which the regex tokenizer splits text; empty splits at everything but words"
    )
    bert_inputs: tuple[str, ...] = setting(
        (), "names of the inputs of a BERT model that read token numbers, mask and segment numbers, in this order"
    )
    detection_outputs: tuple[str, ...] = setting(
        (),
        "names of the outputs of a detector: boxes (top, left, bottom, right from 0 to 1), class numbers, scores, and "
        "number of detections, in this order",
    )
    record: str = setting(
        "",
        "evaluate.json or report.json with the results of the file; empty looks next to the file",
        path_of="json",
    )
    num_golden: int = setting(3, "number of golden vectors: inputs with the outputs that they give", minimum=1)
    self_test: bool = setting(True, "run the self-tests of the bundle that this machine can run")
    zip: bool = setting(True, "also write the bundle as a .zip file")
