"""Where things are, for tests at any depth."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# data for tests that skip without it
SHARED_DATA = ROOT.parent / "shared" / "data"
