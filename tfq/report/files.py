# SPDX-License-Identifier: Apache-2.0
"""Write report.json, report.md and report.html."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfq.artifacts import make_out_dir, write_json, write_text
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of


def write_report(record: Mapping[str, Any], out_dir: str | os.PathLike) -> list[Path]:
    """Write the record of a run to report.json, report.md and report.html.

    The same record gives the same bytes. Parts that the record does not have are omitted or reported as missing.

    Args:
        record: The record of `tfq run`; see docs/records.md.
        out_dir: The directory for the files; it is created if it does not exist.

    Returns:
        The three paths.

    Raises:
        InputError: `out_dir` cannot be written to.
        TfqError: Writing fails, or the record contains NaN or infinity.
    """
    out = make_out_dir(out_dir)
    return [
        write_json(out / "report.json", record),
        write_text(out / "report.md", markdown_of(record)),
        write_text(out / "report.html", page_of(record)),
    ]
