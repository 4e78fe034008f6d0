"""The names that ``import graphopt`` promises."""

import graphopt


def test_every_public_name_loads():
    for name in graphopt.__all__:
        assert getattr(graphopt, name) is not None, name


def test_unknown_names_are_attribute_errors():
    assert not hasattr(graphopt, "no_such_name")


def test_dir_lists_them():
    assert set(graphopt.__all__) <= set(dir(graphopt))
