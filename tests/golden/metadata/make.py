# SPDX-License-Identifier: Apache-2.0
"""Write the files next to this one: small models with metadata by tflite-support, and the JSON that it shows for them.

    python tests/golden/metadata/make.py models   (in tfq's environment: writes the models without metadata)
    python3.11 -m venv out/tflite-support
    out/tflite-support/bin/pip install tflite-support==0.4.4 'numpy<2'
    out/tflite-support/bin/python tests/golden/metadata/make.py metadata

tflite-support ends at Python 3.11, so the files are committed.
"""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FLOAT32 = 0  # of the schema's TensorType
PLAIN = HERE.parents[2] / "out" / "plain_models"


def write_models() -> None:
    import numpy as np
    import tensorflow as tf

    kernel = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    spec = tf.TensorSpec
    ids = spec((1, 4), tf.int32)

    def classes(x):
        return tf.nn.softmax(tf.reshape(x, (1, -1))[:, :12] @ kernel)

    def detections(x):
        zero = 0 * tf.reduce_mean(x)
        rows = tf.zeros((1, 5))
        return tf.zeros((1, 5, 4)) + zero, rows + zero, rows + 0.5 + zero, tf.constant([5.0]) + zero

    def sentence(ids, mask, segment_ids):
        return classes(tf.tile(tf.cast(ids + mask + segment_ids, tf.float32), (1, 3)))

    image = spec((1, 4, 4, 3))
    functions = {
        "image_classifier": (classes, [image]),
        "image_classifier_uint8": (classes, [image]),
        "image_segmenter": (lambda x: tf.nn.softmax(x), [image]),
        "object_detector": (detections, [image]),
        "audio_classifier": (classes, [spec((1, 12))]),
        "nl_classifier": (lambda x: classes(tf.tile(tf.cast(x, tf.float32), (1, 3))), [ids]),
        "bert": (sentence, [spec((1, 4), tf.int32, name) for name in ("ids", "mask", "segment_ids")]),
    }
    PLAIN.mkdir(parents=True, exist_ok=True)
    for name, (function, specs) in functions.items():
        concrete = tf.function(function, input_signature=specs).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        if name.endswith("uint8"):
            samples = np.random.default_rng(1).random((20, 1, 4, 4, 3), np.float32)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda samples=samples: ([sample] for sample in samples)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        (PLAIN / f"{name}.tflite").write_bytes(converter.convert())


def write_metadata() -> None:
    from tflite_support import metadata
    from tflite_support import metadata_schema_py_generated as schema
    from tflite_support.metadata_writers import (
        audio_classifier,
        bert_nl_classifier,
        image_classifier,
        image_segmenter,
        metadata_info,
        nl_classifier,
        object_detector,
    )

    os.chdir(tempfile.mkdtemp())  # tokenizers write the path of the vocabulary as its name
    contents = {
        "labels.txt": "cat\ndog\nbird",
        "german.txt": "Katze\nHund\nVogel",
        "scores.csv": "0.9,0.3,0.1\n\n1,2,3,0.5",
    }
    contents["vocab.txt"] = "<PAD> 0\n<START> 1\n<UNKNOWN> 2\ngood 3"
    contents["pieces.txt"] = "[PAD]\n[CLS]\n[SEP]\n[UNK]\ngood"
    contents["sentencepiece.model"] = "not a real model"
    for name, content in contents.items():
        Path(name).write_text(content)

    def plain(name):
        return bytearray((PLAIN / f"{name}.tflite").read_bytes())

    calibration = metadata_info.ScoreCalibrationMd(schema.ScoreTransformationType.INVERSE_LOGISTIC, 0.25, "scores.csv")
    labels = metadata_info.LabelFileMd("labels.txt", "en"), metadata_info.LabelFileMd("german.txt", "de")
    general = metadata_info.GeneralMd("tiny", "v2", "Three animals. Größe: 4x4.", "the tests of tfq", "Apache-2.0")
    image = metadata_info.InputImageTensorMd(
        "picture",
        "An RGB picture.",
        [123.5, 116.25, 103.75],
        [58.5, 57.0, 57.5],
        schema.ColorSpaceType.RGB,
        tensor_type=FLOAT32,
    )
    scores = metadata_info.ClassificationTensorMd(
        "probability",
        "Scores of the classes.",
        label_files=list(labels),
        tensor_type=FLOAT32,
        score_calibration_md=calibration,
    )
    writers = {
        "image_classifier": image_classifier.MetadataWriter.create_from_metadata_info(
            plain("image_classifier"), general, image, scores
        ),
        "image_classifier_uint8": image_classifier.MetadataWriter.create_for_inference(
            plain("image_classifier_uint8"), [127.5], [127.5], ["labels.txt"]
        ),
        "image_segmenter": image_segmenter.MetadataWriter.create_for_inference(
            plain("image_segmenter"), [0.0], [255.0], ["labels.txt"]
        ),
        "object_detector": object_detector.MetadataWriter.create_for_inference(
            plain("object_detector"), [127.5], [127.5], ["labels.txt"]
        ),
        "audio_classifier": audio_classifier.MetadataWriter.create_for_inference(
            plain("audio_classifier"), 16000, 1, ["labels.txt"]
        ),
        "nl_classifier": nl_classifier.MetadataWriter.create_for_inference(
            plain("nl_classifier"), metadata_info.RegexTokenizerMd(r"[^\w\']+", "vocab.txt"), ["labels.txt"]
        ),
    }
    bert = bert_nl_classifier.MetadataWriter.create_for_inference
    names = ("ids", "mask", "segment_ids")
    writers["bert_wordpiece"] = bert(plain("bert"), metadata_info.BertTokenizerMd("pieces.txt"), ["labels.txt"], *names)
    writers["bert_sentencepiece"] = bert(
        plain("bert"),
        metadata_info.SentencePieceTokenizerMd("sentencepiece.model", "pieces.txt"),
        ["labels.txt"],
        *names,
    )
    for name, writer in writers.items():
        content = writer.populate()
        (HERE / f"{name}.tflite").write_bytes(content)
        shown = metadata.MetadataDisplayer.with_model_buffer(content).get_metadata_json()
        (HERE / f"{name}.json").write_text(shown + "\n")
        print(f"{name:24} {len(content):6} bytes")


if __name__ == "__main__":
    {"models": write_models, "metadata": write_metadata}[sys.argv[1]]()
