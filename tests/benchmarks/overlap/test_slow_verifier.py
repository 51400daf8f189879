"""The verifier judges the first word, in a time that a response decides."""

import statistics

from benchmarks.overlap import slow_verifier


def test_the_first_word_counts_and_the_time_follows_from_the_text(monkeypatch):
    slept = []
    monkeypatch.setattr(slow_verifier.time, "sleep", slept.append)
    assert slow_verifier.verify("7 ~ ~", "7") == 1.0
    assert slow_verifier.verify("3 ~ 7", "7") == slow_verifier.verify("", "7") == 0.0
    slow_verifier.verify("7 ~ ~", "7")
    assert slept[3] == slept[0] != slept[1]
    for index in range(2000):
        slow_verifier.verify(f"{index}", "7")
    assert abs(statistics.fmean(slept) / slow_verifier.MEAN_S - 1) < 0.1
