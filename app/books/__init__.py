"""Books: files of text in (`reading.py`), audiobooks out (`results.py`). This package knows no HTTP and no engine."""
