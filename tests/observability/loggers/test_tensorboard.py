import math
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.data_compat import migrate_value

from megatron_prime.observability.catalog import description_of, metric_of
from megatron_prime.observability.loggers.protocol import Details, RunInfo, Sample, StepRecord
from megatron_prime.observability.loggers.tensorboard import (
    NUM_BUCKETS,
    TensorBoardLogger,
    TensorBoardWriter,
    histogram_buckets,
)
from tests.support import deadlines
from tests.support.event_files import EventFiles


def write(folder, steps, resume_step=0, offset=0.0):
    writer = TensorBoardWriter(folder, resume_step)
    for step in steps:
        writer.log(step, {"policy/loss": step + offset})
    writer.close()


def read(folder, name="policy/loss"):
    events = EventFiles(folder)
    return [(event.step, event.value) for event in events.scalars(name)]


def test_scalars_read_back(tmp_path):
    write(tmp_path / "tensorboard", range(3))
    assert read(tmp_path / "tensorboard") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_resumed_run_replaces_later_steps_and_keeps_earlier_ones(tmp_path):
    write(tmp_path, range(5))
    write(tmp_path, range(2, 4), resume_step=2, offset=0.5)
    assert read(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.5), (3, 3.5)]


def test_a_fresh_run_in_the_same_folder_drops_the_old_curve(tmp_path):
    write(tmp_path, range(5))
    write(tmp_path, range(2), offset=0.5)
    assert read(tmp_path) == [(0, 0.5), (1, 1.5)]


def test_an_event_file_torn_by_a_kill_is_read_up_to_the_tear_and_resumed(tmp_path):
    write(tmp_path, range(4))
    (event_file,) = tmp_path.iterdir()
    event_file.write_bytes(event_file.read_bytes()[:-5])
    assert read(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    write(tmp_path, range(2, 4), resume_step=2, offset=0.5)
    assert read(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.5), (3, 3.5)]


def test_logged_scalars_are_readable_before_the_file_is_closed(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.log(0, {"policy/loss": 1.0, "policy/kl": math.nan})
    assert read(tmp_path) == [(0, 1.0)]
    writer.close()
    writer.close()


def test_the_writer_imports_no_framework():
    code = (
        "import sys, megatron_prime.observability\n"
        "assert not {'torch', 'tensorflow', 'megatron', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=deadlines.seconds(60))


def test_every_metric_has_its_description(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    names = {
        name: metric_of(name).documentation
        for name in ("rollout/accuracy_sampled", "policy/ref_kl", "prm/loss", "eval/aime/accuracy")
    }
    for step in range(2):
        writer.log(step, dict.fromkeys(names, 1.0))
    writer.close()
    (path,) = tmp_path.iterdir()
    shown = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            # TensorBoard keeps the description of a tag's first value.
            shown.setdefault(value.tag, migrate_value(value).metadata.summary_description)
    assert shown == names


def test_the_default_readers_points_are_gone_too(tmp_path):
    # TensorBoard's default reader ignores START events: a tag without a later value would keep its old one.
    write(tmp_path, range(5))
    write(tmp_path, (), resume_step=2)
    steps = [
        event.step
        for path in tmp_path.iterdir()
        for event in EventFileLoader(str(path)).Load()
        if event.HasField("summary")
    ]
    assert steps == [0, 1]


def details():
    return Details(
        {
            "prm/process_rewards": np.array([0.0, 1.0, math.nan, 1.0]),
            "advantage/tokens": np.array([]),
            "rollout/response_tokens": np.full(5, 7.0),
        },
        [Sample("<b>1+1</b>", "2", 1.0)],
    )


def test_histograms_and_samples_read_back(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.log(3, {"policy/entropy": 1.0}, details())
    writer.close()
    events = EventFiles(tmp_path)
    assert sorted(events.tags("histograms")) == ["prm/process_rewards", "rollout/response_tokens"]
    ((step, buckets),) = events.tensors("prm/process_rewards")
    assert (step, buckets.shape, buckets[0].tolist(), buckets[-1, 1:].tolist()) == (
        *(3, (NUM_BUCKETS, 3), [0.0, pytest.approx(1 / NUM_BUCKETS), 1.0], [1.0, 2.0]),
    )
    assert events.tensors("rollout/response_tokens")[0][1][:, 2].sum() == 5
    ((_, text),) = events.texts("rollout/samples")
    assert "outcome 1" in text and "    <b>1+1</b>" in text
    for tag in (*events.tags("histograms"), *events.tags("text"), *events.tags()):
        assert events.description(tag) == description_of(tag) != ""


def test_a_run_shows_layout_settings_and_provenance_of_each_attempt(tmp_path):
    for attempt, resume_step in enumerate((0, 3)):
        info = RunInfo(tmp_path, "first", config={"seed": 7}, provenance={"host": f"node{attempt}"})
        logger = TensorBoardLogger(info, resume_step)
        for step in range(resume_step, resume_step + 4):
            logger.log(StepRecord(step, {"policy/entropy": float(step)}))
        logger.close()
    events = EventFiles(tmp_path / "tensorboard")
    assert [point.step for point in events.scalars("policy/entropy")] == [0, 1, 2, 3, 4, 5, 6]
    assert [(step, "node" in text) for step, text in events.texts("run/provenance")] == [(0, True), (3, True)]
    assert '"seed": 7' in events.texts("run/config")[0][1]
    assert events.tags("custom_scalars") and len(events.tags("hparams")) == 2
    assert not [tag for tag in (*events.tags(), *events.tags("text")) if "/" not in tag]


def test_buckets_of_nothing_are_none():
    assert len(histogram_buckets(np.array([math.inf, math.nan]))) == 0
