"""Engines: the Engine protocol and its implementations. Does not depend on HTTP. Only model engines import torch."""
