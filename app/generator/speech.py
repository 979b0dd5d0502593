"""One request, any engine, to bytes: check, plan, cache, speak, shape, encode. Knows no HTTP and no engine by name.

An Answer's stream is lazy: nothing is asked of the engine before its first bytes are, and closing it cancels whatever
is being spoken. Errors come out of `Studio.answer` or of the first bytes; after those, an error breaks the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from app import __version__
from app.audio import pcm, watermark
from app.audio.decode import TIME_LIMIT_S
from app.audio.encoders import Encoder, check_rate, open_encoder
from app.audio.formats import AUDIO_FORMATS
from app.audio.resample import StreamResampler
from app.audio.sandbox import decode_turn
from app.audio.shape import Cut, EdgeTrimmer, Fader
from app.audio.stages import Stage, chain
from app.audio.stretch import StreamStretcher
from app.errors import (
    BadReference,
    EmptyText,
    NothingSpoken,
    TextTooLong,
    UnknownModel,
    UnknownVoice,
    UnsupportedParameter,
)
from app.generator.preset_voices import seed_of
from app.generator.prompts import Prompts, check_speakable
from app.runtime.playback import Playback
from app.text.nonverbal import remove_unsupported_sounds
from app.text.punctuation import has_words, punctuation_names
from app.text.script import SPEAKER_TAG, Pause, parse, split_speakers
from app.text.sentences import split
from app.text.writing_systems import script_language
from app.types import ContextTurn, Line, Reference, Scheduling, SpokenLine, Turn, Utterance
from app.voices import enhancement
from app.voices.enhancement import Loudness
from app.voices.memory import Remembered
from app.voices.presets import DEFAULT_VOICE, NO_VOICE

if TYPE_CHECKING:
    from app.audio.watermark import Watermark
    from app.engines.manager import EngineManager
    from app.engines.protocol import Engine
    from app.generator.cache import AnswerCache, Entry
    from app.generator.preset_voices import PresetVoiceMaker
    from app.metrics import Metrics
    from app.text.normalizer import Normalizer
    from app.types import AudioChunk, Codes, EngineInfo, Samples, SpeechRequest, UploadedTurn, Voice, VoicePrompt
    from app.voices.memory import Memory
    from app.voices.store import VoiceStore

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MODEL_ALIASES = (
    "tts-1",
    "tts-1-1106",
    "tts-1-hd",
    "tts-1-hd-1106",
    "gpt-4o-mini-tts",
    "gpt-4o-mini-tts-2025-03-20",
    "gpt-4o-mini-tts-2025-12-15",
)

SENTENCE_GAP_S = 0.1  # between utterances that were made apart; each keeps up to 0.2 s of its own silence
# Between the lines of a dialogue, on top of up to 0.2 s of their own silence. People leave about 0.2 s between turns
# (Stivers et al., PNAS 2009, ten languages): the gap heard is 0.3 to 0.45 s, calm, and more than between sentences.
TURN_GAP_S = 0.25
MAX_TURN_S = 60.0  # of one turn's recording: what codecs of voice models take in one go
HEARING_LIMIT_S = 20.0  # of decoding for one conversation: half an hour of honest recordings takes 1 to 5 s
MEMORY_SHARE = 0.5  # of the context that is for recordings may be remembered turns; voices' own are the rest
KNOWN_TURNS = 256  # of earlier turns whose codes are kept: each request of a conversation brings them all again
MAX_DETECT_S = 300.0  # of a file that is looked through for a mark: 3 s of work
OFF_LOOP_CHARS = 2_000  # a longer text is normalised in a thread: about 0.05 ms a character at worst
OFF_LOOP_S = 0.2  # a longer stretch of sound is encoded in a thread: mp3 costs about 10 ms a second of sound,
OFF_LOOP_PLAIN_S = 1.0  # pcm and wav 2, which a thread's own cost would double
ENOUGH_AHEAD_S = 0.5  # a listener with this much sound left can wait for others' first,
LIGHT_AHEAD_S = 0.05  # or this much where what comes next is quickly encoded
FRESH_S = 0.25  # whose first sound takes longer waits for a row or a model: nobody lets them pass where it is encoded
LONGEST_YIELD_S = 0.25  # but no longer than this for a stretch of up to 1 s: answers still go at 4 times speech
OTHER_SPEAKERS = ("echo", "nova", "onyx", "shimmer", "fable", "sage", "ash", "coral", "ballad")  # unlike each other
MAX_AHEAD = 4  # utterances of one answer in other rows, where the engine speaks them apart
MAX_SEED = 2**63 - 1
ATTEMPTS = 2  # at an utterance that came out silent: the second with another seed
RETRY_SEED_STEP = 1_000_003
MAX_PAUSES_S = 600  # of one answer: a text made of pause tags would else be hours of nothing
CACHED_PIECE_BYTES = 1 << 16
UNDERRUN_WAIT_S = 0.001  # less than this is the event loop, not the engine
_TOKEN_BYTES = 4  # UTF-8 bytes a text token stands for where an engine has no tokeniser: the usual rule of thumb


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as OpenAI counts them: of the text, and of the sound in codec frames."""

    input_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Began:
    """A part of an answer that begins to sound at start_s: its words as they are spoken, the number of its first
    sentence and how many there are (None: not known yet), the number of its first line. Numbers count from 0."""

    text: str
    start_s: float
    sentence: int
    sentences: int | None
    turn: int


