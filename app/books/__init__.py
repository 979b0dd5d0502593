"""Books: `reading.py` reads a file of text, `results.py` writes an audiobook. No module here uses HTTP or engines."""
