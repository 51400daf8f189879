"""Every chart shows metrics that a run logs, under a title and a question of its own."""

from megatron_prime.observability.catalog import description_of
from megatron_prime.viewer.curves import OTHER_TIME
from megatron_prime.viewer.panels import PANELS


def test_every_metric_of_a_chart_is_declared():
    names = [
        name
        for panel in PANELS
        for series in panel.series
        for name in (series.metric, series.low, series.high)
    ]
    assert [name for name in names if name and name != OTHER_TIME and not description_of(name)] == []


def test_charts_have_unique_keys_and_say_what_they_answer():
    assert len({panel.key for panel in PANELS}) == len({panel.title for panel in PANELS}) == len(PANELS)
    assert all(panel.question.endswith((".", "?")) and panel.unit for panel in PANELS)
    assert all(panel.series or panel.prefix for panel in PANELS)
    assert {panel.kind for panel in PANELS} == {"lines", "stack"}
