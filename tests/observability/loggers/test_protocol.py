from megatron_prime.observability.loggers.protocol import flat_settings


def test_tables_become_dotted_names():
    settings = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert flat_settings(settings) == {"a": 1, "b.c": [1, 2], "b.d.e": None}
