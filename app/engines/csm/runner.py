"""CSM-1B as a Runner: each row prefills a prompt and then speaks the lines of one utterance.

A row prefills the voice prompts of its speakers, the earlier turns of the conversation, and the text of its first line.
If the prefix cache contains the voice prompts, the row copies the prompts' keys and values from the prefix cache. At
the end of a line, the row reads a frame of EOS codes and the text of the next line, so that the next line has the same
voice. If the context would overflow, the row returns to the position after its prompt and drops the later positions.
Then the row reads again as many of the newest lines as fit.

As in `generate` of transformers, a line ends at the first frame in which all codes except the last one are EOS. If the
last code is not EOS, the server plays this frame; otherwise the server drops the frame. `Guards` (limits.py) limit the
length of a line in production. This module does not depend on HTTP or stored voices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.audio.guard import LineGuard, Rule, pace_of, speech_length
from app.engines.csm.adapters import target_of
from app.engines.csm.config import CsmConfig
from app.engines.csm.cuda_graph import CsmCudaGraph, Frames
from app.engines.csm.decoding import ChunkedDecoding
from app.engines.csm.files import MAX_TEXT_CHARS
from app.engines.csm.limits import Guards, Limits
from app.engines.csm.model import CsmModel, is_last, is_silent_end
from app.engines.csm.prefill import Prefill
from app.engines.csm.prompt import Segment, TextEncoder
from app.engines.csm.rows import CsmRow
from app.engines.shared.adapters import ModelAdapters
from app.engines.shared.references import checked_codes, checked_samples, encode_samples
from app.engines.shared.rows import begin_warm_up, must_step_one_by_one, reference_noise_of, step_noise
from app.engines.shared.step_graph import InFlightStep
from app.errors import BadReference
from app.nn.kernels.sets import TORCH, Kernels
from app.nn.mimi.config import MimiConfig
from app.nn.mimi.model import MimiDecoder, MimiEncoder
from app.runtime.cuda_graphs import BACKGROUND, GraphCapture, Setup, setup_facts, side_stream
from app.runtime.faults import BROKEN
from app.runtime.runner import RowResult, StepResult, to_result
from app.runtime.sampling import Sampler, SamplingParams, fast_path, to_int64
from app.types import Utterance

if TYPE_CHECKING:
    from app.types import Codes, Reference, Samples, VoicePrompt

# Sesame's generator.py and the published generation_config.json.
DEFAULTS = SamplingParams(temperature=0.9, top_k=50, top_p=1.0)
PREFIX_BYTES = 512 << 20  # size of the prefix cache, enough for about 30 voices of 30 s each in bfloat16
CHUNK_CPU, CHUNK_GPU = 64, 512  # positions in one prefill chunk; all rows wait while the model reads a chunk
VOICE_SHARE = 0.3  # the part of the context that is reserved for the voice prompt and the conversation
SAMPLE_TEXT = "The weather was fine, so they walked along the river and talked about what they would do in the spring."
WARM_UP_FRAMES = 4
MIN_REFERENCE_S, MAX_REFERENCE_S = 0.1, 60.0


class CsmRunner:
    """The Runner of CSM: the model, the codec and all rows.

    Any thread may call `encode`. All other calls must come from one thread.
    """

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
        chunk: int | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        context_lines: int | None = None,
        examples: Path | None = None,
        capture: GraphCapture | None = None,
        kernels: Sequence[Kernels] = (TORCH,),
        notes: Setup = (),
        adapter_slots: int = 0,
        adapter_rank: int = 0,
        adapter_bases: frozenset[str] = frozenset(),
    ) -> None:
        """Create the rows. If `capture` is not None, capture CUDA graphs.

        guards: the rules for the length of a line's speech; None = no rules, as in the reference implementations.
        on_guard: called with each rule of the output guard that a line breaks. reference_noise: draw the same noise as
        torch.multinomial after torch.manual_seed. chunk: the number of positions that one call of `prefill` reads; None
        = the default of the device. context_lines: how many spoken lines the row keeps in the context; None = all lines
        that fit. examples: the folder of the recordings that were published with the model. capture: None = do not use
        CUDA graphs. kernels: the candidate kernels of the CUDA graphs. notes: additional values for /health.
        adapter_slots, adapter_rank: the number of LoRA adapters that CUDA graphs can use at the same time, and their
        largest rank; without `capture` they have no effect. adapter_bases: see ModelAdapters.
        """
        self.max_rows = max_rows
        self.model = model
        self.config: CsmConfig = model.config
        self.codec: MimiConfig = decoder.config
        self.fingerprint, self.codec_fingerprint = fingerprint, codec_fingerprint
        self.examples = examples
        self._text = text
        self._encoder = encoder
        self._decoder = decoder
        self._limits = Limits(guards, self.config.max_positions)
        self._on_guard = on_guard
        self._reference_noise = reference_noise
        self._one_by_one = must_step_one_by_one(model.device, model.dtype, quantized=quantized)
        if capture is None:
            self._cache = model.kv_cache(max_rows)
        else:
            self._cache = model.kv_cache(max_rows, batched=True, scratch=1)
        self._depth_cache = model.depth_kv_cache(max_rows)
        self._next = torch.zeros(max_rows, self.config.backbone.width, device=model.device, dtype=model.dtype)
        self._prefill = Prefill(
            model,
            self._cache,
            self._next,
            self._limits,
            fingerprint=fingerprint,
            chunk=chunk or (CHUNK_CPU if model.device.type == "cpu" else CHUNK_GPU),
            prefix_bytes=prefix_bytes,
            context_lines=context_lines,
        )
        self._encoder_stream = side_stream(model.device, BACKGROUND)
        self._chunks = ChunkedDecoding(decoder, model.device)
        self._rows: dict[int, CsmRow] = {}
        # If the model is on several devices, its CUDA graphs use no adapters: each device would need the adapter slots
        # of the rows.
        slots = adapter_slots if len(model.devices) == 1 else 0
        self.adapters = ModelAdapters(
            target_of(model), rows_by_tensor=capture is not None, slots=slots, rank=adapter_rank
        )
        self.adapters.bases = adapter_bases
        self._graph: CsmCudaGraph | None = None
        self._in_flight: InFlightStep[CsmRow, Frames] | None = None
        self._graph_samples: dict[int, Samples] = {}  # row -> the samples of the frame that the last step returned
        if capture is not None:
            if reference_noise:
                raise ValueError("noise from a reference implementation can't be used with CUDA graphs")
            self._graph = CsmCudaGraph(
                model,
                decoder,
                self._cache,
                self._depth_cache,
                self._next,
                kernels=kernels,
                adapters=self.adapters.captured,
            )
            self._graph.capture(capture)
            self.max_rows = self._graph.steps.rows
            self._warm_up()
        self.setup = setup_facts(capture, self.max_rows, self._graph.steps.facts if self._graph else (), notes)

    def _warm_up(self) -> None:
        """Speak a short utterance and discard its audio, so that the first request does not wait for initialisation."""
        begin_warm_up(self, SAMPLE_TEXT, WARM_UP_FRAMES / self.codec.frame_hz)
        for _ in range(WARM_UP_FRAMES):
            self.step([0])
            self._graph_samples.clear()
        self.release(0)

    @property
    def rate_hz(self) -> int:
        return self.codec.rate_hz

    @property
    def line_chars(self) -> int:
        """The largest number of English characters in one line.

        The text and the frames of such a line fit into the context after a voice prompt.
        """
        tokens_per_char = (len(self._text(0, SAMPLE_TEXT)) - len(self._text(0, ""))) / len(SAMPLE_TEXT)
        positions = (1 - VOICE_SHARE) * self.config.max_positions
        guards = self._limits.guards or Guards()
        tokens = (positions - guards.slack_frames) / (1 + guards.frames_per_token) - len(self._text(0, ""))
        return max(1, min(MAX_TEXT_CHARS, int(tokens / tokens_per_char)))

    # ---- methods of the Runner protocol

    def admit(self, row: int, utterance: Utterance) -> None:
        """Assign the row to an utterance. If the context is too short, remove the oldest conversation turns.

        Raises TextTooLong or BadReference if the utterance does not fit even without these turns.
        """
        voices = self._voices(utterance)
        conversation = [self._segment(turn.speaker, turn.text, turn.codes) for turn in utterance.context]
        state = CsmRow(
            lines=[tuple(self._text(line.speaker, line.text)) for line in utterance.lines],
            lengths=[speech_length(line.text) for line in utterance.lines],
            paces=[self._pace(line.prompt) for line in utterance.lines],
            segments=[*voices, *conversation],
            voices=len(voices),
            params=DEFAULTS.overridden_by(utterance.sampling),
            seed=utterance.seed,
            max_frames=max(1, round(utterance.max_seconds * self.codec.frame_hz)),
            reference=reference_noise_of(utterance.seed, enabled=self._reference_noise),
            adapter_key=utterance.adapter,
            part=utterance.part,
            # Each utterance of an answer begins at a different number, so that no two utterances of the answer use the
            # same noise. If the row continues from a kept state, `_goes_on` replaces this number.
            draws=0 if utterance.part is None else utterance.part.index << 16,
        )
        if not self._goes_on(state):
            if state.part is not None:
                state.part.resumed.clear()  # an earlier attempt on another device may have set this event
            self._limits.fit_context(state, utterance.optional_turns)
        self._guard_line(state)
        state.adapter = self.adapters.acquire(utterance.adapter)
        self._rows[row] = state

    def _goes_on(self, state: CsmRow) -> bool:
        """Continue from the kept state of the answer's previous utterance. Returns False if this is not possible."""
        kept = None if state.part is None else self._prefill.find(state.part)
        if state.part is None or kept is None or kept.adapter_key != state.adapter_key:
            return False
        known = [segment.digest for segment in kept.segments[: kept.voices]]
        if any(segment.digest not in known for segment in state.voice_segments):
            return False
        own = state.segments, state.voices
        state.segments, state.voices = list(kept.segments), kept.voices
        if not self._limits.fits(state):
            state.segments, state.voices = own
            return False
        state.kept, state.spoken = kept, list(kept.spoken)
        state.position, state.draws, state.decoded = kept.position, kept.draws, kept.decoded
        state.part.resumed.set()
        return True

    @torch.inference_mode()
    def prefill(self, row: int) -> bool:
        state = self._rows[row]
        if state.unread is None:
            if state.kept is None:
                self._decoder.reset(row)
            else:
                self._decoder.import_row(row, state.kept.stream)
            self._prefill.begin(row, state)
            state.kept = None
        return self._read_chunk(row, state)

    @torch.inference_mode()
    def step(self, rows: Sequence[int]) -> StepResult:
        if self._graph is not None:
            return self._step_with_graph(rows, self._graph)
        codes = np.zeros((len(rows), self.config.codebooks), np.int16)
        ended = np.zeros(len(rows), np.bool_)
        silent = np.zeros(len(rows), np.bool_)
        rules: dict[int, str] = {}
        speaking: list[int] = []
        chunk_read = False
        for i, row in enumerate(rows):
            state = self._rows[row]
            if state.over:
                ended[i] = True
            elif state.unread is None:
                speaking.append(i)
            else:
                silent[i] = True
                if not chunk_read:  # a step reads at most one chunk, so that speaking rows wait only briefly
                    chunk_read = True
                    self._read_chunk(row, state)
        if speaking:
            frames, finite = self._eager_frame([rows[i] for i in speaking])
            for i, frame, row_finite in zip(speaking, frames.cpu(), finite.tolist(), strict=True):
                if not row_finite:
                    self._zero_row(rows[i])
                    codes[i] = BROKEN
                    continue
                codes[i] = frame.numpy()
                silent[i], ended[i], rule = self._commit(rows[i], frame)
                if rule is not None:
                    rules[rows[i]] = rule
        return StepResult(codes, ended, silent, rules=rules)

    def _step_with_graph(self, rows: Sequence[int], graph: CsmCudaGraph) -> StepResult:
        """Launch step t and return the results of step t-1."""
        results: list[RowResult] = []
        speaking: dict[int, CsmRow] = {}
        chunk_read = False
        for row in rows:
            state = self._rows[row]
            if state.over:
                results.append(RowResult(row, ended=True))
            elif state.unread is None:
                speaking[row] = state
            elif not chunk_read:
                chunk_read = True
                self._read_chunk(row, state)
        finished, self._in_flight = self._in_flight, self._launch(speaking, graph) if speaking else None
        if finished is not None:
            results += self._collect(finished)
        return to_result(results, self.config.codebooks)

    def _launch(self, rows: dict[int, CsmRow], graph: CsmCudaGraph) -> InFlightStep[CsmRow, Frames]:
        # The host may not have collected the results of the last launch. So the row's true position can be `position` +
        # 1.
        longest = min(max(state.position for state in rows.values()) + 2, self.config.max_positions)
        fast = fast_path([state.params for state in rows.values()], self.config.codebook_size)
        adapted = any(state.adapter for state in rows.values())
        return InFlightStep.of(rows, graph.launch(list(rows), longest, fast_path=fast, adapted=adapted))

    def _collect(self, step: InFlightStep[CsmRow, Frames]) -> list[RowResult]:
        """Wait for a launched step, commit its frames, and return the results of its rows."""
        results: list[RowResult] = []
        frames = step.wait()
        for launched, row, state in step.current(self._rows):
            if not frames.active[launched]:
                continue
            if frames.non_finite[launched]:
                self._zero_row(row)
                results.append(RowResult(row, BROKEN))
                continue
            state.position += 1
            state.draws += 1
            if frames.early_eos[launched]:
                self._on_guard("early_end")
            codes = frames.codes[launched]
            if frames.audible[launched]:
                self._graph_samples[row] = frames.samples[launched].copy()
            silent, ended, rule = self._commit(row, torch.from_numpy(codes.astype(np.int64)))
            results.append(RowResult(row, codes, ended, silent, rule))
        return results

    def _zero_row(self, row: int) -> None:
        """Set the row's state to zero, so that NaN and infinite values do not reach the row's next utterance."""
        self._next[row] = 0
        self._cache.zero_row(row)
        self._decoder.zero_row(row)

    @torch.inference_mode()
    def decode(self, rows: Sequence[int], codes: Codes) -> Sequence[Samples]:
        if self._graph is None:
            return self._chunks.decode(self._rows, rows, codes)
        found = [self._graph_samples.pop(row) for row in rows]
        for row, samples in zip(rows, found, strict=True):
            if (guard := self._rows[row].guard) is not None:
                guard.add_samples(samples)
        return found

    @torch.inference_mode()
    def drain(self, row: int) -> Samples:
        return self._chunks.drain(self._rows, row)

    @torch.inference_mode()
    def release(self, row: int) -> None:
        if (state := self._rows.pop(row, None)) is not None:
            if state.part is not None and state.end_parts is not None and not state.part.over.is_set():
                self._prefill.keep(row, state, self._decoder.export_row(row))
            self.adapters.release(state.adapter_key)
        self._graph_samples.pop(row, None)
        if self._graph is not None:
            self._graph.stop(row)

    @property
    def bucket_sizes(self) -> Sequence[int]:
        return self._graph.steps.sizes if self._graph is not None else ()

    @torch.inference_mode()
    def move_row(self, source: int, target: int) -> None:
        state = self._rows.pop(source)
        # A launched step may have written one more position, because the host has not collected the step's results.
        self._cache.copy_row(source, target, min(state.position + 1, self.config.max_positions))
        self._decoder.move_row(source, target)
        if self._graph is not None:
            self._graph.move_row(source, target)
        else:
            self._next[target] = self._next[source]
        self._rows[target] = state

    # ---- references

    def encode(self, reference: Reference) -> Codes:
        """Encode a recording at `rate_hz`, and return codes (K, T) int16. Raises BadReference.

        The recording is padded with silence to a whole number of frames.
        """
        samples = checked_samples(reference, self.rate_hz, min_s=MIN_REFERENCE_S, max_s=MAX_REFERENCE_S)
        samples = np.pad(samples, (0, -len(samples) % self.codec.frame_samples))
        return encode_samples(
            samples,
            self._encoder,
            codebooks=self.config.codebooks,
            device=self.model.device,
            stream=self._encoder_stream,
        )

    # ---- prompts

    def _voices(self, utterance: Utterance) -> list[Segment]:
        """Return the voice prompts as segments: one for each speaker with a prompt, in the order of the lines."""
        prompts: dict[int, VoicePrompt] = {}
        for line in utterance.lines:
            if line.prompt is not None:
                prompts.setdefault(line.speaker, line.prompt)
        for prompt in prompts.values():
            if prompt.codec != "mimi":
                raise BadReference(
                    f"The voice prompt has codes of the codec {prompt.codec!r}; CSM reads codes of 'mimi'."
                )
        return [self._segment(speaker, prompt.transcript, prompt.codes) for speaker, prompt in prompts.items()]

    def _segment(self, speaker: int, text: str, codes: Codes) -> Segment:
        c = self.config
        codes = checked_codes(codes, codebooks=c.codebooks, codebook_size=c.codebook_size)
        return Segment(tuple(self._text(speaker, text)), codes)

    # ---- prefill

    def _read_chunk(self, row: int, state: CsmRow) -> bool:
        """Read one chunk of the row's unread input. Returns True if the row can speak now."""
        if not self._prefill.read_chunk(row, state):
            return False
        if self._graph is not None:
            self._graph.start(
                row,
                state.params,
                position=state.position,
                draws=state.draws,
                seed=to_int64(state.seed),
                frames_left=self._limits.frames_left(state),
                min_frames_left=self._limits.guards.min_frames if self._limits.guards is not None else 0,
                adapter=state.adapter,
            )
        return True

    def _pace(self, prompt: VoicePrompt | None) -> float | None:
        """Return the pace of the prompt's recording in characters a second, or None if the pace is unknown."""
        return None if prompt is None else pace_of(prompt.transcript, prompt.codes.shape[1] / self.codec.frame_hz)

    def _guard_line(self, state: CsmRow) -> None:
        """Create the output guard of the current line, unless the guards are off."""
        if self._limits.guards is not None:
            length, pace = state.lengths[state.line], state.paces[state.line]
            state.guard = LineGuard(length, 1 / self.codec.frame_hz, self.rate_hz, pace=pace)

    # ---- steps

    def _eager_frame(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Compute one frame of these rows without a CUDA graph.

        Returns the codes (n, K), and for each row whether its logits are finite: (n,) bool. Reads the rows' inputs from
        `_next`, and writes the inputs of the next frame there.
        """
        if self._one_by_one and len(rows) > 1:
            single = [self._eager_frame([row]) for row in rows]
            return torch.cat([frame for frame, _ in single]), torch.cat([finite for _, finite in single])
        c, device = self.config, self.model.device
        states = [self._rows[row] for row in rows]
        where = torch.tensor(rows, device=device)
        adapters = [state.adapter for state in states]
        h = self.model.advance(self._next[where], self._cache, rows, [state.position for state in states], adapters)
        sampler = Sampler([state.params for state in states], device)
        noise = self._noise(states)
        early = [self._limits.is_early(state) for state in states]
        suppressed = torch.tensor(early, device=device) if any(early) else None
        finite = torch.ones(len(rows), dtype=torch.bool, device=device)

        def pick(codebook: int, logits: Tensor) -> Tensor:
            nonlocal finite
            # The logits of the last codebook depend on the keys of all earlier codebooks. So a NaN in any codebook
            # makes the last logits NaN.
            if codebook + 1 == c.codebooks:
                finite = logits.isfinite().all(dim=1)
            if suppressed is not None and codebook == 0 and c.eos_code < c.codebook_size:
                for _ in range(int(((logits.argmax(dim=-1) == c.eos_code) & suppressed).sum())):
                    self._on_guard("early_end")
                logits[:, c.eos_code].masked_fill_(suppressed, -torch.inf)
            return sampler.pick(logits, noise(codebook))

        frames = self.model.frame(h, self._depth_cache, pick, adapters)
        self._next[where] = self.model.embed_frames(frames)
        for state in states:
            state.position += 1
            state.draws += 1
        return frames, finite

    def _noise(self, states: list[CsmRow]) -> Callable[[int], Tensor | None]:
        """Return a function: codebook -> noise (n, C) for the next frame of each row.

        If all rows are greedy, the function returns None.
        """
        c, device = self.config, self.model.device
        if all(state.params.temperature <= 0 for state in states):
            return lambda codebook: None
        if self._reference_noise:

            def draw(codebook: int) -> Tensor:
                vocabulary = c.depth_vocab if codebook else c.audio_vocab
                drawn = [state.reference.draw(vocabulary) for state in states if state.reference is not None]
                return torch.cat(drawn)[:, : c.codebook_size].to(device)

            return draw
        noise = step_noise(states, codebooks=c.codebooks, codes=c.codebook_size, device=device)
        return lambda codebook: noise[:, codebook]

    def _commit(self, row: int, frame: Tensor) -> tuple[bool, bool, Rule | None]:
        """Add a new frame to the row's current line. If the line ends with this frame, begin the next line.

        Returns three values: True if the frame has no audio; True if the frame has no audio and the row has ended; the
        rule of the output guard that the line broke, or None.
        """
        state = self._rows[row]
        last = is_last(frame, self.config.eos_code)
        audible = not (last and is_silent_end(frame, self.config.eos_code))
        if audible:
            state.line_frames.append(frame)
            state.frames += 1
        rule: Rule | None = None
        if state.guard is not None:
            if last:
                rule = state.guard.end()
            else:
                rule = "frame_cap" if self._limits.is_capped(state) else state.guard.check_frame(frame.numpy())
            if rule is not None:
                self._on_guard(rule)
        line_ended = (
            last
            or rule is not None
            or len(state.line_frames) >= self._limits.line_limit(state, state.line)
            or state.position >= self.config.max_positions
        )
        if line_ended or state.frames >= state.max_frames:
            state.generation += 1
            if self._graph is not None:
                self._graph.stop(row)
        if state.frames >= state.max_frames or (line_ended and state.line + 1 == len(state.lines)):
            state.over = True
            if state.part is not None:
                state.end_parts = self._prefill.end_line(state, [frame] if audible else [], failed=rule is not None)
            return not audible, not audible, rule
        if line_ended:
            self._prefill.begin_next_line(state, [frame] if audible else [], failed=rule is not None)
            self._guard_line(state)
        return not audible, False, rule
