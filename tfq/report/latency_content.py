# SPDX-License-Identifier: Apache-2.0
"""The sections on speed: latency on this machine, and instructions on emulated ARM CPUs."""

from collections.abc import Sequence
from typing import Any

from tfq.report.formatting import (
    DASH,
    NOT_A_TIME,
    count,
    cpu_label,
    is_number,
    kilobytes,
    millions,
    model_label,
    number_of,
    percent,
    plain,
    ratio,
    scalar,
    significant,
    time_unit,
)
from tfq.report.record import (
    REFERENCE,
    Record,
    Reported,
    backends_of,
    benchmark_of,
    models_of,
    part,
    reference_of,
    series_of,
)
from tfq.report.tables import Bars, Reasons, Section, Table, fractions


def instructions_section(record: Record) -> Section | None:
    """Return the section on instructions per inference, by model and CPU; None if the record has no counts."""
    models = models_of(record)
    backends = backends_of(models, "instructions")
    if not backends:
        return None
    reference = reference_of(models)
    counts = {
        (model.label, backend): part(model.instructions, backend).get("instructions")
        for model in models
        for backend in backends
    }
    reasons, rows = Reasons(), []
    for model in models:
        cells = []
        for backend in backends:
            counted = part(model.instructions, backend)
            cells += [millions(counted.get("instructions")), _against(counts, model, reference, backend)]
            if cells[-2] == DASH:
                reason = f"not run: {plain(counted['not_run'])}" if "not_run" in counted else "not counted"
                reasons.add(cpu_label(backend), model.label, reason)
        rows.append((model.label, *cells))
    ways = {plain(item["by"]) for model in models for item in model.instructions.values() if item.get("by")}
    cpus = [cpu_label(backend) for backend in backends]
    table = Table(
        key="instructions",
        columns=("model", *(f"{cpu}{title}" for cpu in cpus for title in (", M", ", fewer than float"))),
        rows=tuple(rows),
        caption="Millions of instructions per inference",
        row_series=tuple(model.series for model in models),
        notes=(*reasons.notes(), *(f"counted by {way}" for way in sorted(ways))),
    )
    about = (
        f"Instructions that one inference executes on an emulated ARM CPU: {NOT_A_TIME}. The count is the same in each "
        "run and shows which model needs less work. The time on a device also depends on its memory and clock."
    )
    gist = "a count, not a time" if any(is_number(value) for value in counts.values()) else "not run: see the reasons"
    return Section(key="instructions", title="ARM instructions", gist=gist, paragraphs=(about,), tables=(table,))


def _against(counts: dict[tuple[str, str], Any], model: Reported, reference: Reported | None, backend: str) -> str:
    ours = counts[model.label, backend]
    theirs = counts.get((reference.label, backend)) if reference else None
    return ratio(theirs / ours) if is_number(ours) and is_number(theirs) and ours else DASH


_MOST_OPS = 8


def latency_section(record: Record) -> Section:
    """Return the section on latency: distributions, ratios with their intervals, and the most expensive ops.

    The latencies that the evaluation measured are shown only if there is no benchmark: see `latencies_of`.
    """
    benchmark, timed = benchmark_of(record)
    about, tables = [], []
    gist = ""
    if timed:
        threads = benchmark.get("num_threads")
        words = [scalar(benchmark.get("backend")), *_kernels(timed)]
        words += [number_of(threads, "thread")] if is_number(threads) else []
        gist = "distributions, comparisons with intervals, most expensive ops"
        about.append(
            f"The models were timed in turns, so that a change in the machine's speed affects all of them: "
            f"{', '.join(words)}."
        )
        if gains := _gains(timed):
            about.append(gains)
        ops, reasons = _op_tables(record, timed)
        tables += [_timings(record, timed, reasons), *_work(record, timed), *_throughput(record, benchmark)]
        tables += [*_memory(record, timed), *_ratios(record, benchmark, timed), *ops]
    else:
        reasons_known = [benchmark.get("not_run"), *(item.get("time_reason") for item in benchmark.get("models") or [])]
        reason = next((plain(item) for item in reasons_known if item), "the record has no benchmark")
        gist = f"benchmark not run: {reason.removeprefix('not measured: ')}"
        about.append(f"{gist[0].upper()}{gist[1:]}.")
        if evaluated := _while_evaluating(models_of(record)):
            tables.append(evaluated)
    return Section(key="latency", title="Latency", gist=gist, paragraphs=tuple(about), tables=tuple(tables))


