"""Compare two runs: ``python -m bench.compare [OLD NEW]``, by default the last two results.

Compares ratios, not times: the machine's speed in a run affects both sides of a ratio.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench.report import RESULTS

NOISE = 0.1  # two runs of one program differ by this much


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a result file, by section and name."""
    rows = json.loads(path.read_text())["rows"]
    return {f"{row['section']}: {row['name']}": row for row in rows}


def comparison(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line per row that both runs have."""
    lines = [f"{'':<64}{'old':>10}{'new':>10}{'change':>10}"]
    for name in [name for name in new if name in old]:
        before, after = old[name]["ratio"], new[name]["ratio"]
        change = after / before - 1
        word = "" if abs(change) <= NOISE else "worse" if change > 0 else "better"
        lines.append(f"{name:<64}{before:>10.2f}{after:>10.2f}{change:>+10.0%}  {word}".rstrip())
    return lines


def main() -> None:
    """Print the changes of the ratios from one run to the other."""
    parser = argparse.ArgumentParser(description="Compare the ratios of two benchmark runs.")
    parser.add_argument("results", nargs="*", type=Path, metavar="FILE", help="OLD and NEW")
    paths = parser.parse_args().results or sorted(RESULTS.glob("*.json"))[-2:]
    if len(paths) != 2:
        parser.error("two results are needed: name them, or run `make bench` twice")
    print(f"{paths[0]} -> {paths[1]}", *comparison(*map(load, paths)), sep="\n")


if __name__ == "__main__":
    main()
