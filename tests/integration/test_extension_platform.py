# SPDX-License-Identifier: Apache-2.0
"""A user's own platform of apps as a plugin of the command line."""

import json

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = """
# --8<-- [start:platform]
import tfq


def sources(contents):
    \"\"\"Return the files of the platform: here a table of the inputs for a spreadsheet.\"\"\"
    lines = ["name,type,scale,zero point"]
    for entry in contents.io["inputs"]:
        lines.append(f"{entry['name']},{entry['dtype']},{entry['scale']},{entry['zero_point']}")
    return {"spreadsheet/inputs.csv": "\\n".join(lines).encode()}


def check(candidate):
    \"\"\"Refuse files whose inputs are not quantized.\"\"\"
    for entry in candidate.io["inputs"]:
        if entry["scale"] is None:
            yield tfq.Problem(reason=f"input {entry['name']} is not quantized", advice="convert with scheme=int8")


tfq.register(
    tfq.Platform(
        name="spreadsheet",
        help="a table of the inputs as a CSV file",
        title="the spreadsheet",
        tried="only with LibreOffice 7",
        sources=sources,
        check=check,
    )
)
# --8<-- [end:platform]
"""


def test_a_registered_platform_writes_its_files_and_refuses_others(tmp_path, golden, tfq_cli):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    arguments = ("--plugin=plugin.py", "--platform=spreadsheet", "--out=out", "--format=json")
    done = tfq_cli("export", f"--model={golden / 'digits_int8.tflite'}", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"]["platforms"] == ["spreadsheet"]
    table = (tmp_path / "out/bundle/spreadsheet/inputs.csv").read_text().splitlines()
    assert table[1].split(",")[:2] == ["image", "int8"]
    done = tfq_cli("export", f"--model={golden / 'digits_float32.tflite'}", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "scheme=int8" in done.stderr
