"""Comparisons and figures; each writes benchmarks/results/NAME.json. Never part of the tests."""
