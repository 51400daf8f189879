"""The page of the metrics has every declared one, in the section of its group."""

from megatron_prime.observability.catalog import described_metrics
from tools.docs_site.metrics import anchor_of, metrics_page


def test_every_metric_is_listed_in_its_group():
    page = metrics_page()
    for metric in described_metrics():
        section = page.partition(f"\n## {metric.group}\n")[2].partition("\n## ")[0]
        [row] = [line for line in section.splitlines() if f"`{metric.tag}`" in line]
        assert f'<span id="{anchor_of(metric.tag)}"></span>' in row
        assert f" | {metric.unit} | " in row