@dataclass(slots=True)
class Progress:
    """How far an answer is, in its own time: `began` in order."""

    began: list[Began] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)  # the line of each sentence that is cut so far
    whole: bool = False  # all are
    samples: int = 0  # at the engine's rate, handed on so far
    spoken: int = 0  # sentences

    def begin(self, part: _Passage, samples_per_s: float) -> None:
        sentences = len(self.turns) if self.whole else None
        start_s = self.samples / samples_per_s
        self.began.append(Began(part.text, start_s, self.spoken, sentences, self.turns[self.spoken]))
        self.spoken += len(part.lines)


@dataclass(slots=True)
class Answer:
    """What is known before the first byte, and the bytes. `usage` is there once the stream has ended."""

    engine: str
    media_type: str
    seed: int
    hit: bool
    ignored: tuple[str, ...]
    size_bytes: int | None
    stream: AsyncGenerator[bytes]
    usage: Usage | None = None
    progress: Progress = field(default_factory=Progress)  # of what is being spoken; a cached answer has none
    uncast: bool = False  # spoken with a fixed seed, as a standard voice has no recording yet


@dataclass(frozen=True, slots=True)
class Detection:
    """What was found in the first `seconds` of a file: score 0 to 1."""

    watermarked: bool
    score: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Passage:
    """What goes to the engine as one utterance."""

    lines: tuple[SpokenLine, ...]

    @property
    def text(self) -> str:
        return " ".join(line.text for line in self.lines)

    def has_room(self, line: SpokenLine, info: EngineInfo, *, one_voice: bool) -> bool:
        """Whether the engine takes this line too in the same utterance. one_voice: lines of one voice only."""
        lines = (*self.lines, line)
        if one_voice and line.voice != self.lines[0].voice:
            return False
        # An engine hears a voice once for each speaker that has it.
        prompts = {
            (each.speaker, each.voice.id): each.prompt.codes.shape[1] for each in lines if each.prompt is not None
        }
        return (
            (info.text.continues or sum(_size(each.text, info) + 1 for each in lines) <= info.text.max_passage_chars)
            and len({(each.speaker, each.voice.id) for each in lines}) <= info.text.max_speakers
            and (info.prompts.max_prompt_s is None or sum(prompts.values()) * info.frame_s <= info.prompts.max_prompt_s)
        )


@dataclass(frozen=True, slots=True)
class _Take:
    """One request with all that was looked up for it."""

    request: SpeechRequest
    engine: Engine
    engine_id: str
    voices: tuple[Voice, ...]  # one per line
    seed: int
    digest: str
    progress: Progress
    marked: bool = False
    context: tuple[ContextTurn, ...] = ()
    remembered: int = 0  # how many of the context's first turns are the conversation's own
    prompts: tuple[VoicePrompt | None, ...] = ()  # one per line
    playback: Playback = field(default_factory=Playback)

    @property
    def info(self) -> EngineInfo:
        return self.engine.info


