import math
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.data_compat import migrate_value

from megatron_prime.observability.catalog import metric_of
from megatron_prime.observability.tensorboard import TensorBoardWriter
from tests.support import deadlines


def write(folder, steps, resume_step=0, offset=0.0):
    writer = TensorBoardWriter(folder, resume_step)
    for step in steps:
        writer.log(step, {"policy/loss": step + offset})
    writer.close()


def read(folder, name="policy/loss"):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


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
