"""Puts what a benchmark printed into docs/performance.md."""
from pathlib import Path

DOC = Path(__file__).resolve().parents[1] / "docs/performance.md"


def write(section, lines):
    """Replaces what is between <!-- section:begin --> and <!-- section:end --> by lines of text as code."""
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    before, rest = DOC.read_text().split(begin)
    block = "\n".join(f"    {line}".rstrip() for line in lines)
    DOC.write_text(f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}")
