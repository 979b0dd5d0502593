"""Creates, changes and deletes voices until it is killed. It prints a line before and after each action."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from app.types import Reference
from app.voices.store import VoiceStore


def main(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    store = VoiceStore(folder / "cloned_voices", folder / "voice_references")
    mine: list[str] = []
    print("ready", flush=True)
    while True:
        draw = dice.random()
        if mine and draw < 0.4:
            voice_id = mine.pop(dice.randrange(len(mine)))
            print("deleting", voice_id, flush=True)
            store.delete(voice_id)
        elif mine and draw < 0.55:
            voice_id = dice.choice(mine)
            words = f"Other words, {dice.random()}."
            print("changing", voice_id, flush=True)
            store.change(voice_id, transcript=words)
            print("changed", voice_id, words, flush=True)
        elif draw < 0.65:
            samples = np.random.default_rng(dice.randrange(1000)).normal(0, 0.1, 2_000).astype(np.float32)
            store.set_reference("onyx", Reference(samples, 24_000, f"Words {len(mine)}."))
        else:
            samples = np.random.default_rng(dice.randrange(1000)).normal(0, 0.1, 4_000).astype(np.float32)
            voice_id = store.add("Anna", Reference(samples, 24_000, "Some words.")).id
            mine.append(voice_id)
            print("made", voice_id, flush=True)


main(Path(sys.argv[1]), int(sys.argv[2]))
