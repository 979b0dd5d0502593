"""Voices: the store, cloning, quality reports, enhancement and conversation memory. No HTTP, no engines."""