def evaluated_latency_section(record: Record) -> Section | None:
    """Return the latencies that an evaluation measured; None if it has none."""
    table = _while_evaluating(models_of(record))
    return None if table is None else Section(key="latency", title="Latency", tables=(table,), folded=False)


def _kernels(timed: Sequence[Record]) -> list[str]:
    """Return the kernels as a list of one, if they are the same in all rows; else an empty list."""
    names = {kernels_word(model.get("kernels")) for model in timed}
    return [f"{names.pop()} kernels"] if len(names) == 1 else []


def _timings(record: Record, timed: Sequence[Record], reasons: Reasons) -> Table:
    several, unit = not _kernels(timed), time_unit(model.get("p50_ms") for model in timed)
    rows = tuple(
        (
            model_label(model.get("name", "?")),
            *([kernels_word(model.get("kernels"))] if several else []),
            *(unit.text(model.get(key)) for key in ("initialization_ms", "first_ms")),
            f"{unit.text(model.get('mean_ms'))} ± {unit.text(model.get('std_ms'), 2)}",
            *(unit.text(model.get(key)) for key in ("p50_ms", "p90_ms", "p99_ms", "overhead_ms")),
            count(model.get("num_runs")),
        )
        for model in timed
    )
    names = ("model", *(["kernels"] if several else []))
    return Table(
        key="timings",
        columns=(*names, "init", "first", "mean ± std", "p50", "p90", "p99", "overhead", "runs"),
        rows=rows,
        numeric=(*(False for _ in names), *[True] * 8),
        caption=f"{unit.word} per inference",
        row_series=tuple(series_of(record, model.get("name")) for model in timed),
        notes=(
            "overhead: time that setting the inputs, reading the outputs and the loop add to each inference; the other "
            "columns are the interpreter's time alone",
            *reasons.notes(),
        ),
    )


def _reference(counted: Sequence[Record]) -> Record:
    return next((model for model in counted if model_label(model.get("name", "?")) == REFERENCE), {})


def _gain(reference: Record, model: Record) -> tuple[str, str, str]:
    """Return how many times smaller the file is, how much less traffic it has, and how much faster it is."""
    work = part(model, "workload")
    return (
        _times_less(reference.get("model_bytes"), model.get("model_bytes")),
        _times_less(part(reference, "workload").get("bytes_moved"), work.get("bytes_moved")),
        _times_less(reference.get("mean_ms"), model.get("mean_ms")),
    )


def _gains(timed: Sequence[Record]) -> str:
    """Return what the last model gains over the float one, next to what int8 is often said to gain; "" if unknown."""
    counted = [model for model in timed if part(model, "workload")]
    reference = _reference(counted)
    others = [model for model in counted if model_label(model.get("name", "?")) != REFERENCE]
    others = [model for model in others if model.get("kernels") == reference.get("kernels")]
    if not reference or not others:
        return ""
    size, traffic, speed = _gain(reference, others[-1])
    return (
        "int8 is often said to make a file 4x smaller, to need 4x less memory bandwidth, and to be 2x to 4x faster. "
        f"For {model_label(others[-1].get('name', '?'))}, the figures are {size} smaller, {traffic} less traffic, and "
        f"{speed} as fast, compared with float."
    )


