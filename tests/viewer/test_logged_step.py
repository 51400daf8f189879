"""A logged step is split into texts and numbers without losing a figure, whatever characters and gaps it has."""

import base64
import struct

import numpy as np
import pytest

from megatron_prime.viewer import logged_step
from megatron_prime.viewer.logged_step import QUANTITIES, LoggedStep
from tests.support.viewed_runs import BETA, REJECTED, dialogue_row, row, step_rows, write_step


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def floats(text):
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 2}e", data))


def shorts(text):
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 2}H", data))


def test_the_parts_have_every_figure_of_every_token(tmp_path, generator, monkeypatch):
    monkeypatch.setattr(logged_step, "TOKENS_PER_PART", 300)
    rows = step_rows(generator, [0.5, 0.25, 0.0, 0.75])
    step = LoggedStep(write_step(tmp_path, 7, rows))
    parts = list(step.parts())
    assert len(parts) > 1
    assert [part.first_row for part in parts] == [0, *(part.end_row for part in parts[:-1])]
    assert [text for part in parts for text in part.texts] == [each["response"] for each in rows]
    for part in parts:
        expected = rows[part.first_row : part.end_row]
        assert part.numbers["steps"] == [each["step_ends"] for each in expected]
        lengths = [length for each in expected for length in np.diff(each["token_ends"], prepend=0)]
        assert shorts(part.numbers["lengths"]) == lengths
        for name in QUANTITIES:
            values = [
                value
                for each in expected
                for value in (each[name] if each[name] is not None else [np.nan] * len(each["token_ends"]))
            ]
            assert floats(part.numbers[name]) == pytest.approx(values, rel=1e-3, abs=1e-6, nan_ok=True)


def test_versions_are_shown_where_a_response_has_several(tmp_path, generator):
    rows = step_rows(generator, [0.5, 1.0])
    (plain,) = LoggedStep(write_step(tmp_path, 6, rows)).parts()
    assert "versions" not in plain.numbers
    oldest = rows[0]["policy_version"]
    rows[1] |= {"version_ends": [1, len(rows[1]["token_ends"])], "versions": [oldest, 9]}
    step = LoggedStep(write_step(tmp_path, 7, rows))
    (part,) = step.parts()
    ends = rows[1]["version_ends"]
    assert part.numbers["versions"][:3] == [[], list(zip(ends, [oldest, 9], strict=True)), []]
    assert step.index()["policy_versions"] == [oldest, 9]


def test_the_index_sums_and_scales_as_a_loop_does(tmp_path, generator):
    rows = step_rows(generator, [0.5, 1.0])
    step = LoggedStep(write_step(tmp_path, 7, rows))
    index = step.index()
    assert (index["step"], index["beta"], index["parts"]) == (7, BETA, [[0, 8]])
    assert [(group["first"], group["size"], group["filter"]) for group in index["groups"]] == [
        (0, 4, "kept"),
        (4, 4, "dropped_too_easy"),
    ]
    assert index["rows"]["reward"] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert index["rows"]["tokens"] == [len(each["token_ends"]) for each in rows]
    assert index["rows"]["credit"][4:] == [None] * 4
    for number in range(4):
        values = [float(value) for value in rows[number]["process_rewards"]]
        assert index["rows"]["credit"][number] == pytest.approx(sum(values), rel=1e-3, abs=1e-5)
    gaps = sorted(
        abs(np.float32(policy) - np.float32(rollout))
        for each in rows
        if each["policy_logprobs"] is not None
        for policy, rollout in zip(each["policy_logprobs"], each["rollout_logprobs"], strict=True)
    )
    place = 0.98 * (len(gaps) - 1)
    low = int(place)
    quantile = gaps[low] + (place - low) * (gaps[low + 1] - gaps[low])
    assert index["scales"]["gap"] == pytest.approx(quantile, rel=6e-3)


def test_lengths_are_those_that_a_browser_counts(tmp_path, generator):
    """An emoji is one code point and two UTF-16 units; its first tokens have no text of their own."""
    text = "a👩b\u05e9"
    tokens = {
        "response": text,
        "token_ends": [1, 1, 1, 2, 3, 4, 4],
        "response_token_ids": list(range(7)),
        "step_ends": [7],
    }
    values = {name: [0.5] * 7 for name in (*QUANTITIES, "mask")} | {"mask": [True] * 6 + [False]}
    step = LoggedStep(write_step(tmp_path, 1, [row("x", generator, **tokens | values)]))
    [part] = step.parts()
    assert shorts(part.numbers["lengths"]) == [1, 0, 0, 2, 1, 1, 0]
    assert sum(shorts(part.numbers["lengths"])) == len(text.encode("utf-16-le")) // 2
    assert part.numbers["left_out"] == [[6]]


def test_a_step_of_rejected_groups_has_no_scales_but_its_gap(tmp_path, generator):
    rows = [row("a b", generator, sample=number, reward=None, **REJECTED) for number in range(2)]
    step = LoggedStep(write_step(tmp_path, 1, rows, beta=None))
    index = step.index()
    assert index["scales"] == {}
    assert index["rows"]["reward"] == [None, None]
    [part] = step.parts()
    assert set(part.numbers) & set(QUANTITIES) == {"rollout_logprobs"}
    assert list(step.outcomes()) == [(("gsm8k", 0), [], 0)]


def test_a_step_without_responses_is_empty(tmp_path):
    step = LoggedStep(write_step(tmp_path, 1, []))
    assert (step.index()["groups"], list(step.parts()), step.index()["scales"]) == ([], [], {})


def test_process_rewards_that_are_all_zero_have_the_scale_zero(tmp_path, generator):
    count = len(row("a b", generator)["token_ends"])
    step = LoggedStep(write_step(tmp_path, 1, [row("a b", generator, process_rewards=[0.0] * count)]))
    assert step.scales()["process_rewards"] == 0.0


def test_a_truncated_file_is_refused_by_name(tmp_path, generator):
    path = write_step(tmp_path, 1, [row("a b", generator)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"step-00000001\.parquet"):
        LoggedStep(path)


def test_replies_have_no_figures_of_the_policy_and_are_not_left_out(tmp_path, generator):
    """The difference of the policy's log-prob of a reply and the 0 that stands for the engine's is no gap."""
    alone, talk = row("One turn.", generator), dialogue_row(generator, sample=1)
    talk["mask"] = [False, *talk["mask"][1:]]
    step = LoggedStep(write_step(tmp_path, 1, [alone, talk]))
    (part,) = step.parts()
    assert step.index()["has_turns"]
    first, middle, last = talk["turn_ends"]
    own = [talk["policy_mask"][start:end].count(True) for start, end in ((0, first), (first, middle))]
    assert part.numbers["turns"] == [
        [],
        [(own[0], first, 0.0), (first + own[1], middle, -0.25), (last, last, 0.0)],
    ]
    assert part.numbers["left_out"] == [[], [0]]
    is_reply = ~np.array([True] * len(alone["mask"]) + talk["policy_mask"])
    for name, is_known in (
        ("gap", False),
        ("advantages", False),
        ("entropy", False),
        ("process_rewards", True),
    ):
        values = step.values(name)
        assert np.isfinite(values[is_reply]).all() == is_known and np.isfinite(values[~is_reply]).all()
    assert step.scales()["gap"] < 0.1
    only = LoggedStep(write_step(tmp_path, 2, [alone]))
    assert not only.has_turns and "turns" not in next(only.parts()).numbers
