"""Finds all faults of a data set in one pass: python -m data.check CONFIG."""
