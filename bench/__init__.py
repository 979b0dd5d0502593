"""Benchmarks. Each module is a command; the last line on standard output is one JSON object."""
