"""Functions that mkdocs calls while it builds the site (`hooks` in mkdocs.yml)."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from megatron_prime.config.faults import dotted_keys
from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.catalog import described_metrics
from tools.docs_site.command_line import command_line_page
from tools.docs_site.configuration import configuration_page
from tools.docs_site.maths import with_formulas
from tools.docs_site.metrics import anchor_of, metrics_page

ROOT = Path(__file__).parents[2]
LOADED_FROM_ELSEWHERE = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)
"""An element that a browser would fetch from another host; links that a reader clicks on are none."""
CONFIGURATION = "reference/configuration"
METRICS = "reference/metrics"
INLINE_CODE = re.compile(r"(<a\b[^>]*>|<pre>|<span></span>)?<code>([\w./]+)(?: = [^<]*)?</code>")
"""Inline code, and what stands before it in links and code blocks, where it stays as it is."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files in docs/."""
    for name, content in generated_pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def generated_pages() -> dict[str, str]:
    """Return the pages that are generated from the code, and those that are files elsewhere in the repository."""
    return {
        f"{CONFIGURATION}.md": configuration_page(),
        "reference/command-line.md": command_line_page(),
        f"{METRICS}.md": metrics_page(),
        "prime-in-one-file.md": example_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    }


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the formulas of a page."""
    return with_formulas(markdown) if "```math" in markdown else markdown


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Link every key of the configuration and every metric that the text of a page names."""
    if page.file.src_uri in (f"{CONFIGURATION}.md", f"{METRICS}.md"):
        return html
    return with_reference_links(html, lambda entry: get_relative_url(entry, page.url))


def with_reference_links(html: str, url_of: Callable[[str], str]) -> str:
    """Link inline code that is a key, a key with a value, or a metric; `url_of` gets `page.html#entry`."""

    def linked(match: re.Match[str]) -> str:
        entry = None if match[1] else entries().get(match[2])
        return f'<a href="{url_of(entry)}">{match[0]}</a>' if entry else match[0]

    return INLINE_CODE.sub(linked, html)


@functools.cache
def entries() -> dict[str, str]:
    """Return the place in the reference of every key and of every metric."""
    keys = {key: f"{CONFIGURATION}.html#{key}" for key in dotted_keys(PrimeConfig)}
    return keys | {metric.tag: f"{METRICS}.html#{anchor_of(metric.tag)}" for metric in described_metrics()}


def on_post_page(output: str, **_: object) -> str:
    """Refuse a page that would load something from a network."""
    if match := LOADED_FROM_ELSEWHERE.search(output):
        raise PluginError(f"a page loads something from another host: {match[0]}")
    return output


def example_page() -> str:
    """Return examples/prime_in_one_file.py as a page."""
    code = (ROOT / "examples" / "prime_in_one_file.py").read_text(encoding="utf-8")
    return (
        "# PRIME in one file\n\nThe whole method in torch and transformers, without this package: "
        "`examples/prime_in_one_file.py`. A test holds it to the package on a whole step. "
        "[PRIME in ten minutes](prime-in-ten-minutes.md) explains the equations.\n\n"
        f"```python\n{code}```\n"
    )
