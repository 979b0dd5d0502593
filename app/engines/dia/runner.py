"""Dia-1.6B as a Runner: rows that read a script, speak it and end, each at its own place. No HTTP, no voice store.

A row reads the script (`script.py`) through the encoder, its voices' recordings as frames already said, and
goes on from there. Every step is a pair of tokens, with and without the text (`engines/dia/model.py`), and gives codes
of nine frames at once, one per channel, so a frame is whole 15 steps after its first code (`engines/dia/delay.py`).

The codec looks ten frames ahead. Frames are gathered and decoded FIRST_FRAMES, then CHUNK_FRAMES at a time, counted by
the row's own frames: what a row sounds like depends neither on who listens how fast nor on its company.

`exact` is the bare model: the text's bytes as they are, and nothing that ends or changes what it says. `Guards` are
what production adds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.audio.guard import LineGuard, Rule
from app.engines.dia.config import DiaConfig
from app.engines.dia.cuda_graph import DiaCudaGraph, Step, common
from app.engines.dia.delay import DelayPattern
from app.engines.dia.guidance import candidates
from app.engines.dia.model import DiaModel
from app.engines.dia.prompt import text_ids
from app.engines.dia.script import BYTES_PER_S, format_script, spoken_bytes
from app.engines.shared.references import checked
from app.errors import BadReference, EmptyText, TextTooLong
from app.nn.dac.model import DacDecoder, DacEncoder
from app.nn.kernels.choice import TORCH, Kernels
from app.runtime.cuda_graphs import GraphCapture, setup_of, side_stream
from app.runtime.faults import BROKEN
from app.runtime.runner import RowResult, StepResult, to_result
from app.runtime.sampling import ReferenceNoise, Sampler, SamplingParams, exponential_noise, int64_of
from app.types import Sampling, SpokenLine, Utterance, Voice

if TYPE_CHECKING:
    from app.types import Codes, Reference, Samples, VoicePrompt

PIECE_CPU, PIECE_GPU = 32, 256  # positions read in one go, each two tokens: what other rows wait for
ENCODER_SHARE = 16  # a layer of the encoder or of keys takes about this part of what a decoder's pass takes
FIRST_FRAMES, CHUNK_FRAMES = 16, 8  # the first chunk gives 70 ms of sound; smaller chunks cost up to twice as much
MIN_REFERENCE_S, MAX_REFERENCE_S = 0.5, 20.0
WARM_UP_TEXT = "The weather was fine."


@dataclass(frozen=True, slots=True)
class Guided:
    """One row's sampling. cfg_scale 0 = no guidance."""

    params: SamplingParams
    cfg_scale: float


# nari-labs/dia: README and hf.py of 0626; the first release's generate().
DEFAULTS = {
    "0626": Guided(SamplingParams(temperature=1.8, top_k=45, top_p=0.90), 3.0),
    "v0.1": Guided(SamplingParams(temperature=1.3, top_k=35, top_p=0.95), 3.0),
}


