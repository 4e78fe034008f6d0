"""Recipes, the registry of passes, the guard, and the loop that runs each pass as a transaction."""
