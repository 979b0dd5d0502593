"""Measurements, each one command; the last line on standard output is one JSON object."""
