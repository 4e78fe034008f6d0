"""The rewrites of the ``fuse`` pass, one file each. Each edits a model, and logs what it changed or left and why."""
