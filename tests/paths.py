"""Where the tests find things: the repository, and the real samples beside it, which need not be there."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
SHARED = ROOT.parent / "shared"
