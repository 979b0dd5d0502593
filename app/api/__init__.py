"""The HTTP API: OpenAI's speech endpoints and further routes. This package does not import torch or numpy."""
