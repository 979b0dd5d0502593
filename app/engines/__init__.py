"""Engines: the Engine protocol and its implementations. This package does not depend on HTTP."""
