"""The steps of the ``cleanup`` pass, one file each: a step edits a model and tells how many sites it changed."""
