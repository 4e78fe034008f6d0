"""What ``prune`` decides with."""
