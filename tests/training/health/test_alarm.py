"""An alarm looks at a metric, and keeps a window of its values across a resume."""

import json

from megatron_prime.training.health.alarm import Alarm


class AboveMean(Alarm):
    """Alarming is a value above the mean of those before it."""

    def look(self, value):
        mean = sum(self._values) / len(self._values) if self._values else value
        self._values.append(value)
        return f"{value} is above {mean}" if value > mean else None


def test_an_alarm_reads_its_metric_and_keeps_a_window():
    alarm = AboveMean("a/b", window=2)
    assert alarm.read({"a/b": 3.0, "a/c": 4.0}) == 3.0
    assert alarm.read({"a/c": 4.0}) is None
    assert [alarm.look(value) for value in (9.0, 1.0, 2.0)] == [None, None, None]
    assert alarm.look(2.0) == "2.0 is above 1.5", "the 9 has left the window"


def test_a_restored_alarm_continues_with_the_same_window():
    first, second = AboveMean("a/b", window=2), AboveMean("a/b", window=2)
    for value in (1.0, 2.0, 3.0):
        first.look(value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict() == {"values": [2.0, 3.0]}
    assert second.look(2.7) == first.look(2.7) is not None
