"""Paths of the checkout that tests read or run."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "tests" / "vectors"  # recordings of the original daemon
SCENARIOS = ROOT / "tests" / "scenarios"
PROGRAMS = ROOT / "tests" / "fakes" / "programs"
