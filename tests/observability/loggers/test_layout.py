import re

import pytest
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray

from megatron_prime.observability.catalog import described_metrics
from megatron_prime.observability.loggers.layout import CHARTS, OFFLINE_CHARTS, layout_value

EXAMPLES = {
    "<benchmark>": "aime24",
    "<k>": "8",
    "<source>": "numina/olympiads",
    "<phase>": "rollout",
    "<role>": "prm",
}


def declared_tags():
    tags = [metric.tag for metric in described_metrics() if metric.kind == "scalar"]
    for name, example in EXAMPLES.items():
        tags = [tag.replace(name, example) for tag in tags]
    return tags


@pytest.mark.parametrize("charts", [CHARTS, *OFFLINE_CHARTS.values()], ids=["train", *OFFLINE_CHARTS])
def test_every_chart_shows_declared_metrics_of_one_unit(charts):
    units = {metric.tag: metric.unit for metric in described_metrics()}
    for category in charts.values():
        for title, patterns in category.items():
            shown = [
                tag for tag in declared_tags() if any(re.fullmatch(pattern, tag) for pattern in patterns)
            ]
            for pattern in patterns:
                assert any(re.fullmatch(pattern, tag) for tag in declared_tags()), (title, pattern)
            found = {units.get(tag) for tag in shown if tag in units}
            assert len(found) <= 1, (title, found)


def test_the_overview_comes_first_and_is_open():
    layout = Layout.FromString(make_ndarray(layout_value().tensor).item())
    assert layout.category[0].title == "Overview"
    assert [category.closed for category in layout.category] == [False] + [True] * (len(CHARTS) - 1)
    patterns = layout.category[0].chart[0].multiline.tag
    tags = ("eval/accuracy", "eval/aime/accuracy", "eval/accuracy_ci_low", "eval/accuracy_by_source/x")
    # TensorBoard matches at the start of a tag.
    shown = [tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns)]
    assert shown == ["eval/accuracy", "eval/aime/accuracy"]
