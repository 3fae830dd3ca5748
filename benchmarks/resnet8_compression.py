#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what compression costs in accuracy: a classifier is pruned, filters are removed, and QAT follows; over seeds.

    python benchmarks/resnet8_compression.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' --out=out/resnet8 \\
        [--seeds=0,1,2] [--epochs=22] [--qat_epochs=3] [--variants=float,pruned50,pruned80,filters50]

Every variant is trained in two phases, --epochs and --qat_epochs long, with the same data, steps, seeds and
augmentation (flips, and shifts if --shift requests them). The first phase is for pruning, or for recovering accuracy
after filters are removed, at one learning rate; the second is for QAT. `float` does neither: it is the baseline, and
sizes, times and instructions are compared with its post-training int8 model. The other variants also learn from the
outputs of the trained `float` of their seed in both phases. Each phase keeps the epoch with the best validation
accuracy, including the state before the phase; pruning only considers epochs with all zeros in place. Accuracy is that
of the int8 flatbuffer (of `float`: the float32 one) on the test split.

The result of each variant and seed is a JSON file in --out, next to its flatbuffer and the model between the phases; a
killed run resumes if started with the same flags. The exit code is 1 if a bound below is missed. --limit is for trying
the script: it limits the examples of each split, and makes bounds on accuracy meaningless. An epoch over 45,000 images
of 32x32 takes 45 s of CPU time (ResNet8, one core of an x86 with AVX-512), 50 s with distillation from `float`, and an
epoch of QAT up to twice that.
"""

import argparse
import dataclasses
import gzip
import math
import os
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from compression_training import Phase, copied, exit_with, fit_for, kept_record, save_model

import tfq
from tfq.artifacts import make_out_dir, read_json, sha256_file, write_bytes, write_json
from tfq.compression import qat_parity
from tfq.config import StructuredPruningConfig
from tfq.errors import InputError, did_you_mean
from tfq.evaluation import count_instructions_or_reason

CPUS = ("qemu:cortex-a53", "qemu:cortex-a76")
PARITY_EXAMPLES = 256


# Compressed variants learn from the trained `float`, pruned ones also at the ends of the three residual stages.
DISTILLATION = tfq.DistillationConfig(enabled=True, temperature=3.0, weight=0.9)
OF_STAGES = dataclasses.replace(DISTILLATION, layers=("activation_2", "activation_4", "activation_6"))


@dataclass(frozen=True)
class Variant:
    """One way to compress.

    max_drop: accuracy loss against `float`, averaged over the seeds, as a fraction. sparsity: what pruning reaches.
    pruned_by: the fraction of the first phase after which pruning is complete; the learning rate is still large enough
    to recover after it. structured_pruning: settings of StructuredPruningConfig, if it prunes channels. max_gzip: the
    size as a fraction of that of the dense int8 flatbuffer. max_instructions: the same for counted instructions of a
    Cortex-A53.
    """

    max_drop: float
    sparsity: float = 0.0
    pruned_by: float = 0.5
    structured_pruning: Mapping[str, Any] = field(default_factory=dict)
    max_gzip: float = math.inf
    max_instructions: float = math.inf
    distillation: tfq.DistillationConfig = DISTILLATION


VARIANTS = {
    "float": Variant(0.0),
    "pruned50": Variant(0.003, sparsity=0.5, pruned_by=0.25, distillation=OF_STAGES),
    "pruned80": Variant(0.015, sparsity=0.8, pruned_by=0.3, max_gzip=0.45, distillation=OF_STAGES),
    # The targets are the best of six shapes after three epochs each, by the distillation loss from `float` on the
    # training data: the first stage of ResNet8 has the most multiply-adds and contributes least.
    "filters50": Variant(
        0.02,
        structured_pruning={"target_cost": 0.5, "targets": ("conv2d=0.75", "conv2d_1=0.25")},
    ),
    # Without the branch of the first stage, and with half of the inner filters of the second one: the better of two
    # such shapes after three epochs each, by the accuracy on held-back images. Distillation at the ends of the stages
    # was worse by 0.4 points there.
    "instructions50": Variant(
        0.012,
        structured_pruning={
            "cost": "instructions_a53",
            "target_cost": 0.5,
            "branches": ("add",),
            "targets": ("conv2d_3=0.5",),
        },
        max_instructions=0.5,
    ),
}


def trained(name: str, seed: int, model: Any, splits: dict[str, Any], phases: list[Phase], out: Path) -> Any:
    """Return (model after both phases, its record). The model after the first phase is saved in `out`."""
    from tfq.compression import prune_model, prune_structured, qat_model
    from tfq.compression.training import deterministic

    variant, between = VARIANTS[name], out / f"{name}_{seed}_between.h5"
    teacher = None if name == "float" else tfq.load_model(out / f"float_{seed}.h5")
    notes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    best_from = (math.ceil(phases[0].epochs * variant.pruned_by) + 1 if variant.sparsity else 0, 0)
    fits = [
        fit_for(splits, phase, seed + place * 1000, best_from[place], notes[place])
        for place, phase in enumerate(phases)
    ]
    with deterministic(seed):
        if between.exists() and between.with_suffix(".json").exists():
            notes[0].update(read_json(between.with_suffix(".json")))
            first = tfq.load_model(between)
        else:
            if variant.sparsity:
                steps = phases[0].epochs * math.ceil(splits["train"].num_examples / phases[0].batch_size)
                asked = tfq.PruneConfig(
                    final_sparsity=variant.sparsity,
                    allocation="lamp",
                    end_step=int(steps * variant.pruned_by),
                    distillation=variant.distillation,
                )
                first = prune_model(model, fits[0], asked, teacher=teacher)
            elif variant.structured_pruning:
                shape = StructuredPruningConfig(
                    enabled=True, channel_multiple=4, distillation=variant.distillation, **variant.structured_pruning
                )
                cut = prune_structured(model, fits[0], shape, data=splits["train"], teacher=teacher)
                notes[0]["structured_pruning"] = cut.to_dict()
                first = cut.model
            else:
                first = copied(model)
                fits[0](first, [])
            save_model(first, between)
            write_json(between.with_suffix(".json"), notes[0])
        if name == "float":
            fits[1](first, [])
            save_model(first, out / f"float_{seed}.h5")
            return first, notes
        qat = tfq.QATConfig(range_estimator="lsq", distillation=variant.distillation)
        return qat_model(first, fits[1], qat, calibration=splits["train"], teacher=teacher), notes


def measured(name: str, seed: int, model: Any, splits: dict[str, Any], phases: list[Phase], out: Path) -> dict:
    """Train, convert and evaluate one variant and seed. Flatbuffers are saved in `out`."""
    begin = time.monotonic()
    result, notes = trained(name, seed, model, splits, phases, out)
    record: dict[str, Any] = {"phases": list(notes)}
    samples = splits["train"].take(tfq.ConversionConfig().num_calibration_samples)
    if name == "float":
        contents = {
            "float": tfq.convert(result, config=tfq.ConversionConfig(scheme="float32")),
            "dense_int8": tfq.convert(result, samples),
        }
    else:
        contents = {name: tfq.convert(result, samples if _has_unquantized(result) else None)}
    for called, content in contents.items():
        write_bytes(out / f"{called}_{seed}.tflite", content)
        evaluated = tfq.evaluate(content, splits["test"], tfq.EvaluationConfig(num_runs=0))
        audit = tfq.audit(content, tfq.AuditConfig(require="" if called == "float" else "full_int8"))
        record[called] = {
            "accuracy": evaluated.accuracy,
            "bytes": len(content),
            "gzip_bytes": len(gzip.compress(content, 9, mtime=0)),
            "audit": audit.scheme,
            "zeros": zeros(content),
        }
    if name != "float":
        parity = qat_parity(result, contents[name], splits["test"], limit=PARITY_EXAMPLES)
        message = parity.to_dict()
        record["parity"] = {key: message[key] for key in ("logit_sqnr_db", "top1_agreement", "largest_margin_lsb")}
        record["parity"] |= {"first_departure": message["first_departure"], "missed": list(parity.missed())}
    return {**record, "secs": round(time.monotonic() - begin)}


def zeros(content: bytes) -> float:
    """Return the fraction of zero weights of convolutions and dense layers in the flatbuffer."""
    parsed = tfq.tflite.read(content)
    graph, counted, zero = parsed.main_subgraph, 0, 0
    kernels = {op.inputs[1] for op in graph.ops if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")}
    for index in kernels:
        values = tfq.tflite.constant_values(content, graph.tensors[index])
        counted, zero = counted + values.size, zero + int((values == 0).sum())
    return zero / counted


def costs(out: Path, seeds: list[int], names: list[str], runs: int) -> dict[str, dict[str, Any]]:
    """Return {variant: x86 time and ARM instructions of its int8 flatbuffer relative to the dense one} for one seed."""
    contents = {name: (out / f"{name}_{seeds[0]}.tflite").read_bytes() for name in ("dense_int8", *names)}
    timed = tfq.benchmark(contents, tfq.BenchmarkConfig(num_runs=runs, ops=False))
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    for ratio in timed.ratios:
        results[ratio.against]["x86 time"] = f"{ratio.ratio:.2f}x"
    for backend in CPUS:
        counts = {name: count_instructions_or_reason(content, backend) for name, content in contents.items()}
        for name in names:
            one, dense = counts[name], counts["dense_int8"]
            if isinstance(one, str) or isinstance(dense, str):
                results[name][backend] = one if isinstance(one, str) else str(dense)
            else:
                results[name].setdefault("instructions", one.instructions / dense.instructions)
                results[name][backend] = f"{one.instructions / dense.instructions:.2f}x of {dense.instructions:,}"
    return results


def missed(results: dict[str, list[dict]], spent: dict[str, dict[str, Any]]) -> list[str]:
    """Return the bounds that are missed."""
    matches = []
    for name, cost in spent.items():
        counted = cost[CPUS[0]]
        if math.isfinite(VARIANTS[name].max_instructions) and "x of" not in counted:
            matches.append(f"{name}: instructions were not counted: {counted}")
        elif "x of" in counted and cost["instructions"] > VARIANTS[name].max_instructions:
            matches.append(f"{name}: {cost['instructions']:.3f} of the instructions of dense int8")
    for name, records in results.items():
        variant, baselines = VARIANTS[name], results["float"]
        if name == "float":
            continue
        drop = average(baselines, "float", "accuracy") - average(records, name, "accuracy")
        if drop > variant.max_drop:
            matches.append(
                f"{name}: {100 * drop:.2f} points below float on average, expected at most {variant.max_drop:.1%}"
            )
        fraction = average(records, name, "gzip_bytes") / average(baselines, "dense_int8", "gzip_bytes")
        if fraction > variant.max_gzip:
            matches.append(f"{name}: gzip {fraction:.1%} of dense int8's, expected at most {variant.max_gzip:.0%}")
        for record in records:
            if record[name]["audit"] != "full_int8":
                matches.append(f"{name}: the flatbuffer is {record[name]['audit']}, expected full_int8")
            if record[name]["zeros"] < variant.sparsity - 0.005:
                matches.append(
                    f"{name}: {record[name]['zeros']:.1%} zeros in the flatbuffer, expected {variant.sparsity:.0%}"
                )
            cut = record["phases"][0].get("structured_pruning")
            if cut and cut["cost_after"] > variant.structured_pruning["target_cost"] * cut["cost_before"]:
                matches.append(f"{name}: {cut['cost_after']:,} {cut['cost_unit']} stay of {cut['cost_before']:,}")
    return matches


def average(records: list[dict], called: str, what: str) -> float:
    """Return the average over the seeds."""
    return statistics.fmean(record[called][what] for record in records)


def table(results: dict[str, list[dict]], spent: dict[str, dict[str, Any]]) -> str:
    """Return Markdown with one row per flatbuffer."""
    seeds = len(next(iter(results.values())))
    baseline = average(results["float"], "float", "accuracy")
    dense = average(results["float"], "dense_int8", "gzip_bytes")
    lines = [
        f"| | accuracy ({seeds} seeds) | against float | gzip | of dense int8 | zeros | x86 time | "
        + " | ".join(f"{cpu.partition(':')[2]} instructions" for cpu in CPUS)
        + " | logit SQNR |",
        "|---" * (8 + len(CPUS)) + "|",
    ]
    rows = [("float", "float"), ("float", "dense_int8"), *((name, name) for name in results if name != "float")]
    for name, called in rows:
        records = results[name]
        accuracy = average(records, called, "accuracy")
        spread = " ".join(f"{record[called]['accuracy']:.2%}" for record in records)
        size = average(records, called, "gzip_bytes")
        cost = [str(spent.get(called, {}).get(key, "")) for key in ("x86 time", *CPUS)]
        sqnr = (
            f"{min(float(record['parity']['logit_sqnr_db']) for record in records):.1f} dB"
            if called in VARIANTS and name != "float"
            else ""
        )
        lines.append(
            f"| {called} | {accuracy:.2%} ({spread}) | {100 * (accuracy - baseline):+.2f} | {size:,.0f} | "
            f"{size / dense:.1%} | {average(records, called, 'zeros'):.1%} | {' | '.join(cost)} | "
            f"{sqnr} |"
        )
    return "\n".join(lines)


def main() -> int:
    arguments = parsed()
    names = ["float", *(name for name in arguments.variants.split(",") if name != "float")]
    for name in names:
        if name not in VARIANTS:
            raise InputError(f"--variants: unknown {name!r}: {did_you_mean(name, VARIANTS)}")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    warnings.simplefilter("once", tfq.TfqWarning)
    out = make_out_dir(arguments.out)
    model = tfq.load_model(arguments.model)
    source = {"model": sha256_file(arguments.model), "data": arguments.data, "limit": arguments.limit}
    data = tfq.DataConfig(source=arguments.data)
    splits: dict[str, Any] = {}
    results: dict[str, list[dict]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            path = out / f"{name}_{seed}.json"
            phases = phases_of(name, arguments)
            settings = {**source, "phases": [vars(phase) for phase in phases]}
            record = kept_record(path, settings)
            if record is None:
                if not splits:
                    splits = {
                        split: tfq.load_split(data, split, limit=arguments.limit) for split in ("train", "val", "test")
                    }
                print(f"{name}, seed {seed}", flush=True)
                record = {"settings": settings, **measured(name, seed, model, splits, phases, out)}
                write_json(path, record)
            results[name].append(record)
    spent = costs(out, seeds, [name for name in names if name != "float"], arguments.runs)
    print(table(results, spent))
    failed = missed(results, spent)
    for message in failed:
        print(f"MISSED: {message}")
    return 1 if failed else 0


def phases_of(name: str, arguments: argparse.Namespace) -> list[Phase]:
    """Return a variant's two phases; only the learning rate of the second one differs between variants."""
    second_rate = arguments.float_rate if name == "float" else arguments.qat_rate
    return [
        Phase(arguments.epochs, arguments.batch_size, arguments.learning_rate, arguments.shift),
        Phase(arguments.qat_epochs, arguments.batch_size, second_rate, arguments.shift),
    ]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--variants", default="float,pruned50,pruned80,filters50", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=22, help="of the first phase: fine-tuning or pruning")
    parser.add_argument("--qat_epochs", type=int, default=3, help="of the second one: QAT, or as much float training")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of the first phase, decayed along a cosine")
    parser.add_argument("--qat_rate", type=float, default=1e-4, help="of QAT")
    parser.add_argument("--float_rate", type=float, default=3e-4, help="of what `float` is trained in its place")
    parser.add_argument("--shift", type=int, default=0, help="pixels by which training images are shifted at most")
    parser.add_argument("--limit", type=int, default=0, help="examples of each split; 0 is all")
    parser.add_argument("--runs", type=int, default=1000, help="timed inferences of each flatbuffer")
    return parser.parse_args()


def _has_unquantized(model: Any) -> bool:
    """Check whether quantization-aware training left a layer with weights to the converter."""
    return any(layer.weights and not layer.name.startswith("quant") for layer in model.layers)


if __name__ == "__main__":
    exit_with(main, __file__)
