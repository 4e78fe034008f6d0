"""Result objects into text for a terminal, and JSON."""
