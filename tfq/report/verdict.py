# SPDX-License-Identifier: Apache-2.0
"""The questions a reader asks first: did it work, what does it cost, does it meet its requirements?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.config import RequireConfig
from tfq.errors import TfqError
from tfq.evaluation import missed_requirements
from tfq.report.audit_content import findings_text, is_clean, verdict_of
from tfq.report.formatting import (
    DASH,
    NOT_A_TIME,
    accuracy_text,
    change_text,
    count,
    cpu_label,
    is_fraction,
    is_number,
    kilobytes,
    metric_word,
    millions,
    number_of,
    percent,
    plain,
    seconds,
    significant,
    time_unit,
)
from tfq.report.latency_content import ratio_of
from tfq.report.summary import REFERENCE, Record, Reported, benchmark_of, models_of, part, reference_of, warnings_of

GOOD, OPEN, BAD = "good", "open", "bad"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must hold before a model is shipped. state: GOOD, BAD, or OPEN where a reader has to judge."""

    state: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One number of the model that the run was for, and what it is to be compared with."""

    name: str
    value: str
    detail: str


def headline_of(record: Record) -> tuple[str, str]:
    """The verdict in a sentence, and its state: that of the worst check."""
    states = [check.state for check in checks_of(record)]
    bad, still_open = states.count(BAD), states.count(OPEN)
    if not models_of(record):
        return BAD, "No model was examined"
    if bad:
        return BAD, f"Not to be shipped: {number_of(bad, 'check')} failed"
    if still_open:
        return OPEN, f"Nothing failed; {number_of(still_open, 'point')} to look at"
    return GOOD, "Ready to ship: all that was asked for holds"


def checks_of(record: Record) -> list[Check]:
    """What was asked of the run and its models, in the order in which it can fail."""
    models = [model for model in models_of(record) if model.label != REFERENCE]
    checks = [
        _completeness(record),
        *_verifications(models),
        *_audits(record, models),
        _bounds(record, models),
        *_parities(models),
    ]
    message = warnings_of(record)
    answer = f"{number_of(len(message), 'warning')}: see below" if message else "none"
    return [*checks, Check(state=OPEN if message else GOOD, question="warnings", answer=answer)]


def costs_of(record: Record) -> list[Cost]:
    """The last model, which the run was for, against the float one; empty where there is nothing to compare."""
    models = models_of(record)
    if len(models) < 2:
        return []
    model, reference = models[-1], reference_of(models) or models[0]
    costs = [_accuracy_cost(model, reference), _size_cost(model, reference), _latency_cost(record, model, reference)]
    costs += [*_instruction_costs(model, reference)]
    return [cost for cost in costs if cost.value != DASH]


def subject_of(record: Record) -> str:
    """What the costs are about: "pruned + QAT int8 against float"."""
    models = models_of(record)
    if len(models) < 2:
        return ""
    return f"{models[-1].label} against {(reference_of(models) or models[0]).label}"


def _completeness(record: Record) -> Check:
    early = [
        message for message in map(plain, record.get("warnings") or []) if message.startswith("the run ended early")
    ]
    if early:
        return Check(state=BAD, question="run", answer=early[0])
    stages = [stage for stage in record.get("stages") or [] if not stage.get("skipped")]
    if not stages:
        return Check(state=OPEN, question="run", answer="the record holds no stages")
    total = seconds(sum(stage["seconds"] for stage in stages if is_number(stage.get("seconds"))))
    resumed = sum(bool(stage.get("resumed")) for stage in stages)
    kept = f"; {count(resumed)} taken from an earlier run" if resumed else ""
    return Check(state=GOOD, question="run", answer=f"{number_of(len(stages), 'stage')}, {total} of work{kept}")


def _verifications(models: Sequence[Reported]) -> Iterator[Check]:
    """Whether each model runs, and whether its outputs carry the float model's information."""
    for model in models:
        result = model.verification
        problems = [plain(part({"problem": item}, "problem").get("message")) for item in result.get("collapsed") or []]
        notes = [plain(part({"note": item}, "note").get("message")) for item in result.get("notes") or []]
        question = "outputs"
        if problems:
            yield Check(state=BAD, question=question, answer=f"{model.label} collapsed: {'; '.join(problems)}")
        elif not result:
            yield Check(state=OPEN, question=question, answer=f"{model.label}: not verified (conversion.verify is off)")
        elif not result.get("outputs"):
            yield Check(state=OPEN, question=question, answer=f"{model.label}: {'; '.join(notes) or 'not compared'}")
        else:
            answer = f"{model.label}: {_verified_text(result)}{''.join(f'; note: {note}' for note in notes)}"
            yield Check(state=GOOD, question=question, answer=answer)


