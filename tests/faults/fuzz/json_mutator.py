"""Mutates a JSON text so that it stays valid JSON. Few mutations of libFuzzer itself are valid JSON."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = (
    *("model", "input", "text", "voice", "voice_id", "id", "instructions", "response_format", "speed", "stream_format"),
    *(
        "progress",
        "timestamps",
        "temperature",
        "top_k",
        "topk",
        "top_p",
        "cfg_scale",
        "seed",
        "max_audio_length_ms",
        "sample_rate",
    ),
    *(
        "language",
        "conversation_id",
        "cache",
        "normalize",
        "enhance",
        "speaker_id",
        "speaker",
        "context",
        "turns",
        "audio",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**63, -(2**63), 10**30, 0.0, -0.0, 0.25, 4, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "alloy",
        "nova",
        "mp3",
        "wav",
        "opus",
        "pcm",
        "sse",
        "audio",
        "random",
        "csm-1b",
        "en-US",
        "\ud800",
        "\0",
    ),
    *("data:audio/wav;base64,UklGRg==", "data:,", "UklG\r\nRg", "====", "é", "x" * 5000, {}, [], {"id": "a"}, [[]]),
    {"speaker": 0, "text": "a", "audio": ""},
    {"speaker": "b", "text": "hi", "voice": {"id": "alloy"}},
)


def mutate(data: bytes, max_size: int, seed: int, otherwise: Callable[[bytes, int], bytes]) -> bytes:
    """Mutate data (one byte, then JSON). libFuzzer mutates invalid JSON, and sometimes valid JSON too."""
    chance = random.Random(seed)
    try:
        content = json.loads(data[1:])
    except (ValueError, RecursionError):
        content = None
    if content is None or chance.random() < 0.2:
        return otherwise(data, max_size)
    head = bytes([chance.randrange(5)]) if chance.random() < 0.1 else data[:1]
    for _ in range(chance.randrange(1, 4)):
        content = _changed(content, chance, 0)
    text = json.dumps(content, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    changed = head + text
    return changed if len(changed) <= max_size else otherwise(data, max_size)


def _changed(content: Any, chance: random.Random, depth: int) -> Any:
    if isinstance(content, dict) and content and depth < 6 and chance.random() < 0.8:
        name = chance.choice([*content])
        match chance.randrange(5):
            case 0:
                return {key: value for key, value in content.items() if key != name}
            case 1:
                return {**content, chance.choice(NAMES): chance.choice(VALUES)}
            case _:
                return {**content, name: _changed(content[name], chance, depth + 1)}
    if isinstance(content, list) and content and depth < 6 and chance.random() < 0.8:
        at = chance.randrange(len(content))
        match chance.randrange(4):
            case 0:
                return [*content[:at], *content[at + 1 :]]
            case 1:
                return [*content, content[at]] * chance.choice((1, 1, 1, 40))
            case _:
                return [*content[:at], _changed(content[at], chance, depth + 1), *content[at + 1 :]]
    if isinstance(content, str) and chance.random() < 0.5:
        at = chance.randrange(len(content) + 1)
        return (
            content[:at] + chance.choice(("", " ", "a", "\u2028", "=", "-", "\ud800", "[S1]", "9")) + content[at + 1 :]
        )
    if isinstance(content, int | float) and chance.random() < 0.5:
        return content + chance.choice((1, -1, 0.5, 10**6))
    return chance.choice(VALUES)
