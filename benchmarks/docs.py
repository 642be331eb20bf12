"""Puts what a benchmark printed into docs/performance.md."""

from pathlib import Path

from isnet_jax.console import say

DOC = Path(__file__).resolve().parents[1] / "docs/performance.md"


class Section:
    """What a benchmark tells: printed at once, and kept for the section of that name."""

    def __init__(self, name):
        self.name, self.lines = name, []

    def tell(self, text):
        say(text)
        self.lines += text.splitlines()

    def write(self):
        """Replaces what is between <!-- name:begin --> and <!-- name:end --> by the lines as code."""
        begin, end = f"<!-- {self.name}:begin -->", f"<!-- {self.name}:end -->"
        before, rest = DOC.read_text().split(begin)
        block = "\n".join(f"    {line}".rstrip() for line in self.lines)
        DOC.write_text(f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}")
