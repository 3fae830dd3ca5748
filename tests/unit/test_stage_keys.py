# SPDX-License-Identifier: Apache-2.0
"""The settings in the keys of stages: the content of files, not their paths."""

import pytest

from tfq.config import (
    CalibrationConfig,
    CompressionConfig,
    ConversionConfig,
    DataConfig,
    EvaluationConfig,
    TeacherConfig,
    TrainingConfig,
)
from tfq.workflows.stage_keys import settings_for_key


@pytest.mark.parametrize(
    "config_of",
    [
        lambda path: TrainingConfig(teacher=TeacherConfig(files=(path,))),
        lambda path: CompressionConfig(teacher=TeacherConfig(files=(path,))),
        lambda path: ConversionConfig(calibration=CalibrationConfig(ranges=path)),
        lambda path: EvaluationConfig(reference=path),
    ],
)
def test_a_file_counts_by_its_content(tmp_path, config_of):
    one, moved, other = (tmp_path / name for name in ("one.keras", "moved.keras", "other.keras"))
    for path, content in ((one, b"1"), (moved, b"1"), (other, b"2")):
        path.write_bytes(content)
    values = settings_for_key(config_of(str(one)))
    assert settings_for_key(config_of(str(moved))) == values != settings_for_key(config_of(str(other)))
    assert str(tmp_path) not in str(values)


def test_other_settings_count_and_requirements_and_addresses_do_not(tmp_path):
    assert settings_for_key(TrainingConfig(epochs=3)) != settings_for_key(TrainingConfig(epochs=4))
    assert settings_for_key(DataConfig(source="npz:a.npz", scale=2.0)) == settings_for_key(
        DataConfig(source="npz:b.npz", scale=2.0)
    )
    assert settings_for_key(DataConfig(source="npz:a.npz")) != settings_for_key(DataConfig(source="folder:a.npz"))
    assert "require" not in settings_for_key(EvaluationConfig())