def _verified_text(result: Record) -> str:
    """The lowest ratio of all outputs on so many samples."""
    ratios = [item.get("sqnr_db") for item in result["outputs"] if is_number(item.get("sqnr_db"))]
    lowest = f"{min(ratios):.1f} dB or more against float" if ratios else "as in float"
    return f"{lowest} on {number_of(result.get('num_samples') or 0, 'calibration sample')}"


def _audits(record: Record, models: Sequence[Reported]) -> Iterator[Check]:
    required = plain(part(part(record, "config"), "audit").get("require") or "")
    audited = [model for model in models if model.audit]
    if not audited:
        state = BAD if required else OPEN
        yield Check(state=state, question="audit", answer="no model was audited" if not models else "not audited")
        return
    clean = [model for model in audited if is_clean(model.audit)]
    for model in audited:
        if model not in clean:
            answer = f"{model.label}: {verdict_of(model.label, model.audit)}, findings: {findings_text(model.audit)}"
            answer += f"; required: {required}" if required else "; nothing was required"
            yield Check(state=BAD if required else OPEN, question="audit", answer=answer)
    if clean:
        by_verdict: dict[str, list[str]] = {}
        for model in clean:
            by_verdict.setdefault(verdict_of(model.label, model.audit), []).append(model.label)
        answer = "; ".join(f"{', '.join(labels)}: {verdict}" for verdict, labels in by_verdict.items())
        yield Check(state=GOOD, question="audit", answer=f"{answer}{', as required' if required else ''}")


def _bounds(record: Record, models: Sequence[Reported]) -> Check:
    asked = part(part(part(record, "config"), "evaluation"), "require")
    bounds = {name: bound for name, bound in asked.items() if bound is not None}
    if not bounds:
        answer = (
            "no bound was set, so how much loss is too much is the reader's to say: "
            "evaluation.require in the config sets one"
        )
        return Check(state=OPEN, question="bounds", answer=answer)
    message = ", ".join(f"{plain(name)} {significant(bound)}" for name, bound in bounds.items())
    missed = []
    for model in models:
        try:
            reasons = missed_requirements(model.evaluation, RequireConfig.from_dict(dict(asked)))
        except (TfqError, LookupError, TypeError, AttributeError):  # an older record, or another version's
            reasons = ["cannot be checked: the record lacks what the bound is about"]
        missed += [f"{model.label}: {plain(reason)}" for reason in reasons]
    if missed:
        return Check(state=BAD, question="bounds", answer="; ".join(missed))
    return Check(state=GOOD if models else BAD, question="bounds", answer=f"{message}: met" if models else "no model")


