"""Writes generated text between the markers of a Markdown file, `<!-- name:begin -->` and `<!-- name:end -->`."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.paths import PERFORMANCE, RESULTS
from isnet_jax.runtime.console import say
from isnet_jax.runtime.files import atomic_write_text


def replace_section(text: str, name: str, content: str) -> str:
    """The Markdown `text` with `content` between the markers of section `name`.

    Raises ValueError unless `text` has each marker once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text must have {begin} once and, after it, {end} once")
    return f"{text.split(begin)[0]}{begin}\n\n{content}\n\n{end}{text.split(end)[1]}"


def write_section(path: Path, name: str, content: str) -> None:
    """Replaces a section of the file at `path`; errors as in `replace_section`."""
    path.write_text(replace_section(path.read_text(), name, content))


def as_code(lines: Iterable[str]) -> str:
    """The lines as an indented code block."""
    return "\n".join(f"    {line}".rstrip() for line in lines)


def parse_args(usage: str | None) -> dict[str, Any]:
    """The flags --backbone, --quick and --write of a command line."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    for flag in ("--quick", "--write"):
        parser.add_argument(flag, action="store_true")
    return vars(parser.parse_args())


class Section:
    """The report of a benchmark: printed line by line, then written as a section of docs/performance.md."""

    def __init__(self, name: str):
        self.name, self.lines = name, []

    def say(self, text: str) -> None:
        """Prints the text and keeps it for the section."""
        say(text)
        self.lines += text.splitlines()

    def write(self, raw: dict[str, Any] | None) -> None:
        """Writes the section as a code block, and the raw numbers, if any, as docs/performance/NAME.json."""
        write_section(PERFORMANCE, self.name, as_code(self.lines))
        if raw is not None:
            atomic_write_text(RESULTS / f"{self.name}.json", json.dumps(raw, indent=1) + "\n")
