"""The HTTP API: OpenAI's speech endpoints and the further routes of this server. It does not import torch or numpy."""
