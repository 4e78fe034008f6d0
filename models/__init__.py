"""Reference models: how each is built, from which source, under which licence, and how its task is scored.

A folder of the repository, not of the installed package; run things from the repository's root.
"""
