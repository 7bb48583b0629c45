"""A bar chart of a run in SVG: for each row, ours / base as a bar, and the limit as a mark.

The axis is logarithmic: twice as fast is as far from 1 as half as fast.
"""

from collections.abc import Sequence
from math import isfinite, log2
from xml.sax.saxutils import escape

from bench.goals import Row, Verdict

LEFT, WIDTH, LINE, TOP = 420, 640, 18, 56  # pixels
LOWEST, HIGHEST = -3, 6  # the axis goes from 1/8 to 64, as powers of two
MET, MISSED = "#4a90a4", "#c8553d"


def chart(rows: Sequence[tuple[Row, Verdict]], *, title: str) -> str:
    """Return the chart as an SVG document."""
    height = TOP + LINE * len(rows) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 80}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18" font-weight="bold">ours / base; black: the limit; {escape(title)}'
        "</text>",
        *(_grid_line(power, height) for power in range(LOWEST, HIGHEST + 1)),
        *(_bar(number, row, verdict) for number, (row, verdict) in enumerate(rows)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _x(ratio: float) -> float:
    """Return the x coordinate of a ratio; ratios beyond the axis are at its end."""
    power = min(max(log2(ratio), LOWEST), HIGHEST)
    return round(LEFT + WIDTH * (power - LOWEST) / (HIGHEST - LOWEST), 1)


def _grid_line(power: int, height: int) -> str:
    x, color = _x(2.0**power), "#333" if power == 0 else "#ddd"
    return (
        f'<line x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{height - 8}" stroke="{color}"/>'
        f'<text x="{x}" y="{TOP - 14}" text-anchor="middle" fill="#555">{2.0**power:g}</text>'
    )


def _bar(number: int, row: Row, verdict: Verdict) -> str:
    y, start, end = TOP + LINE * number, _x(1.0), _x(row.ratio)
    color = MISSED if verdict.missed else MET
    has_limit = isfinite(verdict.limit)
    mark = _x(verdict.limit / row.base.median) if has_limit else start
    name = escape(f"{row.section}: {row.name}")
    parts = [
        f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{name}</text>',
        f'<rect x="{min(start, end)}" y="{y + 2}" width="{max(abs(end - start), 1):.1f}"'
        f' height="{LINE - 5}" fill="{color}"/>',
        f'<text x="{max(start, end, mark) + 6}" y="{y + 12}">{row.ratio:.2f}</text>',
    ]
    if has_limit:
        parts.append(f'<path d="M{mark} {y}v{LINE - 1}" stroke="black" stroke-width="2"/>')
    return "".join(parts)
