from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from megatron_prime.observability.loggers.event_files import PREFIX, drop_steps, encode_event


def event(step, tag="a/b"):
    return Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=step)]))


def write(path, *events):
    path.write_bytes(b"".join(encode_event(each) for each in (Event(file_version="brain.Event:2"), *events)))


def steps(path):
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    events = [Event.FromString(data) for data in RawEventFileLoader(str(path)).Load()]
    assert events[0].file_version == "brain.Event:2"
    return [each.step for each in events[1:]]


def test_replaced_steps_leave_every_file_and_earlier_ones_stay(tmp_path):
    first, second = tmp_path / f"{PREFIX}1.host", tmp_path / f"{PREFIX}2.host"
    write(first, event(0), event(1), event(5))
    write(second, event(2), event(3))
    drop_steps(tmp_path, 3)
    assert (steps(first), steps(second)) == ([0, 1], [2])


def test_a_file_without_a_step_that_is_left_is_removed(tmp_path):
    write(tmp_path / f"{PREFIX}1.host", event(4), event(5))
    drop_steps(tmp_path, 4)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_keeps_everything_is_not_touched(tmp_path):
    path = tmp_path / f"{PREFIX}1.host"
    write(path, event(0), event(1))
    before = path.stat()
    drop_steps(tmp_path, 2)
    assert path.stat() == before
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    drop_steps(tmp_path, 0)
    assert other.read_text() == "mine"


def test_a_file_torn_by_a_kill_keeps_what_is_whole(tmp_path):
    path = tmp_path / f"{PREFIX}1.host"
    write(path, event(0), event(1), event(2), event(3))
    path.write_bytes(path.read_bytes()[:-5])
    drop_steps(tmp_path, 2)
    assert steps(path) == [0, 1]
