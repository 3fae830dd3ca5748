# SPDX-License-Identifier: Apache-2.0
"""The small U-Net, and its whole way: train with ignored borders, convert, evaluate, search by mean IoU, export."""

import numpy as np
import pytest
import segmentation_scenes
from messages import refused
from sklearn.metrics import jaccard_score

import tfq
from tfq import models
from tfq.compression.training import train_model
from tfq.errors import InputError
from tfq.evaluation import reference_outputs
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras

KINDS = {"tf_keras": import_tf_keras, "keras": import_keras}


@pytest.mark.parametrize("kind", KINDS)
def test_the_u_net_has_the_shapes_and_parameters_of_its_docstring(kind):
    model = models.build("small_unet", KINDS[kind]())
    assert tuple(model.output_shape) == (None, 32, 32, 11)
    # (channels in, out) of the 3x3 convolutions, each with 4 numbers per channel of a batch normalization.
    convolutions = [(1, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (96, 32), (32, 32), (48, 16), (16, 16)]
    count = sum(9 * before * after + 4 * after for before, after in convolutions) + 16 * 11 + 11
    statistics = sum(2 * after for _, after in convolutions)
    assert model.count_params() == count
    docstring = " ".join((models.MODELS["small_unet"].__doc__ or "").split())
    assert f"{count:,} parameters, of which {statistics:,} are moving statistics" in docstring
    outputs = np.asarray(model(np.zeros((1, 32, 32, 1), "float32")))
    np.testing.assert_allclose(outputs.sum(axis=-1), 1, rtol=1e-5)
    with refused(InputError, field="data", got=(30, 32, 1)):
        models.build("small_unet", KINDS[kind](), (30, 32, 1), 3)


@pytest.mark.slow
def test_a_segmenter_goes_the_whole_way(tmp_path):
    segmentation_scenes.write(tmp_path / "scenes", {"train": 160, "val": 24, "test": 40})
    data = tfq.DataConfig(source=f"masks:{tmp_path / 'scenes'}", scale=1 / 255, ignore_label=255)
    train, val, test = (tfq.load_split(data, split) for split in ("train", "val", "test"))
    with deterministic(0):
        model = models.build_small_unet(import_keras())
    history = train_model(model, train, config=tfq.TrainConfig(epochs=6, batch_size=16, learning_rate=4e-3))
    assert history["loss"][-1] < history["loss"][0] / 2
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    content = tfq.convert(model, train)
    config = tfq.EvaluationConfig(metric=("mean_iou", "dice", "pixel_accuracy"), num_runs=0)
    record = tfq.evaluate(content, test, config, reference=floating)
    predicted = reference_outputs(content, test, config).outputs[0].argmax(-1)
    kept = test.labels >= 0
    oracle = jaccard_score(test.labels[kept], predicted[kept], average="macro")
    assert record.accuracy == pytest.approx(oracle, abs=1e-12)
    assert record.metrics["mean_iou"]["table"]["rows"][-1] == "ignored"
    differing = record.differing_examples
    assert differing["kind"] == "positions" and all(item["picture"] for item in differing["examples"])
    floats = reference_outputs(floating, test, config).outputs[0].argmax(-1)
    agreements = np.sort((floats == predicted).mean(axis=(1, 2)))
    listed = [item["agreement"] for item in differing["examples"]]
    np.testing.assert_allclose(listed, agreements[: len(listed)])
    assert differing["count"] == (agreements < 1).sum() > 0
    difference = record.metrics["dice"]["difference"]
    assert difference["low"] <= difference["difference"] <= difference["high"]
    budget = tfq.BudgetConfig(max_accuracy_drop=0.05)
    search = tfq.SearchConfig(budget=budget, metric="mean_iou", methods=("min_max",), max_mixed_layers=0)
    result = tfq.find_int8(floating, train, val, test, search)
    bundle = tfq.export_bundle(
        result.content, tfq.ExportConfig(platform=("linux",)), out=tmp_path, data=data, name="segmenter"
    )
    bundle.check()
