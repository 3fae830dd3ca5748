# SPDX-License-Identifier: Apache-2.0
"""The first screen of a report: whether the run succeeded, its main numbers, and every check."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.backends import HOST
from tfq.config import EvaluationConfig, RequireConfig
from tfq.errors import TfqError
from tfq.evaluation import missed_on_backends
from tfq.report.audit_content import findings_text, is_clean, verdict_of
from tfq.report.formatting import (
    DASH,
    NO_INTERVAL,
    NOT_A_TIME,
    accuracy_text,
    change_text,
    count,
    cpu_label,
    interval_text,
    is_fraction,
    is_number,
    is_within_noise,
    kilobytes,
    metric_title,
    millions,
    number_of,
    paired_interval_text,
    percent,
    plain,
    scalar,
    seconds,
    significant,
    time_unit,
)
from tfq.report.latency_content import ratio_of
from tfq.report.portability_content import difference_answer
from tfq.report.record import (
    REFERENCE,
    Record,
    Reported,
    further_epochs,
    latencies_of,
    models_of,
    part,
    reference_of,
    self_tests_of,
    stages_of,
    warnings_of,
)
from tfq.report.summary import further_text

GOOD, OPEN, BAD = "good", "open", "bad"
STATE_WORDS = {GOOD: "passed", OPEN: "to decide", BAD: "failed"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One condition for shipping a model.

    Attributes:
        key: Identifies the check: "run", "outputs", "audit", "requirements", "backends", "bundle" or "warnings".
        state: GOOD, BAD, or OPEN if the reader has to decide.
        question: What was checked, in a few words.
        answer: The result.
    """

    key: str
    state: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One main number of the last model.

    Attributes:
        key: Identifies it: "accuracy", "size", "latency" or "instructions".
        name: What it is.
        value: With its unit.
        details: Its interval, how it compares with the float model, and what limits the comparison.
    """

    key: str
    name: str
    value: str
    details: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The first screen of a page.

    Attributes:
        state: GOOD, BAD, or OPEN if the reader has to decide.
        headline: The verdict in one sentence.
        subject: What the costs are about; "" if there are none.
        costs: The main numbers.
        checks: The conditions, failed ones first.
    """

    state: str
    headline: str
    subject: str = ""
    costs: tuple[Cost, ...] = ()
    checks: tuple[Check, ...] = ()


def verdict_of_run(record: Record) -> Verdict:
    """Return the verdict on a run: whether to ship its last model."""
    state, headline = headline_of(record)
    costs, checks = tuple(costs_of(record)), tuple(checks_of(record))
    return Verdict(state=state, headline=headline, subject=subject_of(record), costs=costs, checks=checks)


def verdict_of_requirements(record: Record) -> Verdict | None:
    """Return the verdict on the requirements in a record; None if nothing was required."""
    items = [item for item in record.get("requirements") or [] if isinstance(item, Mapping)]
    if not items:
        return None
    checks = []
    for item in items:
        where = f"{plain(item['model'])}: " if item.get("model") else ""
        reason = f": {plain(item['reason'])}" if item.get("reason") else ""
        answer = f"{where}required {_bound_text(item.get('bound'))}, got {_bound_text(item.get('value'))}{reason}"
        state = GOOD if item.get("holds") is True else BAD
        checks.append(Check(key="requirement", state=state, question=plain(item.get("name", "?")), answer=answer))
    missed = sum(check.state == BAD for check in checks)
    met = "The requirement is met" if len(checks) == 1 else f"All {len(checks)} requirements are met"
    return Verdict(
        state=BAD if missed else GOOD,
        headline=f"{number_of(missed, 'requirement')} not met" if missed else met,
        checks=tuple(sorted(checks, key=lambda check: check.state != BAD)),
    )


def _bound_text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else scalar(value)


