# SPDX-License-Identifier: Apache-2.0
"""Maps of classes: the label to ignore, and resizing to the nearest position."""

import numpy as np
import pytest
from messages import refused
from PIL import Image

import tfq
from tfq.data import join_labels
from tfq.data.label_maps import IGNORED, prepare_labels, resize_nearest
from tfq.errors import InputError

MAPS = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (4, 6, 5))


def config(**settings):
    return tfq.DataConfig(source="npz:x.npz", **settings)


def test_the_ignore_label_becomes_minus_one():
    labels = prepare_labels(MAPS, config(ignore_label=255), "data")
    assert labels.dtype == np.int16
    assert labels.tolist() == [[[-1 if v == 255 else int(v) for v in row] for row in image] for image in MAPS]
    assert prepare_labels(MAPS, config(), "data") is MAPS
    wide = MAPS.astype(np.int64)
    assert (prepare_labels(wide, config(ignore_label=0), "data") == IGNORED).sum() == (MAPS == 0).sum()
    assert wide.min() == 0  # the source's array is not changed


@pytest.mark.parametrize("size", [(3, 5), (12, 10), (4, 9), (1, 1)])
def test_nearest_resizing_equals_pillow(size):
    resized = resize_nearest(MAPS, size)
    expected = [np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST)) for image in MAPS]
    np.testing.assert_array_equal(resized, expected)


def test_only_the_maps_of_several_outputs_are_prepared():
    joined = join_labels({"mask": MAPS, "kind": np.arange(4)}, "data")
    labels = prepare_labels(joined, config(ignore_label=2, label_resize=(3, 3)), "data")
    assert labels["mask"].shape == (4, 3, 3) and labels["mask"].min() == IGNORED
    assert labels["kind"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("settings", [{"ignore_label": 255}, {"label_resize": (2, 2)}])
@pytest.mark.parametrize("labels", [np.arange(4), np.ones((4, 6, 5), np.float32)])
def test_settings_of_maps_are_refused_for_other_labels(settings, labels):
    (field,) = settings
    with refused(InputError, field=f"data.{field}"):
        prepare_labels(labels, config(**settings), "data")


def test_label_resize_needs_two_numbers():
    with refused(InputError, field="data.label_resize", got=(3,)):
        prepare_labels(MAPS, config(label_resize=(3,)), "data")


def test_a_loaded_split_has_prepared_maps(tmp_path):
    np.savez(tmp_path / "maps.npz", x_test=np.zeros((4, 6, 5, 1), np.uint8), y_test=MAPS)
    split = tfq.load_split(tfq.DataConfig(source=f"npz:{tmp_path / 'maps.npz'}", ignore_label=255), "test")
    assert (split.labels == IGNORED).sum() == (MAPS == 255).sum()
