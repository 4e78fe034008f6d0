"""Fixtures shared with the other test folders."""

from tests.plugin.fixtures import mlp, plugin  # noqa: F401
