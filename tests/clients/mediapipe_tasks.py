# SPDX-License-Identifier: Apache-2.0
"""Run MediaPipe Tasks: PYTHON mediapipe_tasks.py JOBS RESULTS, with the Python of an environment that has mediapipe.

JOBS is a JSON list of {"task", "model", "inputs"}: the inputs are the .npy of pictures or sounds, or a list of texts.
RESULTS becomes a JSON list of {"results"} or {"error"}. The task "metadata" returns what MediaPipe's own reader of the
schema reads.
"""

import json
import os
import sys

import mediapipe as mp
import numpy as np
from mediapipe.tasks import python as tasks
from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata_schema
from mediapipe.tasks.metadata import schema_py_generated as model_schema
from mediapipe.tasks.python import audio, text, vision
from mediapipe.tasks.python.components.containers import AudioData

KEPT = []


def categories(result):
    return [
        [[category.index, category.category_name, category.score] for category in head.categories]
        for head in result.classifications
    ]


def picture(array):
    return mp.Image(image_format=mp.ImageFormat.SRGB, data=array)


def kept(task):
    """Return a task that is never closed: after an error in a task, closing it never returns."""
    KEPT.append(task)
    return task


def image_classifier(options, inputs):
    settings = vision.ImageClassifierOptions(base_options=options)
    task = kept(vision.ImageClassifier.create_from_options(settings))
    return [categories(task.classify(picture(array))) for array in np.load(inputs)]


def image_segmenter(options, inputs):
    settings = vision.ImageSegmenterOptions(base_options=options, output_category_mask=True)
    task, results = kept(vision.ImageSegmenter.create_from_options(settings)), []
    for array in np.load(inputs):
        result = task.segment(picture(array))
        masks = [np.array(mask.numpy_view())[..., 0].tolist() for mask in result.confidence_masks]
        results.append({"classes": np.array(result.category_mask.numpy_view())[..., 0].tolist(), "masks": masks})
    return {"labels": task.labels, "results": results}


def object_detector(options, inputs):
    task = kept(vision.ObjectDetector.create_from_options(vision.ObjectDetectorOptions(base_options=options)))
    return [
        [
            [item.categories[0].category_name, item.categories[0].score, *vars(item.bounding_box).values()]
            for item in task.detect(picture(array)).detections
        ]
        for array in np.load(inputs)
    ]


def audio_classifier(options, inputs):
    task = kept(audio.AudioClassifier.create_from_options(audio.AudioClassifierOptions(base_options=options)))
    return [categories(task.classify(AudioData.create_from_array(array, 16000))[0]) for array in np.load(inputs)]


def text_classifier(options, inputs):
    task = kept(text.TextClassifier.create_from_options(text.TextClassifierOptions(base_options=options)))
    return [categories(task.classify(sentence)) for sentence in inputs]


def read_metadata(content):
    """Return the entry TFLITE_METADATA as MediaPipe's object API reads it: {attribute: value}, recursively."""
    model = model_schema.ModelT.InitFromObj(model_schema.Model.GetRootAsModel(content, 0))
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    stored = bytes(bytearray(model.buffers[entry.buffer].data))
    assert metadata_schema.ModelMetadata.ModelMetadataBufferHasIdentifier(stored, 0)
    return plain(metadata_schema.ModelMetadataT.InitFromObj(metadata_schema.ModelMetadata.GetRootAs(stored, 0)))


def plain(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, np.ndarray)):
        return [plain(item) for item in value]
    if hasattr(value, "__dict__"):
        return {name: plain(item) for name, item in vars(value).items()}
    return value.item() if isinstance(value, np.generic) else value


TASKS = (image_classifier, image_segmenter, object_detector, audio_classifier, text_classifier)


def run(job):
    if job["task"] == "metadata":
        return read_metadata(open(job["model"], "rb").read())
    task = {task.__name__: task for task in TASKS}[job["task"]]
    return task(tasks.BaseOptions(model_asset_path=job["model"]), job["inputs"])


def main(jobs, results):
    outcomes = []
    with open(jobs) as file:
        entries = json.load(file)
    for job in entries:
        try:
            outcomes.append({"results": run(job)})
        except Exception as error:
            outcomes.append({"error": f"{type(error).__name__}: {error}"})
    with open(results, "w") as file:
        json.dump(outcomes, file)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
