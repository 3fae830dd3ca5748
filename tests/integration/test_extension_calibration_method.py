# SPDX-License-Identifier: Apache-2.0
"""A user's own calibration method in Python and as a plugin of the command line."""

import json

import numpy as np
import pytest

import tfq
from tfq import registry, tflite

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = """
# --8<-- [start:calibration_method]
import tfq


def choose(observation, num_samples, config):
    \"\"\"Return the range of mean +- 3 standard deviations, limited to the observed values.\"\"\"
    bins = observation.bins()
    mean = (bins.counts * bins.centers).sum() / bins.counts.sum()
    deviation = (bins.counts * (bins.centers - mean) ** 2).sum() / bins.counts.sum()
    width = 3 * deviation**0.5
    return max(observation.minimum, mean - width), min(observation.maximum, mean + width)


tfq.register(
    tfq.CalibrationMethod(
        name="three_sigma",
        help="mean plus and minus three standard deviations: clips long tails",
        choose=choose,
        needs_histogram=True,
    )
)
# --8<-- [end:calibration_method]
"""


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(0, 1, (32, 8, 8, 1)).astype(np.float32)


def test_a_registered_calibration_method_chooses_the_ranges_in_python(golden, samples, tmp_path):
    floating = (golden / "digits_float32.tflite").read_bytes()
    (tmp_path / "three_sigma.py").write_text(PLUGIN)
    with registry.temporary():
        registry.load_plugin(str(tmp_path / "three_sigma.py"))
        config = tfq.ConversionConfig(calibration=tfq.CalibrationConfig(method="three_sigma"))
        quantized = tfq.convert(floating, samples, config)
    graph = tflite.read(quantized).subgraphs[0]
    tensor = graph.tensors[graph.inputs[0]]
    # Oracle: NumPy on the samples. The input's range is three standard deviations on either side, 255 steps wide.
    assert tensor.scale[0] * 255 == pytest.approx(6 * samples.std(), rel=0.02)
    assert abs(tensor.zero_point[0]) <= 3
    with pytest.raises(tfq.InputError) as caught:
        tfq.CalibrationConfig(method="three_sigma")
    assert caught.value.got == "three_sigma"


def test_a_plugin_adds_a_calibration_method_to_the_command_line(golden, samples, tmp_path, tfq_here):
    (tmp_path / "three_sigma.py").write_text(PLUGIN)
    np.savez(tmp_path / "examples.npz", x_train=samples, y_train=np.zeros(len(samples), np.int64))
    plugin = f"--plugin={tmp_path / 'three_sigma.py'}"
    arguments = [f"--model={golden / 'digits_float32.tflite'}", f"--data=npz:{tmp_path / 'examples.npz'}", plugin]
    with registry.temporary():
        done = tfq_here("convert", *arguments, "--calibration.method=three_sigma", f"--out={tmp_path}", "--format=json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert "three_sigma.py" in [plugin["source"] for plugin in record["plugins"]]
    ranges = json.loads((tmp_path / "digits_float32_int8_ranges.json").read_text())
    assert "three_sigma" in json.dumps(ranges)
    with registry.temporary():
        assert "three_sigma" in tfq_here("convert", plugin, "--help").stdout
    assert tfq_here("convert", *arguments[:2], "--calibration.method=three_sigma", f"--out={tmp_path}").returncode == 2
