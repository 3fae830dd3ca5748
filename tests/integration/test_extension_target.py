# SPDX-License-Identifier: Apache-2.0
"""A user's own target in Python and as a plugin of the command line."""

import json

import pytest

import tfq
from tfq import registry

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = """
# --8<-- [start:target]
import tfq

tfq.register(
    tfq.Target(
        name="mychip",
        help="an int8 accelerator without SOFTMAX",
        title="the MyChip compiler",
        short_title="MyChip",
        source="MyChip user guide 1.2, table 4",
        schemes=("int8",),
        io_types=("int8", "uint8"),
        integer_ops=frozenset("ADD AVERAGE_POOL_2D CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED RESHAPE".split()),
        per_channel_dense=False,
        per_channel_dense_reason="its matrix unit has one multiplier per layer",
    )
)
# --8<-- [end:target]
"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "mychip.py").write_text(PLUGIN)
    return tmp_path / "mychip.py"


def test_a_registered_target_audits_a_file_in_python(plugin, golden):
    model = (golden / "digits_int8.tflite").read_bytes()
    with registry.temporary():
        registry.load_plugin(str(plugin))
        report = tfq.audit(model, tfq.AuditConfig(require="mychip"))
    results = {(finding.op, finding.kind) for finding in report.failures}
    # Known facts about the file: it ends in SOFTMAX, and its dense weights have one scale per channel.
    assert results == {("SOFTMAX", "not_on_target"), ("FULLY_CONNECTED", "not_on_target")}
    with pytest.raises(tfq.InputError) as caught:
        tfq.AuditConfig(require="mychip")
    assert caught.value.got == "mychip"


def test_a_conversion_for_a_registered_target_follows_its_facts(plugin, golden):
    from tfq.conversion.targeting import config_for_target

    with registry.temporary():
        registry.load_plugin(str(plugin))
        assert not config_for_target(tfq.ConversionConfig(target="mychip")).per_channel_dense
        for change in ({"scheme": "float16"}, {"inference_input_type": "float32"}, {"batch_size": 0}):
            with pytest.raises(tfq.InputError):
                config_for_target(tfq.ConversionConfig(target="mychip", **change))


@pytest.mark.parametrize("changes", [{"name": "float16"}, {"schemes": ("int7",)}, {"schemes": ()}])
def test_a_target_with_impossible_facts_is_refused(changes):
    facts = {"name": "x", "help": "h", "title": "x", "short_title": "X", "source": "s", "schemes": ("int8",)}
    with pytest.raises(tfq.InputError) as caught:
        tfq.Target(**{**facts, **changes}, io_types=("int8",), integer_ops=frozenset())
    assert caught.value.field == next(iter(changes))


def test_a_plugin_adds_a_target_to_the_command_line(plugin, golden, tfq_cli):
    model = f"--model={golden / 'digits_int8.tflite'}"
    done = tfq_cli("audit", model, f"--plugin={plugin}", "--require=mychip", "--format=json")
    assert done.returncode == 1, done.stderr
    record = json.loads(done.stdout)
    assert [plugin["source"] for plugin in record["plugins"]] == ["mychip.py"]
    assert "SOFTMAX" in {finding["op"] for finding in record["audit"]["findings"]}
    assert "mychip" in tfq_cli("audit", f"--plugin={plugin}", "--help").stdout
    assert tfq_cli("audit", model, "--require=mychip").returncode == 2
