"""CSM-1B as a Runner: rows that read, speak and go on, each at its own place. No HTTP, no voice store.

What a row reads: its speakers' voice prompts (kept as keys and values between requests), the conversation so far,
then the text of its first line. When a line has been said, the row reads a frame of EOS and the next line's text in
place, behind all that it has said, so the voice stays; when the context would run out it goes back to what it read
before its first line.

Speech ends as in transformers' generate: at a frame whose codes, the last one aside, are all EOS. Such a frame is
sounded only if its last code is not EOS. `Guards` are what production adds to that.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.audio.guard import LineGuard, Rule
from app.engines.csm.config import CsmConfig
from app.engines.csm.cuda_graph import CsmCudaGraph, Frames
from app.engines.csm.model import CsmModel, is_last, is_silent_end
from app.engines.csm.prompt import Segment, TextEncoder
from app.engines.shared.references import checked
from app.errors import BadReference, TextTooLong
from app.nn.kernels.choice import TORCH, Kernels
from app.nn.kv_cache import KVCache
from app.nn.mimi.config import MimiConfig
from app.nn.mimi.model import MimiDecoder, MimiEncoder
from app.runtime.cuda_graphs import GraphCapture, setup_of
from app.runtime.faults import BROKEN
from app.runtime.prefix_cache import PrefixCache
from app.runtime.runner import RowResult, StepResult, to_result
from app.runtime.sampling import ReferenceNoise, Sampler, SamplingParams, exponential_noise, fast_path, int64_of
from app.types import Sampling, SpokenLine, Utterance, Voice

if TYPE_CHECKING:
    from app.types import Codes, Reference, Samples, VoicePrompt

log = logging.getLogger(__name__)


_NOTHING = np.zeros(0, np.float32)
DEFAULTS = SamplingParams(
    temperature=0.9, top_k=50, top_p=1.0
)  # Sesame's generator.py and the published generation_config.json
PREFIX_BYTES = 512 << 20  # voices kept as keys and values: about thirty of 30 s in bfloat16
PIECE_CPU, PIECE_GPU = 64, 512  # tokens read in one go: what other rows wait for
MAX_TEXT_CHARS = 300  # of one line: about 20 s of speech, after which a sentence should have ended
VOICE_SHARE = 0.3  # of the context is left to the voice prompt and what was said before
SAMPLE_TEXT = "The weather was fine, so they walked along the river and talked about what they would do in the spring."
WARM_UP_FRAMES = 4
# Frames that are decoded in one go where frames are not recorded: 1 takes a CPU's core 26 ms, 2 take 32, 4 take 44.
MOST_AT_ONCE = 4
FRAMES_AHEAD = 9  # for each frame more in one go, so many have been heard: a tenth faster than speech is enough
MIN_REFERENCE_S, MAX_REFERENCE_S = 0.1, 60.0


@dataclass(frozen=True, slots=True)
class Guards:
    """Against a model that does not stop, or stops at once (see `audio/guard.py`).

    A line is given up after slack_frames + frames_per_token * its tokens (speech takes 2 to 5 frames a token); in its
    first min_frames the first code can't be EOS.
    """

    min_frames: int = 4
    frames_per_token: int = 8
    slack_frames: int = 40

    def limit(self, tokens: int) -> int:
        return self.slack_frames + self.frames_per_token * tokens


@dataclass(eq=False, slots=True)
class _Row:
    """One utterance on its way: what it has read, what it is saying, what is left."""

    lines: list[tuple[int, ...]]  # ids of each line
    characters: list[int]  # of each line
    segments: list[Segment]  # voice prompts, then conversation
    voices: int  # how many of the segments are voice prompts
    params: SamplingParams
    seed: int
    max_frames: int
    line: int = 0
    position: int = 0  # tokens in the cache
    frames: int = 0  # sounded so far
    draws: int = 0  # frames drawn so far, sounded or not: the noise counter
    said: list[Tensor] = field(default_factory=list)  # frames (K,) of the present line
    unread: Tensor | None = None  # (S, D) still to be read; its last token is read by the first step
    over: bool = False
    generation: int = 0  # times it was stopped: frames that were on their way then are nobody's
    guard: LineGuard | None = None  # of the present line
    waiting: list[tuple[Tensor, LineGuard | None]] = field(default_factory=list)  # frames (K,) that are not sound yet
    decoded: int = 0  # frames that are
    reference: ReferenceNoise | None = None

    @property
    def base(self) -> int:
        """Positions read before the first line."""
        return sum(segment.length for segment in self.segments)


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    """Rows that were sent off with a recorded frame, each with its lap then, and what they will have made."""

    rows: list[tuple[int, _Row, int]]
    frames: Callable[[], Frames]


class CsmRunner:
    """The model, the codec and their rows. All calls from one thread, `encode` from any."""

    def __init__(
        self,
        model: CsmModel,
        text: TextEncoder,
        encoder: MimiEncoder,
        decoder: MimiDecoder,
        *,
        max_rows: int,
        guards: Guards | None = None,
        on_guard: Callable[[Rule], None] = lambda _: None,
        reference_noise: bool = False,
        quantized: bool = False,
        fingerprint: str = "",
        codec_fingerprint: str = "",
        piece: int | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        examples: Path | None = None,
        recorder: GraphCapture | None = None,
        kernels: Sequence[Kernels] = (TORCH,),
    ) -> None:
        """guards None = none, as the reference implementations; reference_noise = draws as PyTorch's multinomial after
        `manual_seed` would, for comparing with them; piece = tokens read per `prefill`; examples = the folder of the
        recordings that came with the model; recorder = frames are recorded with it and replayed from then on, with the
        fastest of `kernels`."""
        self.max_rows = max_rows
        self.model = model
        self.config: CsmConfig = model.config
        self.codec: MimiConfig = decoder.config
        self.fingerprint, self.codec_fingerprint = fingerprint, codec_fingerprint
        self.examples = examples
        self._text = text
        self._encoder = encoder
        self._decoder = decoder
        self._guards = guards
        self._on_guard = on_guard
        self._reference_noise = reference_noise
        # A CPU's float32 product of eight rows differs from that of one in the last bits, which now and then turns a
        # code over. float32 is there for exactness, and small products gain little from company (1.5 times at 4 rows).
        # Packed bfloat16 and int8 rows do not depend on each other.
        self._one_by_one = model.device.type == "cpu" and not quantized and model.dtype == torch.float32
        self._piece = piece or (PIECE_CPU if model.device.type == "cpu" else PIECE_GPU)
        if recorder is None:
            self._cache = model.kv_cache(max_rows)
        else:
            self._cache = model.kv_cache(max_rows, batched=True, scratch=1)
        self._depth_cache = model.depth_kv_cache(max_rows)
        self._next = torch.zeros(max_rows, self.config.backbone.width, device=model.device, dtype=model.dtype)
        self._prefixes = PrefixCache(prefix_bytes)
        self._rows: dict[int, _Row] = {}
        self._frames: CsmCudaGraph | None = None
        self._in_flight: _InFlightStep | None = None
        self._heard: dict[int, Samples] = {}
        if recorder is not None:
            if not isinstance(self._cache, KVCache) or reference_noise:
                raise ValueError("frames are recorded for one device and with our own noise")
            self._frames = CsmCudaGraph(model, decoder, self._cache, self._depth_cache, self._next, kernels=kernels)
            self._frames.record(recorder)
            self.max_rows = self._frames.rows
            self._warm_up()
        self.setup = setup_of(recorder, self.max_rows, self._frames.kernels if self._frames else "")

    def _warm_up(self) -> None:
        """Say something that nobody hears, through all that a request goes through."""
        line = SpokenLine(SAMPLE_TEXT, 0, Voice("warm-up", "warm-up", "none"))
        self.admit(0, Utterance((line,), Sampling(), 0, WARM_UP_FRAMES / self.codec.frame_hz))
        while not self.prefill(0):
            pass
        for _ in range(WARM_UP_FRAMES):
            self.step([0])
            self._heard.clear()
        self.release(0)

    @property
    def rate_hz(self) -> int:
        return self.codec.rate_hz

    @property
    def line_chars(self) -> int:
        """How many characters of English one line may have, so that it fits behind a voice with frames to spare."""
        tokens_per_char = (len(self._text(0, SAMPLE_TEXT)) - len(self._text(0, ""))) / len(SAMPLE_TEXT)
        room = (1 - VOICE_SHARE) * self.config.max_positions
        guards = self._guards or Guards()
        tokens = (room - guards.slack_frames) / (1 + guards.frames_per_token) - len(self._text(0, ""))
        return max(1, min(MAX_TEXT_CHARS, int(tokens / tokens_per_char)))

    # ---- the Runner protocol

    def admit(self, row: int, utterance: Utterance) -> None:
        """Raises TextTooLong, BadReference: nothing of a prompt is cut off but turns that were remembered, oldest
        first."""
        voices = self._voices(utterance)
        said = [self._segment(turn.speaker, turn.text, turn.codes) for turn in utterance.context]
        lines = [tuple(self._text(line.speaker, line.text)) for line in utterance.lines]
        state = _Row(
            lines=lines,
            characters=[len(line.text) for line in utterance.lines],
            segments=[*voices, *said],
            voices=len(voices),
            params=DEFAULTS.asked(utterance.sampling),
            seed=utterance.seed,
            max_frames=max(1, round(utterance.max_seconds * self.codec.frame_hz)),
            reference=ReferenceNoise(int64_of(utterance.seed)) if self._reference_noise else None,
        )
        spare = utterance.optional_turns
        while spare and state.base + self._longest(state) > self.config.max_positions:
            del state.segments[len(voices)]
            spare -= 1
        self._check_room(state, sum(segment.length for segment in voices))
        self._watch(state)
        self._rows[row] = state

    @torch.inference_mode()
    def prefill(self, row: int) -> bool:
        state = self._rows[row]
        if state.unread is None:
            self._begin(row, state)
        return self._read_piece(row, state)

    @torch.inference_mode()
    def step(self, rows: Sequence[int]) -> StepResult:
        if self._frames is not None:
            return self._step_ahead(rows, self._frames)
        codes = np.zeros((len(rows), self.config.codebooks), np.int16)
        ended = np.zeros(len(rows), np.bool_)
        silent = np.zeros(len(rows), np.bool_)
        speaking: list[int] = []
        reading = False
        for i, row in enumerate(rows):
            state = self._rows[row]
            if state.over:
                ended[i] = True
            elif state.unread is None:
                speaking.append(i)
            else:
                silent[i] = True
                if not reading:  # one piece a step, so that those who speak are not kept waiting
                    reading = True
                    self._read_piece(row, state)
        if speaking:
            frames, finite = self._speak([rows[i] for i in speaking])
            for i, frame, fine in zip(speaking, frames.cpu(), finite.tolist(), strict=True):
                if not fine:
                    self._wipe(rows[i])
                    codes[i] = BROKEN
                    continue
                codes[i] = frame.numpy()
                silent[i], ended[i] = self._commit(rows[i], frame)
        return StepResult(codes, ended, silent)

    def _step_ahead(self, rows: Sequence[int], frames: CsmCudaGraph) -> StepResult:
        """`step` with recorded frames: sends these rows off and tells what the rows sent off before have made."""
        told: list[RowResult] = []
        speaking: list[int] = []
        reading = False
        for row in rows:
            state = self._rows[row]
            if state.over:
                told.append(RowResult(row, ended=True))
            elif state.unread is None:
                speaking.append(row)
            elif not reading:
                reading = True
                self._read_piece(row, state)
        finished, self._in_flight = self._in_flight, self._launch(speaking, frames) if speaking else None
        if finished is not None:
            told += self._collect(finished)
        return to_result(told, self.config.codebooks)

    def _collect(self, step: _InFlightStep) -> list[RowResult]:
        """What its rows have made, once it is there; of those that were let go or stopped since, nothing."""
        told: list[RowResult] = []
        made = step.frames()
        for row, state, lap in step.rows:
            if self._rows.get(row) is not state or state.generation != lap or not made.active[row]:
                continue
            if made.non_finite[row]:
                self._wipe(row)
                told.append(RowResult(row, BROKEN))
                continue
            state.position += 1
            state.draws += 1
            if made.early_eos[row]:
                self._on_guard("early_end")
            frame = torch.from_numpy(made.codes[row].astype(np.int64))
            if made.sounded[row]:
                self._heard[row] = made.samples[row].copy()
            silent, ended = self._commit(row, frame)
            told.append(RowResult(row, made.codes[row], ended, silent))
        return told

    def _launch(self, rows: list[int], frames: CsmCudaGraph) -> _InFlightStep:
        states = [self._rows[row] for row in rows]
        # A frame of theirs may be on its way that is not counted yet.
        longest = min(max(state.position for state in states) + 2, self.config.max_positions)
        common = fast_path([state.params for state in states], self.config.codebook_size)
        launched = [(row, state, state.generation) for row, state in zip(rows, states, strict=True)]
        return _InFlightStep(launched, frames.launch(rows, longest, fast_path=common))

    def _wipe(self, row: int) -> None:
        """A row's numbers are not finite any more: leave nothing of them to who comes next."""
        self._next[row] = 0
        self._cache.zero_row(row)
        self._decoder.zero_row(row)

    @torch.inference_mode()
    def decode(self, rows: Sequence[int], codes: Codes) -> Sequence[Samples]:
        """The first frame's at once, then of more and more frames together: how many depends on the row's own frames,
        so that nothing of a row depends on its company."""
        if self._frames is not None:
            heard = [self._heard.pop(row) for row in rows]
            for row, samples in zip(rows, heard, strict=True):
                if (guard := self._rows[row].guard) is not None:
                    guard.hear(samples)
            return heard
        due: dict[int, list[int]] = {}  # by frames to decode: the rows
        for row, frame in zip(rows, codes, strict=True):
            state = self._rows[row]
            state.waiting.append((torch.from_numpy(frame.astype(np.int64)), state.guard))
            line_over = state.over or state.unread is not None
            if line_over or len(state.waiting) >= min(MOST_AT_ONCE, 1 + state.decoded // FRAMES_AHEAD):
                due.setdefault(len(state.waiting), []).append(row)
        sounds: dict[int, Samples] = {}
        for together in due.values():
            sounds |= zip(together, self._decode(together), strict=True)
        return [sounds.get(row, _NOTHING) for row in rows]

    @torch.inference_mode()
    def drain(self, row: int) -> Samples:
        return self._decode([row])[0] if self._rows[row].waiting else _NOTHING

    def _decode(self, rows: list[int]) -> list[Samples]:
        """The sound of these rows' waiting frames, of which all have as many."""
        states = [self._rows[row] for row in rows]
        # (n, K, T)
        frames = torch.stack([torch.stack([frame for frame, _ in state.waiting], dim=1) for state in states])
        made = list(self._decoder.decode(rows, frames.to(self.model.device)).cpu().numpy())
        for state, samples in zip(states, made, strict=True):
            for (_, guard), heard in zip(state.waiting, np.split(samples, len(state.waiting)), strict=True):
                if guard is not None:
                    guard.hear(heard)
            state.decoded += len(state.waiting)
            state.waiting.clear()
        return made

    def release(self, row: int) -> None:
        self._rows.pop(row, None)
        self._heard.pop(row, None)
        if self._frames is not None:
            self._frames.halt(row)

    # ---- references

    def encode(self, reference: Reference) -> Codes:
        """The codes (K, T) int16 of a recording at `rate_hz`, filled up with silence to a whole frame.

        Raises BadReference.
        """
        samples = checked(reference, self.rate_hz, least_s=MIN_REFERENCE_S, most_s=MAX_REFERENCE_S)
        samples = np.pad(samples, (0, -len(samples) % self.codec.frame_samples))
        with torch.inference_mode():
            codes = self._encoder(torch.from_numpy(samples).to(self.model.device))
        found: Codes = codes[: self.config.codebooks].cpu().numpy().astype(np.int16)
        return found

    # ---- prompts

    def _voices(self, utterance: Utterance) -> list[Segment]:
        """One segment per speaker that has a prompt, in order of appearance."""
        prompts: dict[int, VoicePrompt] = {}
        for line in utterance.lines:
            if line.prompt is not None:
                prompts.setdefault(line.speaker, line.prompt)
        for prompt in prompts.values():
            if prompt.codec != "mimi":
                raise BadReference(f"A voice prompt made for the codec {prompt.codec!r} means nothing to CSM.")
        return [self._segment(speaker, prompt.transcript, prompt.codes) for speaker, prompt in prompts.items()]

    def _segment(self, speaker: int, text: str, codes: Codes) -> Segment:
        c = self.config
        if codes.ndim != 2 or codes.shape[0] < c.codebooks:
            raise BadReference(f"Codes of shape {list(codes.shape)} do not fit {c.codebooks} codebooks.")
        codes = codes[: c.codebooks]
        if codes.size and (codes.min() < 0 or codes.max() >= c.codebook_size):
            raise BadReference(f"Codes must lie in 0..{c.codebook_size - 1}.")
        return Segment(tuple(self._text(speaker, text)), codes)

    def _limit(self, state: _Row, line: int) -> int:
        """Frames that a line may take."""
        if self._guards is None:
            return state.max_frames
        return min(state.max_frames, self._guards.limit(len(state.lines[line])))

    def _longest(self, state: _Row) -> int:
        """Positions that the longest line may take, frames included."""
        return max(len(ids) + self._limit(state, line) for line, ids in enumerate(state.lines))

    def _check_room(self, state: _Row, voice_positions: int) -> None:
        """Every line must fit behind what is read before the first, frames included."""
        most = self.config.max_positions
        line = max(range(len(state.lines)), key=lambda i: len(state.lines[i]) + self._limit(state, i))
        text, frames = len(state.lines[line]), self._limit(state, line)
        if state.base + text + frames <= most:
            return
        counted = f"text {text} and up to {frames} frames of speech"
        if voice_positions + text + frames > most >= text + frames:
            raise BadReference(
                f"The voice prompt is too long: it takes {voice_positions} of {most} positions, and {counted} do "
                "not fit behind it. Use a shorter reference recording."
            )
        if text + frames > most:
            raise TextTooLong(
                f"The text is too long to be spoken in one piece: {counted}, together more than {most}.", param="input"
            )
        raise TextTooLong(
            f"The conversation is too long: voice and turns take {state.base} of {most} positions, and {counted} do "
            "not fit behind them."
        )

    def _embed(self, parts: Sequence[tuple[int, ...] | np.ndarray | Tensor]) -> Tensor:
        """Ids (tuple) and frames ((T, K) arrays) one after another -> (S, D)."""
        device = self.model.device
        return torch.cat(
            [
                self.model.embed_text(torch.tensor(part, device=device))
                if isinstance(part, tuple)
                else self.model.embed_frames(torch.as_tensor(part, device=device).long())
                for part in parts
            ]
        )

    def _parts(self, segments: Sequence[Segment]) -> list[tuple[int, ...] | np.ndarray | Tensor]:
        parts: list[tuple[int, ...] | np.ndarray | Tensor] = []
        for segment in segments:
            parts += [segment.ids, segment.codes.T.astype(np.int64), self._eos()]
        return parts

    def _eos(self) -> np.ndarray:
        return np.full((1, self.config.codebooks), self.config.eos_code, np.int64)

    def _key(self, segments: Sequence[Segment]) -> bytes:
        return hashlib.sha256(self.fingerprint.encode() + b"".join(s.digest for s in segments)).digest()

    # ---- reading

    def _begin(self, row: int, state: _Row) -> None:
        self._decoder.reset(row)
        voices = state.segments[: state.voices]
        known = self._prefixes.get(self._key(voices)) if voices else None
        left = state.segments
        if known is not None:
            self._cache.import_prefix(row, known)
            state.position = known[0].shape[2]
            left = state.segments[state.voices :]
        state.unread = self._embed([*self._parts(left), state.lines[0]])

    def _read_piece(self, row: int, state: _Row) -> bool:
        """Read a bounded piece of what is unread; True when only the token of the first step is left."""
        unread = state.unread
        assert unread is not None  # noqa: S101 - the callers have looked
        voices = state.segments[: state.voices]
        length = sum(segment.length for segment in voices)
        count = min(self._piece, len(unread) - 1)
        if state.position < length:  # a piece ends with the voices, so that the rest is read alike behind a kept prefix
            count = min(count, length - state.position)
        if count:
            self.model.read(unread[:count], self._cache, row, state.position)
            before, state.position = state.position, state.position + count
            unread = unread[count:]
            if voices and before < length <= state.position:
                self._prefixes.put(self._key(voices), self._cache.export_prefix(row, length))
        state.unread = unread
        if len(unread) > 1:
            return False
        state.unread = None
        self._next[row] = unread[0]
        if self._frames is not None:
            self._frames.place(
                row,
                state.params,
                position=state.position,
                draws=state.draws,
                seed=int64_of(state.seed),
                left=self._left(state),
                min_frames_left=self._guards.min_frames if self._guards is not None else 0,
            )
        return True

    def _left(self, state: _Row) -> int:
        """Frames that the present line may still have."""
        line = self._limit(state, state.line) - len(state.said)
        return max(0, min(line, state.max_frames - state.frames, self.config.max_positions - state.position))

    def _go_on(self, row: int, state: _Row, unsaid: list[Tensor]) -> None:
        """Turn to the next line. `unsaid`: frames of the present one that are not in the cache yet."""
        ids = state.lines[state.line]
        state.line += 1
        following = state.lines[state.line]
        limit = self._limit(state, state.line)
        parts: list[tuple[int, ...] | np.ndarray | Tensor] = [
            *(frame[None] for frame in unsaid),
            self._eos(),
            following,
        ]
        needed = len(unsaid) + 1 + len(following) + limit
        if state.position + needed > self.config.max_positions:
            # No room behind: back to where the first line began, taking the last line along if there is room for it.
            state.position = state.base
            parts = [following]
            said = Segment(ids, torch.stack(state.said).T.numpy().astype(np.int16)) if state.said else None
            if said is not None and state.base + said.length + len(following) + limit <= self.config.max_positions:
                parts = [*self._parts([said]), following]
        state.said = []
        self._watch(state)
        state.unread = self._embed(parts)
        if len(state.unread) == 1:  # a tokenizer's shortest text is longer, but nothing here depends on that
            self._read_piece(row, state)

    def _watch(self, state: _Row) -> None:
        """A guard of its own for the present line."""
        if self._guards is not None:
            state.guard = LineGuard(state.characters[state.line], 1 / self.codec.frame_hz)

    # ---- speaking

    def _speak(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """One frame (n, K) for these rows, all of which have their next input in `_next`, and whose numbers are finite
        (n,)."""
        if self._one_by_one and len(rows) > 1:
            apart = [self._speak([row]) for row in rows]
            return torch.cat([frame for frame, _ in apart]), torch.cat([fine for _, fine in apart])
        c, device = self.config, self.model.device
        states = [self._rows[row] for row in rows]
        where = torch.tensor(rows, device=device)
        h = self.model.advance(self._next[where], self._cache, rows, [state.position for state in states])
        sampler = Sampler([state.params for state in states], device)
        noise = self._noise(states)
        early_eos = None
        if self._guards is not None:
            min_frames_left = [len(state.said) < self._guards.min_frames for state in states]
            early_eos = torch.tensor(min_frames_left, device=device) if any(min_frames_left) else None

        finite = torch.ones(len(rows), dtype=torch.bool, device=device)

        def pick(codebook: int, logits: Tensor) -> Tensor:
            nonlocal finite
            if codebook + 1 == c.codebooks:  # what went wrong before is in the depth decoder's keys, and so in these
                finite = logits.isfinite().all(dim=1)
            if early_eos is not None and codebook == 0 and c.eos_code < c.codebook_size:
                for _ in range(int(((logits.argmax(dim=-1) == c.eos_code) & early_eos).sum())):
                    self._on_guard("early_end")
                logits[:, c.eos_code].masked_fill_(early_eos, -torch.inf)
            return sampler.pick(logits, noise(codebook))

        frames = self.model.frame(h, self._depth_cache, pick)
        self._next[where] = self.model.embed_frames(frames)
        for state in states:
            state.position += 1
            state.draws += 1
        return frames, finite

    def _noise(self, states: list[_Row]) -> Callable[[int], Tensor | None]:
        """Codebook -> noise (n, C) for this frame of each row."""
        c, device = self.config, self.model.device
        if all(state.params.temperature <= 0 for state in states):
            return lambda codebook: None
        if self._reference_noise:

            def draw(codebook: int) -> Tensor:
                vocabulary = c.depth_vocab if codebook else c.audio_vocab
                drawn = [state.reference.draw(vocabulary) for state in states if state.reference is not None]
                return torch.cat(drawn)[:, : c.codebook_size].to(device)

            return draw
        seeds = torch.tensor([int64_of(state.seed) for state in states], device=device)
        draws = torch.tensor([state.draws for state in states], device=device)
        noise = exponential_noise(seeds, draws, c.codebooks, c.codebook_size)
        return lambda codebook: noise[:, codebook]

    def _commit(self, row: int, frame: Tensor) -> tuple[bool, bool]:
        """What a new frame means for its row -> (silent, ended)."""
        state = self._rows[row]
        last = is_last(frame, self.config.eos_code)
        sounded = not (last and is_silent_end(frame, self.config.eos_code))
        if sounded:
            state.said.append(frame)
            state.frames += 1
        rule: Rule | None = None
        if state.guard is not None and not last:
            capped = self._guards is not None and len(state.said) >= self._guards.limit(len(state.lines[state.line]))
            rule = "frame_cap" if capped else state.guard.see(frame.numpy())
            if rule is not None:
                self._on_guard(rule)
        done = (
            last
            or rule is not None
            or len(state.said) >= self._limit(state, state.line)
            or state.position >= self.config.max_positions
        )
        if done or state.frames >= state.max_frames:
            state.generation += 1
            if self._frames is not None:
                self._frames.halt(row)
        if state.frames >= state.max_frames or (done and state.line + 1 == len(state.lines)):
            state.over = True
            return not sounded, not sounded
        if done:
            self._go_on(row, state, [frame] if sounded else [])
        return not sounded, False
