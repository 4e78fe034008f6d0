import pytest

from graphopt.errors import UsageError
from graphopt.pipeline.expression import format_passes, parse_passes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", [("int8", {})]),
        ("prune-heads,int8", [("prune-heads", {}), ("int8", {})]),
        (" prune( ratio=0.3 ) , int8 ()", [("prune", {"ratio": 0.3}), ("int8", {})]),
        ("int8(per_channel=false)", [("int8", {"per_channel": False})]),
        ("int8(per-channel=True, mode=none)", [("int8", {"per_channel": True, "mode": None})]),
        ("int8(mode=dynamic)", [("int8", {"mode": "dynamic"})]),
        ("int8(exclude=['a,b(c)', \"d]\"])", [("int8", {"exclude": ["a,b(c)", "d]"]})]),
        ("int8(exclude=[head, layer.*])", [("int8", {"exclude": ["head", "layer.*"]})]),
        ("a(x={'k': (1, 2)},y=-1e-3)", [("a", {"x": {"k": (1, 2)}, "y": -1e-3})]),
        ("a(x='it\\'s')", [("a", {"x": "it's"})]),
    ],
)
def test_parses(text, expected):
    assert parse_passes(text) == expected


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("", "empty"),
        ("a,,b", "empty entry"),
        ("a,", "empty entry"),
        ("pr une", "'pr une'"),
        ("3d", "'3d'"),
        ("a(b", "missing ')'"),
        ("a(b=[1)", "unexpected ')'"),
        ("a)", "unexpected ')'"),
        ("a(x=1)b", "after the closing bracket"),
        ("a(1)", "'1' in 'a' is not key=value"),
        ("a(x=1,x=2)", "'x' is given twice"),
        ("a(x='b)", 'missing "\'"'),
        ("a(x=__import__('os').system('true'))", "cannot read the value"),
        ("a(x=1 2)", "cannot read the value '1 2'"),
    ],
)
def test_refuses_naming_the_token(text, token):
    with pytest.raises(UsageError) as caught:
        parse_passes(text)
    assert token in str(caught.value)
    assert "\n" not in str(caught.value)


def test_format_is_read_back():
    steps = [("prune", {"ratio": 0.3, "exclude": ["a b", "c"]}), ("int8", {})]
    assert parse_passes(format_passes(steps)) == steps
