#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Rebuild the pages of all records in a folder.

    tfq report out/run
    tfq report out/run/evaluate.json --out=out/pages

Reads every record that tfq wrote into the folder (report.json, evaluate.json, audit.json ...) and writes its page as
HTML and as Markdown next to it, or to --out, from the record alone: models and data are not read. The pages are the
same as those that the commands wrote. If there are several records, index.html links to all of them.

A record that is damaged, or that another version of tfq wrote, is an error that names the file; the pages of the others
are written nevertheless. Other JSON files are skipped.
"""

from collections.abc import Sequence

from tfq import report
from tfq.cli import flags, process
from tfq.errors import InputError


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    if not config.report.folder:
        raise InputError(
            "report.folder is missing: expected a directory with records that tfq wrote",
            field="report.folder",
            expected="a directory",
            got="",
        )
    pages = report.build_report(config.report.folder, config.out or None)
    record = process.record(invocation, "report", pages=[page.name for page in pages])
    process.show(invocation, record, "\n".join(map(str, pages)))


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="report", section="report", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()
