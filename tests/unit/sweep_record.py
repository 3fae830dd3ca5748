# SPDX-License-Identifier: Apache-2.0
"""A record of a sweep with two axes and two seeds, as `tfq sweep` writes it; the numbers are made up."""

SCORES = {"dense": 0.86, "pruned50": 0.855, "pruned80": 0.83}
LOSS = {"int8": 0.004, "int4": 0.02}
GZIP = {"dense": 79_000, "pruned50": 59_000, "pruned80": 34_000}
SMALLER = {"int8": 1.0, "int4": 0.6}


def difference(value, *, comparisons=1, half_width=0.006):
    low, high = value - half_width, value + half_width
    return {
        "difference": value, "low": low, "high": high, "confidence": 0.95, "comparisons": comparisons,
        "std_over_seeds": 0.001, "pooled_std": 0.002, "pooled_over": "families", "spread_from": "families",
        "wins": 10, "losses": 20, "num_examples": 1000, "num_seeds": 2, "reason": None,
        "is_noise": low <= 0 <= high,
    }  # fmt: skip


def spread(mean, std=0.002):
    return {"mean": mean, "std": std, "low": mean - std, "high": mean + std, "reason": None}


def missing(reason):
    return {"mean": None, "std": None, "low": None, "high": None, "reason": reason}


def group(compression, scheme):
    score = SCORES[compression] - LOSS[scheme]
    size = GZIP[compression] * SMALLER[scheme]
    return {
        "group": f"{compression}/{scheme}",
        "axes": {"compression": compression, "scheme": scheme},
        "seeds": [0, 1],
        "missing": {},
        "scores": {"val": spread(score + 0.001), "test": spread(score)},
        "costs": {
            "model_bytes": spread(100_000 * SMALLER[scheme], 0),
            "gzip_bytes": spread(size, 100),
            "arena_bytes": missing("tflm has no kernel for int4") if scheme == "int4" else spread(56_000, 0),
            "instructions": spread(1_501_102, 0),
        },
        "differences": {"test": difference(score - 0.86)},
        "is_reference": False,
    }


def point(compression, scheme, seed, **changes):
    values = {
        "id": f"{compression}/{scheme}/seed{seed}", "group": f"{compression}/{scheme}",
        "axes": {"compression": compression, "scheme": scheme}, "seed": seed, "status": "done", "reason": None,
        "failed_stage": None, "reference": f"float32/seed{seed}", "stages": {}, "sha256": "0" * 64,
        "scores": {
            split: {"metric": "top1", "unit": "fraction", "direction": "higher", "value": SCORES[compression]}
            for split in ("val", "test")
        },
        "costs": {}, "training_epochs": 2, "warnings": [], "robustness": None, "robustness_reason": "not set",
    }  # fmt: skip
    return {**values, **changes}


def sweep_record():
    pairs = [(compression, scheme) for compression in SCORES for scheme in LOSS]
    groups = [group(*pair) for pair in pairs]
    reference = {
        **group("dense", "int8"), "group": "float32", "axes": {"reference": "float32"}, "is_reference": True,
        "differences": {"test": None}, "scores": {"val": spread(0.861), "test": spread(0.86)},
        "costs": {"model_bytes": spread(318_672, 0), "gzip_bytes": spread(290_000, 0)},
    }  # fmt: skip
    points = [point(*pair, seed) for pair in pairs for seed in (0, 1)]
    points[-1] = point(
        "pruned80", "int4", 1, status="failed", failed_stage="convert", reason="the worker was killed", scores={}
    )
    points[0]["warnings"] = ["2 layers were not pruned"]
    members = [
        {"group": "pruned80/int4", "cost": 20_400, "score": 0.811, "gain": None, "within_noise": []},
        {"group": "pruned80/int8", "cost": 34_000, "score": 0.827, "gain": difference(0.016), "within_noise": []},
        {
            "group": "pruned50/int8", "cost": 59_000, "score": 0.852, "gain": difference(0.025),
            "within_noise": ["dense/int4"],
        },
        {
            "group": "dense/int8", "cost": 79_000, "score": 0.857, "gain": difference(0.005),
            "within_noise": ["pruned50/int8"],
        },
    ]  # fmt: skip
    return {
        "schema_version": 1, "command": "sweep", "config": {"data": {"source": "npz:examples.npz"}}, "config_hash": "0",
        "seed": 0, "warnings": [],
        "grid": {
            "axes": {
                "compression": {"dense": {}, "pruned50": {"compression": {}}, "pruned80": {"compression": {}}},
                "scheme": {"int8": {}, "int4": {"conversion": {"int4_layers": ["*"]}}},
            },
        },
        "axes": {"compression": list(SCORES), "scheme": list(LOSS)},
        "seeds": [0, 1], "num_threads": 1, "points": points, "references": [], "groups": groups,
        "reference_groups": [reference],
        "fronts": [
            {
                "cost": "gzip_bytes", "split": "val", "members": members,
                "possible": {"dense/int4": {"member": "pruned50/int8", "difference": difference(-0.001)}},
                "left_out": {"pruned50/int4": "the worker was killed"}, "reason": None,
            },
            {"cost": "latency_ms", "split": "val", "members": [], "possible": {}, "left_out": {}, "reason": "none"},
        ],
        "best": {
            "sentence": "Within the budget (gzip bytes <= 80,000), dense/int8 is best on val, with 85.60% on test.",
            "group": "dense/int8", "chosen_on": "val", "reported_on": "test", "bounds": {"max_gzip_bytes": 80_000},
            "score": spread(0.856),
            "against": {"pruned50/int8": difference(0.005), "pruned80/int8": difference(0.03)},
            "indistinguishable": ["pruned50/int8"], "cheapest": "pruned50/int8",
            "size": "gzip_bytes",
            "missed": {"dense/int4": ["max_arena_bytes: no arena_bytes: tflm has no kernel for int4"]},
        },
        "seed_spreads": {
            "test": {
                "all": {"std": 0.031, "freedom": 5}, "min_freedom": 2,
                "families": [
                    {"families": ["dense", "pruned"], "same_model": False, "std": 0.002, "freedom": 4, "used": True},
                    {"families": ["pruned", "pruned"], "same_model": True, "std": 0.001, "freedom": 1, "used": False},
                ],
            },
        },
        "settings": {"choose_on": "val"}, "order": [], "stages": {"compress": {"distinct": 4, "used": 12}},
        "shard": None, "timing": {"stages": {"a": {"seconds": 12.5, "resumed": False}}},
    }  # fmt: skip
