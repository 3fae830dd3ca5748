# SPDX-License-Identifier: Apache-2.0
"""The sources that `tfq export` writes for apps, in a browser, compilers, TensorFlow Lite Micro and a Swift parser."""

import contextlib
import json
import os
import re
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
    node_modules,
    normalized_bundle,
    program,
    several_types,
    several_types_bundle,
)

from tfq import registry, tflite
from tfq.auditing import Target
from tfq.deploy.platforms.micro import _method
from tfq.deploy.tflm_measurement import ARRAY_FILE, array_bytes, run_array

pytestmark = pytest.mark.clients
HERE = Path(__file__).resolve().parent
DECLARATIONS = HERE / "declarations"
SCREENSHOTS = HERE.parents[1] / "out" / "screenshots"


def run(*command: object, **options) -> str:
    """Run a program; return what it prints."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def changed_byte(content: bytearray) -> bytearray:
    content[0] ^= 0x40
    return content


def swapped_lines(content: bytearray) -> bytes:
    first, second, *others = bytes(content).splitlines(keepends=True)
    return b"".join([second, first, *others])


# Web


@contextlib.contextmanager
def served(bundle: Path):
    """Serve a bundle with its own server; yield the address of its page."""
    (bundle / "web" / "node_modules").symlink_to(node_modules())
    command = [sys.executable, str(bundle / "web" / "serve.py"), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Open the pages of several bundles; return what each shows."""
    folder = tmp_path_factory.mktemp("web")
    bundles = {
        name: digits_bundle(f"digits_{name}", ("web",), folder / name) for name in ("int8_uint8_io", "int8_float_io")
    }
    bundles["float32"] = normalized_bundle("digits_float32", ("web",), folder / "float32")
    bundles["several"] = several_types_bundle(several_types("uint8", with_audio=False), ("web",), folder / "several")
    for name, path, change in (
        ("wrong_output", "golden/1_output_0_decoded.bin", lambda content: bytes(3) + b"\x3f" + content[4:]),
        ("wrong_labels", "labels.txt", swapped_lines),
        (
            "wrong_scale",
            "web/model.js",
            lambda content: re.sub(rb"scale: 0\.06274\d+, offset", b"scale: 0.05, offset", content),
        ),
    ):
        bundles[name] = changed_copy(bundles["int8_uint8_io"], folder / name, path, change)
    picture = folder / "picture.png"
    from PIL import Image

    Image.fromarray(digit_images(4)[3, :, :, 0]).save(picture)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        requests = [
            {
                "url": stack.enter_context(served(bundle)),
                "screenshot": str(SCREENSHOTS / f"{name}.png"),
                "picture": str(picture) if name == "int8_uint8_io" else None,
            }
            for name, bundle in bundles.items()
        ]
        environment = {**os.environ, "CHROMIUM": program("chromium")}
        output = run(program("node"), HERE / "open_pages.mjs", node_modules(), json.dumps(requests), env=environment)
    return dict(zip(bundles, json.loads(output), strict=True))


@pytest.mark.parametrize("name", ["int8_uint8_io", "float32", "int8_float_io", "several"])
def test_page_reproduces_golden_vectors(pages, name):
    outcome = pages[name]["outcome"]
    assert outcome["failures"] == [[]] * len(outcome["failures"]) and outcome["passed"]
    # The last bit of float kernels depends on the CPU's instructions.
    assert np.size(outcome["differences"]) and np.max(outcome["differences"]) <= (2e-7 if name == "float32" else 0)


def test_module_refuses_values_that_an_input_cannot_represent(pages):
    refusals = [*pages["several"]["refusals"], *pages["int8_uint8_io"]["refusals"]]
    assert [refusal["needsIntegers"] for refusal in refusals] == [True, False, False, False]
    assert all(refusal["few"] and refusal["nan"] for refusal in refusals)
    assert all(refusal["fractions"] == refusal["needsIntegers"] for refusal in refusals)


def test_page_shows_picture_label_and_verdict_without_a_network(pages):
    page = pages["int8_uint8_io"]
    assert page["verdict"].startswith("Passed: 3 of 3")
    assert all(label in page["text"] for label in LABELS[:3]) and page["text"].count("passed") == 3
    assert page["loaded"] and page["isolated"] and not page["failed"]
    assert all(re.match(r"(blob:)?http://127\.0\.0\.1:", url) for url in page["requests"])


def test_page_classifies_a_picture_that_its_user_chooses(pages):
    assert pages["int8_uint8_io"]["result"].startswith(LABELS[3])


@pytest.mark.parametrize(
    "name, word", [("wrong_output", "differs by"), ("wrong_labels", "expected"), ("wrong_scale", "input")]
)
def test_page_shows_a_failure_of_a_changed_bundle(pages, name, word):
    page = pages[name]
    assert page["verdict"].startswith("Failed") and not page["outcome"]["passed"]
    assert word in page["text"] and "failed" in page["text"]


# Android


