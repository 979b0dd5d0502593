"""Dia-1.6B as a Runner: each row reads one script and speaks it.

The encoder reads the script (script.py) of a row. Before the speech, the decoder reads the recordings of the row's
voices as frames. A step reads a conditional and an unconditional token (model.py) and draws one code in each of the
nine channels. These codes belong to different frames: a frame is complete 15 steps after its first code (delay.py).

With `exact`, the model reads the bytes of the text unchanged. `Guards` (limits.py) limit the duration of speech in
production. This module does not depend on HTTP or stored voices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.audio.guard import LineGuard, Rule, pace_of, speech_length
from app.engines.dia.adapters import target_of
from app.engines.dia.cuda_graph import DiaCudaGraph, Step, uses_fast_path
from app.engines.dia.decoding import FIRST_FRAMES, ChunkedDecoding
from app.engines.dia.delay import DelayPattern
from app.engines.dia.guidance import DEFAULTS, Guided, pick
from app.engines.dia.limits import Guards, Limits
from app.engines.dia.model import DiaModel
from app.engines.dia.prompt import text_ids
from app.engines.dia.rows import DiaRow
from app.engines.dia.script import format_script, without_tags
from app.engines.shared.adapters import ModelAdapters
from app.engines.shared.references import checked_codes, checked_samples, encode_samples
from app.engines.shared.rows import begin_warm_up, must_step_one_by_one, reference_noise_of, step_noise
from app.engines.shared.step_graph import InFlightStep
from app.errors import BadReference, EmptyText
from app.nn.dac.model import DacDecoder, DacEncoder
from app.nn.kernels.sets import TORCH, Kernels
from app.runtime.cuda_graphs import BACKGROUND, FRAMES, GraphCapture, Setup, setup_facts, side_stream, upload
from app.runtime.faults import BROKEN
from app.runtime.runner import RowResult, StepResult, to_result
from app.runtime.sampling import to_int64
from app.types import Sampling, SpokenLine, Utterance

if TYPE_CHECKING:
    from app.types import Codes, Reference, Samples, VoicePrompt

# The number of positions in one prefill chunk; each position has two tokens. All rows wait while the model reads a
# chunk.
CHUNK_CPU, CHUNK_GPU = 32, 256
# For the same number of tokens: the time of all decoder layers together, divided by the time of one encoder layer.
# Computing the keys and values of the text for one decoder layer takes as long as one encoder layer.
ENCODER_SHARE = 16
MIN_REFERENCE_S, MAX_REFERENCE_S = 0.5, 20.0
WARM_UP_TEXT = "The weather was fine."


class DiaRunner:
    """The Runner of Dia: the model, the codec and all rows.

    Any thread may call `encode`. All other calls must come from one thread.
    """

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
        chunk: int | None = None,
        capture: GraphCapture | None = None,
        kernels: Sequence[Kernels] = (TORCH,),
        burst: int = 1,
        notes: Setup = (),
        adapter_slots: int = 0,
        adapter_rank: int = 0,
        adapter_bases: frozenset[str] = frozenset(),
    ) -> None:
        """Create the rows. If `capture` is not None, capture CUDA graphs.

        guards: the rules for the duration of a script's speech; None = no rules, as in the reference implementations.
        exact: the model reads the text unchanged. on_guard: called with each rule of the output guard that a script
        breaks. reference_noise: draw the same noise as torch.multinomial after torch.manual_seed. chunk: the number of
        positions that one call of `prefill` reads; None = the default of the device. capture: None = do not use CUDA
        graphs. kernels: the candidate kernels of the CUDA graphs. burst: the number of steps that are launched together
        as CUDA graphs. notes: additional values for /health. adapter_slots, adapter_rank: the number of LoRA adapters
        that CUDA graphs can use at the same time, and their largest rank; without `capture` they have no effect.
        adapter_bases: see ModelAdapters.
        """
        self.max_rows = max_rows
        self.model = model
        self.config = model.config
        self.codec = decoder.config
        self.fingerprint, self.codec_fingerprint = fingerprint, codec_fingerprint
        self._encoder = encoder
        self._decoder = decoder
        self._limits = Limits(guards, self.config.max_frames, self.codec.frame_hz)
        self._exact = exact
        self._on_guard = on_guard
        self._reference_noise = reference_noise
        self._one_by_one = must_step_one_by_one(model.device, model.dtype, quantized=quantized)
        self._chunk = chunk or (CHUNK_CPU if model.device.type == "cpu" else CHUNK_GPU)
        if capture is None:
            self._cache = model.cache(max_rows)
        else:
            self._cache = model.cache(max_rows, batched=True, scratch=1)
        self._delay_pattern = DelayPattern(model.config, max_rows, model.device)
        self._encoder_stream = side_stream(model.device, BACKGROUND)
        # The codec decodes on its own CUDA stream, so that it does not wait for launched steps.
        self._side_stream = side_stream(model.device, FRAMES)
        self._chunks = ChunkedDecoding(decoder, model.device)
        self._rows: dict[int, DiaRow] = {}
        by_tensor = capture is not None
        self.adapters = ModelAdapters(
            target_of(model), rows_by_tensor=by_tensor, slots=adapter_slots, rank=adapter_rank
        )
        self.adapters.bases = adapter_bases
        # adapter slot -> key of the adapter for which `prepare_adapter` was last called
        self._prepared: dict[int, str] = {}
        if self.adapters.captured:
            model.reserve_constants(adapter_slots + 1)
        self._graph: DiaCudaGraph | None = None
        self._in_flight: InFlightStep[DiaRow, list[Step]] | None = None
        # The finished steps whose results `step` has not returned yet. Each entry is a burst and one of its steps.
        self._finished: deque[tuple[InFlightStep[DiaRow, list[Step]], Step]] = deque()
        if capture is not None:
            if reference_noise:
                raise ValueError("noise from a reference implementation can't be used with CUDA graphs")
            self._graph = DiaCudaGraph(
                model,
                self._cache,
                self._delay_pattern,
                rows=max_rows,
                burst=burst,
                kernels=kernels,
                adapters=self.adapters.captured,
            )
            self._graph.capture(capture)
            self.max_rows = self._graph.steps.rows
            self._warm_up(burst)
        self.setup = setup_facts(capture, self.max_rows, self._graph.steps.facts if self._graph else (), notes)

    def _warm_up(self, burst: int) -> None:
        """Speak a short utterance and discard its audio, so that the first request does not wait for initialisation.

        Runs enough steps that the codec decodes the first chunk. The first frame of this chunk is complete after
        `max(delays)` steps, and the results of a step arrive up to two bursts (steps launched together) later.
        """
        begin_warm_up(self, WARM_UP_TEXT, 1.0)
        for _ in range(max(self.config.delays) + FIRST_FRAMES + 2 * burst):
            result = self.step([0])
            if result.silent is not None and not (result.ended | result.silent).all():
                self.decode([0], result.codes)
        self.release(0)

    @property
    def rate_hz(self) -> int:
        return self.codec.rate_hz

    @property
    def max_s(self) -> float:
        """The largest duration in seconds of a prompt and the speech after it, together."""
        return self.config.max_frames / self.codec.frame_hz

    # ---- methods of the Runner protocol

    def admit(self, row: int, utterance: Utterance) -> None:
        """Assign the row to an utterance.

        Raises TextTooLong or BadReference if the script or the recordings do not fit into the context, TooManySpeakers
        if the script has more than two speakers, and EmptyText if the script is empty.
        """
        prompts = self._prompts(utterance)
        if self._exact:
            text = spoken = " ".join(line.text for line in utterance.lines)
            voices = list(prompts.values())
        else:
            lines = [(_speaker(line), line.text) for line in utterance.lines]
            script = format_script(lines, {speaker: prompt.transcript for speaker, prompt in prompts.items()})
            text, spoken = script.text, script.spoken_text
            voices = [prompts[speaker] for speaker in script.speakers if speaker in prompts]
        ids = text_ids(text, self.config.max_text)
        if not ids:
            raise EmptyText("This text contains nothing to speak.", param="input")
        codes = [torch.from_numpy(self._checked(prompt).T.astype(np.int64)) for prompt in voices]
        prompt = torch.cat([torch.zeros(0, self.config.channels, dtype=torch.int64), *codes])
        requested = max(1, round(utterance.max_seconds * self.codec.frame_hz))
        frames = self._limits.frames(requested, len(prompt), spoken)
        guard = self._guard(spoken, voices)
        self._rows[row] = DiaRow(
            ids=ids,
            prompt=upload(prompt, self.model.device),
            guided=self._guided(utterance.sampling),
            seed=utterance.seed,
            max_frames=frames,
            capped=frames < requested,
            guard=guard,
            reference=reference_noise_of(utterance.seed, enabled=self._reference_noise),
            adapter_key=utterance.adapter,
            adapter=self.adapters.acquire(utterance.adapter),
        )

    @torch.inference_mode()
    def prefill(self, row: int) -> bool:
        state = self._rows[row]
        if state.prefill is None:
            with self._side_stream():
                self._decoder.reset(row)
            self._delay_pattern.begin(row, state.prompt, state.max_frames)
            if state.adapter and self._prepared.get(state.adapter) != state.adapter_key:
                self.model.prepare_adapter(state.adapter)
                self._prepared[state.adapter] = state.adapter_key
            state.prefill = self._read(row, state)
        for _ in state.prefill:
            return False
        if self._graph is not None:
            self._graph.start(
                row,
                state.guided.params,
                state.guided.cfg_scale,
                position=state.position,
                seed=to_int64(state.seed),
                min_frames_left=self._limits.min_frames,
                text_length=len(state.ids),
                first_frame=self._delay_pattern.first_frame(len(state.prompt)),
                adapter=state.adapter,
            )
        return True

    @torch.inference_mode()
    def step(self, rows: Sequence[int]) -> StepResult:
        if self._graph is not None:
            return self._step_with_graph(rows, self._graph)
        codes = np.zeros((len(rows), self.config.channels), np.int16)
        ended = np.array([self._rows[row].over for row in rows], np.bool_)
        silent = np.zeros(len(rows), np.bool_)
        rules: dict[int, str] = {}
        speaking = [i for i, over in enumerate(ended) if not over]
        if speaking:
            host = self._eager_step([rows[i] for i in speaking]).cpu().numpy()
            for i, (*frame, count, finite) in zip(speaking, host, strict=True):
                if not finite:
                    self._end_and_zero(rows[i])
                    codes[i] = BROKEN
                    continue
                codes[i] = frame
                silent[i], ended[i], rule = self._commit(rows[i], codes[i], int(count))
                if rule is not None:
                    rules[rows[i]] = rule
        return StepResult(codes, ended, silent, rules=rules)

    def _end_and_zero(self, row: int) -> None:
        """End the row's speech and set its KV cache to zero.

        So NaN and infinite values do not reach the next utterance in this row.
        """
        self._end(self._rows[row])
        self._cache.audio.zero_row(2 * row)
        self._cache.audio.zero_row(2 * row + 1)
        self._cache.text.zero_row(row)

    def _step_with_graph(self, rows: Sequence[int], graph: DiaCudaGraph) -> StepResult:
        """Return the results of one finished step.

        The device runs bursts: steps that are launched together. If the results of all finished steps were returned
        already, this method launches burst b + 1 and then waits for the results of burst b. So the device always has
        one burst in progress.
        """
        results = [RowResult(row, ended=True) for row in rows if self._rows[row].over]
        if not self._finished:
            speaking = {row: self._rows[row] for row in rows if not self._rows[row].over}
            finished, self._in_flight = self._in_flight, self._launch(speaking, graph) if speaking else None
            if finished is not None:
                self._finished.extend((finished, step) for step in finished.wait())
        active = False
        while self._finished and not active:
            burst, step = self._finished.popleft()
            for launched, row, state in burst.current(self._rows):
                if not step.active[launched]:
                    continue
                active = True
                if step.non_finite[launched]:
                    self._end_and_zero(row)
                    results.append(RowResult(row, BROKEN))
                    continue
                if step.early_eos[launched]:
                    self._on_guard("early_end")
                state.position += 1
                state.draws += 1
                frame = step.frames[launched].copy()
                silent, ended, rule = self._commit(row, frame, int(step.counts[launched]))
                results.append(RowResult(row, frame, ended, silent, rule))
        return to_result(results, self.config.channels)

    def _launch(self, rows: dict[int, DiaRow], graph: DiaCudaGraph) -> InFlightStep[DiaRow, list[Step]]:
        # `position` does not count the steps of the last burst, because their results are not collected yet. So after
        # this burst, the position of a row is at most `position` + 2 * burst.
        longest = min(max(state.position for state in rows.values()) + 2 * graph.burst + 1, self.config.max_positions)
        text_length = max(len(state.ids) for state in rows.values())
        fast_path = uses_fast_path([state.guided.params for state in rows.values()])
        adapted = any(state.adapter for state in rows.values())
        return InFlightStep.of(
            rows,
            graph.launch(list(rows), longest=longest, text_length=text_length, fast_path=fast_path, adapted=adapted),
        )

    @torch.inference_mode()
    def decode(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        """Add one frame of codes (n, C) to these rows, and return the samples (N,) float32 of each row.

        Frames are decoded in chunks, so the samples are empty for most frames. With the last frame of a row, the result
        contains all remaining samples of the row.
        """
        with self._side_stream():
            return self._chunks.decode(self._rows, rows, codes)

    def drain(self, row: int) -> Samples:
        return np.zeros(0, np.float32)  # `decode` returns all remaining samples with the last frame of a row

    def release(self, row: int) -> None:
        if (state := self._rows.pop(row, None)) is not None:
            self.adapters.release(state.adapter_key)
            self._cache.text.release_row(row)
            if self._graph is not None:
                self._graph.stop(row)

    @property
    def bucket_sizes(self) -> Sequence[int]:
        return self._graph.steps.sizes if self._graph is not None else ()

    @torch.inference_mode()
    def move_row(self, source: int, target: int) -> None:
        state = self._rows.pop(source)
        # Launched bursts whose results are not returned yet may have written positions that `position` does not count.
        ahead = 2 * self._graph.burst if self._graph is not None else 0
        count = min(state.position + ahead, self.config.max_positions)
        for part in range(2):
            self._cache.audio.copy_row(2 * source + part, 2 * target + part, count)
        self._cache.text.move_row(source, target)
        self._delay_pattern.move_row(source, target)
        with self._side_stream():
            self._decoder.move_row(source, target)
        if self._graph is not None:
            self._graph.move_row(source, target)
        self._rows[target] = state

    # ---- references

    def encode(self, reference: Reference) -> Codes:
        """Encode a recording at `rate_hz`, and return codes (K, T) int16. Raises BadReference.

        The recording is padded with silence to a whole number of frames.
        """
        samples = checked_samples(
            reference, self.rate_hz, min_s=MIN_REFERENCE_S, max_s=MAX_REFERENCE_S, advice=", and 5 to 10 s are best"
        )
        return encode_samples(
            samples,
            self._encoder,
            codebooks=self.config.channels,
            device=self.model.device,
            stream=self._encoder_stream,
        )

    # ---- prompts

    def _prompts(self, utterance: Utterance) -> dict[tuple[int, str], VoicePrompt]:
        """Return the voice prompts by speaker. Speakers without a prompt are omitted. Raises BadReference."""
        prompts: dict[tuple[int, str], VoicePrompt] = {}
        for line in utterance.lines:
            if line.prompt is None:
                continue
            if line.prompt.codec != "dac":
                raise BadReference(f"The voice prompt has codes of the codec {line.prompt.codec!r}; Dia needs 'dac'.")
            if not self._exact and not line.prompt.transcript.strip():
                raise BadReference(
                    "Dia needs the transcript of a voice's recording; this voice has no transcript. Add a transcript."
                )
            prompts.setdefault(_speaker(line), line.prompt)
        return prompts

    def _checked(self, prompt: VoicePrompt) -> Codes:
        c = self.config
        return checked_codes(prompt.codes, codebooks=c.channels, codebook_size=c.codebook_size)

    def _guard(self, spoken: str, voices: Sequence[VoicePrompt]) -> LineGuard | None:
        """Return the output guard of a script, or None if the guards are off.

        The guard compares the speech with the mean pace of the voices' recordings, if this pace is known.
        """
        if self._limits.guards is None:
            return None
        seconds = sum(voice.codes.shape[1] for voice in voices) / self.codec.frame_hz
        pace = pace_of(" ".join(voice.transcript for voice in voices), seconds) if voices else None
        return LineGuard(speech_length(without_tags(spoken)), 1 / self.codec.frame_hz, self.rate_hz, pace=pace)

    def _guided(self, sampling: Sampling) -> Guided:
        default = DEFAULTS[self.config.release]
        return Guided(
            default.params.overridden_by(sampling),
            default.cfg_scale if sampling.cfg_scale is None else sampling.cfg_scale,
        )

    # ---- prefill

    def _read(self, row: int, state: DiaRow) -> Iterator[None]:
        """Prefill the row: read the script and then the recordings of the voices. Yields after each chunk.

        Does not read the last position of the prompt, because the first step reads this position.
        """
        layers = max(1, self._chunk * ENCODER_SHARE // len(state.ids))
        ids = upload(torch.tensor(state.ids), self.model.device)
        for done, _ in enumerate(self.model.encode_text(ids, self._cache, row, state.adapter), 1):
            if not done % layers:
                yield
        while state.position < len(state.prompt):
            stop = min(len(state.prompt), state.position + self._chunk)
            codes = self._delay_pattern.prompt_codes(row, state.position, stop)
            self.model.read(codes, self._cache, row, state.position, state.adapter)
            state.position = stop
            if stop < len(state.prompt):
                yield

    # ---- steps

    def _eager_step(self, rows: list[int]) -> Tensor:
        """Compute one step of these rows without a CUDA graph, and return a tensor (n, C + 2) int64.

        The columns are the two results of `DelayPattern.put` (the C codes of a complete frame, and the number of frames
        of the speech), and whether the logits are finite (1 or 0).
        """
        if self._one_by_one and len(rows) > 1:
            return torch.cat([self._eager_step([row]) for row in rows])
        c, device = self.config, self.model.device
        states = [self._rows[row] for row in rows]
        positions = [state.position for state in states]
        where, at = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        adapters = [state.adapter for state in states]
        logits = self.model.advance(self._delay_pattern.at(where, at), self._cache, rows, positions, adapters)
        finite = torch.stack(logits).isfinite().all(dim=3).all(dim=2).all(dim=0)
        early = [state.draws < self._limits.min_frames for state in states]
        suppressed = torch.tensor(early, device=device) if any(early) else None
        drawn, ending = pick(c, logits, [state.guided for state in states], self._noise(states), suppressed)
        if suppressed is not None:
            for _ in range(int((ending & suppressed).sum())):
                self._on_guard("early_end")
        frames, counts = self._delay_pattern.put(where, at + 1, drawn)
        for state in states:
            state.position += 1
            state.draws += 1
        return torch.cat((frames, counts[:, None], finite[:, None]), dim=1)

    def _noise(self, states: list[DiaRow]) -> Tensor | None:
        """Return the noise (n * C, V) for one step, or None if all rows are greedy.

        The noise for channel c of row r has the index r C + c.
        """
        c, device = self.config, self.model.device
        if all(state.guided.params.temperature <= 0 for state in states):
            return None
        if self._reference_noise:
            drawn = [s.reference.draw(c.channels * c.audio_vocab) for s in states if s.reference is not None]
            return torch.cat(drawn).view(-1, c.audio_vocab).to(device)
        noise = step_noise(states, codebooks=c.channels, codes=c.audio_vocab, device=device)
        return noise.view(-1, c.audio_vocab)

    def _commit(self, row: int, frame: Codes, count: int) -> tuple[bool, bool, Rule | None]:
        """Add a frame to a row. count: the second result of `DelayPattern.put` for this row.

        Returns three values: True if this step gives no frame to decode; True if the row has ended without any frame;
        if the speech violates a rule of the output guard, this rule, otherwise None.
        """
        state = self._rows[row]
        index = state.position - self._delay_pattern.first_frame(len(state.prompt))
        if count <= 0:
            self._end(state)
            return True, True, None
        if index < 0:
            return True, False, None
        rule: Rule | None = None
        if state.guard is not None:
            rule = state.guard.check_frame(frame)
            if index + 1 == count:  # this is the last frame: the model has drawn EOS, or the limit is reached
                at_limit = count == state.max_frames
                rule = ("frame_cap" if state.capped else None) if at_limit else state.guard.end()
        if index + 1 == count or rule is not None:
            self._end(state)
        if rule is not None:
            self._on_guard(rule)
        return False, False, rule

    @staticmethod
    def _end(state: DiaRow) -> None:
        """End the row's speech. Results of steps that are already launched become invalid."""
        state.over = True
        state.generation += 1


def _speaker(line: SpokenLine) -> tuple[int, str]:
    """Return a key for the speaker of a line: the speaker's number and the id of the voice.

    Two lines with the same speaker number but different voices have different speakers.
    """
    return line.speaker, line.voice.id
