"""The rewrites of the ``fuse`` pass, one file each: a rewrite edits a model and logs what it changed and what it left,
and why."""
