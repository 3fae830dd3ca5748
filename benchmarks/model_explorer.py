#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Check tfq's node data with Model Explorer's own loader of .tflite files, and store what the loader sees.

    python benchmarks/model_explorer.py --packages=out/model_explorer

Installs ai-edge-model-explorer and its adapter into --packages (131 MB of downloads, 0.5 GB on disk, half a minute),
but not their dependencies, which the loader does not need. For each file of tests/golden, every graph id and node key
of tfq's node data must be those of a node in the loader's graph, with the name of the right op. --write stores the
graphs in tests/golden/model_explorer.json, which an ordinary test compares with tfq.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GOLDEN = ROOT / "tests" / "golden"
PACKAGES = ("ai-edge-model-explorer==0.1.34", "ai-edge-model-explorer-adapter==0.2.1")
# Nodes of the loader that are not ops.
OTHERS = ("GraphInputs", "GraphOutputs", "pseudo_const")


def install(directory):
    """Install the packages without their dependencies, unless they are there."""
    if not (directory / "model_explorer").exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(directory),
            *PACKAGES,
        ]
        subprocess.run(command, check=True)
    sys.path.insert(0, str(directory))
    # Its __init__ would import the server and its dependencies.
    package = types.ModuleType("model_explorer")
    package.__path__ = [str(directory / "model_explorer")]
    sys.modules["model_explorer"] = package


def unnamed(content):
    """Return a flatbuffer whose main subgraph has no name instead of "main"."""
    name = (4).to_bytes(4, "little") + b"main"
    assert content.count(name) == 1
    return content.replace(name, b"\0" * len(name))


def graphs_of(path):
    """Return graph id -> the labels of the op nodes by their ids, as Model Explorer loads them."""
    from model_explorer.builtin_tflite_flatbuffer_adapter import BuiltinTfliteFlatbufferAdapter

    def plain(value):
        return value if isinstance(value, dict) else dataclasses.asdict(value)

    (collection,) = BuiltinTfliteFlatbufferAdapter().convert(str(path), {})["graphCollections"]
    graphs = {}
    for graph in map(plain, plain(collection)["graphs"]):
        nodes = {node["id"]: node["label"] for node in map(plain, graph["nodes"]) if node["label"] not in OTHERS}
        graphs[graph["id"]] = nodes
    return graphs


def label_of(op):
    """Return Model Explorer's label of an op: its name in lower case, or the code of a custom op."""
    return op.custom_code or op.name.lower()


def unknown_keys(node_data, graphs):
    """Return the graph ids and node keys that Model Explorer would ignore."""
    keys = {graph: list(data["results"]) for graph, data in node_data.items()}
    return [(graph, key) for graph, names in keys.items() for key in names if key not in graphs.get(graph, {})] + [
        (graph, None) for graph in keys if graph not in graphs
    ]


def main():
    """Check all golden files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=ROOT / "out" / "model_explorer")
    parser.add_argument("--write", action="store_true", help="store the graphs in tests/golden")
    arguments = parser.parse_args()
    install(arguments.packages.resolve())
    from tfq import tflite
    from tfq.report.model_explorer import NodeData

    seen, bad = {}, 0
    files = [(path.name, path, path.read_bytes()) for path in sorted(GOLDEN.glob("*.tflite"))]
    for name in ("digits_int8", "argmax_int8"):  # with and without a signature
        path = arguments.packages / f"{name}_unnamed.tflite"
        content = unnamed((GOLDEN / f"{name}.tflite").read_bytes())
        path.write_bytes(content)
        files.append((path.name, path, content))
    for name, path, content in files:
        graphs, model = graphs_of(path), tflite.read(content)
        seen[name] = graphs
        ops = model.main_subgraph.ops
        data = NodeData(file="f", title="t", values=dict.fromkeys(range(len(ops)), 1.0), low_is_bad=True).to_dict(model)
        ((graph, content),) = data.items()
        unknown = unknown_keys(data, graphs)
        wrong = [
            (key, graphs[graph][key], ops[int(key)].name)
            for key in content["results"]
            if key in graphs.get(graph, {}) and graphs[graph][key] != label_of(ops[int(key)])
        ]
        bad += len(unknown) + len(wrong)
        print(f"{name:45} {graph:20} {len(ops):3} ops, unknown {unknown or 'none'}, wrong {wrong or 'none'}")
    if arguments.write:
        (GOLDEN / "model_explorer.json").write_text(json.dumps(seen, indent=1) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
