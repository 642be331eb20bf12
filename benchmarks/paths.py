"""Files of the repository that the benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs/performance.md"
RESULTS = ROOT / "docs/performance"  # raw numbers behind it
IMAGES = ROOT / "docs/images"
REFERENCE = ROOT / "tests/reference"  # recorded outputs of the official network
