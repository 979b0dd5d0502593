"""Benchmarks. Most modules are commands. The last line that such a command prints is one JSON object."""
