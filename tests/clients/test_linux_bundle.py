# SPDX-License-Identifier: Apache-2.0
"""The Python and C programs of a bundle run the model, as C++ too, and find changed files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from app_bundles import (
    LABELS,
    changed_copy,
    digit_images,
    digits_bundle,
    normalized_bundle,
    program,
    several_types,
    several_types_bundle,
)

from tfq.deploy.platforms.linux import C_FLAGS, litert_folder

pytestmark = pytest.mark.clients
DIGITS = ("digits_int8", "digits_float32", "digits_int16x8", "digits_int8_dynamic_batch", "digits_dynamic_range")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return {name: folder} of bundles, each of which ran its self-tests when it was written."""
    out = tmp_path_factory.mktemp("linux")
    results = {name: digits_bundle(name, ("linux",), out / name) for name in DIGITS}
    results["normalized"] = normalized_bundle("digits_int8_uint8_io", ("linux",), out / "normalized")
    (out / "several").mkdir()
    results["several"] = several_types_bundle(several_types("int8", with_audio=True), ("linux",), out / "several")
    return results


def compiled(bundle, target, *, as_cpp=False):
    library = litert_folder()
    flags = ["-std=c++17", *C_FLAGS[1:], "-xc++"] if as_cpp else [*C_FLAGS]
    compiler = program("g++" if as_cpp else "gcc")
    sources = sorted(map(str, (bundle / "c").glob("*.c")))
    link = ["-xnone", f"-L{library}", "-l:libLiteRt.so", f"-Wl,-rpath,{library}", "-lm"]
    done = subprocess.run([compiler, *flags, *sources, "-o", target, *link], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(*command, cwd=None):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize("name", [*DIGITS, "normalized", "several"])
def test_python_and_c_reproduce_golden_vectors_when_exported(bundles, name):
    assert (bundles[name] / "README.md").read_text().count("exported: passed (") == 2


def test_the_sources_are_also_cpp(bundles, tmp_path):
    done = run(compiled(bundles["several"], tmp_path / "self_test", as_cpp=True), ".", cwd=bundles["several"])
    assert done.returncode == 0, done.stdout


def test_the_commands_of_the_readme_run(bundles, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundles["digits_float32"], folder)
    blocks = re.findall(
        r"```bash\n(.*?)```", (folder / "README.md").read_text().partition("## Self-tests")[2], re.DOTALL
    )
    assert len(blocks) == 2
    for block in blocks:
        commands = [line for line in block.splitlines() if not line.startswith("pip install")]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(tmp_path)}
        subprocess.run(["bash", "-ec", "\n".join(commands)], check=True, cwd=folder, env=environment)


def test_python_names_the_classes_of_a_picture(bundles, tmp_path):
    from PIL import Image

    image = digit_images(1)[0, :, :, 0]
    Image.fromarray(image).save(tmp_path / "digit.png")
    np.save(tmp_path / "digit.npy", image[None, :, :, None])
    script = bundles["digits_int8"] / "python/run_model.py"
    answers = [run(sys.executable, "-I", script, tmp_path / name).stdout for name in ("digit.png", "digit.npy")]
    assert answers[0] == answers[1]
    assert answers[0].splitlines()[0].startswith(f"probabilities: {LABELS[0]} (class 0)")


@pytest.mark.parametrize(
    ("path", "word"),
    [("golden/1_output_0.bin", "output"), ("golden/0_input_0_source.bin", "input"), ("model.tflite", "output")],
)
def test_changed_files_are_found(bundles, tmp_path, path, word):
    def change(content):
        if path != "model.tflite":
            return bytes(value ^ 0x40 for value in content)
        from tfq import tflite

        constants = [item for item in tflite.read(bytes(content)).main_subgraph.tensors if item.is_constant]
        largest = max(constants, key=lambda item: item.buffer_bytes)
        place = slice(largest.buffer_offset, largest.buffer_offset + largest.buffer_bytes)
        content[place] = bytes(reversed(content[place]))
        return content

    folder = changed_copy(bundles["digits_int8"], tmp_path / "bundle", path, change)
    for done in (
        run(compiled(folder, tmp_path / "self_test"), folder),
        run(sys.executable, "-I", "-B", folder / "python/run_model.py", "--self-test"),
    ):
        assert done.returncode == 1, done.stdout
        assert word in done.stdout


def test_c_tells_a_tolerance_from_an_error(bundles, tmp_path):
    """A difference of one quantized value fails, and passes with the tolerance of another processor."""

    def change(content):
        content[0] ^= 1
        return content

    folder = changed_copy(bundles["digits_int8"], tmp_path / "bundle", "golden/0_output_0.bin", change)
    program_file = compiled(folder, tmp_path / "self_test")
    assert run(program_file, folder).returncode == 1
    assert run(program_file, folder, "1").returncode == 0
