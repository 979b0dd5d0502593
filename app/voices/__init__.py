"""Voices: the store, cloning, quality reports, enhancement and conversation memory.

This package does not depend on HTTP or engines.
"""
