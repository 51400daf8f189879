"""Plots as SVG, without a library."""

from collections.abc import Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 760, 250, 60, 40, 22


def ranged_bars(title: str, bars: Sequence[tuple[str, float, float, float]]) -> str:
    """Return horizontal bars of (name, lowest, middle, highest); a line shows the range, and another one marks 1."""
    height = TOP + ROW * len(bars) + 16
    right_end = max((highest for _, _, _, highest in bars), default=1.0) * 1.05
    scale = (WIDTH - LEFT - RIGHT) / max(1.0, right_end)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="20" font-size="14" text-anchor="middle">{escape(title)}</text>',
    ]
    for number, (name, lowest, middle, highest) in enumerate(bars):
        top = TOP + ROW * number
        centre = top + ROW / 2 - 3
        parts += [
            f'<text x="{LEFT - 8}" y="{centre + 4:.1f}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{middle * scale:.1f}" height="{ROW - 6}" fill="#1f77b4"/>',
            f'<line x1="{LEFT + lowest * scale:.1f}" y1="{centre}" x2="{LEFT + highest * scale:.1f}" y2="{centre}" '
            'stroke="black" stroke-width="2"/>',
            f'<text x="{LEFT + highest * scale + 6:.1f}" y="{centre + 4:.1f}">{middle:.2f}</text>',
        ]
    one = LEFT + scale
    parts.append(f'<line x1="{one:.1f}" y1="{TOP - 8}" x2="{one:.1f}" y2="{height - 8}" stroke="#d62728"/>')
    return "\n".join([*parts, "</svg>", ""])
