"""MkDocs hooks: pages outside docs/ join the site at their own path, so that one link works on a code host and here."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

MOUNTED = (
    "RESULTS.md",
    "CHANGELOG.md",
    "examples/*.py",
    "examples/*.ipynb",
    "results/**/*.md",
    "results/**/*.png",
    "results/*.json",
)
"""Files of the repository that pages may link to, as patterns."""

NOT_PAGES = ("results/discussion.md",)
"""Markdown that is part of another page: RESULTS.md contains the discussion."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files of the repository that are mounted."""
    root = Path(config.docs_dir).parent
    for pattern in MOUNTED:
        for path in sorted(root.glob(pattern)):
            uri = path.relative_to(root).as_posix()
            if uri not in NOT_PAGES:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ (`../RESULTS.md`) become links to the mounted file."""
    del config, files
    return re.sub(r"\]\(\.\./", "](", markdown) if "/" not in page.file.src_uri else markdown
