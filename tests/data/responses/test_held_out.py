"""The responses to some prompts are held out, the same ones whatever the order of the files."""

import pytest

from megatron_prime.data.responses.held_out import read_groups
from megatron_prime.data.responses.logged import GroupReader
from megatron_prime.observability.rollout_log import FileInfo, write_rollouts
from tests.support.logged_rollouts import logged_response


@pytest.fixture
def files(tmp_path):
    """Two files of ten groups each, whose prompts are [1, 0] to [1, 9] in both."""
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in paths:
        rows = [
            logged_response(group, sample, prompt_token_ids=[1, group])
            for group in range(10)
            for sample in range(1 + (group > 3))
        ]
        write_rollouts(path, FileInfo(1), rows)
    return paths


def reader() -> GroupReader:
    return GroupReader("mine", 300, 100)


def prompts(groups) -> set[tuple[int, ...]]:
    return {group[0].prompt.token_ids for group in groups}


def test_no_prompt_is_on_both_sides(files):
    read = read_groups(files, reader(), 0.25, seed=3)
    train, held_out = prompts(read.train), prompts(read.held_out)
    assert len(held_out) == 3 and len(read.held_out) == 6 and len(read.train) == 14
    assert not train & held_out
    assert read.num_mixed == sum(len(group) == 2 for group in read.train)
    reordered = read_groups(files[::-1], reader(), 0.25, seed=3)
    assert prompts(reordered.held_out) == held_out
    assert prompts(read_groups(files, reader(), 0.25, seed=4).held_out) != held_out
    text = "\n".join(read.notes)
    assert "32 responses in 20 groups, of 10 prompts, 3 of them held out" in text
    assert "of 14 groups have different ones" in text


def test_nothing_is_held_out_when_not_asked(files):
    read = read_groups(files, reader())
    assert len(read.train) == 20 and not read.held_out


def test_the_fingerprint_changes_with_the_data_and_with_the_choice(files):
    prints = {
        read_groups(paths, reader(), fraction, seed).fingerprint
        for paths, fraction, seed in [
            (files, 0.25, 3),
            (files[:1], 0.25, 3),
            (files, 0.5, 3),
            (files, 0.25, 4),
        ]
    }
    assert len(prints) == 4
    assert read_groups(files, reader(), 0.25, 3).fingerprint in prints


def test_an_empty_choice_is_refused(files):
    with pytest.raises(ValueError, match=r"no response is left to train on .*36 groups|longer than 1 tokens"):
        read_groups(files, GroupReader("mine", 300, 1))