class SpeechGenerator:
    """Turns validated requests into answers. Used from one event loop."""

    def __init__(
        self,
        host: EngineManager,
        voices: VoiceStore,
        cache: AnswerCache,
        metrics: Metrics,
        normalizer: Normalizer,
        *,
        marks: Watermark,
        enhance: bool,
        casting: PresetVoiceMaker | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._host = host
        self._voices = voices
        self._prompts = Prompts(voices)
        self._cache = cache
        self._metrics = metrics
        self._normalizer = normalizer
        self._marks = marks
        self._enhance = enhance
        self._casting = casting
        self._memory = memory
        self._dice = random.SystemRandom()
        self._turns = _Turns()
        self._ears = asyncio.Semaphore(max(1, (os.cpu_count() or 1) - 1))  # uploads decoded at the same time
        self._codes: OrderedDict[tuple[str, str, str], Codes] = OrderedDict()  # of earlier turns, oldest use first

    async def hear(self, said: Sequence[UploadedTurn]) -> tuple[Turn, ...]:
        """What was said before, decoded for the running engine; a stand-in's callers learn of bad recordings too.

        Raises NotReady, UnsupportedParameter; BadReference, whose `param` is `context.N.audio`.
        """
        info = self._host.engine().info
        if said and not self._host.is_fallback:
            _check_extra("context", info)
        turns = []
        left_s = HEARING_LIMIT_S
        for index, turn in enumerate(said):
            async with self._ears:
                started_s = time.monotonic()
                turns.append(await _in_thread(_heard, turn, info.rate_hz, f"context.{index}.audio", left_s))
                left_s -= time.monotonic() - started_s
        return tuple(turns)

    async def detect(self, recording: bytes) -> Detection:
        """Whether a sound file carries our mark. Raises BadReference, WatermarkMissing."""
        async with self._ears:
            return await _in_thread(_detected, recording)

    async def answer(
        self, request: SpeechRequest, *, extras: frozenset[str] = frozenset(), random_seed: bool = False
    ) -> Answer:
        """Check the request against the running engine and find or begin its answer.

        extras: the names of our own fields that the caller set. random_seed: draw a seed now, so this answer is new.
        Raises RequestError, NotReady; Busy and EngineError come with the first bytes of the stream.
        """
        self.check_model(request.model)
        if self._voices.stale:
            await asyncio.to_thread(self._voices.refresh)
        request = self._by_speaker(request)
        self._voices_of(request)  # a wrong one is told even while the engine is starting
        engine = self._host.engine()
        request, ignored = self._fit(request, engine.info, extras | ({"context"} if request.context else set()))
        voices = await self._cast_voices(request)
        # A voice asked for by name and by id is one voice: the same seed, the same cached answer.
        lines = tuple(
            replace(line, voice=voice.id, text=remove_unsupported_sounds(line.text, engine.info.text.sounds))
            for line, voice in zip(request.lines, voices, strict=True)
        )
        request = replace(request, lines=lines)
        for voice in voices:
            check_speakable(voice, engine.info, stands_in=self._host.is_fallback)
        check_rate(request.format, request.sample_rate_hz)
        parts = [part for line in request.lines for part in parse(line.text)]
        if all(isinstance(part, Pause) for part in parts):
            raise EmptyText("`input` has nothing in it that could be spoken.", param="input")
        if sum(part.seconds for part in parts if isinstance(part, Pause)) > MAX_PAUSES_S:
            raise TextTooLong(f"The pauses in `input` add up to more than {MAX_PAUSES_S} seconds.", param="input")

        if random_seed:
            request = replace(request, seed=self._dice.getrandbits(31), use_cache=False)
        if request.enhance is None:
            request = replace(request, enhance=self._enhance)
        marked = self._marks.marks(voices)
        if request.conversation is not None:
            request = replace(request, use_cache=False)  # the same words are another turn
        context = (__version__, engine.info.fingerprint, *(voice.digest for voice in voices))
        uncast = [voice for voice in voices if voice.kind == "preset" and not voice.recorded]
        if uncast and engine.info.can_clone:
            seed = seed_of(uncast[0].id)
            request = replace(request, use_cache=False, seed=seed if request.seed is None else request.seed)
        finish = (enhancement.VERSION if request.enhance else "", watermark.VERSION if marked else "")
        digest = request.digest(*context, *finish)
        seed = request.seed if request.seed is not None else request.content_seed(*context)
        engine_id = engine.info.id
        facts = Answer(engine_id, AUDIO_FORMATS[request.format].media_type, seed, False, ignored, None, _pieces(b""))
        facts.uncast = bool(uncast) and engine.info.can_clone

        if request.use_cache and (cached := await self._cache.find(digest)) is not None:
            self._metrics.cache("hit")
            facts.hit, facts.size_bytes = True, len(cached.data)
            facts.usage = Usage(int(cached.facts["input_tokens"]), int(cached.facts["output_tokens"]))
            facts.stream = _pieces(cached.data)
            return facts
        self._metrics.cache("miss" if request.use_cache else "off")
        playback = Playback(tempo=request.speed)
        take = _Take(request, engine, engine_id, voices, seed, digest, facts.progress, marked, playback=playback)
        facts.stream = self._speak(take, facts)
        return facts

    async def forget(self, conversation: str) -> bool:
        """Forget a conversation; False where nothing was remembered."""
        return self._memory is not None and await asyncio.to_thread(self._memory.forget, conversation)

    def check_model(self, model: str) -> None:
        """Raises UnknownModel unless the running engine answers to this id."""
        if model not in MODEL_ALIASES and model not in self._host.model_ids:
            raise UnknownModel(
                f"The model `{model[:80]}` does not exist or is not running here. This server runs "
                f"`{self._host.model_ids[-1]}`; see GET /v1/models.",
                param="model",
            )

    def _by_speaker(self, request: SpeechRequest) -> SpeechRequest:
        """The request with a line per turn where its text names speakers ([S1], [S2]), each by its own voice: those of
        `voice` joined by "+", then others that are told apart easily. A turn with a speaker of its own loses its tags.

        Raises UnknownVoice.
        """
        lines: list[Line] = []
        for line in request.lines:
            if not SPEAKER_TAG.search(line.text):
                lines.append(line)
                continue
            said = split_speakers(line.text)
            if line.speaker is not None or line.voice == NO_VOICE.id:
                lines.append(replace(line, text=" ".join(text for _, text in said)))
                continue
            voices = self._cast(line.voice, max((speaker for speaker, _ in said), default=0) + 1)
            lines += [Line(text, voices[speaker], speaker) for speaker, text in said] or [Line("", voices[0])]
        return replace(request, lines=tuple(lines))

    def _cast(self, asked: str, speakers: int) -> list[str]:
        """A voice for each speaker of a script. Raises UnknownVoice."""
        named = [asked]
        if "+" in asked:
            try:
                self._voices.get(asked)
            except UnknownVoice:
                named = asked.split("+")
        for name in named:
            self._voices.get(name)
        others = [name for name in OTHER_SPEAKERS if name not in named]
        return [*named, *others, *named][:speakers]

    async def _cast_voices(self, request: SpeechRequest) -> tuple[Voice, ...]:
        """The voices, standard ones with their recordings if these can be waited for."""
        if self._casting is not None:
            await self._casting.wait_for([voice.id for voice in self._voices_of(request) if not voice.recorded])
        return self._voices_of(request)

    def _voices_of(self, request: SpeechRequest) -> tuple[Voice, ...]:
        """One per line. Raises UnknownVoice."""
        voices = []
        for index, line in enumerate(request.lines):
            try:
                voices.append(NO_VOICE if line.voice == NO_VOICE.id else self._voices.get(line.voice))
            except UnknownVoice as error:
                if len(request.lines) > 1:
                    error.param = f"turns.{index}.voice"
                raise
        return tuple(voices)

    def _fit(
        self, request: SpeechRequest, info: EngineInfo, extras: frozenset[str]
    ) -> tuple[SpeechRequest, tuple[str, ...]]:
        """The request as this engine can follow it, and the names of what it can't follow.

        An extra that the engine lacks is an error, except under a fallback: nobody chose that engine. `speaker_id` only
        tells an engine whose earlier turns to continue, so it is never an error.
        """
        ignored = []
        if request.instructions and not info.capabilities.instructions:
            ignored.append("instructions")
            request = replace(request, instructions=None)
        if request.parallel and not info.capabilities.parallel:
            ignored.append("parallel")
            request = replace(request, parallel=False)
        for name in sorted(name for name in extras if not info.capabilities.supports(name)):
            if not self._host.is_fallback and name != "speaker_id":
                _check_extra(name, info)
            ignored.append(name)
        if ignored:
            cleared = {name: None for name in ("temperature", "top_k", "top_p", "cfg_scale") if name in ignored}
            request = replace(request, sampling=replace(request.sampling, **cleared))
            if "language" in ignored:
                request = replace(request, language=None)
            if "conversation_id" in ignored:
                request = replace(request, conversation=None)
            if "speaker_id" in ignored:
                request = replace(request, lines=tuple(replace(line, speaker=0) for line in request.lines))
            if "context" in ignored:
                lines = (replace(x, voice=DEFAULT_VOICE) if x.voice == NO_VOICE.id else x for x in request.lines)
                request = replace(request, context=(), lines=tuple(lines))
        context_s = sum(turn.reference.seconds for turn in request.context)
        if info.prompts.max_context_s is not None and context_s > info.prompts.max_context_s:
            raise BadReference(
                f"The recordings in `context` are {context_s:.0f} s long together; the {info.id} engine can hear "
                f"{info.prompts.max_context_s:.0f} s. Leave out the oldest turns.",
                param="context",
            )
        return request, tuple(ignored)

    # ---- speaking

    async def _speak(self, take: _Take, answer: Answer) -> AsyncGenerator[bytes]:
        context, remembered = await self._context(take)
        request = replace(take.request, context=())  # a minute of samples is 6 MB: what was heard is not needed again
        prompts = {voice.id: await self._prompts.of(voice, take.engine) for voice in dict.fromkeys(take.voices)}
        shown = tuple(prompts[voice.id] for voice in take.voices)
        take = replace(take, request=request, context=context, remembered=remembered, prompts=shown)
        marker = await _marker(take)
        encoder = open_encoder(request.format, request.sample_rate_hz)
        finish = _Finish(encoder, take.info.rate_hz, request, marker)
        on_loop_s = 0.0 if take.marked else OFF_LOOP_PLAIN_S if request.format in ("pcm", "wav") else OFF_LOOP_S
        entry: Entry | None = None
        clock = _Clock()
        said: list[Remembered] | None = None if request.conversation is None else []
        first = self._turns.began()
        try:
            async with (
                contextlib.aclosing(self._sound(take, finish.expect, said)) as sound,
                contextlib.aclosing(clock.listening(sound)) as heard,
            ):
                async for samples in heard:
                    take.progress.samples += len(samples)
                    take.playback.add(len(samples) / take.info.rate_hz, time.monotonic())
                    if len(samples) > on_loop_s * take.info.rate_hz:
                        async with self._turns.heavy(clock.ahead_s):
                            data = await _in_thread(finish.push, samples)
                    else:
                        await self._turns.light(clock.ahead_s)
                        data = finish.push(samples)
                    clock.made(finish.audio_s)
                    if data:
                        first.over()
                        if entry is None and request.use_cache:
                            entry = self._cache.begin(take.digest)
                        if entry is not None:
                            entry.write(data)
                        yield data
                    if finish.full:
                        break
            data = finish.flush()
            if not finish.audio_s:
                raise NothingSpoken(f"The {take.engine_id} engine made no sound for this text. Try again.")
            usage = answer.usage = self._usage(take, finish.audio_s)
            if said and self._memory is not None and request.conversation is not None:
                await asyncio.to_thread(self._memory.remember, request.conversation, take.info.fingerprint, said)
            if request.use_cache:
                if entry is None:  # a short answer: all its bytes come at the end
                    entry = self._cache.begin(take.digest)
                entry.write(data)
                entry.commit({"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens})
            self._metrics.spoken(take.engine_id, request.format, finish.audio_s, clock.waited_s, clock.underruns)
            if data:
                yield data
        finally:
            first.over()
            encoder.close()
            if entry is not None:
                entry.abandon()

    async def _context(self, take: _Take) -> tuple[tuple[ContextTurn, ...], int]:
        """The turns as the engine hears them, and how many of them are remembered: these come first, then those the
        caller sent. Raises BadReference."""
        heard: list[ContextTurn] = []
        request = take.request
        if request.conversation is not None and self._memory is not None:
            speakers = {
                voice.id: voice.speaker if line.speaker is None else line.speaker
                for line, voice in zip(request.lines, take.voices, strict=True)
            }
            room = round((take.info.prompts.max_context_s or 0.0) * MEMORY_SHARE / take.info.frame_s)
            recall = self._memory.recall
            heard += await asyncio.to_thread(recall, request.conversation, take.info.fingerprint, speakers, room)
        remembered = len(heard)
        for index, turn in enumerate(take.request.context):
            key = (take.info.fingerprint, turn.digest, turn.text)
            codes = self._codes.get(key)
            if codes is None:
                try:
                    codes = (await take.engine.encode_reference(turn.reference)).codes
                except BadReference as error:
                    where = f"context.{index}.audio"
                    raise BadReference(f"`{where}`: {error.message}", param=where) from error
                self._codes[key] = codes
                if len(self._codes) > KNOWN_TURNS:
                    self._codes.popitem(last=False)
            self._codes.move_to_end(key)
            heard.append(ContextTurn(turn.speaker, turn.text, codes))
        return tuple(heard), remembered

    def _usage(self, take: _Take, audio_s: float) -> Usage:
        text_bytes = sum(len(line.text.encode("utf-8", "ignore")) for line in take.request.lines)
        return Usage(-(-text_bytes // _TOKEN_BYTES), round(audio_s / take.info.frame_s))

    async def _sound(
        self, take: _Take, expect: Callable[[float], None], said: list[Remembered] | None = None
    ) -> AsyncGenerator[Samples]:
        """The whole answer's sound at the engine's rate: utterances trimmed, faded and joined, pauses as long as asked.

        `expect` is told before each utterance how loud (LUFS) its voice is likely to be. While one utterance is spoken
        the next is already submitted, so there is no gap between them. said: where to put what was spoken.
        """
        rate_hz = take.info.rate_hz
        ahead = _Ahead(self._passages(take), lambda part, index: self._start(take, part, index))
        current: _Started | None = None
        lead_s = 0.0  # silence before the next sound: of the first, it waits until the engine has taken the request
        began = False
        try:
            while (part := await ahead.next()) is not None:
                if isinstance(part, Pause):
                    lead_s += part.seconds * take.request.speed  # the tempo, applied later, is the voice's
                    if began:
                        yield pcm.silence(lead_s, rate_hz)
                        lead_s = 0.0
                    continue
                began = True
                current, index = ahead.take()
                take.playback.current_index = index
                level_lufs = part.lines[0].voice.level_lufs
                expect(take.info.level_lufs if level_lufs is None else level_lufs)
                told = False
                for attempt in range(1, ATTEMPTS + 1):
                    edges = EdgeTrimmer(rate_hz)
                    codes: list[Codes] = []
                    shape = chain(edges, Fader(rate_hz))
                    async with contextlib.aclosing(current.chunks()) as chunks:
                        async for chunk in chunks:
                            await ahead.start(_rows_to_use(take))
                            if lead_s:
                                yield pcm.silence(lead_s, rate_hz)
                                lead_s = 0.0
                            if chunk.codes is not None and said is not None:
                                codes.append(chunk.codes)
                            samples = shape.push(chunk.samples)
                            if len(samples) and not told:
                                told = True
                                take.progress.begin(part, rate_hz * take.request.speed)
                            yield samples
                    rest = shape.flush()
                    if edges.sounded:
                        if not told:
                            take.progress.begin(part, rate_hz * take.request.speed)
                        yield rest
                        if said is not None and codes:
                            said.append(Remembered(part.lines[0].voice.id, part.text, np.concatenate(codes, axis=1)))
                        break
                    if not has_words(part.text):
                        break
                    if attempt == ATTEMPTS:
                        raise NothingSpoken(
                            f"The {take.engine_id} engine made no sound for a part of the text. Try again."
                        )
                    self._metrics.guard("retry")
                    await current.aclose()
                    current = self._start(take, part, index, attempt)
                lead_s = SENTENCE_GAP_S if isinstance(await ahead.peek(), _Passage) else 0.0
        finally:
            if current is not None:
                await current.aclose()
            await ahead.aclose()

    def _start(self, take: _Take, part: _Passage, index: int, attempt: int = 0) -> _Started:
        request = take.request
        utterance = Utterance(
            lines=part.lines,
            sampling=request.sampling,
            seed=(take.seed + index + attempt * RETRY_SEED_STEP) & MAX_SEED,
            max_seconds=10.0 + len(part.text),  # far above any speech; engines know better bounds for their runaways
            language=request.language,
            context=take.context,
            optional_turns=take.remembered,
            scheduling=Scheduling(continuation=index > 0, index=index, playback=take.playback),
        )
        return _Started(take.engine.speak(utterance))

    async def _passages(self, take: _Take) -> AsyncGenerator[_Passage | Pause]:
        """The script in the utterances that the engine takes: a piece each, or as many as go into one."""
        passage: _Passage | None = None
        apart = take.request.conversation is not None  # each turn is remembered with its own codes
        async for part in self._script(take):
            if passage is not None and (
                isinstance(part, Pause)
                or take.request.parallel
                or not passage.has_room(part, take.info, one_voice=apart)
            ):
                yield passage
                passage = None
            if isinstance(part, Pause):
                yield part
            else:
                passage = _Passage((*(passage.lines if passage else ()), part))
        if passage is not None:
            yield passage

    async def _script(self, take: _Take) -> AsyncGenerator[SpokenLine | Pause]:
        """What is to be said, piece by piece, in order."""
        request = take.request
        joins = not request.parallel and (take.info.text.continues or take.info.text.max_passage_chars > 0)
        said = worded = False
        parts_of = [parse(line.text) for line in request.lines]
        uncut = sum(not isinstance(part, Pause) for parts in parts_of for part in parts)
        whole = zip(request.lines, take.voices, take.prompts, parts_of, strict=True)
        for turn, (line, voice, prompt, parts) in enumerate(whole):
            speaker = voice.speaker if line.speaker is None else line.speaker
            begun = False
            for part in parts:
                if isinstance(part, Pause):
                    yield part
                    continue
                pieces = await self._pieces_of(part.text, take, voice)
                take.progress.turns += [turn] * len(pieces)
                uncut -= 1
                take.progress.whole = not uncut
                for piece in pieces:
                    if said and not begun and not joins:  # a model that goes on breathes by itself
                        yield Pause(TURN_GAP_S)
                    said = begun = True
                    worded = worded or has_words(piece)
                    yield SpokenLine(piece, speaker, voice, prompt)
        if not worded:
            texts = [part.text for parts in parts_of for part in parts if not isinstance(part, Pause)]
            marks = punctuation_names(" ".join(texts))
            if not marks:
                raise EmptyText("`input` has nothing in it that could be spoken.", param="input")
            voice, first = take.voices[0], request.lines[0]
            take.progress.turns.append(0)
            speaker = voice.speaker if first.speaker is None else first.speaker
            yield SpokenLine(marks, speaker, voice, take.prompts[0])

    async def _pieces_of(self, text: str, take: _Take, voice: Voice) -> list[str]:
        language = take.request.language or script_language(text) or voice.language
        english = language.lower().startswith("en")

        def cut() -> list[str]:
            words = self._normalizer.normalize(text, english=english) if take.request.normalize else text
            size = _size(words, take.info)
            return split(words, max(1, take.info.text.max_chars * len(words) // size) if size else 1)

        return await asyncio.to_thread(cut) if len(text) > OFF_LOOP_CHARS else cut()


class _Started:
    """An utterance that is already on its way while nobody reads it yet."""

    def __init__(self, stream: AsyncGenerator[AudioChunk]) -> None:
        self._stream = stream
        self._first: asyncio.Task[AudioChunk | None] = asyncio.create_task(self._begin())

    async def _begin(self) -> AudioChunk | None:
        return await anext(self._stream, None)

    async def chunks(self) -> AsyncGenerator[AudioChunk]:
        chunk = await self._first
        while chunk is not None:
            yield chunk
            chunk = await anext(self._stream, None)

    async def aclose(self) -> None:
        if not self._first.done():
            self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._stream.aclose()


class _Ahead:
    """A script's parts in order, and those of its utterances that are already being spoken while others are heard."""

    def __init__(self, script: AsyncGenerator[_Passage | Pause], start: Callable[[_Passage, int], _Started]) -> None:
        """start: begins the utterance of that number, counted from 0."""
        self._script = script
        self._start = start
        self._parts: deque[_Passage | Pause] = deque()
        self._started: deque[_Started] = deque()  # the first of the passages in _parts
        self._present: _Passage | None = None
        self._taken = 0

    async def next(self) -> _Passage | Pause | None:
        """The next part, which is now the present one; None at the end."""
        if await self.peek() is None:
            return None
        part = self._parts.popleft()
        self._present = part if isinstance(part, _Passage) else None
        return part

    async def peek(self) -> _Passage | Pause | None:
        return self._parts[0] if self._parts else await self._pull()

    def take(self) -> tuple[_Started, int]:
        """The present passage's utterance and its number."""
        if self._present is None:
            raise LookupError("a pause is not spoken")
        index = self._taken
        self._taken += 1
        return (self._started.popleft() if self._started else self._start(self._present, index)), index

    async def start(self, count: int) -> None:
        """Have at least `count` utterances after the present one on their way, as far as there are."""
        passages = [part for part in self._parts if isinstance(part, _Passage)]
        while len(self._started) < count:
            if len(passages) == len(self._started):
                part = await self._pull()
                if part is None:
                    return
                if isinstance(part, Pause):
                    continue
                passages.append(part)
            number = len(self._started)
            self._started.append(self._start(passages[number], self._taken + number))

    async def _pull(self) -> _Passage | Pause | None:
        part = await anext(self._script, None)
        if part is not None:
            self._parts.append(part)
        return part

    async def aclose(self) -> None:
        for stream in self._started:
            await stream.aclose()
        await self._script.aclose()


def _size(text: str, info: EngineInfo) -> int:
    """How much of the engine's length limits a text takes."""
    return len(text.encode("utf-8", "replace")) if info.text.utf8_bytes else len(text)


def _rows_to_use(take: _Take) -> int:
    """How many utterances of an answer may be on their way behind the one that is heard."""
    if not (take.info.text.independent or take.request.parallel):
        return 1
    load = take.engine.load
    return max(1, min(MAX_AHEAD, load.max_rows - load.active_rows - load.queued))


class _Finish:
    """From the engine's rate to the answer's bytes: loudness, speed, rate, length limit, mark, encoder.

    The mark comes last, where nothing stretches or cuts it.
    """

    def __init__(self, encoder: Encoder, rate_hz: int, request: SpeechRequest, marker: Stage | None) -> None:
        self._encoder = encoder
        self._loudness = Loudness(rate_hz) if request.enhance else None
        self._marker: Stage = marker or chain()
        self._rate_hz = rate_hz
        self._out_hz = request.sample_rate_hz
        self._stage: Stage = chain(
            self._loudness or chain(),
            StreamStretcher(rate_hz, request.speed),
            StreamResampler(rate_hz, request.sample_rate_hz),
        )
        self._cut = Cut(request.sample_rate_hz, None if request.max_audio_ms is None else request.max_audio_ms / 1000)
        self._samples = 0

    @property
    def audio_s(self) -> float:
        return self._samples / self._out_hz

    @property
    def full(self) -> bool:
        return self._cut.full

    def push(self, samples: Samples) -> bytes:
        return self._encode(self._marker.push(self._cut.push(self._stage.push(samples))))

    def flush(self) -> bytes:
        rest = chain(self._cut, self._marker)
        return self._encode(rest.push(self._stage.flush())) + self._encode(rest.flush()) + self._encoder.flush()

    def expect(self, lufs: float) -> None:
        """What is pushed next is another utterance, likely this loud."""
        if self._loudness is not None:
            self._loudness.expect(lufs)

    def _encode(self, samples: Samples) -> bytes:
        self._samples += len(samples)
        return self._encoder.encode(samples)


class _FirstSound:
    """One that is waited for, FRESH_S at most. `over` may be called more than once."""

    def __init__(self, on_over: Callable[[_FirstSound], None]) -> None:
        self._on_over = on_over
        self._timer = asyncio.get_running_loop().call_later(FRESH_S, self.over)

    def over(self) -> None:
        self._timer.cancel()
        self._on_over(self)


class _Turns:
    """Who encodes next: answers that have not sounded yet go before those that are ahead of their listeners."""

    def __init__(self) -> None:
        self._unsounded: set[_FirstSound] = set()
        self._calm = asyncio.Event()
        self._calm.set()
        # One core is left to the event loop, where first sounds are made.
        self._threads = asyncio.Semaphore(max(1, (os.cpu_count() or 1) - 1))

    def began(self) -> _FirstSound:
        """An answer waits for its first sound, until that is `over`."""
        self._calm.clear()
        first = _FirstSound(self._over)
        self._unsounded.add(first)
        return first

    def _over(self, first: _FirstSound) -> None:
        self._unsounded.discard(first)
        if not self._unsounded:
            self._calm.set()

    @contextlib.asynccontextmanager
    async def heavy(self, ahead_s: float) -> AsyncGenerator[None]:
        """A thread to encode in; before it, a short wait for others' first sounds, if this listener has enough."""
        await self._let_pass(min(ahead_s - ENOUGH_AHEAD_S, LONGEST_YIELD_S))
        async with self._threads:
            yield

    async def light(self, ahead_s: float) -> None:
        """The same wait before what is encoded on the event loop."""
        await self._let_pass(min(ahead_s - LIGHT_AHEAD_S, LONGEST_YIELD_S))

    async def _let_pass(self, most_s: float) -> None:
        if most_s > 0 and not self._calm.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(most_s):
                    await self._calm.wait()


@dataclass(slots=True)
class _Clock:
    """How long the engine was waited for, and how often a listener at normal speed would have run dry."""

    waited_s: float = 0.0
    underruns: int = 0
    _began_s: float | None = None
    _audio_s: float = field(default=0.0)

    async def listening(self, sound: AsyncGenerator[Samples]) -> AsyncGenerator[Samples]:
        while True:
            before_s = time.monotonic()
            samples = await anext(sound, None)
            now_s = time.monotonic()
            self.waited_s += now_s - before_s
            if samples is None:
                return
            dry = self._began_s is not None and now_s > self._began_s + self._audio_s
            if dry and now_s - before_s > UNDERRUN_WAIT_S:
                self.underruns += 1
                self._began_s = now_s - self._audio_s  # the listener starts again from here
            yield samples

    @property
    def ahead_s(self) -> float:
        """How much sound a listener at normal speed has left."""
        return 0.0 if self._began_s is None else self._began_s + self._audio_s - time.monotonic()

    def made(self, audio_s: float) -> None:
        """So much there is to hear now; what slows or speeds sound up holds the first of it back."""
        if self._began_s is None and audio_s > 0:
            self._began_s = time.monotonic()
        self._audio_s = audio_s


def _check_extra(name: str, info: EngineInfo) -> None:
    """Raises UnsupportedParameter where the engine lacks this one of our own fields."""
    if not info.capabilities.supports(name):
        able = ", ".join(info.capabilities.names) or "none"
        raise UnsupportedParameter(
            f"The {info.id} engine has no `{name}`. Leave it out, or run an engine that has it. "
            f"Engine parameters that work here: {able}.",
            param=name,
        )


def _heard(said: UploadedTurn, rate_hz: int, where: str, left_s: float) -> Turn:
    """Blocks while it decodes, at most left_s. Raises BadReference."""
    limit_s = min(left_s, TIME_LIMIT_S)
    decoded = decode_turn(said.audio, rate_hz, max_seconds=MAX_TURN_S, what=where, time_limit_s=limit_s)
    if decoded.truncated:
        raise BadReference(f"`{where}` is longer than {MAX_TURN_S:g} s. Send a shorter recording.", param=where)
    digest = hashlib.sha256(decoded.samples.tobytes()).hexdigest()
    return Turn(said.speaker, said.text, digest, Reference(decoded.samples, rate_hz, said.text))


def _detected(recording: bytes) -> Detection:
    """Blocks while it decodes and looks. Raises BadReference, WatermarkMissing."""
    decoded = decode_turn(
        recording, watermark.DETECT_RATE_HZ, max_seconds=MAX_DETECT_S, what="file", time_limit_s=TIME_LIMIT_S
    )
    score = watermark.detect(decoded.samples)
    return Detection(score >= watermark.FOUND, score, decoded.seconds)


async def _marker(take: _Take) -> Stage | None:
    if not take.marked:
        return None
    perth = await _in_thread(watermark.load)  # the first time it reads a file
    return watermark.StreamMarker(take.request.sample_rate_hz, perth)


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As asyncio.to_thread, but who is cancelled leaves only when the thread is done. The encoder is closed then, and
    must not be freed under it: that is about 10 ms. One upload is decoded to its end or limit, so that callers who
    leave do not fill the machine with threads nobody counts.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


async def _pieces(data: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), CACHED_PIECE_BYTES):
        yield data[start : start + CACHED_PIECE_BYTES]
