from benchmarks import rollout_log


def test_a_small_log_is_measured(tmp_path):
    text = "Let x = 3. Then x + 1 = 4. 🙂 " * 20
    times, mib = rollout_log.seconds(2, 64, text, tmp_path)
    assert len(times) == rollout_log.NUM_REPEATS
    assert min(times) > 0
    assert 0 < mib < 1
