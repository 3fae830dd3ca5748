# SPDX-License-Identifier: Apache-2.0
"""The same model on the same inputs in two places: how far apart, in codes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import RunRequest, make_runner
from tfq.config import EvaluationConfig
from tfq.data import as_split
from tfq.errors import InputError, RunnerError
from tfq.evaluation.inputs import Feed

DEFAULT_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class ParityRecord:
    """How far the outputs of two runners are apart.

    max_abs_error_lsb: largest distance of two codes, in LSB, over all integer outputs; None where there is none.
    num_different: of the `compared` output codes, how many are not equal.
    outputs: the same for each output: name, dtype, max_abs_error_lsb, max_abs_error (of a float output, in its own
        unit; of a quantized one None), num_different, compared.
    skipped: {output without codes: why it has no LSB}; its differences are in `outputs` alone.
    """

    runner_a: str
    runner_b: str
    max_abs_error_lsb: int | None
    num_different: int
    compared: int
    num_examples: int
    skipped: dict[str, str] = field(default_factory=dict)
    outputs: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return {**values, "outputs": list(values["outputs"])}

    def to_text(self) -> str:
        """For the terminal: one line."""
        pair = f"{self.runner_b} against {self.runner_a}"
        floats = [
            f"{output['name']}: max error {output['max_abs_error']:.3g}"
            for output in self.outputs
            if output["max_abs_error_lsb"] is None
        ]
        codes = f"max {self.max_abs_error_lsb} LSB, {self.num_different:,} of {self.compared:,} codes differ"
        parts = [*([codes] if self.compared else []), *floats, f"{self.num_examples:,} examples"]
        return f"{pair}: {', '.join(parts)}"


def compare_runners(
    model: bytes,
    data: Any,
    runner_a: str,
    runner_b: str,
    limit: int = DEFAULT_LIMIT,
    *,
    num_threads: int = 1,
    xnnpack: bool = True,
    num_workers: int = 0,
    timeout_secs: float = 0,
) -> ParityRecord:
    """Run `model` on the first `limit` examples (0: all) of `data` on both runners, and compare the raw outputs.

    data: what `evaluate_model` takes. Raises InputError on unknown runners and data that do not fit the model,
    RunnerError where one of them cannot run.
    """
    parsed = tflite.read(model)
    data = as_split(data, limit=limit)
    runners = [make_runner(runner_a), make_runner(runner_b)]
    for runner in runners:
        reason = runner.unavailable()
        if reason:
            raise RunnerError(f"{runner.name}: {reason}")
    request = RunRequest(
        model=model,
        inputs=Feed(parsed, data).inputs,
        num_threads=num_threads,
        kernels="xnnpack" if xnnpack else "builtin",
        num_workers=num_workers,
        timeout_secs=timeout_secs,
    )
    outputs_a, outputs_b = (runner.run(request).outputs for runner in runners)
    return compare_outputs(parsed.output_names, outputs_a, outputs_b, runner_a=runner_a, runner_b=runner_b)


def compare_outputs(
    names: Sequence[str], outputs_a: Sequence[NDArray], outputs_b: Sequence[NDArray], *, runner_a: str, runner_b: str
) -> ParityRecord:
    """The record of two runners' raw outputs, one array (n, ...) an output.

    Raises InputError on outputs of different shapes or dtypes, and on float outputs that hold NaN.
    """
    compared = [
        _compare_output(name, a, b, f"{runner_a} or {runner_b}")
        for name, a, b in zip(names, outputs_a, outputs_b, strict=True)
    ]
    codes = [output for output in compared if output["max_abs_error_lsb"] is not None]
    return ParityRecord(
        runner_a=runner_a,
        runner_b=runner_b,
        max_abs_error_lsb=max((output["max_abs_error_lsb"] for output in codes), default=None),
        num_different=sum(output["num_different"] for output in codes),
        compared=sum(output["compared"] for output in codes),
        num_examples=len(outputs_a[0]),
        skipped={
            output["name"]: f"a {output['dtype']} output has no LSB" for output in compared if output not in codes
        },
        outputs=tuple(compared),
    )


def _compare_output(name: str, a: NDArray, b: NDArray, runners: str) -> dict[str, Any]:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise InputError(
            f"output {name!r} is {a.dtype} {list(a.shape)} on one runner, {b.dtype} {list(b.shape)} on the other"
        )
    result: dict[str, Any] = {
        "name": name,
        "dtype": str(a.dtype),
        "max_abs_error_lsb": None,
        "max_abs_error": None,
        "num_different": int(np.count_nonzero(a != b)),
        "compared": int(a.size),
    }
    if a.dtype.kind in "iub":
        # Python's integers where int64 could overflow: the extremes of a difference are at the extremes of a type.
        wide = np.int64 if a.dtype.itemsize < 8 else object
        result["max_abs_error_lsb"] = int(np.abs(a.astype(wide) - b.astype(wide)).max(initial=0))
    else:
        different = np.abs(a[a != b].astype(np.float64) - b[a != b].astype(np.float64))
        if not np.isfinite(different).all():
            raise InputError(f"output {name!r} holds NaN or infinity on {runners}: there is no distance to it")
        result["max_abs_error"] = float(different.max(initial=0))
    return result


def compare_runners_or_reason(model: bytes, data: Any, config: EvaluationConfig, other: str) -> ParityRecord | str:
    """`compare_runners` of the config's runner and `other` on config.parity_limit examples; or why one cannot run here.

    A failure of a runner that is there is no such reason, and raises.
    """
    for name in (config.runner, other):
        reason = make_runner(name).unavailable()
        if reason:
            return reason
    limit = min(config.parity_limit, config.limit) if config.limit else config.parity_limit
    return compare_runners(
        model,
        data,
        config.runner,
        other,
        limit,
        num_threads=config.num_threads,
        xnnpack=config.xnnpack,
        num_workers=config.num_workers,
        timeout_secs=config.timeout_secs,
    )


def check_runners(config: EvaluationConfig) -> None:
    """Before long work: InputError on an unknown runner, RunnerError where the config's own cannot run here.

    Starts what the config's own runner will want, so that it is there when the data is.
    """
    for name in config.parity_runners:
        make_runner(name)
        if name == config.runner:
            raise InputError(
                f"parity_runners names {name}, which is the runner itself: name another one to compare with"
            )
    runner = make_runner(config.runner)
    reason = runner.unavailable()
    if reason:
        raise RunnerError(f"{runner.name}: {reason}")
    runner.prepare()
