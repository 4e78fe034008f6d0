import pytest

from graphopt.errors import UsageError
from graphopt.pipeline.registry import discover
from tests.plugin.fixtures import install


def test_a_third_party_pass_is_found(plugin):
    registry = discover()
    assert "keeps-its-word" in registry.names
    assert registry.load("keeps-its-word").__name__ == "Rename"
    assert registry.entry("keeps-its-word").distribution == "graphopt-misbehave"


def test_nothing_is_imported_before_it_is_used(plugin):
    import sys

    discover()
    assert "graphopt_misbehave" not in sys.modules


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no-module", "does not import"),
        ("missing", "does not import"),
        ("not-a-pass", "not a subclass"),
        ("misnamed", "calls itself 'another-name'"),
    ],
)
def test_a_broken_one_is_reported_and_the_rest_loads(plugin, name, word):
    registry = discover()
    with pytest.raises(UsageError, match=word):
        registry.load(name)
    loaded = registry.load_all()
    assert name not in loaded
    assert "keeps-its-word" in loaded
    assert any(name in problem for problem in registry.problems)


def test_duplicates_are_reported_and_ours_wins(tmp_path, monkeypatch):
    install(tmp_path, "someone-else", {"cleanup": "somewhere:Else"})
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = discover()
    assert registry.entry("cleanup").distribution == "graphopt"
    assert any("'cleanup'" in problem and "someone-else" in problem for problem in registry.problems)


def test_unknown_pass_suggests_the_nearest(plugin):
    with pytest.raises(UsageError) as caught:
        discover().load("keeps-its-wrod")
    assert "did you mean 'keeps-its-word'?" in str(caught.value)
    assert "cleanup" in str(caught.value)


def test_unknown_parameter_suggests_the_nearest(plugin):
    with pytest.raises(UsageError, match=r"no parameter 'amout'.*did you mean 'amount'"):
        discover().build("noise", {"amout": 1})


def test_wrong_value_names_parameter_and_value(plugin):
    with pytest.raises(UsageError, match=r"amount=7.*less than or equal to 1"):
        discover().build("noise", {"amount": 7})
