"""The generated pages are part of the site, and no page loads anything from a network."""

import pytest
from mkdocs.exceptions import PluginError

from tools.docs_site import hooks


def test_pages_are_generated():
    pages = hooks.generated_pages()
    assert "#### `policy.lr`" in pages["reference/configuration.md"]
    assert "## train" in pages["reference/command-line.md"]
    assert "</span>`policy/entropy` |" in pages["reference/metrics.md"]
    assert "def prime_step(" in pages["prime-in-one-file.md"]
    assert pages["changelog.md"].startswith("# ")
    assert pages["contributing.md"].startswith("# ")


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://host/a.js"></script>',
        '<link rel="stylesheet" href="//host/a.css">',
        "<img class=a src=http://host/a.png>",
    ],
)
def test_a_page_that_loads_from_another_host_is_refused(element: str):
    with pytest.raises(PluginError, match="another host"):
        hooks.on_post_page(f"<html>{element}</html>")


def test_links_to_other_hosts_are_allowed():
    page = '<a href="https://arxiv.org/abs/2502.01456">paper</a><img src="images/loop.svg">'
    assert hooks.on_post_page(page) == page


def test_keys_of_the_configuration_and_metrics_become_links():
    linked = hooks.with_reference_links(
        '<td><code>policy.lr</code></td>, <code>prm.loss = "dpo"</code>, <code>policy/entropy</code>, '
        "<code>algorithm.groups</code>, <a href=x><code>policy.lr</code></a><pre><code>policy.lr\n</code></pre>",
        lambda entry: f"../{entry}",
    )
    assert linked == (
        '<td><a href="../reference/configuration.html#policy.lr"><code>policy.lr</code></a></td>, '
        '<a href="../reference/configuration.html#prm.loss"><code>prm.loss = "dpo"</code></a>, '
        '<a href="../reference/metrics.html#policy/entropy"><code>policy/entropy</code></a>, '
        "<code>algorithm.groups</code>, <a href=x><code>policy.lr</code></a><pre><code>policy.lr\n</code></pre>"
    )
