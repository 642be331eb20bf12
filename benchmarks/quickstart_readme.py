"""Writes what the quickstart printed and drew into README.md and docs/images.

usage: make quickstart 2>&1 | tee /tmp/quickstart.log; python -m benchmarks.quickstart_readme /tmp/quickstart.log
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(log):
    lines = Path(log).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if " ISNet, " in line)
    stop = next(i for i, line in enumerate(lines) if "TensorBoard events: " in line)
    shown = [line.replace(f"{ROOT}/", "") for line in lines[start : stop + 1]]
    readme = ROOT / "README.md"
    text = "\n".join(f"    {line}".rstrip() for line in shown)
    begin, end = "<!-- quickstart:begin -->", "<!-- quickstart:end -->"
    readme.write_text(
        re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n\n{text}\n\n{end}", readme.read_text(), flags=re.S)
    )
    picture = ROOT / "docs/images/quickstart.png"
    picture.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "runs/quickstart/predictions.png", picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
