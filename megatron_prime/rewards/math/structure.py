"""Splits an answer into its parts: alternatives, sets and tuples."""

import re

_OR = re.compile(r"\\text\{\s*(?:or|and)\s*\}|\\lor(?![A-Za-z])|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")


def split_items(text: str) -> list[str]:
    r"""Split at top level at commas, semicolons, "or" and "and"; `\pm a` yields two items."""
    items: list[str] = []
    for part in split_top_level(_OR.sub(",", text), ",;"):
        item = part.strip()
        if not item:
            continue
        # With two signs it would be unclear whether they vary together.
        if item.count(r"\pm") == 1:
            items += [item.replace(r"\pm", "+").lstrip("+ "), item.replace(r"\pm", "-")]
        else:
            items.append(item)
    return items


def split_bracketed(text: str) -> tuple[str, list[str], str] | None:
    r"""Return (opening, parts, closing) if a pair of `(`, `[` or `\{` brackets encloses all of `text`, else None."""
    text = text.strip()
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    if opening not in ("(", "[", r"\{") or closing not in (")", "]", r"\}") or len(text) < 3:
        return None
    if (opening == r"\{") != (closing == r"\}"):
        return None
    inner = text[len(opening) : -len(closing)]
    parts = split_top_level(inner, ",;")
    if _depth_dips(inner):
        return None
    return opening, [part.strip() for part in parts], closing


def split_top_level(text: str, separators: str) -> list[str]:
    """Split at separators that are outside all brackets; parts keep their white space."""
    # All kinds of brackets count alike, because the brackets of [1, 2) do not match by kind.
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth <= 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _depth_dips(text: str) -> bool:
    r"""Return True if `text` closes a bracket that it did not open, as between the outer brackets of (1,2)\cup(3,4)."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return True
    return False


def matrix_vector(text: str) -> list[str] | None:
    r"""Return the entries of a matrix with one column or one row, such as `\begin{pmatrix}1\\2\end{pmatrix}`."""
    matrix = re.fullmatch(
        r"\[?\\begin\{(?:[pb]?matrix|array)\}(?:\{[a-z|]+\})?(.*)\\end\{(?:[pb]?matrix|array)\}\]?",
        text.strip(),
    )
    if matrix is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", matrix[1]) if row.strip()]
    if len(rows) == 1:
        return [entry.strip() for entry in rows[0]]
    return [row[0].strip() for row in rows] if all(len(row) == 1 for row in rows) else None


def unit_vector_parts(text: str) -> list[str] | None:
    r"""Return the components of a sum of unit vectors, which `normalise` writes `\mathsf{i}`; None for other texts."""
    found = set(re.findall(r"\\mathsf\{([ijk])\}", text))
    if len(found) < 2:
        return None
    return [
        re.sub(
            r"(?<=[\w})])?\s*\\mathsf\{([ijk])\}",
            lambda match: "(1)" if match[1] == axis else "(0)",  # noqa: B023 - used at once
            text,
        )
        for axis in ("ijk" if "k" in found else "ij")
    ]
