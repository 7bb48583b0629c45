"""Benchmarks: the cost of each operation, compared with a lower bound. See README.md."""
