"""What the site is made of besides the files of docs/: the README as its first page, the commands' own help."""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the page of commands."""
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts the README into the first page, and mends links that lead out of docs/."""
    source = page.file.src_uri
    if source == "index.md":
        return relinked((ROOT / "README.md").read_text(encoding="utf-8"), "")
    return relinked(markdown, posixpath.join("docs", posixpath.dirname(source)))


def relinked(markdown: str, folder: str) -> str:
    """Links to pages stay links; those to files of the checkout become the names of the files.

    Args:
        markdown: Text of a page.
        folder: Its folder in the checkout.
    """

    def mended(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path == "README.md":
            return f"[{text}]({posixpath.relpath('docs/index.md', folder or 'docs')}{anchor})"
        if path.startswith("docs/") and path.endswith(".md"):
            return f"[{text}]({posixpath.relpath(path, folder or 'docs')}{anchor})"
        return text if text.strip("`") in (target, path) else f"{text} (`{path}`)"

    return LINK.sub(mended, markdown)


def commands_page() -> str:
    """The help of both programs and of each of their commands."""
    os.environ["COLUMNS"] = "100"
    from data_tools import cli as data
    from qwen_megatron.cli import main as engine

    lines = ["# Commands", "", "What `--help` says of each."]
    for parser in (data.build_parser(), engine.build_parser()):
        for name, command in commands(parser):
            lines += ["", f"## {name}", "", "```text", command.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A program, its commands and theirs, by what a user types."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            # Several names may be one command's.
            for command in dict.fromkeys(action.choices.values()):
                yield from commands(command)