def pick(
    config: DiaConfig,
    logits: tuple[Tensor, Tensor],
    rows: Sequence[Guided],
    noise: Tensor | None,
    min_frames_left: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (n, C, V) with the text and without -> codes (n, C) int64, and whose best candidate of channel 0 is
    EOS (n,) bool.

    noise (n * C, V), None where all rows are greedy. young (n,): rows that may not end yet.
    """
    c, count, device = config, len(rows), logits[0].device
    scales = torch.tensor([row.cfg_scale for row in rows], device=device, dtype=torch.float32)
    top_k = torch.tensor([row.params.top_k for row in rows], device=device)
    most = max(row.params.top_k for row in rows)
    left = candidates(c, *logits, scales=scales, top_k=top_k, most=most)
    ending = left[:, 0, c.eos].isfinite()
    if min_frames_left is not None and bool((ending & min_frames_left).any()):
        left = candidates(c, *logits, scales=scales, top_k=top_k, most=most, min_frames_left=min_frames_left)
    # The top k of 0626 has been taken by then.
    own = [replace(row.params, top_k=0) if c.release == "0626" else row.params for row in rows]
    sampler = Sampler([params for params in own for _ in range(c.channels)], left.device)
    return sampler.pick(left.view(count * c.channels, c.audio_vocab), noise).view(count, c.channels), ending


@dataclass(frozen=True, slots=True)
class Guards:
    """Against a model that does not stop, or stops at once (see `audio/guard.py`).

    A script is ended after slack_s + pace * the time it should take; in its first min_s it can't end.
    """

    min_s: float = 0.3
    pace: float = 2.0
    slack_s: float = 4.0

    def limit_s(self, said_s: float) -> float:
        return self.slack_s + self.pace * said_s


@dataclass(eq=False, slots=True)
class _Row:
    """One utterance on its way: what it reads, what it has said."""

    ids: list[int]  # of the script
    prompt: Tensor  # (P, C) int64
    how: Guided
    seed: int
    frames: int  # it may say
    capped: bool  # by the guards
    position: int = 0  # positions in the cache
    draws: int = 0  # the noise counter
    said: int = 0  # frames
    reading: Iterator[None] | None = None
    over: bool = False
    waiting: list[Tensor] = field(default_factory=list)  # frames (C,) that are not sound yet
    decoded: int = 0  # frames given to the codec
    guard: LineGuard | None = None
    reference: ReferenceNoise | None = None


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    """Rows that were sent off with a burst of recorded steps, and what they will have made."""

    rows: list[tuple[int, _Row]]
    steps: Callable[[], list[Step]]


class DiaRunner:
    """The model, the codec and their rows. All calls from one thread, `encode` from any."""

    def __init__(
        self,
        model: DiaModel,
        encoder: DacEncoder,
        decoder: DacDecoder,
        *,
        max_rows: int,
        guards: Guards | None = None,
        exact: bool = False,
        on_guard: Callable[[Rule], None] = lambda _: None,
        reference_noise: bool = False,
        quantized: bool = False,
        fingerprint: str = "",
        codec_fingerprint: str = "",
        piece: int | None = None,
        recorder: GraphCapture | None = None,
        kernels: Sequence[Kernels] = (TORCH,),
        burst: int = 1,
    ) -> None:
        """guards None = none, as the reference implementations; exact: no text rules either. reference_noise = draws as
        PyTorch's multinomial after `manual_seed` would, for comparing with them; piece = positions read per `prefill`;
        recorder = steps are recorded with it and replayed from then on, `burst` at a time, with the fastest of
        `kernels`.
        """
        self.max_rows = max_rows
        self.model = model
        self.config = model.config
        self.codec = decoder.config
        self.fingerprint, self.codec_fingerprint = fingerprint, codec_fingerprint
        self._encoder = encoder
        self._decoder = decoder
        self._guards = guards
        self._exact = exact
        self._on_guard = on_guard
        self._reference_noise = reference_noise
        # As of CSM: a CPU's float32 products of many rows differ in the last bits from those of few.
        self._one_by_one = model.device.type == "cpu" and not quantized and model.dtype == torch.float32
        self._piece = piece or (PIECE_CPU if model.device.type == "cpu" else PIECE_GPU)
        if recorder is None:
            self._cache = model.cache(max_rows)
        else:
            self._cache = model.cache(max_rows, batched=True, scratch=1)
        self._tracks = DelayPattern(model.config, max_rows, model.device)
        self._rows: dict[int, _Row] = {}
        self._frames: DiaCudaGraph | None = None
        self._in_flight: _InFlightStep | None = None
        self._landed: deque[tuple[list[tuple[int, _Row]], Step]] = deque()
        self._aside = side_stream(model.device)  # the codec need not wait for a burst
        if recorder is not None:
            if reference_noise:
                raise ValueError("steps are recorded with our own noise")
            self._frames = DiaCudaGraph(model, self._cache, self._tracks, rows=max_rows, burst=burst, kernels=kernels)
            self._frames.record(recorder)
            self.max_rows = self._frames.rows
            self._warm_up()
        self.setup = setup_of(recorder, self.max_rows, self._frames.kernels if self._frames else "")

    def _warm_up(self) -> None:
        """Say something that nobody hears."""
        line = SpokenLine(WARM_UP_TEXT, 0, Voice("warm-up", "warm-up", "none"))
        self.admit(0, Utterance((line,), Sampling(), 0, 1.0))
        while not self.prefill(0):
            pass
        assert self._frames is not None  # noqa: S101 - who warms up has recorded
        for _ in range(FIRST_FRAMES + 2 * self._frames.burst):
            result = self.step([0])
            if result.silent is not None and not (result.ended | result.silent).all():
                self.decode([0], result.codes)
        self.release(0)

    @property
    def rate_hz(self) -> int:
        return self.codec.rate_hz

    @property
    def most_s(self) -> float:
        """How long a prompt and what is said after it may be together."""
        return self.config.max_frames / self.codec.frame_hz

    # ---- the Runner protocol

    def admit(self, row: int, utterance: Utterance) -> None:
        """Raises TextTooLong, BadReference, TooManySpeakers, EmptyText: nothing of a script is ever cut off."""
        prompts = self._prompts(utterance)
        if self._exact:
            text = said = " ".join(line.text for line in utterance.lines)
            voices = list(prompts.values())
        else:
            lines = [(_speaker(line), line.text) for line in utterance.lines]
            script = format_script(lines, {speaker: prompt.transcript for speaker, prompt in prompts.items()})
            text, said = script.text, script.spoken_text
            voices = [prompts[speaker] for speaker in script.speakers if speaker in prompts]
        ids = text_ids(text, self.config.max_text)
        if not ids:
            raise EmptyText("There is nothing to say in this text.", param="input")
        codes = [torch.from_numpy(self._codes(prompt).T.astype(np.int64)) for prompt in voices]
        prompt = torch.cat([torch.zeros(0, self.config.channels, dtype=torch.int64), *codes])
        asked = max(1, round(utterance.max_seconds * self.codec.frame_hz))
        frames = self._room(asked, len(prompt), said)
        self._rows[row] = _Row(
            ids=ids,
            prompt=prompt.to(self.model.device),
            how=self._how(utterance.sampling),
            seed=utterance.seed,
            frames=frames,
            capped=frames < asked,
            guard=LineGuard(spoken_bytes(said), 1 / self.codec.frame_hz) if self._guards else None,
            reference=ReferenceNoise(int64_of(utterance.seed)) if self._reference_noise else None,
        )

    @torch.inference_mode()
    def prefill(self, row: int) -> bool:
        state = self._rows[row]
        if state.reading is None:
            with self._aside():
                self._decoder.reset(row)
            self._tracks.begin(row, state.prompt, state.frames)
            state.reading = self._read(row, state)
        for _ in state.reading:
            return False
        if self._frames is not None:
            self._frames.place(
                row,
                state.how.params,
                state.how.cfg_scale,
                position=state.position,
                seed=int64_of(state.seed),
                min_frames_left=round(self._guards.min_s * self.codec.frame_hz) if self._guards is not None else 0,
                length=len(state.ids),
                whole=self._tracks.first_frame(len(state.prompt)),
            )
        return True

    @torch.inference_mode()
    def step(self, rows: Sequence[int]) -> StepResult:
        if self._frames is not None:
            return self._step_ahead(rows, self._frames)
        codes = np.zeros((len(rows), self.config.channels), np.int16)
        ended = np.array([self._rows[row].over for row in rows], np.bool_)
        silent = np.zeros(len(rows), np.bool_)
        speaking = [i for i, over in enumerate(ended) if not over]
        if speaking:
            host = self._speak([rows[i] for i in speaking]).cpu().numpy()
            for i, (*frame, count, finite) in zip(speaking, host, strict=True):
                if not finite:
                    self._wipe(rows[i])
                    codes[i] = BROKEN
                    continue
                codes[i] = frame
                silent[i], ended[i] = self._commit(rows[i], codes[i], int(count))
        return StepResult(codes, ended, silent)

    def _wipe(self, row: int) -> None:
        """A row's numbers are not finite any more: leave nothing of them to who comes next."""
        self._rows[row].over = True
        self._cache.said.zero_row(2 * row)
        self._cache.said.zero_row(2 * row + 1)
        self._cache.text.zero_row(row)

    def _step_ahead(self, rows: Sequence[int], frames: DiaCudaGraph) -> StepResult:
        """`step` with recorded steps: one of those that have landed, and where there are none left, the next burst is
        sent off before the last one is looked at."""
        told = [RowResult(row, ended=True) for row in rows if self._rows[row].over]
        if not self._landed:
            speaking = [row for row in rows if not self._rows[row].over]
            finished, self._in_flight = self._in_flight, self._launch(speaking, frames) if speaking else None
            if finished is not None:
                self._landed.extend((finished.rows, step) for step in finished.steps())
        active = False
        while self._landed and not active:
            launched, step = self._landed.popleft()
            for row, state in launched:
                if self._rows.get(row) is not state or state.over or not step.active[row]:
                    continue
                active = True
                if step.non_finite[row]:
                    self._wipe(row)
                    told.append(RowResult(row, BROKEN))
                    continue
                if step.early_eos[row]:
                    self._on_guard("early_end")
                state.position += 1
                state.draws += 1
                frame = step.frames[row].copy()
                silent, ended = self._commit(row, frame, int(step.counts[row]))
                told.append(RowResult(row, frame, ended, silent))
        return to_result(told, self.config.channels)

    def _launch(self, rows: list[int], frames: DiaCudaGraph) -> _InFlightStep:
        states = [self._rows[row] for row in rows]
        # This burst, and one that may be on its way.
        longest = min(max(state.position for state in states) + 2 * frames.burst + 1, self.config.max_positions)
        text = max(len(state.ids) for state in states)
        fast_path = common([state.how.params for state in states])
        steps = frames.launch(rows, longest=longest, text=text, fast_path=fast_path)
        return _InFlightStep(list(zip(rows, states, strict=True)), steps)

    @torch.inference_mode()
    def decode(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        """Nothing for most frames; a row's last frame brings all that is left of its sound."""
        with self._aside():
            return self._sound(rows, codes)

    def _sound(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        due: dict[int, list[int]] = {}  # by frames to decode: the rows' places
        for i, (row, frame) in enumerate(zip(rows, codes, strict=True)):
            state = self._rows[row]
            state.waiting.append(torch.from_numpy(frame.astype(np.int64)))
            if state.over or len(state.waiting) == (CHUNK_FRAMES if state.decoded else FIRST_FRAMES):
                due.setdefault(len(state.waiting), []).append(i)
        sounds: list[Samples] = [np.zeros(0, np.float32)] * len(rows)
        for places in due.values():
            states = [self._rows[rows[i]] for i in places]
            frames = torch.stack([torch.stack(state.waiting, dim=1) for state in states])  # (n, C, T)
            made = self._decoder.decode([rows[i] for i in places], frames.to(self.model.device))
            for i, state, samples in zip(places, states, made, strict=True):
                state.decoded += len(state.waiting)
                state.waiting.clear()
                if state.over:
                    samples = torch.cat((samples, self._decoder.flush(rows[i])))  # noqa: PLW2901
                sounds[i] = samples.float().cpu().numpy()
                if state.guard is not None:
                    size = self.codec.frame_samples
                    for start in range(0, len(sounds[i]), size):
                        state.guard.hear(sounds[i][start : start + size])
        return sounds

    def drain(self, row: int) -> Samples:
        return np.zeros(0, np.float32)  # a row's last frame has brought it

    def release(self, row: int) -> None:
        if self._rows.pop(row, None) is not None:
            self._cache.text.release_row(row)
            if self._frames is not None:
                self._frames.halt(row)

    # ---- references

    def encode(self, reference: Reference) -> Codes:
        """The codes (K, T) int16 of a recording at `rate_hz`, filled up with silence to a whole frame.

        Raises BadReference.
        """
        samples = checked(
            reference, self.rate_hz, least_s=MIN_REFERENCE_S, most_s=MAX_REFERENCE_S, best=", and 5 to 10 s are best"
        )
        with torch.inference_mode():
            codes = self._encoder(torch.from_numpy(samples).to(self.model.device))
        found: Codes = codes[: self.config.channels].cpu().numpy().astype(np.int16)
        return found

    def _prompts(self, utterance: Utterance) -> dict[tuple[int, str], VoicePrompt]:
        """Of each speaker that has one."""
        prompts: dict[tuple[int, str], VoicePrompt] = {}
        for line in utterance.lines:
            if line.prompt is None:
                continue
            if line.prompt.codec != "dac":
                raise BadReference(f"A voice prompt made for the codec {line.prompt.codec!r} means nothing to Dia.")
            if not self._exact and not line.prompt.transcript.strip():
                raise BadReference("Dia needs the exact words of a voice's recording; this voice has no transcript.")
            prompts.setdefault(_speaker(line), line.prompt)
        return prompts

    def _codes(self, prompt: VoicePrompt) -> Codes:
        c, codes = self.config, prompt.codes
        if codes.ndim != 2 or codes.shape[0] < c.channels:
            raise BadReference(f"Codes of shape {list(codes.shape)} do not fit {c.channels} codebooks.")
        codes = codes[: c.channels]
        if codes.size and (codes.min() < 0 or codes.max() >= c.codebook_size):
            raise BadReference(f"Codes must lie in 0..{c.codebook_size - 1}.")
        return codes

    def _room(self, asked: int, prompt: int, said: str) -> int:
        """How many frames may be said behind a prompt of so many. Raises BadReference, TextTooLong."""
        hz, most = self.codec.frame_hz, self.config.max_frames
        room = most - prompt
        said_s = spoken_bytes(said) / BYTES_PER_S
        needed = 1 if self._guards is None else min(asked, round(said_s * hz))
        if needed > most:
            raise TextTooLong(
                f"The text is too long to be spoken in one piece: about {said_s:.0f} s, and Dia speaks {most / hz:.0f} "
                "s at most. Use shorter pieces.",
                param="input",
            )
        if needed > room:
            raise BadReference(
                f"The voices' recordings take {prompt / hz:.0f} of {most / hz:.0f} s, and the text, about {said_s:.0f} "
                "s, does not fit behind them. Use shorter recordings or a shorter text."
            )
        if self._guards is None:
            return min(asked, room)
        return min(asked, room, max(1, round(self._guards.limit_s(said_s) * hz)))

    def _how(self, sampling: Sampling) -> Guided:
        default = DEFAULTS[self.config.release]
        return Guided(
            default.params.asked(sampling),
            default.cfg_scale if sampling.cfg_scale is None else sampling.cfg_scale,
        )

    # ---- reading

    def _read(self, row: int, state: _Row) -> Iterator[None]:
        """Script and recordings; pauses after each bounded piece. What stands last is left to the first step."""
        layers = max(1, self._piece * ENCODER_SHARE // len(state.ids))
        ids = torch.tensor(state.ids, device=self.model.device)
        for done, _ in enumerate(self.model.encode_text(ids, self._cache, row), 1):
            if not done % layers:
                yield
        while state.position < len(state.prompt):
            stop = min(len(state.prompt), state.position + self._piece)
            self.model.read(self._tracks.heard(row, state.position, stop), self._cache, row, state.position)
            state.position = stop
            if stop < len(state.prompt):
                yield

    # ---- speaking

    def _speak(self, rows: list[int]) -> Tensor:
        """The frames that are whole after one step of these rows, how many each will have said, and whether its
        numbers are finite: (n, C + 2) int64."""
        if self._one_by_one and len(rows) > 1:
            return torch.cat([self._speak([row]) for row in rows])
        c, device = self.config, self.model.device
        states = [self._rows[row] for row in rows]
        positions = [state.position for state in states]
        where, at = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        logits = self.model.advance(self._tracks.at(where, at), self._cache, rows, positions)
        finite = torch.stack(logits).isfinite().all(dim=3).all(dim=2).all(dim=0)
        min_frames_left = self._min_frames_left(states)
        drawn, ending = pick(c, logits, [state.how for state in states], self._noise(states), min_frames_left)
        if min_frames_left is not None:
            for _ in range(int((ending & min_frames_left).sum())):
                self._on_guard("early_end")
        frames, counts = self._tracks.put(where, at + 1, drawn)
        for state in states:
            state.position += 1
            state.draws += 1
        return torch.cat((frames, counts[:, None], finite[:, None]), dim=1)

    def _min_frames_left(self, states: list[_Row]) -> Tensor | None:
        """(n,) bool: rows that would end before they have said anything; None = no row."""
        if self._guards is None:
            return None
        least = round(self._guards.min_s * self.codec.frame_hz)
        min_frames_left = [state.draws < least for state in states]
        return torch.tensor(min_frames_left, device=self.model.device) if any(min_frames_left) else None

    def _noise(self, states: list[_Row]) -> Tensor | None:
        """(n * C, V), channel by channel of each row."""
        c, device = self.config, self.model.device
        if all(state.how.params.temperature <= 0 for state in states):
            return None
        if self._reference_noise:
            drawn = [s.reference.draw(c.channels * c.audio_vocab) for s in states if s.reference is not None]
            return torch.cat(drawn).view(-1, c.audio_vocab).to(device)
        seeds = torch.tensor([int64_of(state.seed) for state in states], device=device)
        draws = torch.tensor([state.draws for state in states], device=device)
        return exponential_noise(seeds, draws, c.channels, c.audio_vocab).view(-1, c.audio_vocab)

    def _commit(self, row: int, frame: Codes, count: int) -> tuple[bool, bool]:
        """What a step means for its row, which will have said `count` frames -> (silent, ended)."""
        state = self._rows[row]
        index = state.position - self._tracks.first_frame(len(state.prompt))
        if count <= 0:
            state.over = True
            return True, True
        if index < 0:
            return True, False
        state.said += 1
        rule: Rule | None = None
        if index + 1 == count:
            rule = "frame_cap" if state.capped and count == state.frames else None
            state.over = True
        elif state.guard is not None:
            rule = state.guard.see(frame)
            state.over = rule is not None
        if rule is not None and self._guards is not None:
            self._on_guard(rule)
        return False, False


def _speaker(line: SpokenLine) -> tuple[int, str]:
    """Who speaks a line: two voices are two speakers, whatever their numbers."""
    return line.speaker, line.voice.id