def _parities(models: Sequence[Reported]) -> Iterator[Check]:
    compared = [(model.label, backend, parity) for model in models for backend, parity in model.parity.items()]
    if not compared:
        yield Check(state=OPEN, question="other CPUs", answer="outputs were not compared with another CPU's")
        return
    for backend in dict.fromkeys(backend for _, backend, _ in compared):
        those = [(label, parity) for label, of_backend, parity in compared if of_backend == backend]
        reason = next((plain(parity["not_run"]) for _, parity in those if "not_run" in parity), None)
        errors = [parity.get("max_abs_error_lsb") for _, parity in those]
        known = [error for error in errors if is_number(error)]
        largest = max(known, default=0)
        if reason is not None:
            state, answer = OPEN, f"not run: {reason}"
        elif len(known) < len(errors):
            state, answer = OPEN, "outputs that are no codes: see the table"
        elif largest == 0:
            state, answer = GOOD, "every output code is the same as here"
        else:
            state = GOOD if largest <= 1 else OPEN
            different = sum(parity.get("num_different") or 0 for _, parity in those)
            total = sum(parity.get("compared") or 0 for _, parity in those)
            answer = f"{count(different)} of {count(total)} output codes differ, by {significant(largest)} LSB at most"
        yield Check(state=state, question=cpu_label(backend), answer=answer)


def _accuracy_cost(model: Reported, reference: Reported) -> Cost:
    ours, theirs = model.evaluation, reference.evaluation
    if is_number(ours.get("accuracy")):
        change = change_text(ours, theirs)
        detail = (
            DASH if change == DASH else f"{change} from {accuracy_text({**ours, 'accuracy': _accuracy(ours, theirs)})}"
        )
        name = "accuracy" if is_fraction(ours) else metric_word(ours)
        value = accuracy_text(ours) if is_fraction(ours) else accuracy_text(ours).removesuffix(f" {name}")
        return Cost(name=name, value=value, detail="" if detail == DASH else detail)
    return Cost(name="agreement", value=percent(ours.get("agreement")), detail="with the float model's answers")


def _accuracy(ours: Record, theirs: Record) -> float | None:
    reference = ours.get("reference_accuracy")
    return theirs.get("accuracy") if reference is None else reference


def _size_cost(model: Reported, reference: Reported) -> Cost:
    ours, theirs = model.evaluation.get("gzip_bytes"), reference.evaluation.get("gzip_bytes")
    detail = ""
    if is_number(ours) and is_number(theirs) and ours and theirs:
        larger, times = ours > theirs, max(ours, theirs) / min(ours, theirs)
        detail = f"{times:.1f}x {'larger' if larger else 'smaller'} than {kilobytes(theirs)}"
    return Cost(name="download, gzip", value=kilobytes(ours), detail=detail)


def _latency_cost(record: Record, model: Reported, reference: Reported) -> Cost:
    benchmark, timed = benchmark_of(record)
    name = f"latency, {plain(part(record, 'cpu').get('machine') or 'local')}"
    median = next((item["p50_ms"] for item in timed if item.get("name") == model.name), None)
    if median is None:
        ours, theirs = (item.evaluation.get("latency_p50_ms") for item in (model, reference))
        detail = f"{reference.label} {_time(theirs)}" if is_number(theirs) else ""
        return Cost(name=name, value=_time(ours), detail=detail)
    return Cost(name=name, value=_time(median), detail=ratio_of(benchmark, model.name, reference.name))


def _time(milliseconds: Any) -> str:
    unit = time_unit([milliseconds])
    return f"{unit.text(milliseconds)} {unit.short}" if is_number(milliseconds) else DASH


def _instruction_costs(model: Reported, reference: Reported) -> Iterator[Cost]:
    for backend, counted in model.instructions.items():
        ours, theirs = counted.get("instructions"), part(reference.instructions, backend).get("instructions")
        if is_number(ours) and ours:
            detail = NOT_A_TIME
            if is_number(theirs) and theirs:
                fewer = f"{theirs / ours:.2f}x fewer" if ours <= theirs else f"{ours / theirs:.2f}x more"
                detail = f"{fewer} than {reference.label}; {NOT_A_TIME}"
            yield Cost(name=f"{cpu_label(backend)} instructions", value=f"{millions(ours)} M", detail=detail)