def _work(record: Record, timed: Sequence[Record]) -> list[Table]:
    """Return the counted work of each model, and how much smaller, lighter and faster it is than the float model."""
    counted = [model for model in timed if part(model, "workload")]
    if not counted:
        return []
    reference = _reference(counted)
    rows = []
    for model in counted:
        work = part(model, "workload")
        rows.append(
            (
                model_label(model.get("name", "?")),
                *([kernels_word(model.get("kernels"))] if not _kernels(timed) else []),
                millions(work.get("multiply_adds")),
                millions(work.get("bytes_moved")),
                significant(work.get("intensity")),
                significant(model.get("examples_per_second")),
                *(_gain(reference, model) if reference else []),
            )
        )
    names = ("model", *(["kernels"] if not _kernels(timed) else []))
    columns = ("M multiply-adds", "MB moved", "multiply-adds per byte", "examples per second")
    gains = ("smaller file", "less traffic", "faster") if reference else ()
    return [
        Table(
            key="work",
            columns=(*names, *columns, *gains),
            rows=tuple(rows),
            numeric=(*(False for _ in names), *[True] * len(columns + gains)),
            caption=f"Work of one inference{', and gain over the float model' if reference else ''}",
            row_series=tuple(series_of(record, model.get("name")) for model in counted),
            notes=(
                "multiply-adds and MB moved: counted from the shapes of the ops; each byte counts whenever an op reads "
                "or writes it, as if nothing stayed in a cache",
                *(["faster: ratio of the mean latencies on this machine"] if reference else []),
            ),
        )
    ]


def _throughput(record: Record, benchmark: Record) -> list[Table]:
    """Return examples per second by batch size and number of threads; no table if none were measured."""
    items = benchmark.get("throughput") or []
    if not items:
        return []
    threads = list(dict.fromkeys(item.get("num_threads") for item in items))
    cells = {tuple(item.get(key) for key in ("name", "kernels", "batch", "num_threads")): item for item in items}
    lines = list(dict.fromkeys(key[:3] for key in cells))
    reasons = Reasons()
    for item in items:
        if item.get("reason"):
            reasons.add(f"batch {count(item.get('batch'))}", model_label(item.get("name", "?")), plain(item["reason"]))
    return [
        Table(
            key="throughput",
            columns=("model", "kernels", "batch", *(number_of(number, "thread") for number in threads)),
            rows=tuple(
                (
                    model_label(name),
                    kernels_word(kernels),
                    count(batch),
                    *(
                        significant(cells.get((name, kernels, batch, number), {}).get("examples_per_second"))
                        for number in threads
                    ),
                )
                for name, kernels, batch in lines
            ),
            numeric=(False, False, *[True] * (1 + len(threads))),
            caption="Examples per second by batch size and threads",
            row_series=tuple(series_of(record, name) for name, _, _ in lines),
            notes=tuple(reasons.notes()),
        )
    ]


def _memory(record: Record, timed: Sequence[Record]) -> list[Table]:
    """Return the memory of each model; no table if the backend reports none."""
    measured = [model for model in timed if part(part(model, "costs"), "memory_bytes")]
    if not measured:
        return []
    keys = ("peak_rss", "peak_rss.before_the_model", "xnnpack_packed_weights")
    notes = [plain(note) for model in measured for note in part(model, "costs").get("notes") or []]
    return [
        Table(
            key="memory",
            columns=("model", "kernels", "peak RSS, MB", "before the model, MB", "packed weights, kB"),
            rows=tuple(
                (
                    model_label(model.get("name", "?")),
                    kernels_word(model.get("kernels")),
                    *(millions(part(part(model, "costs"), "memory_bytes").get(key)) for key in keys[:2]),
                    kilobytes(part(part(model, "costs"), "memory_bytes").get(keys[2])).removesuffix(" kB"),
                )
                for model in measured
            ),
            numeric=(False, False, True, True, True),
            caption="Memory of one inference in a separate process",
            row_series=tuple(series_of(record, model.get("name")) for model in measured),
            notes=(
                "peak RSS: largest resident memory of the process; before the model: what Python, NumPy and LiteRT "
                "need without a model",
                "packed weights: copies of the constants in the layout of XNNPACK's kernels, in addition to the file",
                *dict.fromkeys(notes),
            ),
        )
    ]


