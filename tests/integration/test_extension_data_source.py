# SPDX-License-Identifier: Apache-2.0
"""A user's own data source in Python and as a plugin of the command line."""

import json

import numpy as np
import pytest

import tfq
from tfq import registry
from tfq.data import DataSource, load_calibration_split, source_fingerprint

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = '''
# --8<-- [start:data_source]
from pathlib import Path

import numpy as np

import tfq
from tfq.data import MissingSplitError, examples_of_arrays, file_fingerprint


def read(address, config, split):
    """Read DIR/SPLIT.csv: a line per image, its class and then 64 pixels from 0 to 16."""
    path = Path(address, f"{split}.csv")
    if not path.is_file():
        raise MissingSplitError(f"pixels:{address} has no {split} split: there is no {path}")
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    images = table[:, 1:].reshape(-1, 8, 8, 1).astype(np.float32)
    return examples_of_arrays({"x": images}, table[:, 0].astype(np.int64), str(path))


def fingerprint(address, config):
    """Return the names and hashes of all files that `read` may read."""
    return file_fingerprint(sorted(Path(address).glob("*.csv")), Path(address))


tfq.register(
    tfq.DataSource(
        name="pixels",
        help="a CSV file for each split: class, then the pixels of an 8x8 image",
        address="DIR",
        read=read,
        fingerprint=fingerprint,
    )
)
# --8<-- [end:data_source]
'''


@pytest.fixture(scope="module")
def digits():
    return tfq.load_split(tfq.DataConfig(source="digits"), "test")


@pytest.fixture
def plugin(tmp_path, digits):
    """Return a plugin file next to a directory `own` that holds the digits' test split as CSV."""
    (tmp_path / "own").mkdir()
    table = np.column_stack([digits.labels, digits.inputs["x"].reshape(-1, 64)])
    np.savetxt(tmp_path / "own" / "test.csv", table, delimiter=",", fmt="%g")
    (tmp_path / "csv_source.py").write_text(PLUGIN)
    return tmp_path / "csv_source.py"


def test_a_registered_data_source_delivers_its_examples_in_python(plugin, tmp_path, digits):
    with registry.temporary():
        registry.load_plugin(str(plugin))
        config = tfq.DataConfig(source=f"pixels:{tmp_path / 'own'}")
        split = tfq.load_split(config, "test")
        assert load_calibration_split(config).name == "test"
        with pytest.raises(tfq.InputError):
            tfq.load_split(config, "train")
    assert split.sha256() == digits.sha256()
    with pytest.raises(tfq.InputError) as caught:
        tfq.DataConfig(source="pixels:own")
    assert caught.value.got == "pixels:own"


def test_the_fingerprint_of_a_registered_data_source_follows_its_files(plugin, tmp_path):
    with registry.temporary():
        registry.load_plugin(str(plugin))
        config = tfq.DataConfig(source=f"pixels:{tmp_path / 'own'}")
        before = source_fingerprint(config)
        assert source_fingerprint(config) == before
        (tmp_path / "own" / "test.csv").write_text("1" + ",0" * 64)
        assert source_fingerprint(config) != before


def test_a_data_source_needs_a_fingerprint():
    with pytest.raises(TypeError):
        DataSource(name="none", help="h", read=lambda address, config, split: None)


def test_a_plugin_adds_a_data_source_to_the_command_line(plugin, golden, digits, tmp_path, tfq_cli):
    model, data = f"--model={golden / 'digits_int8.tflite'}", f"--data=pixels:{tmp_path / 'own'}"
    done = tfq_cli("evaluate", model, data, f"--plugin={plugin}", f"--out={tmp_path / 'out'}", "--format=json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [plugin["source"] for plugin in record["plugins"]] == ["csv_source.py"]
    assert record["sha256"]["data"] == {"test": digits.sha256()}
    assert record["evaluation"]["num_examples"] == digits.num_examples and record["evaluation"]["accuracy"] > 0.95
    assert tfq_cli("evaluate", model, data, f"--out={tmp_path / 'out'}").returncode == 2
