"""Durable jobs: long texts that are spoken in the background and survive a restart. This package knows no HTTP.

`store.py` keeps the state of all jobs in SQLite, and `sounds.py` keeps the sound of each sentence in a file.
`planning.py` splits chapters into sentences. `runner.py` speaks the sentences and writes the results.
"""
