"""Formulas as SVG in the text, drawn by matplotlib, so that the pages need neither a script nor a font."""

import html
import io
import re

POINTS = 12
FENCE = re.compile(r"^```math\n(.*?)\n```$", flags=re.DOTALL | re.MULTILINE)


def with_formulas(markdown: str) -> str:
    """Replace every fenced block ```` ```math ```` by its formula; GitHub shows such a block as a formula, too."""
    return FENCE.sub(lambda match: _figure(match[1]), markdown)


def _figure(tex: str) -> str:
    return f'<div class="formula" role="math" aria-label="{html.escape(tex)}">{formula(tex)}</div>'


def formula(tex: str) -> str:
    """Return a TeX formula as an SVG element in the colour of the text around it.

    Raises:
        ValueError: the formula is not what matplotlib's mathtext understands.
    """
    # The package takes seconds to import, and most pages have no formula.
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    file = io.StringIO()
    # A fixed salt gives the same names of glyphs, and so the same page, in every build.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": tex, "mathtext.fontset": "cm"}):
        math_to_image(f"${' '.join(tex.split())}$", file, prop=FontProperties(size=POINTS), format="svg")
    svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    # The background is transparent, and glyphs have the colour of the text.
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"|height="([\d.]+)pt"', _in_em, svg, count=2)
    return re.sub(r"\s*\n\s*", " ", svg.strip()).replace("<svg ", '<svg fill="currentColor" ', 1)


def _in_em(match: re.Match[str]) -> str:
    return re.sub(r"([\d.]+)pt", lambda number: f"{float(number[1]) / POINTS:.3f}em", match[0])
