"""Measures of representations: arrays to numbers, exact over the whole set."""
