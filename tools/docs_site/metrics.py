"""The page of every metric, from the declarations that the loggers show too."""

from megatron_prime.observability.catalog import Metric, described_metrics
from tools.docs_site.configuration import prose

INTRODUCTION = """# Metrics

Every metric of `metrics.jsonl` and of the loggers. A part of a name in angle brackets stands for a name that the run
chooses. [Tuning](../tuning.md) tells what to do about them.
"""


def metrics_page() -> str:
    """Return the page as Markdown."""
    groups: dict[str, list[str]] = {}
    for metric in described_metrics():
        groups.setdefault(metric.group, []).append(_row(metric))
    tables = [
        f"## {group}\n\n| name | unit | meaning |\n|---|---|---|\n" + "\n".join(rows)
        for group, rows in groups.items()
    ]
    return "\n\n".join([INTRODUCTION, *tables]) + "\n"


def _row(metric: Metric) -> str:
    kind = "" if metric.kind == "scalar" else f" ({metric.kind})"
    return (
        f'| <span id="{anchor_of(metric.tag)}"></span>`{metric.tag}`{kind} | {metric.unit} | '
        f"{prose(metric.description)} |"
    )


def anchor_of(tag: str) -> str:
    """Return the name of the place of a metric on the page."""
    return tag.replace("<", "").replace(">", "")
