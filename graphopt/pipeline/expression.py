"""The one-line form of a recipe: ``prune(ratio=0.3),int8(per_channel=false)`` into names and parameters."""

from __future__ import annotations

import ast
import re
from typing import Any

from graphopt.errors import UsageError

_NAME = re.compile(r"[A-Za-z][\w.-]*\Z")
_KEY = re.compile(r"[A-Za-z_]\w*\Z")
_BARE = re.compile(r"[\w./*+:@-]+\Z")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None, "null": None}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def parse_passes(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Split ``text`` into ``(name, parameters)`` pairs.

    A value is a Python literal, ``true``/``false``/``null``, a bare word (``mode=dynamic``), or a list of those.
    Raises UsageError naming the token that cannot be read.
    """
    steps = []
    for token in _split(text, ","):
        if not token:
            raise UsageError(f"passes: empty entry in {text!r}; write names separated by single commas")
        steps.append(_step(token))
    if not steps:
        raise UsageError("--passes is empty; name at least one pass, e.g. --passes fuse,int8")
    return steps


def parse_parameters(name: str, text: str) -> dict[str, Any]:
    """The parameters of one pass, as they stand inside its brackets."""
    return _step(f"{name}({text})")[1]


def format_passes(steps: list[tuple[str, dict[str, Any]]]) -> str:
    """The one-line form that ``parse_passes`` reads back."""
    parts = []
    for name, params in steps:
        inside = ",".join(f"{key}={value!r}" for key, value in params.items())
        parts.append(f"{name}({inside})" if inside else name)
    return ",".join(parts)


def _step(token: str) -> tuple[str, dict[str, Any]]:
    name, bracket, rest = token.partition("(")
    name = name.strip()
    if not _NAME.match(name):
        raise UsageError(f"passes: {token!r} does not start with a pass name; write name or name(key=value,...)")
    if not bracket:
        return name, {}
    if not rest.endswith(")"):
        raise UsageError(f"passes: text after the closing bracket in {token!r}; separate passes by a comma")
    params: dict[str, Any] = {}
    for argument in _split(rest[:-1], ","):
        if not argument:
            continue
        key, equals, value = argument.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not _KEY.match(key):
            raise UsageError(f"passes: {argument!r} in {name!r} is not key=value")
        if key in params:
            raise UsageError(f"passes: {key!r} is given twice in {name!r}")
        params[key] = _value(value.strip(), f"{name}({key}=...)")
    return name, params


def _value(text: str, where: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    if text.startswith("[") and text.endswith("]"):
        return [_value(item, where) for item in _split(text[1:-1], ",") if item]
    if _BARE.match(text):
        return text
    raise UsageError(f"passes: cannot read the value {text!r} of {where}; quote text that has spaces or brackets")


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside quotes and brackets; raises UsageError where these do not close."""
    parts, start = [], 0
    expected: list[str] = []
    quote = ""
    escaped = False
    for index, char in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in _CLOSING:
            expected.append(_CLOSING[char])
        elif char in _CLOSING.values():
            if not expected or expected.pop() != char:
                raise UsageError(f"passes: unexpected {char!r} at character {index + 1} of {text!r}")
        elif char == separator and not expected:
            parts.append(text[start:index].strip())
            start = index + 1
    if quote or expected:
        raise UsageError(f"passes: missing {quote or expected[-1]!r} at the end of {text!r}")
    parts.append(text[start:].strip())
    return parts if len(parts) > 1 or parts[0] else []
