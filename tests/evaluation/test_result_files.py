import json
import math
import multiprocessing

import pytest

from megatron_prime.evaluation.result_files import add_evaluation, read_evaluations
from tests.support.deadlines import seconds
from tests.support.event_files import EventFiles

NUM_PROCESSES = 8


def add(folder, model: str, **metrics: float) -> list[dict]:
    add_evaluation(folder / "a.json", folder / "events", "eval/", {"model": model}, metrics)
    return json.loads((folder / "a.json").read_text())


def test_results_of_earlier_evaluations_stay(tmp_path):
    first = {"model": "m", "metrics": {"x": 0.5, "y": None}}
    second = {"model": "n", "metrics": {"x": 0.25}}
    assert add(tmp_path, "m", x=0.5, y=math.nan) == [first]
    assert add(tmp_path, "n", x=0.25) == [first, second]
    assert read_evaluations(tmp_path / "a.json") == [first, second]
    events = EventFiles(tmp_path / "events")
    assert [(event.step, event.value) for event in events.scalars("eval/x")] == [(0, 0.5), (1, 0.25)]


def test_evaluations_that_end_at_the_same_time_lose_no_result(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(NUM_PROCESSES)

    def evaluate(number: int) -> None:
        barrier.wait()
        add(tmp_path, f"model {number}", x=number)

    processes = [fork.Process(target=evaluate, args=(number,)) for number in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds(60))
    assert [process.exitcode for process in processes] == [0] * NUM_PROCESSES
    added = read_evaluations(tmp_path / "a.json")
    assert sorted(record["metrics"]["x"] for record in added) == [*range(NUM_PROCESSES)]
    events = EventFiles(tmp_path / "events")
    assert [event.value for event in events.scalars("eval/x")] == [r["metrics"]["x"] for r in added]


def test_a_file_of_an_earlier_version_becomes_the_first_record(tmp_path):
    (tmp_path / "a.json").write_text('{"accuracy": 0.5}')
    assert add(tmp_path, "m", x=1.0)[0] == {"metrics": {"accuracy": 0.5}}


@pytest.mark.parametrize("text", ["", "[{", "[1]", "7", "null"])
def test_a_damaged_file_is_set_aside(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert add(tmp_path, "m", x=1.0) == [{"model": "m", "metrics": {"x": 1.0}}]
    (aside,) = tmp_path.glob("a.json.damaged_*")
    assert aside.read_text() == text
