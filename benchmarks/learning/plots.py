"""Curves with bands as SVG, without a library."""

from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float, float, float]]
"""(x, y, lower end, upper end), x ascending, y in [0, 1]."""
COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#e377c2"),
    *("#bcbd22", "#000000", "#a6761d", "#66c2a5", "#5254a3"),
)
WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 46


def curves(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """Return a plot of some curves, each with its band, and a legend at the upper left."""
    right_end = max(points[-1][0] for points in series.values())

    def place(x: float, y: float) -> str:
        across = LEFT + x / right_end * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, size=14, anchor="middle"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle"),
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for tenth in range(0, 11, 2):
        y = tenth / 10
        across, down = place(0, y).split(",")
        parts.append(_line(place(0, y), place(right_end, y), "#dddddd"))
        parts.append(_text(float(across) - 6, float(down) + 4, f"{y:.1f}", anchor="end"))
    for tick in _ticks(right_end):
        across, down = place(tick, 0).split(",")
        parts.append(_line(place(tick, 0), place(tick, 1), "#eeeeee"))
        parts.append(_text(float(across), float(down) + 16, f"{tick:,}", anchor="middle"))
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        outline = [place(x, high) for x, _, _, high in points]
        outline += [place(x, low) for x, _, low, _ in reversed(points)]
        parts.append(f'<polygon points="{" ".join(outline)}" fill="{colour}" fill-opacity="0.13"/>')
        path = " ".join(place(x, y) for x, y, _, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        down = TOP + 12 + 17 * number
        parts.append(_line(f"{LEFT + 10},{down}", f"{LEFT + 34},{down}", colour, width=3))
        parts.append(_text(LEFT + 40, down + 4, name))
    return "\n".join([*parts, "</svg>", ""])


def _ticks(right_end: float) -> list[int]:
    step = next(step for step in (200, 500, 1000, 2000, 5000, 10**4, 10**5) if right_end / step <= 8)
    return list(range(0, int(right_end) + 1, step))


def _line(start: str, end: str, colour: str, width: float = 1) -> str:
    (x1, y1), (x2, y2) = start.split(","), end.split(",")
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