def _times_less(before: Any, after: Any) -> str:
    return ratio(before / after) if is_number(before) and is_number(after) and after else DASH


def _ratios(record: Record, benchmark: Record, timed: Sequence[Record]) -> list[Table]:
    ratios = [item for item in benchmark.get("ratios") or [] if is_number(item.get("ratio"))]
    if not ratios:
        return []
    several = not _kernels(timed)
    rows = tuple(
        (
            _on_kernels(item.get("against"), item.get("kernels"), several),
            _on_kernels(item.get("model"), item.get("model_kernels", item.get("kernels")), several),
            ratio(item["ratio"]),
            _interval(item),
            _meaning(item),
        )
        for item in ratios
    )
    reasons = {plain(item["reason"]) for item in ratios if item.get("reason")}
    confidence = ratios[0].get("confidence")
    interval = f"{100 * confidence:g}% interval" if is_number(confidence) else "interval"
    return [
        Table(
            key="ratios",
            columns=("model", "compared with", "time ratio", interval, "meaning"),
            rows=rows,
            numeric=(False, False, True, True, False),
            caption="Time relative to another model",
            row_series=tuple(series_of(record, item.get("against")) for item in ratios),
            notes=(
                "ratio: mean times of blocks that were timed in turns; it can differ from the ratio of the medians",
                *(f"no interval: {reason}" for reason in sorted(reasons)),
            ),
        )
    ]


def _on_kernels(name: Any, kernels: Any, several: bool) -> str:
    label = model_label("?" if name is None else name)
    return f"{label}, {kernels_word(kernels)}" if several else label


def _interval(item: Record) -> str:
    low, high = item.get("low"), item.get("high")
    return f"{low:.2f} to {high:.2f}" if is_number(low) and is_number(high) else DASH


def _meaning(item: Record) -> str:
    low, high, value = (item.get(key) for key in ("low", "high", "ratio"))
    if not (is_number(value) and value > 0):
        return DASH
    if is_number(low) and is_number(high) and low <= 1 <= high:
        return "no significant difference"
    return f"{1 / value:.2f}x faster" if value < 1 else f"{value:.2f}x slower"


def ratio_of(benchmark: Record, model: Any, reference: Any, kernels: Any = None) -> str:
    """Return how a model's time compares with the reference's: "1.52x faster than float (means ...)".

    The ratio is that of the mean times of blocks that were timed in turns, so it can differ from that of the medians.

    Args:
        benchmark: Part of the record.
        model: Name of the model.
        reference: Name of the reference.
        kernels: The kernels that both used; None accepts any.

    Returns:
        The text, or "" if the benchmark has no such ratio.
    """
    for item in benchmark.get("ratios") or []:
        same = (item.get("against"), item.get("model")) == (model, reference)
        both = {item.get("kernels"), item.get("model_kernels", item.get("kernels"))}
        if same and (kernels is None or both == {kernels}) and is_number(item.get("ratio")):
            meaning, low, high = _meaning(item), item.get("low"), item.get("high")
            if meaning.startswith("no "):
                return f"{meaning} from {model_label(reference)}"
            meaning += f" than {model_label(reference)}"
            if is_number(low) and is_number(high) and low > 0:
                edges = (1 / high, 1 / low) if item["ratio"] < 1 else (low, high)
                confidence = item.get("confidence")
                percent_of = f"{100 * confidence:g}% " if is_number(confidence) else ""
                meaning += f" (means of paired blocks, {percent_of}interval {edges[0]:.2f} to {edges[1]:.2f})"
            return meaning
    return ""