def headline_of(record: Record) -> tuple[str, str]:
    """Return (the state of the worst check, the verdict in one sentence)."""
    states = [check.state for check in checks_of(record)]
    bad, still_open = states.count(BAD), states.count(OPEN)
    if not models_of(record):
        return BAD, "The run produced no model"
    if bad:
        return BAD, f"Do not ship: {number_of(bad, 'check')} failed"
    if still_open:
        return OPEN, f"No check failed; {number_of(still_open, 'point')} for you to decide"
    return GOOD, "Ready to ship: all checks passed"


def checks_of(record: Record) -> list[Check]:
    """Return all checks of the run and of its models, failed ones first, then open ones."""
    models = [model for model in models_of(record) if model.label != REFERENCE]
    messages = warnings_of(record)
    checks = [
        _completeness(record),
        *_verifications(models),
        *_audits(record, models),
        _requirements(record, models),
        *_backends(models),
        *_bundle(record),
        Check(
            key="warnings",
            state=OPEN if messages else GOOD,
            question="warnings",
            answer=f"{number_of(len(messages), 'warning')}, listed below" if messages else "none",
        ),
    ]
    return sorted(checks, key=lambda check: (BAD, OPEN, GOOD).index(check.state))


def costs_of(record: Record) -> list[Cost]:
    """Return the main numbers of the last model, compared with the float model; none if there is only one model."""
    models = models_of(record)
    if len(models) < 2:
        return []
    model, reference = models[-1], reference_of(models) or models[0]
    costs = [
        _accuracy_cost(record, model, reference),
        _size_cost(model, reference),
        _latency_cost(record, model, reference),
        *_instruction_costs(model, reference),
    ]
    return [cost for cost in costs if cost.value != DASH]


def subject_of(record: Record) -> str:
    """Return what the main numbers are about: "pruned + QAT int8 compared with float"; "" if there are none."""
    models = models_of(record)
    if len(models) < 2:
        return ""
    return f"{models[-1].label} compared with {(reference_of(models) or models[0]).label}"


def _completeness(record: Record) -> Check:
    key, question = "run", "run"
    early = [
        message for message in map(plain, record.get("warnings") or []) if message.startswith("the run ended early")
    ]
    if early:
        return Check(key=key, state=BAD, question=question, answer=early[0])
    stages = [stage for stage in stages_of(record) if not stage.get("skipped")]
    if not stages:
        return Check(key=key, state=OPEN, question=question, answer="the record has no stages")
    total = seconds(sum(stage["seconds"] for stage in stages if is_number(stage.get("seconds"))))
    resumed = sum(bool(stage.get("resumed")) for stage in stages)
    reused = f"; {count(resumed)} reused from an earlier run" if resumed else ""
    answer = f"complete: {number_of(len(stages), 'stage')}, {total} of computation{reused}"
    return Check(key=key, state=GOOD, question=question, answer=answer)


def _verifications(models: Sequence[Reported]) -> Iterator[Check]:
    """Yield for each model whether it runs and whether its outputs still carry the float model's information."""
    for model in models:
        result = model.verification
        problems = [plain(part({"problem": item}, "problem").get("message")) for item in result.get("collapsed") or []]
        notes = [plain(part({"note": item}, "note").get("message")) for item in result.get("notes") or []]
        if problems:
            state, answer = BAD, f"collapsed: {'; '.join(problems)}"
        elif not result:
            state, answer = OPEN, "not compared with the float model: conversion.verify is off"
        elif not result.get("outputs"):
            state, answer = OPEN, "; ".join(notes) or "not compared with the float model"
        else:
            state, answer = GOOD, f"{_verified_text(result)}{''.join(f'; note: {note}' for note in notes)}"
        yield Check(key="outputs", state=state, question="outputs", answer=f"{model.label}: {answer}")


def _verified_text(result: Record) -> str:
    """Return the lowest signal-to-error ratio of all outputs."""
    ratios = [item.get("sqnr_db") for item in result["outputs"] if is_number(item.get("sqnr_db"))]
    samples = number_of(result.get("num_samples") or 0, "calibration sample")
    if not ratios:
        return f"identical to its float version on {samples}"
    return f"SQNR {min(ratios):.1f} dB against its float version on {samples}"


