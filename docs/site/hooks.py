# SPDX-License-Identifier: Apache-2.0
"""mkdocs hooks: the Markdown files at the top of the repository are pages too, and links to them work."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top of the repository to those in docs/."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links: the pages at the top of the repository and those in docs/ are in one folder of the site.

    Links to other files of the repository, such as scripts, become plain text, as the site does not have them.
    """
    if page.file.src_uri in PAGES:
        markdown = re.sub(r"\]\(docs/([^)]*)\)", r"](\1)", markdown)
    markdown = re.sub(rf"\]\(\.\./({'|'.join(PAGES)})(#[^)]*)?\)", r"](\1\2)", markdown)
    return re.sub(r"\[([^]]+)\]\((?:\.\./)?(?:tests|benchmarks|examples|pipelines|models|tfq)/[^)]*\)", r"\1", markdown)