def _op_tables(record: Record, timed: Sequence[Record]) -> tuple[list[Table], Reasons]:
    """Return the most expensive ops of each model, and for other models why there are none."""
    tables: list[Table] = []
    reasons = Reasons()
    for model in timed:
        label = _on_kernels(model.get("name"), model.get("kernels"), not _kernels(timed))
        ops = sorted((op for op in model.get("ops") or [] if is_number(op.get("ms"))), key=lambda op: -op["ms"])
        if ops:
            by = "" if tables else plain(model.get("ops_by") or "")
            tables.append(_op_table(label, ops, series_of(record, model.get("name")), by))
        elif model.get("ops_reason"):
            reasons.add("times of ops", label, plain(model["ops_reason"]))
    return tables, reasons


def _op_table(label: str, ops: Sequence[Record], series: int, by: str) -> Table:
    shown, further = ops[:_MOST_OPS], ops[_MOST_OPS:]
    unit = time_unit(op["ms"] for op in shown)
    rows = tuple(
        (
            plain(op.get("name") or DASH) + (f" #{plain(op['index'])}" if is_number(op.get("index")) else ""),
            plain(op.get("keras_layer") or DASH),
            unit.text(op["ms"]),
            percent(op.get("fraction")),
        )
        for op in shown
    )
    bars = tuple((value,) for value in fractions([op["ms"] for op in shown]))
    rest = sum(op["fraction"] for op in further if is_number(op.get("fraction")))
    notes = []
    if by:
        notes.append(f"timed by {by}; a separate measurement, so that the times need not add up to the latency")
    if further:
        notes.append(f"{number_of(len(further), 'further op')}, {percent(rest)} of the time, in report.json")
    return Table(
        key="ops",
        columns=("op", "layer", unit.short, "of all ops"),
        rows=rows,
        numeric=(False, False, True, True),
        caption=f"Most expensive ops of {label}",
        notes=tuple(notes),
        bars=(Bars(before=2, title="time", rows=bars, series=(series,)),),
    )


def _while_evaluating(models: Sequence[Reported]) -> Table | None:
    measured = [model for model in models if model.evaluation]
    keys = {
        "first": "latency_first_ms",
        "mean": "latency_mean_ms",
        "std": "latency_std_ms",
        "p50": "latency_p50_ms",
        "p90": "latency_p90_ms",
        "p99": "latency_p99_ms",
    }
    shown = {
        title: key
        for title, key in keys.items()
        if title.startswith("p") or any(is_number(model.evaluation.get(key)) for model in measured)
    }
    if not measured:
        return None
    unit = time_unit(model.evaluation.get("latency_p50_ms") for model in measured)
    reasons = Reasons()
    for model in measured:
        if not is_number(model.evaluation.get("latency_p50_ms")):
            reasons.add("latency", model.label, plain(model.evaluation.get("latency_reason") or ""))
    rows = tuple(
        (
            model.label,
            scalar(model.evaluation.get("backend")),
            kernels_text(model.evaluation),
            scalar(model.evaluation.get("num_threads")),
            *(unit.text(model.evaluation.get(key)) for key in shown.values()),
        )
        for model in measured
    )
    return Table(
        columns=("model", "backend", "kernels", "threads", *shown),
        rows=rows,
        numeric=(False, False, False, True, *[True] * len(shown)),
        key="evaluated",
        caption=f"{unit.word} per inference, measured during the evaluation, one model after another",
        row_series=tuple(model.series for model in measured),
        notes=reasons.notes(),
    )


def kernels_text(evaluation: Record) -> str:
    """Return the kernels that ran, from `kernels` of the record, or from `xnnpack` of an older one."""
    if evaluation.get("kernels"):
        return kernels_word(evaluation["kernels"])
    xnnpack = evaluation.get("xnnpack")
    return DASH if xnnpack is None else "XNNPACK" if xnnpack else "builtin"


def kernels_word(kernels: Any) -> str:
    """Return the name of kernels for readers: "xnnpack" -> "XNNPACK"."""
    return "XNNPACK" if kernels == "xnnpack" else scalar(kernels)
