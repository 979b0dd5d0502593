"""Voices: who can be asked for, and what is known of them. No HTTP, no engines."""
