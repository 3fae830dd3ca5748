# SPDX-License-Identifier: Apache-2.0
"""Write the records of commands as JSON, Markdown and HTML with plots, and as a table for the terminal.

`kinds.py` has the registry of the kinds of records. The modules imported here fill it.
"""

from tfq.report import analysis_content, command_content, comparison_content, content, sweep_content
from tfq.report.bundle_content import bundle_text
from tfq.report.files import build_report, write_report
from tfq.report.kinds import KINDS, RecordKind
from tfq.report.model_explorer import write_node_data
from tfq.report.portability_content import portability_text
from tfq.report.robustness_content import robustness_text
from tfq.report.summary import summary_table

_CONTENTS = (content, command_content, analysis_content, comparison_content, sweep_content)

__all__ = [
    "KINDS",
    "RecordKind",
    "build_report",
    "bundle_text",
    "portability_text",
    "robustness_text",
    "summary_table",
    "write_node_data",
    "write_report",
]
