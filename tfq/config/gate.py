# SPDX-License-Identifier: Apache-2.0
"""Settings of the gate: the comparison of a record with a baseline."""

from dataclasses import dataclass

from tfq.config.base import Config, setting


@dataclass(frozen=True, kw_only=True)
class GateConfig(Config):
    """Settings of the comparison of a record with a baseline record."""

    baseline: str = setting(
        "",
        "record (JSON) of tfq evaluate, tfq benchmark or tfq run that the last argument is compared with: a record of "
        "the same command, or a .tflite file, which is evaluated with the settings of the baseline; exit code 1 if a "
        "figure is worse",
        path_of="baseline",
    )
    update_baseline: bool = setting(
        False, "write the new record to the file in baseline, and show what changed; the exit code is 0"
    )
    baseline_model: str = setting(
        "",
        "the .tflite file of the baseline, if there is one: it is timed side by side with the new file, and the error "
        "of each layer is compared",
        path_of="flatbuffer",
    )
    tolerance: tuple[str, ...] = setting(
        (),
        "FIGURE=VALUE: how much worse a figure may be, in its unit (accuracy=0.01) or relative to the old value "
        "(model_bytes=2%); 'accuracy on gpu=0.02' for one backend",
    )
    ignore: tuple[str, ...] = setting(
        (), "figures and changes that are not gated: gzip_bytes, 'accuracy on gpu', labels, data.scale"
    )
    strict: bool = setting(False, "fail also if a loss beyond the tolerance may be noise: its 95% interval contains 0")
