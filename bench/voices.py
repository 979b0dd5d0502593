"""Measures whether a voice stays the same: the speaker similarity of answers through HTTP.

    pip install --no-deps resemblyzer==0.1.4     # only for the weights; its dependencies are not needed
    python -m bench.voices                       # the offline voices, on a new server
    python -m bench.voices --url http://gpu:8000 --voices alloy,nova,my-clone

Each voice speaks several sentences in separate requests: once as mp3 that is streamed as events, and once as wav. Two
answers are compared by the cosine of their embeddings (GE2E: Wan et al. 2018; the encoder and features of Resemblyzer).
If a voice is stable, its answers are more similar to each other than to the answers of other voices. `recognised`
counts the answers for which this is true.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import httpx
import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import nn

from app.audio.decode import decode
from bench.server import own_server

RATE_HZ = 16_000
FFT, HOP, MELS = 400, 160, 40
PARTIAL, STEP = 160, 77  # frames in a window (1.6 s), and from the start of a window to the start of the next (0.77 s)
QUIET = 10 ** (-45 / 20)
SENTENCES = (
    "The quick brown fox jumps over the lazy dog and runs into the forest.",
    "Please call Stella and ask her to bring these things with her from the store.",
    "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow.",
    "I would rather stay at home tonight, read a good book, and go to bed early.",
)
Embedding = NDArray[np.float32]


class SpeakerEncoder(nn.Module):
    """Computes the speaker embedding of a recording: a vector (256,) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        found = importlib.util.find_spec("resemblyzer")
        if found is None or not found.submodule_search_locations:
            sys.exit("The encoder's weights are missing: pip install --no-deps resemblyzer==0.1.4")
        path = Path(found.submodule_search_locations[0]) / "pretrained.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({name: value for name, value in state.items() if name.startswith(("lstm", "linear"))})
        self.filters = torch.from_numpy(mel_filters())

    @torch.inference_mode()
    def forward(self, samples: NDArray[np.float32]) -> Embedding:
        """Return the embedding (256,) of samples (N,) at RATE_HZ."""
        level = np.sqrt(np.mean(np.square(samples))) + 1e-9
        samples = samples * max(1.0, 10 ** (-30 / 20) / level)
        samples = np.pad(samples, (0, max(0, PARTIAL * HOP - len(samples))))
        padded = torch.nn.functional.pad(torch.from_numpy(samples).float(), (FFT // 2, FFT // 2))
        spectrum = torch.stft(padded, FFT, HOP, window=torch.hann_window(FFT), center=False, return_complex=True)
        mels = (self.filters @ spectrum.abs().square()).T  # (T, MELS)
        starts = range(0, max(1, len(mels) - PARTIAL + 1), STEP)
        batch = torch.stack([mels[start : start + PARTIAL] for start in starts])
        _, (hidden, _) = self.lstm(batch)
        raw = torch.relu(self.linear(hidden[-1]))
        mean = (raw / raw.norm(dim=1, keepdim=True)).mean(0)
        embedding: Embedding = (mean / mean.norm()).numpy()
        return embedding


def mel_filters() -> NDArray[np.float32]:
    """Return mel filters (MELS, FFT // 2 + 1): triangles of equal area on Slaney's scale (Auditory Toolbox, 1998)."""
    per_hz, knee_hz, log_step = 3 / 200, 1000.0, np.log(6.4) / 27
    knee = knee_hz * per_hz
    top = knee + np.log(RATE_HZ / 2 / knee_hz) / log_step
    mels = np.linspace(0, top, MELS + 2)
    edges = np.where(mels < knee, mels / per_hz, knee_hz * np.exp(log_step * (mels - knee)))
    hertz = np.fft.rfftfreq(FFT, 1 / RATE_HZ)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    filters: NDArray[np.float32] = weights.astype(np.float32)
    return filters


def without_pauses(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the samples (N,) without silent windows of 30 ms."""
    size = RATE_HZ * 3 // 100
    windows = samples[: len(samples) // size * size].reshape(-1, size)
    kept: NDArray[np.float32] = windows[np.sqrt(np.mean(np.square(windows), axis=1)) > QUIET].reshape(-1)
    return kept if len(kept) else samples


async def said(http: httpx.AsyncClient, voice: str, text: str, *, streamed: bool) -> NDArray[np.float32]:
    """Request an answer, and return its samples without pauses."""
    body = {"voice": voice, "input": text, "response_format": "mp3" if streamed else "wav", "cache": False}
    if not streamed:
        answer = await http.post("/v1/audio/speech", json=body)
        answer.raise_for_status()
        data = answer.content
    else:
        parts = []
        async with http.stream("POST", "/v1/audio/speech", json={**body, "stream_format": "sse"}) as stream:
            stream.raise_for_status()
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    parts.append(base64.b64decode(event.get("audio", "")))
        data = b"".join(parts)
    samples = decode(data, 24_000, max_seconds=60.0).samples
    return without_pauses(soxr.resample(samples, 24_000, RATE_HZ))


def centre(embeddings: list[Embedding]) -> Embedding:
    """Return the mean of several embeddings, scaled to length 1."""
    mean = np.mean(embeddings, axis=0)
    found: Embedding = mean / np.linalg.norm(mean)
    return found


async def measure(url: str, voices: list[str]) -> dict[str, object]:
    encoder = SpeakerEncoder()
    found: dict[str, list[Embedding]] = {}
    async with httpx.AsyncClient(base_url=url.removesuffix("/v1"), timeout=600) as http:
        if not voices:
            listed = (await http.get("/v1/audio/voices")).json()["voices"]
            voices = [voice["id"] for voice in listed]
        for voice in voices:
            found[voice] = [
                encoder(await said(http, voice, text, streamed=streamed))
                for text in SENTENCES
                for streamed in (False, True)
            ]
    rows = {}
    for voice, own in found.items():
        same = [float(a @ b) for a, b in itertools.combinations(own, 2)]
        others = {name: float(centre(own) @ centre(each)) for name, each in found.items() if name != voice}
        nearest = max(others, key=lambda name: others[name]) if others else None
        rows[voice] = {
            "same_mean": round(float(np.mean(same)), 3),
            "same_least": round(min(same), 3),
            "nearest": nearest,
            "nearest_centre": round(others[nearest], 3) if nearest else None,
        }
        print(f"{voice:12} {rows[voice]}", flush=True)
    right = 0
    for name, own in found.items():
        for each in own:
            near = {
                other: float(each @ centre([one for one in theirs if one is not each]))
                for other, theirs in found.items()
            }
            right += max(near, key=lambda other: near[other]) == name
    every = sum(len(own) for own in found.values())
    return {"voices": rows, "answers": every, "recognised": right}


async def run(url: str | None, voices: list[str]) -> dict[str, object]:
    if url is not None:
        return await measure(url, voices)
    async with contextlib.AsyncExitStack() as stack:
        return await measure((await stack.enter_async_context(own_server())).url, voices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="URL of a running server; default: start a server with the offline voice")
    parser.add_argument("--voices", default="", help="ids or names, separated by commas; default: all")
    args = parser.parse_args()
    print(json.dumps(asyncio.run(run(args.url, [name for name in args.voices.split(",") if name]))))


if __name__ == "__main__":
    main()
