"""Where things are in a checkout, for tests that read or run them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "tests" / "vectors"  # recordings of the original
SCENARIOS = ROOT / "tests" / "scenarios"
PROGRAMS = ROOT / "tests" / "fakes" / "programs"
