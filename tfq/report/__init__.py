# SPDX-License-Identifier: Apache-2.0
"""Write the record of a run as JSON, Markdown and HTML with plots, and as a table for the terminal."""

from tfq.report.analysis_page import analysis_page
from tfq.report.files import write_report
from tfq.report.portability_content import portability_text
from tfq.report.summary import summary_table

__all__ = ["analysis_page", "portability_text", "summary_table", "write_report"]
