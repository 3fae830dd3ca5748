# SPDX-License-Identifier: Apache-2.0
"""Browsers: a JavaScript module for LiteRT.js, and a page that tests it and shows the model's results."""

import html
import json
from typing import Any

from tfq.deploy.app_code import (
    CodeTensor,
    code_inputs,
    code_outputs,
    float_literal,
    header,
    labeled_output,
    shape_problems,
    shared_tensor_problems,
    shown_name,
    tolerances,
    type_problems,
)
from tfq.deploy.platform import BundleContents, Candidate, Platform, Problem, SelfTest
from tfq.deploy.templates import fill, read_source
from tfq.registry import register

TRIED = (
    "tfq's tests open the page in headless Chromium on Linux with LiteRT.js 2.5.3 (WebAssembly), where int8 models "
    "reproduce golden vectors to the bit, and float32 models to 2e-7. No other browser was tried."
)
# LiteRT.js refuses other types: "Element type INT8 is not supported".
DTYPES = ("float32", "uint8", "int32")


def _sources(contents: BundleContents) -> dict[str, bytes]:
    lines = header(contents, TRIED)
    js_header = "\n".join(f"// {line}" for line in lines)
    tensors = {"inputs": code_inputs(contents), "outputs": code_outputs(contents)}
    rows = {side: "\n".join(f"  {_object(tensor)}," for tensor in entries) for side, entries in tensors.items()}
    labeled = labeled_output(contents)
    parts: dict[str, dict[str, str]] = {
        "index.html": {
            "header": "\n".join(f"<!-- {line.replace('--', '- -')} -->" for line in lines),
            "name": f"  <h1>{html.escape(shown_name(contents))}</h1>",
        },
        "page.css": {},
        "page.js": {
            "header": js_header,
            "labeled": f"const LABELED = {-1 if labeled is None else labeled};",
            "tolerances": f"const TOLERANCES = [{', '.join(map(float_literal, tolerances(contents)))}];",
        },
        "model.js": {"header": js_header, **rows},
        "serve.py": {},
        "README.md": {},
        "package.json": {},
    }
    return {f"web/{name}": fill(read_source(f"web/{name}"), values).encode() for name, values in parts.items()}


def _object(tensor: CodeTensor) -> str:
    """Return a tensor as an object in JavaScript."""
    fields: dict[str, Any] = {
        "name": _string(tensor.name),
        "shape": json.dumps(list(tensor.shape)),
        "dtype": f"'{tensor.dtype}'",
    }
    if tensor.scale is not None:
        fields["quantization"] = f"{{scale: {float_literal(tensor.scale)}, zeroPoint: {tensor.zero_point}}}"
    if tensor.resize:
        fields["resize"] = "true"
    if (tensor.factor, tensor.offset) != (1.0, 0.0):
        fields |= {"scale": float_literal(tensor.factor), "offset": float_literal(tensor.offset)}
    if tensor.mean:
        for name, values in (("mean", tensor.mean), ("std", tensor.std)):
            fields[name] = f"[{', '.join(map(float_literal, values))}]"
    return f"{{{', '.join(f'{name}: {value}' for name, value in fields.items())}}}"


def _check(candidate: Candidate) -> tuple[Problem, ...]:
    """Return what LiteRT.js refuses, or runs wrongly: types, dynamic shapes (also of the batch), shared tensors."""
    return (
        *type_problems(candidate, DTYPES, "LiteRT.js"),
        *shape_problems(candidate, allow_batch=False),
        *shared_tensor_problems(candidate.model, "LiteRT.js"),
    )


def _string(text: str) -> str:
    """Return text as a string literal of JavaScript."""
    quoted = json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"'{quoted}'"


register(
    Platform(
        name="web",
        help="browsers: a JavaScript module and a page for LiteRT.js",
        title="LiteRT.js",
        tried=TRIED,
        sources=_sources,
        check=_check,
        self_tests=(
            SelfTest(
                name="LiteRT.js",
                commands=("(cd web && npm install)", "python3 web/serve.py  # then open the address that it prints"),
                not_run="it needs a browser",
            ),
        ),
    )
)
