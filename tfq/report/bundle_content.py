# SPDX-License-Identifier: Apache-2.0
"""The section on an app bundle, and the pages of the records of `tfq export`."""

from tfq.report.formatting import number_of, plain
from tfq.report.kinds import RecordKind, register
from tfq.report.record import Record, part, self_tests_of
from tfq.report.tables import Section, Table


def bundle_text(record: Record, out: str) -> str:
    """Return the path of the bundle of a run in `out` and its self-tests for the terminal; "" if there is none."""
    folder = part(record, "bundle").get("folder")
    if not folder:
        return ""
    tests = (f"{plain(test.get('name', '?'))} {plain(test.get('status', '?'))}" for test in self_tests_of(record))
    return f"{out}/{plain(folder)} (self-tests: {', '.join(tests) or 'none'})"


def bundle_section(record: Record, *, folded: bool = True) -> Section | None:
    """Return the section with links to the bundle, its self-tests and what it lacks; None if there is no bundle."""
    bundle = part(record, "bundle")
    if not bundle:
        return None
    tests = self_tests_of(record)
    golden, platforms = part(bundle, "golden"), [plain(name) for name in bundle.get("platforms") or ()]
    rows = tuple(tuple(plain(test.get(key, "?")) for key in ("name", "status", "detail")) for test in tests)
    table = Table(
        key="self_tests",
        caption="Self-tests on the machine that wrote the bundle",
        columns=("self-test", "result", "details"),
        rows=rows,
        numeric=(False, False, False),
        bad=frozenset((at, 1) for at, test in enumerate(tests) if test.get("status") == "failed"),
    )
    of_model = f" of {plain(bundle['model'])}" if bundle.get("model") else ""
    kind = "" if golden.get("is_real") else " They say nothing about real inputs."
    about = (
        f"The bundle{of_model} has {number_of(len(part(bundle, 'files')), 'file')} for {', '.join(platforms)}. Its "
        f"{number_of(int(golden.get('count') or 0), 'golden vector')}: {plain(golden.get('data', '?'))}.{kind}"
    )
    folder, archive = plain(bundle.get("folder") or ""), bundle.get("zip")
    links = [(f"{folder}/README.md", f"{folder}/README.md")] if folder else []
    links += [(plain(archive), plain(archive))] if archive else []
    statuses = [plain(test.get("status", "?")) for test in tests]
    gist = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    return Section(
        key="bundle",
        title="App bundle",
        gist=f"self-tests: {gist}" if gist else ", ".join(platforms),
        paragraphs=(about,),
        items=tuple(plain(note) for note in bundle.get("notes") or ()),
        links=tuple(links),
        tables=(table,) if rows else (),
        folded=folded,
    )


def _sections(record: Record) -> list[Section]:
    from tfq.report.content import provenance_sections

    section = bundle_section(record, folded=False)
    return [*([section] if section else []), *provenance_sections(record)]


EXPORT = register(
    RecordKind(
        command="export",
        help="an app bundle: metadata, golden vectors, sources and the results of their self-tests",
        needs={"bundle": dict, "file": str},
        sections=_sections,
    )
)
