"""Durable jobs: long texts that are spoken in the background and survive a restart. This package knows no HTTP.

`store.py` keeps the state in SQLite, `sounds.py` the sound of each sentence in a file, `planning.py` splits chapters
into sentences, and `runner.py` speaks them and writes the results.
"""