def _audits(record: Record, models: Sequence[Reported]) -> Iterator[Check]:
    key, question = "audit", "op types"
    required = plain(part(part(record, "config"), "audit").get("require") or "")
    audited = [model for model in models if model.audit]
    if not audited:
        state = BAD if required else OPEN
        yield Check(key=key, state=state, question=question, answer="not audited" if models else "no model to audit")
        return
    clean = [model for model in audited if is_clean(model.audit)]
    for model in audited:
        if model not in clean:
            answer = f"{model.label}: {verdict_of(model.label, model.audit)}, findings: {findings_text(model.audit)}"
            answer += f"; required: {required}" if required else "; nothing was required (audit.require)"
            yield Check(key=key, state=BAD if required else OPEN, question=question, answer=answer)
    if clean:
        by_verdict: dict[str, list[str]] = {}
        for model in clean:
            by_verdict.setdefault(verdict_of(model.label, model.audit), []).append(model.label)
        answer = "; ".join(f"{', '.join(labels)}: {verdict}" for verdict, labels in by_verdict.items())
        yield Check(key=key, state=GOOD, question=question, answer=f"{answer}{', as required' if required else ''}")


def _requirements(record: Record, models: Sequence[Reported]) -> Check:
    key, question = "requirements", "requirements"
    evaluation = part(part(record, "config"), "evaluation")
    required = part(evaluation, "require")
    bounds = {name: bound for name, bound in required.items() if bound is not None}
    if not bounds:
        answer = (
            "no limit on the loss of accuracy was set. To have one checked, repeat the run with a limit, such as "
            "evaluation.require.max_accuracy_drop=0.01 for one percentage point"
        )
        return Check(key=key, state=OPEN, question=question, answer=answer)
    listed = ", ".join(f"{plain(name)} {significant(bound)}" for name, bound in bounds.items())
    missed = []
    for model in models:
        try:
            settings = EvaluationConfig(
                require=RequireConfig.from_dict(dict(required)), backends=tuple(evaluation.get("backends") or ())
            )
            reasons = missed_on_backends(model.evaluation, model.portability, settings, model.digest)
        except (TfqError, LookupError, TypeError, AttributeError):  # an older record, or one of another version
            reasons = ["cannot be checked: the record has no such value"]
        missed += [f"{model.label}: {plain(reason)}" for reason in reasons]
    if missed:
        return Check(key=key, state=BAD, question=question, answer="; ".join(missed))
    answer = f"met: {listed}" if models else "no model to check"
    return Check(key=key, state=GOOD if models else BAD, question=question, answer=answer)


def _backends(models: Sequence[Reported]) -> Iterator[Check]:
    rows = [(model, backend, row) for model in models for backend, row in model.backends.items() if backend != HOST]
    if not rows:
        answer = "not run on another backend (evaluation.backends)"
        yield Check(key="backends", state=OPEN, question="other backends", answer=answer)
        return
    for backend in dict.fromkeys(backend for _, backend, _ in rows):
        own = [(model, row) for model, name, row in rows if name == backend]
        reasons = [f"{model.label}: {plain(row['reason'])}" for model, row in own if row.get("reason")]
        failed = any(row.get("status") == "failed" for _, row in own)
        if reasons:
            state, answer = OPEN, f"{'does not run' if failed else 'not run'}: {'; '.join(reasons)}"
        elif all(row.get("how") == "estimated" for _, row in own):
            state, answer = GOOD, "costs are estimated; nothing was executed"
        else:
            is_rounding, answer = difference_answer(own)
            state = GOOD if is_rounding else OPEN
        yield Check(key="backends", state=state, question=cpu_label(backend), answer=answer)


def _bundle(record: Record) -> Iterator[Check]:
    """Yield whether the self-tests of the app bundle passed, if the run wrote one."""
    tests = self_tests_of(record)
    if not tests:
        return
    failed = [test for test in tests if test.get("status") == "failed"]
    answers = [
        f"{plain(test.get('name'))}: {plain(test.get('status'))}"
        + (f" ({plain(test.get('detail'))})" if test.get("status") != "passed" else "")
        for test in failed or tests
    ]
    yield Check(key="bundle", state=BAD if failed else GOOD, question="app bundle", answer="; ".join(answers))


