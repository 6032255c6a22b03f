"""Recipes. A package with files of its own, so that no other folder named configs comes first."""
