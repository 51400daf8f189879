import pytest

from megatron_prime.environments.registry import environment_names, load_environment


def options(name, **settings):
    return {"name": name, "settings": settings, "tools": [], "timeout_s": 5.0, "code": {}}


def test_a_name_or_a_path_makes_environments_with_their_settings():
    assert "guess_number" in environment_names()
    factory = load_environment(options("guess_number", highest=3))
    assert factory.create() is not factory.create() and factory.tools() == ()
    factory = load_environment(options("tests.environments.scripted:Scripted", greeting="hi"))
    assert factory.create().greeting == "hi"
    (schema,) = load_environment(options("tests.environments.scripted:Async")).tools()
    assert schema["function"]["name"] == "look"


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("tests.environments.scripted:None_", {}, "environment.name = .* has no attribute 'None_'"),
        ("tests.environments.scripted:LOADED", {}, "missing: reset, step"),
        ("guess_number", {"colour": 1}, "environment.settings = .*unexpected keyword argument 'colour'"),
    ],
)
def test_what_is_no_environment_is_refused(name, settings, match):
    with pytest.raises(ValueError, match=match):
        load_environment(options(name, **settings))