def _accuracy_cost(record: Record, model: Reported, reference: Reported) -> Cost:
    ours, theirs = model.evaluation, reference.evaluation
    if not is_number(ours.get("accuracy")):
        value, meaning = percent(ours.get("agreement")), "of the predicted classes are the float model's"
        return Cost(key="accuracy", name="agreement", value=value, details=(meaning,))
    name = metric_title(ours) if ours.get("metric") else "accuracy"
    name = f"{name} accuracy" if is_fraction(ours) and name.startswith("top-") else name
    value = accuracy_text(ours) if is_fraction(ours) else accuracy_text(ours).removesuffix(f" {name}")
    interval = interval_text(ours)
    details = [interval if interval == NO_INTERVAL else f"95% interval {interval}"]
    if (change := change_text(ours, theirs)) != DASH:
        details.append(f"{reference.label} {accuracy_text({**ours, 'accuracy': _reference_accuracy(ours, theirs)})}")
        paired = paired_interval_text(ours)
        paired = paired if paired == NO_INTERVAL else f"95% interval {paired}"
        noise = ", not significant" if is_within_noise(ours) else ""
        details.append(f"difference {change} ({paired}){noise}")
    if steps := further_epochs(record, model):
        details.append(
            f"trained for {further_text(steps)} than {reference.label}; no float model with the same training to "
            "compare with"
        )
    return Cost(key="accuracy", name=name, value=value, details=tuple(details))


def _reference_accuracy(ours: Record, theirs: Record) -> float | None:
    reference = ours.get("reference_accuracy")
    return theirs.get("accuracy") if reference is None else reference


def _size_cost(model: Reported, reference: Reported) -> Cost:
    ours, theirs = model.evaluation.get("gzip_bytes"), reference.evaluation.get("gzip_bytes")
    details = []
    if is_number(ours) and is_number(theirs) and ours and theirs:
        larger, times = ours > theirs, max(ours, theirs) / min(ours, theirs)
        details = [f"{times:.1f}x {'larger' if larger else 'smaller'} than {reference.label} ({kilobytes(theirs)})"]
    return Cost(key="size", name="download size (gzip)", value=kilobytes(ours), details=tuple(details))


def _latency_cost(record: Record, model: Reported, reference: Reported) -> Cost:
    latencies = latencies_of(record)
    ours, theirs = (latencies.medians_ms.get(item.name) for item in (model, reference))
    kernels = latencies.rows.get(model.name, {}).get("kernels")
    ratio = ratio_of(part(record, "benchmark"), model.name, reference.name, kernels)
    details = [ratio] if ratio else []
    if is_number(theirs):
        details += [f"{reference.label} {_time(theirs)}", *([] if ratio else [NO_INTERVAL])]
    name = f"latency on this machine ({plain(part(record, 'cpu').get('machine') or 'local')})"
    return Cost(key="latency", name=name, value=_time(ours), details=tuple(details))


def _time(milliseconds: Any) -> str:
    unit = time_unit([milliseconds])
    return f"{unit.text(milliseconds)} {unit.short}" if is_number(milliseconds) else DASH


def _instruction_costs(model: Reported, reference: Reported) -> Iterator[Cost]:
    for backend, counted in model.instructions.items():
        ours, theirs = counted.get("instructions"), part(reference.instructions, backend).get("instructions")
        if is_number(ours) and ours:
            details = [NOT_A_TIME]
            if is_number(theirs) and theirs:
                fewer = f"{theirs / ours:.2f}x fewer" if ours <= theirs else f"{ours / theirs:.2f}x more"
                details.insert(0, f"{fewer} than {reference.label}")
            name = f"instructions on {cpu_label(backend)}"
            yield Cost(key="instructions", name=name, value=f"{millions(ours)} M", details=tuple(details))