@pytest.fixture(scope="module")
def kotlin(tmp_path_factory):
    """Compile the Kotlin sources of two bundles at once; return {package: (classes, bundle)}."""
    folder = tmp_path_factory.mktemp("android")
    bundles = {
        "model": digits_bundle("digits_int8", ("android",), folder / "digits"),
        "normalized": normalized_bundle("digits_int16x8", ("android",), folder / "normalized"),
        "several": several_types_bundle(several_types("int8", with_audio=True), ("android",), folder / "several"),
    }
    sources = folder / "sources"
    for package, bundle in bundles.items():
        for source in (*(bundle / "android").glob("*.kt"), HERE / "RunSelfTest.kt"):
            path = sources / package / source.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source.read_text().replace("com.example.model", f"com.example.{package}"))
    compiler = node_modules() / "kotlin-compiler"
    java = [program("java"), "-Xmx700m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    main = [*java, "-cp", f"{compiler}/lib/*", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-kotlin-home", compiler]
    run(*main, "-Werror", "-d", folder / "classes", sources, DECLARATIONS / "android")

    def self_test(package: str, *folders: Path) -> list[str]:
        path = f"{folder / 'classes'}:{compiler}/lib/kotlin-stdlib.jar"
        output = run(*java, "-cp", path, f"com.example.{package}.RunSelfTestKt", *folders)
        return [line.removeprefix(f"{place}: ") for line, place in zip(output.splitlines(), folders, strict=True)]

    return self_test, bundles


def test_kotlin_reproduces_golden_vectors_and_finds_changed_files(kotlin, tmp_path):
    self_test, bundles = kotlin
    assert [self_test(name, bundles[name]) for name in ("several", "normalized")] == [["passed"], ["passed"]]
    changed = [
        changed_copy(bundles["model"], tmp_path / "input", "golden/0_input_0.bin", changed_byte),
        changed_copy(
            bundles["model"], tmp_path / "source", "golden/1_input_0_source.bin", lambda content: content[::-1]
        ),
        changed_copy(bundles["model"], tmp_path / "output", "golden/2_output_0.bin", changed_byte),
        changed_copy(bundles["model"], tmp_path / "labels", "labels.txt", swapped_lines),
    ]
    passed, *failures = self_test("model", bundles["model"], *changed)
    assert passed == "passed"
    words = [
        "0: input image differs",
        "1: input image differs",
        "2: output probabilities differs",
        f"expected {LABELS[0]}",
    ]
    assert all(f"golden vector {word}" in line or word in line for word, line in zip(words, failures, strict=True))


# Microcontrollers


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    return digits_bundle("digits_int8_per_tensor_dense", ("micro",), tmp_path_factory.mktemp("micro") / "bundle")


WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def test_c_array_compiles_and_its_bytes_reproduce_golden_vectors(micro, tmp_path):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed: make clients installs it")
    from tflite_micro.python.tflite_micro import runtime

    source = micro / "micro" / "model_data.c"
    run(program("gcc"), "-std=c11", *WARNINGS, "-c", source, "-o", tmp_path / "c.o")
    run(program("g++"), "-std=c++11", "-x", "c++", *WARNINGS, "-c", source, "-o", tmp_path / "cc.o")
    run(program("objcopy"), "-O", "binary", "--only-section=.rodata", tmp_path / "c.o", tmp_path / "rodata")
    sections = run(program("objdump"), "-h", tmp_path / "c.o")
    assert re.search(r"\.rodata .*2\*\*[4-9]", sections), sections
    symbols = {line.split()[-1]: int(line.split()[0], 16) for line in run(program("nm"), tmp_path / "c.o").splitlines()}
    content = (tmp_path / "rodata").read_bytes()
    size = int.from_bytes(content[symbols["g_model_data_size"] :][:4], "little")
    model = content[symbols["g_model_data"] :][:size]
    assert size < (micro / "model.tflite").stat().st_size and not tflite.read(model).metadata.get("tfq")
    arena = re.search(r"MODEL_ARENA_BYTES (\d+)", (micro / "micro" / "arena.h").read_text())
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=int(arena[1]))
    for example in json.loads((micro / "golden/golden.json").read_text())["examples"]:
        (fed,), (golden,) = example["inputs"], example["outputs"]
        interpreter.set_input(np.frombuffer((micro / fed["file"]).read_bytes(), fed["dtype"]).reshape(fed["shape"]), 0)
        interpreter.invoke()
        expected = np.frombuffer((micro / golden["file"]).read_bytes(), np.int8).astype(int)
        assert np.abs(interpreter.get_output(0).ravel() - expected).max() <= tolerance(micro)


def test_methods_of_the_resolver_are_in_the_order_of_the_wheel():
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed: make clients installs it")
    from tflite_micro.python.tflite_micro import _runtime

    # The wheel's resolver adds all ops in the alphabetical order of the methods, which are inlined there.
    constructor = "--disassemble=_ZN6tflite17PythonOpsResolverC1Ev"
    calls = re.findall(r"Register_([A-Z0-9_]+)Ev>", run(program("objdump"), constructor, _runtime.__file__))
    listed = frozenset.union(*registry.get(Target, "tflm").ops_by_type.values())
    ops = [name for name in calls if name in listed]
    assert set(ops) == listed
    methods = [_method(tflite.Op(index=0, name=name, version=1, inputs=(), outputs=())) for name in ops]
    assert methods == sorted(methods)


def test_self_test_of_c_array_finds_changed_weights(micro, tmp_path):
    assert run_array("array", micro).status == "passed"
    source = (micro / "micro" / "model_data.c").read_text()
    content = bytearray(array_bytes(source))
    weights = max(
        (tensor for tensor in tflite.read(bytes(content)).main_subgraph.tensors), key=lambda tensor: tensor.buffer_bytes
    )
    place = weights.buffer_offset
    content[place : place + weights.buffer_bytes] = bytes(weights.buffer_bytes)
    numbers = "".join(f"0x{number:02x}," for number in content)
    changed = re.sub(r"\{.*?\}", lambda _: f"{{{numbers}}}", source, count=1, flags=re.DOTALL)
    result = run_array("array", changed_copy(micro, tmp_path / "changed", ARRAY_FILE, lambda _: changed.encode()))
    assert result.status == "failed" and "differs by" in result.detail


def tolerance(bundle: Path) -> float:
    (limit,) = set(re.findall(r"kOutput|Type::kInt8, ([\d.]+)f", (bundle / "micro/golden_data.h").read_text())) - {
        "",
        "0.0",
    }
    return float(limit)


# An interpreter whose outputs are the content of a file.
FAKE = """
#include <cstdio>
#include "tensorflow/lite/micro/micro_interpreter.h"
#ifdef TFLM_NAMESPACE_MICRO
namespace tflite { namespace micro {
#else
namespace tflite {
#endif
static char values[1 << 16];
static TfLiteTensor tensor;
static FILE* file;
MicroInterpreter::MicroInterpreter(const Model*, const MicroOpResolver&, uint8_t*, size_t) {
  file = fopen(OUTPUTS, "rb");
}
TfLiteStatus MicroInterpreter::AllocateTensors() { return kTfLiteOk; }
TfLiteStatus MicroInterpreter::Invoke() { return fread(values, 1, SIZE, file) == SIZE ? kTfLiteOk : kTfLiteError; }
TfLiteTensor* MicroInterpreter::input(size_t) { tensor.data.raw = values; return &tensor; }
TfLiteTensor* MicroInterpreter::output(size_t) { tensor.data.raw = values; return &tensor; }
size_t MicroInterpreter::arena_used_bytes() const { return 1; }
}
#ifdef TFLM_NAMESPACE_MICRO
}
#endif
namespace tflite { const Model* GetModel(const void*) { return nullptr; } }
"""


@pytest.mark.parametrize("namespace", ["tflite", "tflite::micro"])
def test_self_test_for_microcontrollers_compiles_and_judges_outputs(micro, tmp_path, namespace):
    (tmp_path / "fake.cc").write_text(FAKE)
    golden = [
        example["outputs"][0]["file"] for example in json.loads((micro / "golden/golden.json").read_text())["examples"]
    ]
    content = b"".join((micro / file).read_bytes() for file in golden)
    (tmp_path / "outputs").write_bytes(content)
    flags = ["-std=c++17", *WARNINGS, f"-I{DECLARATIONS / 'tflm'}", f"-I{micro / 'micro'}", "-DSIZE=10"]
    flags += ["-DTFLM_NAMESPACE_MICRO"] if namespace == "tflite::micro" else []
    flags += [f'-DOUTPUTS="{tmp_path / "outputs"}"']
    sources = [tmp_path / "fake.cc", micro / "micro/main.cc", "-x", "c++", micro / "micro/model_data.c"]
    run(program("g++"), *flags, *sources, "-o", tmp_path / "main")
    assert run(tmp_path / "main").splitlines()[-1] == "PASSED"
    (tmp_path / "outputs").write_bytes(changed_byte(bytearray(content)))
    failed = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert failed.returncode == 1 and "vector 0, output 0: difference 64, WRONG" in failed.stdout


# iOS


@pytest.fixture(scope="module")
def parse_swift():
    tree_sitter = pytest.importorskip("tree_sitter", reason="tree-sitter is not installed: make clients installs it")
    import tree_sitter_swift

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    return lambda content: parser.parse(content).root_node


def test_swift_sources_have_no_syntax_errors(parse_swift, tmp_path):
    digits = digits_bundle("digits_int8", ("ios",), tmp_path / "digits")
    several = several_types_bundle(several_types("int8", with_audio=True), ("ios",), tmp_path / "several")
    for bundle in (digits, several):
        sources = {path.name: path.read_bytes() for path in (bundle / "ios").glob("*.swift")}
        assert set(sources) == {"Model.swift", "LiteRtModel.swift", "SelfTest.swift"}
        assert not any(parse_swift(content).has_error for content in sources.values())
    # Negative control: seeded mistakes.
    model = sources["Model.swift"]
    mistakes = (
        (b"func encode(", b"func encode((", 1),
        (b"for row in rows {", b"for row rows {", 1),
        (b"enum DType {", b"enum DType", 1),
    )
    assert all(parse_swift(model.replace(*mistake)).has_error for mistake in mistakes)
    assert all(model.replace(*mistake) != model for mistake in mistakes)
