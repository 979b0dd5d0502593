"""HTTP: what OpenAI's clients expect, and what this server offers beyond it. No torch, no numpy, no engine by name."""
