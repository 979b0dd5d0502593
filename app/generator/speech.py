"""SpeechGenerator turns a request into the bytes of an audio file, with any engine.

The steps are: check the request, look up the answer in the cache, plan the utterances, speak the utterances, and
process the audio. An Answer has a lazy stream: the engine starts when the first bytes are read, and closing the stream
cancels the speech. Most errors are raised by `SpeechGenerator.answer` or before the first bytes. A later error ends the
stream with an exception. This module does not depend on HTTP or on a particular engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from app.audio import pcm
from app.audio.encoders import encoded_bytes, with_length
from app.audio.formats import AUDIO_FORMATS
from app.audio.resample import resampled_length
from app.audio.signing import SIGNED_FORMATS
from app.audio.threads import in_thread
from app.errors import Busy, NothingSpoken, NotStored, SpeechError, SpeechTooShort
from app.generator.checking import AnswerChecks, best_of_takes, is_whole, whole_takes
from app.generator.context import ConversationContext
from app.generator.encoded_answers import EncodedAnswers, EncodedKey
from app.generator.generation import Generation, Generations, Usage
from app.generator.later_text import LaterLines
from app.generator.lookahead import Lookahead, SubmittedUtterance, rows_ahead
from app.generator.output import AnswerEncoder, open_finisher
from app.generator.pacing import EncodeOrder, ListenerClock
from app.generator.planning import PlannedUtterance, Planner
from app.generator.progress import Progress
from app.generator.prompts import Prompts
from app.generator.resolving import RequestResolver, check_extra
from app.generator.sound import HELD_IN_MEMORY_BYTES, Recording
from app.generator.stored_times import unpack
from app.generator.take import SENTENCE_GAP_S, Edges, Take
from app.generator.timeline import Timeline
from app.generator.timestamps import AnswerTimes
from app.generator.word_timing import WordTimer
from app.text.punctuation import has_words
from app.text.script import Pause
from app.types import AnswerPart, ContextTurn, Scheduling, Utterance
from app.voices.memory import RememberedTurn

if TYPE_CHECKING:
    from app.audio.signing import FileSigner
    from app.audio.threads import ThreadLimit
    from app.audio.watermark import Watermark
    from app.engines.adapters import AdapterRegistry
    from app.engines.manager import ModelUse
    from app.engines.model_manager import ModelManager
    from app.generator.cache import AnswerCache, CachedSound, Entry
    from app.generator.checking import Result, TakeChecker
    from app.generator.job import SpeechJob
    from app.generator.later_text import TextParts
    from app.generator.lexicons import LexiconStore
    from app.generator.preset_voices import PresetVoiceMaker
    from app.generator.word_timing import Found
    from app.metrics import Metrics
    from app.text.normalizer import Normalizer
    from app.types import (
        Samples,
        SpeechRequest,
        SpokenLine,
        TimedSentence,
        Timestamps,
        Turn,
        UploadedTurn,
        WordMark,
    )
    from app.voices.memory import Memory
    from app.voices.store import VoiceStore

log = logging.getLogger(__name__)

# Is called with the request, the id of the model, the number of characters of the texts, and the seconds of audio of an
# answer.
OnSent = Callable[["SpeechRequest", str, int, float], None]
# How an answer used the cache: found in the cache; generated; shared with a running equal request; or cache not used.
CacheResult = Literal["hit", "miss", "shared", "off"]

# If the next text is late, WAITING_SILENCE_S seconds of silence follow the last sentence. The silence pushes the end of
# the sentence through the filters and the encoder: the watermark and MP3 together delay up to 0.3 s of audio.
WAITING_SILENCE_S = 0.35
# For a text that arrives in parts: if the engine has not kept its state, it gets the last KEPT_UTTERANCES utterances as
# context for the next utterance.
KEPT_UTTERANCES = 2
# The largest number of takes of one utterance, unless `best_of` is larger. Another take is generated if a take is
# silent, breaks a rule of the output guard, or fails the check.
ATTEMPTS = 2
RETRY_SEED_STEP = 1_000_003  # is added to the seed for each further take
MAX_SEED = 2**63 - 1
SENT_BLOCK_BYTES = 1 << 16
CACHED_BLOCK_S = 1.0  # audio from the cache is encoded in blocks of this length
# An answer from the cache is encoded completely before it is sent if its encoded size is unknown and its audio is not
# longer than MEASURED_S. So the answer has a Content-Length. This encoding takes up to 0.2 s of CPU. The size is
# remembered for later requests for the same answer in the same format.
MEASURED_S = 20.0
MEASURED_ANSWERS = 8  # at most MEASURED_ANSWERS answers at the same time are encoded completely before they are sent
LONG_TIMELINE_CHARS = 20_000  # a longer timeline is compressed in a thread
_TOKEN_BYTES = 4  # UTF-8 bytes per text token: an estimate, because some engines have no tokenizer


@dataclass(slots=True)
class Answer:
    """The answer to a request: a stream of bytes, and the facts that are known before the stream starts."""

    engine: str
    media_type: str
    seed: int
    ignored: tuple[str, ...]  # names of the request fields that the engine does not support
    size_bytes: int | None  # None = not known before the stream ends
    stream: AsyncGenerator[bytes]
    usage: Usage | None = None  # set when the stream has ended
    cache: CacheResult = "miss"  # how the cache was used; final when the stream has yielded its first bytes
    progress: Progress = field(default_factory=Progress)  # empty for a cached answer
    voice_not_ready: bool = False  # whether a preset voice has no recording yet and uses a fixed seed
    broken_rules: list[str] = field(default_factory=list)  # rules of the output guard that the speech broke so far
    verified: Result = "unchecked"  # the result of the check, as it is known so far
    audio_s: float = 0.0  # seconds of audio in the bytes that the stream has yielded
    times: AnswerTimes | None = None  # times of the words; None = the request does not need them

    @property
    def hit(self) -> bool:
        """Whether the audio comes from the cache."""
        return self.cache == "hit"

    @property
    def timed(self) -> list[TimedSentence]:
        """The sentences that have times so far, with their words. The list grows while the stream is read."""
        return [] if self.times is None else self.times.sentences

    async def timestamps(self) -> Timestamps:
        """Return when the sentences and words are heard, in seconds of the encoded file.

        Call it after the end of the stream. It waits until the times are found. Raises ValueError if the request has
        `timestamps=False`.
        """
        if self.times is None:
            raise ValueError("The request of this answer has timestamps=False.")
        return await self.times.finished()

    async def later_timed(self, count: int) -> AsyncGenerator[list[TimedSentence]]:
        """Yield the sentences of `timed` after its first `count` sentences, as soon as they have times.

        Call it after the end of the stream.
        """
        if self.times is not None:
            async for sentences in self.times.follow(count):
                yield sentences


class SpeechGenerator:
    """Turns validated requests into answers. Use it from one event loop."""

    def __init__(
        self,
        manager: ModelManager,
        voices: VoiceStore,
        cache: AnswerCache,
        metrics: Metrics,
        normalizer: Normalizer,
        *,
        watermark: Watermark,
        uploads: ThreadLimit,
        enhance: bool,
        preset_voices: PresetVoiceMaker | None = None,
        memory: Memory | None = None,
        checker: TakeChecker | None = None,
        lexicons: LexiconStore | None = None,
        word_timer: WordTimer | None = None,
        adapters: AdapterRegistry | None = None,
        on_sent: OnSent = lambda *_: None,
        signer: FileSigner | None = None,
    ) -> None:
        """Connect the services.

        watermark: decides which speech gets the watermark. uploads: limits the threads that decode uploads.
        enhance: the default of the request field `enhance`. memory: remembers conversations; None = no memory.
        checker: checks the generated speech; None = no check. lexicons: the pronunciation dictionaries.
        word_timer: finds the times of words; None = a timer without an aligner. adapters: the LoRA adapters.
        on_sent: is called at the end of each answer that has audio, also if its client has disconnected.
        signer: signs files with provenance; None = they are not signed.
        """
        self._manager = manager
        self._cache = cache
        self._metrics = metrics
        self._normalizer = normalizer
        self._resolver = RequestResolver(
            manager,
            voices,
            watermark,
            enhance=enhance,
            preset_voices=preset_voices,
            lexicons=lexicons,
            adapters=adapters,
        )
        self.adapters = adapters
        self._on_sent = on_sent
        self._signer = signer
        self._prompts = Prompts(voices)
        self._context = ConversationContext(memory, uploads)
        self._checker = checker
        self._word_timer = word_timer or WordTimer()
        self._order = EncodeOrder()
        self._generations = Generations()
        self.encoding = 0  # number of answers that are being encoded, even if the engine has finished their audio
        self._foreground = 0  # number of answers that are being sent; background work is not counted
        self._foreground_ended_s = -math.inf
        self._encoded = EncodedAnswers()
        self._measured = asyncio.Semaphore(MEASURED_ANSWERS)

    async def decode_context(self, model: str, turns: Sequence[UploadedTurn]) -> tuple[Turn, ...]:
        """Decode the recordings of earlier turns for the engine of a model. model: as the caller has named it.

        The fallback engine ignores earlier turns. The recordings are decoded even for this engine, so that a bad
        recording is always an error. Raises UnknownModel, NotReady, UnsupportedParameter, and BadReference with the
        `param` `context.N.audio`.
        """
        use = await self._resolver.use(model)
        if turns and not use.is_fallback:
            check_extra("context", use.info)
        return await self._context.decode(turns, use.info.rate_hz)

    async def forget(self, conversation: str) -> bool:
        """Delete the remembered turns of a conversation. Returns False if no turns were remembered."""
        return await self._context.forget(conversation)

    async def answer(
        self,
        request: SpeechRequest,
        *,
        extras: frozenset[str] = frozenset(),
        random_seed: bool = False,
        to_file: bool = False,
        background: bool = False,
    ) -> Answer:
        """Check the request and return its answer, from the cache or ready to be spoken.

        extras: the request fields that the caller has set and that OpenAI's API does not have. random_seed: use a
        random seed and no cache. to_file: the speech is heard only when the answer is complete, so it is checked before
        that, unless the request or TTS_VERIFY says otherwise. background: the answer gives way to all other requests,
        and ends with Busy if one of them needs its row. Raises RequestError, NotReady. The first read from the stream
        can raise Busy or EngineError.
        """
        if to_file and self._checker is not None:
            checked = self._checker.scope(request, (await self._resolver.use(request.model)).info) != "none"
            request = replace(request, verify=checked)
        job = await self._resolver.resolve(request, extras, random_seed=random_seed)
        return await self._answer_to(replace(job, background=True) if background else job)

    async def plan(self, request: SpeechRequest) -> AsyncGenerator[SpokenLine | Pause]:
        """Yield the sentences and pauses of a request, as `answer` would speak them one after another.

        Raises RequestError, NotReady, and the errors of the engine while it encodes the recordings of the voices.
        """
        job = await self._with_prompts(await self._resolver.resolve(request, frozenset(), random_seed=False))
        async with contextlib.aclosing(Planner(job, self._normalizer).sentences()) as sentences:
            async for part in sentences:
                yield part

    async def ignored_fields(self, request: SpeechRequest, extras: frozenset[str]) -> tuple[str, ...]:
        """Check a request without speaking it -> the names of the fields that the engine does not support.

        The parameters and the errors are those of `answer`.
        """
        return (await self._resolver.resolve(request, extras, random_seed=False)).ignored

    def quiet_s(self) -> float:
        """Return the seconds since the end of the last answer to a request; 0 = an answer is being sent."""
        return 0.0 if self._foreground else time.monotonic() - self._foreground_ended_s

    async def use(self, model: str) -> ModelUse:
        """Return the engine of a model, which stays loaded. model: as the caller has named it.

        Raises UnknownModel, NotReady.
        """
        return await self._resolver.use(model)

    async def check(self, request: SpeechRequest, extras: frozenset[str] = frozenset()) -> None:
        """Raise the errors that `answer` raises before the speech begins, except errors in the text and NotReady.

        The parameters are those of `answer`. Raises RequestError.
        """
        await self._resolver.check(request, extras)

    async def answer_in_parts(
        self,
        request: SpeechRequest,
        text: TextParts,
        *,
        extras: frozenset[str] = frozenset(),
        random_seed: bool = False,
    ) -> Answer:
        """Check the request and return the answer to a text that arrives in parts. The answer is not cached.

        request: its only line has the first part of the text. text: the further parts. The other parameters and the
        errors are those of `answer`. Later parts can also raise RequestError while the answer is spoken.
        """
        request = replace(request, use_cache=False, verify=None, best_of=1)
        job = await self._resolver.resolve(request, extras, random_seed=random_seed)
        text.playback = job.playback
        later = LaterLines(self._resolver, self._prompts, job, request.lines[0], text)
        return await self._answer_to(replace(job, later=later, texts=later.texts, answer_id=uuid.uuid4().hex))

    async def _answer_to(self, job: SpeechJob) -> Answer:
        answer = Answer(
            engine=job.info.id,
            media_type=AUDIO_FORMATS[job.request.format].media_type,
            seed=job.seed,
            ignored=job.ignored,
            size_bytes=None,
            stream=_once(b""),
            voice_not_ready=job.voice_not_ready,
            broken_rules=job.broken_rules,
            times=self._times_of(job),
        )
        sound = await self._cached(job, answer)
        stream = self._speak(job, answer) if sound is None else self._from_cache(job, answer, sound)
        answer.stream = self._counted(job, answer, stream)
        if job.request.provenance and job.request.format in SIGNED_FORMATS and self._signer is not None:
            answer.stream = self._signed(job, answer, answer.stream, self._signer)
        return answer

    @staticmethod
    async def _signed(
        job: SpeechJob, answer: Answer, stream: AsyncGenerator[bytes], signer: FileSigner
    ) -> AsyncGenerator[bytes]:
        """Read a whole answer into a file, sign the file, and yield its bytes. Sets `size_bytes` before the first
        bytes.

        Raises NotStored, SpeechError.
        """
        assert job.provenance is not None  # noqa: S101 - the request has `provenance`
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"speech.{job.request.format}"
                with path.open("wb") as file:
                    async with contextlib.aclosing(stream):
                        async for data in stream:
                            file.write(data)
                if path.stat().st_size:
                    await in_thread(signer.sign, path, job.request.format, job.provenance)
                answer.size_bytes = path.stat().st_size
                with path.open("rb") as file:
                    while data := file.read(SENT_BLOCK_BYTES):
                        yield data
        except OSError as error:
            raise NotStored(
                f"The answer can't be signed, because its temporary file can't be written ({error.strerror or error}). "
                "Free some space in the temporary folder, or send the request without `provenance`."
            ) from error

    async def _counted(self, job: SpeechJob, answer: Answer, stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """Yield the bytes of an answer, and report at the end how much was sent."""
        foreground = not job.background
        self._foreground += foreground
        try:
            async with contextlib.aclosing(stream):
                async for data in stream:
                    yield data
        finally:
            if foreground:
                self._foreground -= 1
                self._foreground_ended_s = time.monotonic()
            if answer.audio_s:
                self._on_sent(job.request, job.use.model_id, sum(map(len, job.texts)), answer.audio_s)

    # ---- answers

    async def _cached(self, job: SpeechJob, answer: Answer) -> CachedSound | None:
        """Return the audio of a job from the cache; None if it is missing, or lacks something that the request needs.

        A request can need a check of the speech, or the timeline of its own text.
        """
        sound = await self._cache.find(job.cache_key) if job.request.use_cache else None
        if sound is None or (job.request.verify is True and "verified" not in sound.facts):
            return None
        return sound if answer.times is None or await self._load_times(job, answer.times, sound) else None

    async def _load_times(self, job: SpeechJob, times: AnswerTimes, sound: CachedSound) -> bool:
        """Load the timeline of an answer from the cache, and the times of its words if they are known.

        Returns False if the timeline is missing, damaged, or belongs to another text.
        """
        if sound.facts.get("texts") != _digest_of(job.texts):
            return False
        packed = str(sound.facts.get("timeline", ""))
        text = await self._cache.find_times(job.cache_key, sound.checksum)
        try:
            if len(packed) > LONG_TIMELINE_CHARS:
                await asyncio.to_thread(_load_times, times, packed, text, sound.samples)
            else:
                _load_times(times, packed, text, sound.samples)
        except ValueError as error:
            log.warning("the stored times of an answer are damaged; the answer is generated again: %s", error)
            return False
        return True

    def _times_of(self, job: SpeechJob) -> AnswerTimes | None:
        """Return the object that finds the times of the words of an answer; None if the request does not need them."""
        request = job.request
        if not request.timestamps:
            return None
        delay_s = AUDIO_FORMATS[request.format].delay_s(request.sample_rate_hz)
        return AnswerTimes(
            self._word_timer,
            job.texts,
            rate_hz=job.info.rate_hz,
            speed=request.speed,
            language=request.language,
            delay_s=delay_s,
        )

    def _set_result(self, answer: Answer, result: CacheResult) -> None:
        """Store in the answer how the cache was used, and count it for the metrics."""
        answer.cache = result
        self._metrics.cache(result)

    def _from_cache(self, job: SpeechJob, answer: Answer, sound: CachedSound) -> AsyncGenerator[bytes]:
        """Set the facts of an answer from the cache, and return its bytes."""
        self._set_result(answer, "hit")
        facts = sound.facts
        answer.verified = cast("Result", facts.get("verified", "unchecked"))
        answer.seed = int(facts.get("seed", answer.seed))
        answer.usage = Usage(int(facts["input_tokens"]), int(facts["output_tokens"]))
        body = None
        if not job.request.provenance and (answer.times is None or answer.times.complete):
            body = self._encoded.find(_encoded_key(job, sound.checksum))
        if body is not None:
            answer.size_bytes = len(body)
            answer.audio_s = sound.samples / sound.rate_hz
            return _blocks(body)
        answer.size_bytes = self._size_of(job, sound)
        stream = self._encode_cached(job, answer, sound)
        if answer.size_bytes is None and sound.samples <= MEASURED_S * sound.rate_hz:
            return _hold_back(answer, stream, self._measured)
        return stream

    async def _encode_cached(self, job: SpeechJob, answer: Answer, sound: CachedSound) -> AsyncGenerator[bytes]:
        """Encode audio from the cache. The first block is short, so that its bytes are sent at once."""
        encoder = AnswerEncoder(job, sound.rate_hz, sound.samples)
        collector = self._encoded.collect(keep=_is_kept(job))
        clock = ListenerClock()
        times = None if answer.times is None or answer.times.complete else answer.times
        timeline = Timeline() if times is None or times.timeline is None else times.timeline
        position = 0
        count = encoder.on_loop_samples
        self.encoding += 1
        try:
            while position < sound.samples:
                try:
                    if sound.in_memory(position + count):
                        samples = sound.read(position, count)
                    else:
                        samples = await in_thread(sound.read, position, count)
                except OSError as error:
                    raise SpeechError(
                        f"The answer can't be read from the cache ({error.strerror}). Try again."
                    ) from error
                position += count
                count = round(CACHED_BLOCK_S * sound.rate_hz)
                data = await encoder.push_in_order(samples, self._order, clock.ahead_s)
                clock.encoded(encoder.audio_s)
                answer.audio_s = encoder.audio_s
                if data:
                    yield collector.add(data)
                if times is not None:
                    times.push(samples, timeline)
                    await times.room()
            if data := encoder.flush():
                yield collector.add(data)
            if times is not None:
                times.end(timeline)
                times.store_later(partial(self._cache.keep_times, job.cache_key, sound.checksum))
            if not job.request.provenance:
                self._encoded.put(_encoded_key(job, sound.checksum), collector.size, collector.body)
        finally:
            self.encoding -= 1
            collector.close()
            encoder.close()
            if times is not None:
                times.close(timeline)

    async def _speak(self, job: SpeechJob, answer: Answer) -> AsyncGenerator[bytes]:
        """Yield the bytes of an answer that was not in the cache. If a new generation is needed, first wait until fewer
        answers than the limit are being generated. Background work does not wait.
        """
        key = f"{job.cache_key} {job.request.verify}" if job.request.use_cache and self._cache.enabled else None
        waits = self._shared(job, key) is None and not job.background
        admission = job.use.manager.admission.place(job.engine.load) if waits else contextlib.nullcontext()
        async with admission, contextlib.aclosing(await self._speak_or_follow(job, answer, key)) as stream:
            async for data in stream:
                yield data

    def _shared(self, job: SpeechJob, key: str | None) -> Generation | None:
        """Return a running generation whose audio this answer can share. key: the key of the generation; None = it
        is never shared."""
        generation = self._generations.find(key)
        if generation is not None and job.request.timestamps and generation.job.texts != job.texts:
            return None  # the speech is equal, but the positions of its words in the caller's text differ
        return generation

    async def _speak_or_follow(self, job: SpeechJob, answer: Answer, key: str | None) -> AsyncGenerator[bytes]:
        """Follow an equal generation, or start one. Returns the stream of the bytes of the answer, which must be read
        at once.

        key: the key of the generation; None = the generation is never shared. At its end, the stream sets the answer's
        `usage` and `verified`.
        """
        generation = self._shared(job, key)
        if generation is None and key is not None and job.cache_key in self._cache:
            # an equal request has stored its answer after `answer` searched the cache
            sound = await self._cached(job, answer)
            if sound is not None:
                return self._from_cache(job, answer, sound)
            generation = self._shared(job, key)
        if generation is None:
            self._set_result(answer, "off" if key is None else "miss")
            entry = self._cache.begin(job.cache_key, job.info.rate_hz, keep=key is not None)
            generation = Generation(job, Recording(entry, job.info.rate_hz, hold=job.held))
            self._generations.start(key, generation, partial(self._generate, job, generation, entry))
        else:
            self._set_result(answer, "shared")
            answer.seed = generation.job.seed
            answer.broken_rules = generation.job.broken_rules
        stream = self._encode(job, answer, generation)
        return _hold_back(answer, stream) if job.held else stream

    async def _encode(self, job: SpeechJob, answer: Answer, generation: Generation) -> AsyncGenerator[bytes]:
        """Encode the audio of a generation while it is spoken, or at its end if the answer is held back."""
        pending = None if job.background else self._order.begin()
        clock = ListenerClock(plays=not job.background)
        encoder: AnswerEncoder | None = None
        collector = self._encoded.collect(keep=job.request.use_cache and _is_kept(job))
        rate_hz = job.info.rate_hz
        self.encoding += 1
        try:
            async with generation.listen() as samples:
                async for block in samples:
                    if encoder is None:
                        encoder = AnswerEncoder(job, rate_hz, generation.recording.samples if job.held else None)
                    answer.progress.follow(generation.job.progress, encoder.audio_s + len(block) / (2 * rate_hz))
                    data = await encoder.push_in_order(block, self._order, clock.ahead_s)
                    clock.encoded(encoder.audio_s)
                    answer.audio_s = encoder.audio_s
                    if data:
                        if pending is not None:
                            pending.done()
                        yield collector.add(data)
                    if answer.times is not None:
                        answer.times.push(block, generation.job.timeline)
                        await answer.times.room()
                answer.progress.follow(generation.job.progress, math.inf)
                answer.usage = generation.usage
                if encoder is not None and (data := encoder.flush()):
                    yield collector.add(data)  # the listener does not wait for checks
                if answer.times is not None:
                    answer.times.end(generation.job.timeline)
                await generation.finished()
                answer.verified = generation.verified
                if generation.stored_checksum is not None:
                    body = collector.body
                    if body:
                        total = resampled_length(generation.recording.samples, rate_hz, job.request.sample_rate_hz)
                        body = with_length(job.request.format, job.request.sample_rate_hz, total, body)
                    if not job.request.provenance:
                        self._encoded.put(_encoded_key(job, generation.stored_checksum), collector.size, body)
                    if answer.times is not None:
                        answer.times.store_later(
                            partial(self._cache.keep_times, job.cache_key, generation.stored_checksum)
                        )
        finally:
            self.encoding -= 1
            if pending is not None:
                pending.done()
            collector.close()
            if encoder is not None:
                encoder.close()
            if answer.times is not None:
                answer.times.close(generation.job.timeline)

    def _size_of(self, job: SpeechJob, sound: CachedSound) -> int | None:
        """Return the size in bytes of an encoded answer from the cache; None if it is unknown before the answer is
        encoded."""
        request = job.request
        total = resampled_length(sound.samples, sound.rate_hz, request.sample_rate_hz)
        size = encoded_bytes(request.format, request.sample_rate_hz, total, comment=job.comment)
        if size is not None or request.provenance:
            return size
        return self._encoded.size_of(_encoded_key(job, sound.checksum))

    # ---- speaking

    async def _generate(self, job: SpeechJob, generation: Generation, entry: Entry) -> None:
        """Speak a job: add its audio to the recording of its generation, and at the end store it in the cache."""
        job = await self._with_prompts(job)
        info, recording = job.info, generation.recording
        finisher = await open_finisher(job)
        clock = ListenerClock(plays=not job.background)
        checks = AnswerChecks(self._checker, job, self._normalizer, self._metrics)
        spoken: list[tuple[Take, RememberedTurn]] = []
        try:
            async with contextlib.aclosing(self._samples(job, finisher.expect, spoken, checks)) as produced:
                while (samples := await clock.timed(produced)) is not None:
                    job.progress.samples += len(samples)
                    job.playback.add(len(samples) / info.rate_hz, time.monotonic())
                    recording.append(await finisher.push_in_order(samples, self._order, clock.ahead_s))
                    clock.encoded(finisher.audio_s)
                    if finisher.full:
                        break
                    await recording.wanted()
                    await self._order.next_chunk(clock.ahead_s)
            recording.append(finisher.flush())
            if not finisher.audio_s:
                raise NothingSpoken(f"The {info.id} engine produced no audio for this text. Try again.")
            usage = generation.usage = _usage(job, finisher.audio_s)
            recording.end()
            generation.verified = verified = await checks.finish()
            await self._context.remember(job, [turn for take, turn in spoken if not take.bad])
            if job.broken_rules or verified == "uncertain":
                self._resolver.avoid_seed(job)
                entry.abandon()
            elif entry.kept:
                facts = await _facts_of(job, usage)
                entry.commit({**facts, "verified": verified} if checks.complete else facts)
                generation.stored_checksum = entry.checksum if entry.stored else None
            # An answer that waits for its text says nothing about the speed of the engine.
            waited_s = clock.waited_s if job.later is None and not job.background else None
            underruns = 0 if job.held or job.later is not None or job.background else clock.underruns
            self._metrics.spoken(info.id, job.request.format, finisher.audio_s, waited_s, underruns)
        finally:
            await checks.close()

    async def _with_prompts(self, job: SpeechJob) -> SpeechJob:
        """Return the job with the earlier turns and the recordings of the voices, both as codes."""
        context, remembered = await self._context.encode(job)
        # Without the decoded samples, which need 6 MB per minute.
        request = replace(job.request, context=()) if job.request.context else job.request
        prompts = {voice.id: await self._prompts.of(voice, job.engine) for voice in dict.fromkeys(job.voices)}
        return replace(
            job,
            request=request,
            context=context,
            remembered=remembered,
            prompts=tuple(prompts[voice.id] for voice in job.voices),
        )

    async def _samples(
        self,
        job: SpeechJob,
        expect_level: Callable[[float], None],
        spoken: list[tuple[Take, RememberedTurn]],
        checks: AnswerChecks,
    ) -> AsyncGenerator[Samples]:
        """Yield the audio of the answer at the engine's sample rate: the utterances and the silence between them.

        expect_level: is called before each utterance with the expected loudness of the voice, in LUFS.
        spoken: a list to which this function adds the turns that the conversation must remember, with their takes.
        """
        rate_hz = job.info.rate_hz
        ahead = Lookahead(
            Planner(job, self._normalizer).utterances(),
            lambda utterance, number: self._submit(job, utterance, number),
            waits=job.later is not None,
        )
        silence_s = 0.0  # silence to send before the next utterance
        begun = False
        progress = job.progress
        joint = _Joint()
        try:
            while (part := await ahead.next()) is not None:
                if isinstance(part, Pause):
                    # The tempo filter later divides the pause by the speed.
                    silence_s += part.seconds * job.request.speed
                    if begun:  # a pause at the start waits until the engine has accepted the request
                        yield pcm.silence(silence_s, rate_hz)
                        silence_s = 0.0
                    continue
                begun = True
                if joint.edges is None:
                    level_lufs = part.lines[0].voice.level_lufs
                    expect_level(job.info.level_lufs if level_lufs is None else level_lufs)
                start: int | None = None
                end: int | None = None
                marks: list[WordMark] = []
                try:
                    async with contextlib.aclosing(
                        self._utterance(job, part, ahead, spoken, checks, joint=joint, marks=marks)
                    ) as produced:
                        async for samples in produced:
                            if silence_s:
                                yield pcm.silence(silence_s, rate_hz)
                                silence_s = 0.0
                            start = progress.samples if start is None else start
                            yield samples
                    end = progress.samples
                finally:
                    if start is not None:
                        job.timeline.add(part.lines, start, end, marks)
                waits = job.later is not None and not await ahead.planned_within(_time_left_s(job))
                following = None if waits else await ahead.peek()
                follows = isinstance(following, PlannedUtterance)
                if not _is_joined(part, following) and len(tail := joint.end()):
                    yield tail
                if waits:
                    yield pcm.silence(WAITING_SILENCE_S, rate_hz)
                    silence_s = 0.0
                elif follows and joint.edges is None:
                    silence_s += SENTENCE_GAP_S
            if silence_s and not begun:  # the whole text is silent
                yield pcm.silence(silence_s, rate_hz)
        finally:
            job.over.set()
            await ahead.aclose()

    async def _utterance(
        self,
        job: SpeechJob,
        planned: PlannedUtterance,
        ahead: Lookahead,
        spoken: list[tuple[Take, RememberedTurn]],
        checks: AnswerChecks,
        *,
        joint: _Joint,
        marks: list[WordMark],
    ) -> AsyncGenerator[Samples]:
        """Yield the audio of one utterance with trimmed and faded edges. Meanwhile, submit the next utterances.

        joint: has the end of the previous utterance if this utterance continues it. This function stores the end of
        this utterance in `joint` if the next utterance may continue it.

        If a take fails before any of its audio was sent, the utterance is generated again with another seed. If the new
        attempt ends with an error, a take that only the check has rejected is used. Raises NothingSpoken,
        SpeechTooShort and the errors of the engine.

        marks: a list to which this function adds the places of words in the audio that was sent.
        """
        submitted, number = ahead.take()
        job.playback.current_index = number
        checks.begin()
        begun = False
        takes: list[Take] = []
        try:
            if job.request.best_of > 1 and checks.possible:
                takes = await self._candidates(job, planned, submitted, number, checks)
            attempts = 0 if takes else max(ATTEMPTS, job.request.best_of)
            for attempt in range(1, attempts + 1):
                take = Take(
                    job,
                    hold=job.info.seeded and number > 0,
                    until_end=job.held,
                    keep=checks.scope == "all",
                    edges=joint.edges,
                )
                takes.append(take)
                try:
                    async with contextlib.aclosing(take.chunks(submitted)) as chunks:
                        async for chunk in chunks:
                            # The next utterances are planned after the first audio, because planning would delay it.
                            starts = number == 0 and not begun
                            if not starts:
                                await ahead.submit(rows_ahead(job))
                                left_s = math.inf if job.background else job.playback.time_left_s(time.monotonic())
                                await self._order.one_by_one(left_s)
                            if chunk is not None:
                                take.add(chunk)
                            for samples in take.release():
                                begun = begun or self._begin(job, planned)
                                yield samples
                            if starts:
                                await ahead.submit(rows_ahead(job))
                except SpeechError as error:
                    if take.sent or not whole_takes(takes[:-1], planned.text):
                        raise
                    log.warning("utterance %d can't be generated again, so its bad take is used: %s", number, error)
                    takes.pop()
                    break
                wait_s = None if job.held else take.due_s
                take.end()
                failed = not is_whole(take, planned.text)
                if not failed:
                    await checks.check(planned, take, wait_s)
                    failed = take.bad
                elif not take.sent and attempt < attempts:
                    self._metrics.guard("retry")
                if not failed or take.sent or attempt == attempts:
                    break
                await submitted.aclose()
                submitted = self._submit(job, planned, number, attempt)
            take = best_of_takes(takes, planned.text)
            job.heard_takes.append(take.number)
            self._check(job, planned, take, number)
            joint.edges = take.edges if job.goes_on else None
            checks.record(number, takes, take)
            for samples in take.release():
                begun = begun or self._begin(job, planned)
                yield samples
            if take.codes is not None and not take.silent and not take.failures:
                spoken.append((take, RememberedTurn(planned.lines[0].voice.id, planned.text, take.codes)))
                if job.later is not None and job.info.capabilities.context:
                    job.spoken_turns.append(ContextTurn(planned.lines[0].speaker, planned.text, take.codes))
                    del job.spoken_turns[:-KEPT_UTTERANCES]
        finally:
            marks += next((each.marks for each in takes if each.sent), ())
            await submitted.aclose()

    async def _candidates(
        self,
        job: SpeechJob,
        planned: PlannedUtterance,
        submitted: SubmittedUtterance,
        number: int,
        checks: AnswerChecks,
    ) -> list[Take]:
        """Generate and check `best_of` takes of an utterance, as many at the same time as there are free rows.

        submitted: the first take. One row stays free for other requests. A take that fails with an error is left out;
        if all takes fail, the first error is raised. Raises Busy if the queue is full.
        """
        count = job.request.best_of
        takes: dict[int, Take] = {}
        errors: list[SpeechError] = []
        streams = [submitted]

        async def generate(index: int) -> None:
            take = Take(job, hold=True, until_end=True, keep=True)
            try:
                async with contextlib.aclosing(take.chunks(streams[index])) as chunks:
                    async for chunk in chunks:
                        if chunk is not None:
                            take.add(chunk)
            except Busy:  # the queue is full, so the engine refuses this answer; further takes would overtake the queue
                raise
            except SpeechError as error:
                errors.append(error)
                return
            take.end()
            await checks.check(planned, take)
            takes[index] = take

        running = {asyncio.create_task(generate(0))}

        def start_next() -> None:
            streams.append(self._submit(job, planned, number, len(streams)))
            running.add(asyncio.create_task(generate(len(streams) - 1)))

        try:
            while running:
                load = job.engine.load
                free = load.max_rows - load.active_rows - load.queued - len(running)
                for _ in range(min(count - len(streams), free - 1)):
                    start_next()
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running -= done
                for task in done:
                    task.result()
                if not running and len(streams) < count:
                    start_next()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for stream in streams:
                await stream.aclose()
        if not takes:
            raise errors[0]
        return [takes[index] for index in sorted(takes)]

    @staticmethod
    def _begin(job: SpeechJob, planned: PlannedUtterance) -> bool:
        turn = planned.lines[0].turn
        ends = [line.end_char for line in planned.lines if line.turn == turn]
        span = turn, planned.lines[0].start_char, max(ends)
        job.progress.begin(planned.text, len(planned.lines), job.info.rate_hz * job.request.speed, span)
        return True

    @staticmethod
    def _check(job: SpeechJob, planned: PlannedUtterance, take: Take, number: int) -> None:
        """Check the last take of an utterance, and log its failures. Raises NothingSpoken, SpeechTooShort."""
        if take.silent and has_words(planned.text):
            raise NothingSpoken(f"The {job.info.id} engine produced no audio for a part of the text. Try again.")
        if not take.failures:
            return
        job.broken_rules.extend(take.failures)
        log.warning(
            "the output guard found %s in utterance %d, spoken by %s with seed %d; the answer is not cached",
            ", ".join(take.failures),
            number,
            job.info.id,
            job.seed,
        )
        if "too_short" in take.failures and not take.sent:
            raise SpeechTooShort(
                f"The {job.info.id} engine left out a part of the text in each of "
                f"{max(ATTEMPTS, job.request.best_of)} attempts. Try again, or "
                "divide the text into shorter sentences."
            )

    def _submit(self, job: SpeechJob, planned: PlannedUtterance, number: int, attempt: int = 0) -> SubmittedUtterance:
        """Send an utterance to the engine. number: its index in the answer. attempt: 0 for the first take."""
        spoken = job.spoken_turns
        place = 0 if job.goes_on else number
        after = job.heard_takes[-1] if job.heard_takes else 0
        utterance = Utterance(
            lines=planned.lines,
            sampling=job.request.sampling,
            seed=(job.seed + place + attempt * RETRY_SEED_STEP) & MAX_SEED,
            max_seconds=10.0 + len(planned.text),  # a limit that no real speech reaches; the engines have lower limits
            language=job.request.language,
            context=(*job.context, *spoken),
            optional_turns=job.remembered if job.request.context else job.remembered + len(spoken),
            adapter=planned.lines[0].voice.adapter,
            part=AnswerPart(job.answer_id, number, attempt, after, job.over) if job.goes_on else None,
            scheduling=Scheduling(
                continuation=number > 0 or attempt > 0,
                background=job.background,
                index=number,
                playback=job.playback,
            ),
        )
        return SubmittedUtterance(job.engine.speak(utterance), utterance.part)


@dataclass(slots=True)
class _Joint:
    """The place between two utterances, of which the second may continue the first without a gap."""

    # The edges of the last utterance, whose end is not sent yet; None = no utterance is to be continued.
    edges: Edges | None = None

    def end(self) -> Samples:
        """Return the end of the last utterance, because the next utterance does not continue it."""
        edges, self.edges = self.edges, None
        return pcm.silence(0, 1) if edges is None else edges.flush()


def _is_joined(spoken: PlannedUtterance, following: PlannedUtterance | Pause | None) -> bool:
    """Whether the next part is an utterance of the same voices, so that the engine can continue from its state."""
    if not isinstance(following, PlannedUtterance):
        return False
    return {line.voice.id for line in following.lines} <= {line.voice.id for line in spoken.lines}


def _time_left_s(job: SpeechJob) -> float:
    """Seconds until a listener who waits for text must get the audio that the filters and the encoder still hold."""
    return max(0.0, job.playback.time_left_s(time.monotonic()) - WAITING_SILENCE_S)


def _usage(job: SpeechJob, audio_s: float) -> Usage:
    """Count the tokens of an answer with `audio_s` seconds of audio."""
    if job.later is None:
        text_bytes = sum(len(line.text.encode("utf-8", "ignore")) for line in job.request.lines)
    else:
        text_bytes = job.later.size_bytes
    return Usage(-(-text_bytes // _TOKEN_BYTES), round(audio_s / job.info.frame_s))


async def _facts_of(job: SpeechJob, usage: Usage) -> dict[str, float | str]:
    """Return the facts of an answer that the cache stores with its audio."""
    facts: dict[str, float | str] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "seed": job.seed,
    }
    long = job.timeline.size > LONG_TIMELINE_CHARS
    timeline = await asyncio.to_thread(job.timeline.to_text) if long else job.timeline.to_text()
    return facts if timeline is None else {**facts, "timeline": timeline, "texts": _digest_of(job.texts)}


def _load_times(times: AnswerTimes, timeline: str, text: str | None, samples: int) -> None:
    """Load the stored times of the cache into the object that finds the times of an answer.

    Raises ValueError if the timeline is damaged.
    """
    stored: list[Found | None] = []
    try:
        stored = [] if text is None else unpack(text)
    except ValueError as error:
        log.warning("the stored times of an answer can't be read; they are found again: %s", error)
    times.load(Timeline.from_text(timeline), stored, samples)


def _digest_of(texts: Sequence[str]) -> str:
    """Return a digest of the caller's texts."""
    return hashlib.sha256(json.dumps([*texts]).encode()).hexdigest()


def _encoded_key(job: SpeechJob, checksum: int) -> EncodedKey:
    """Return the key of a job's encoded answer. checksum: the checksum of the samples."""
    return job.cache_key, checksum, job.request.format, job.request.sample_rate_hz


def _is_kept(job: SpeechJob) -> bool:
    """Return whether an encoded answer is kept in memory.

    PCM and WAV are not kept, because keeping them would save only 0.4 ms of CPU per second of audio. A file with
    provenance contains the time of its request, so it can't be used for a second request.
    """
    request = job.request
    return not request.provenance and encoded_bytes(request.format, request.sample_rate_hz, 0) is None


async def _blocks(data: bytes) -> AsyncGenerator[bytes]:
    """Yield `data` in blocks of SENT_BLOCK_BYTES."""
    for start in range(0, len(data), SENT_BLOCK_BYTES):
        yield data[start : start + SENT_BLOCK_BYTES]


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    """Yield `data`."""
    yield data


async def _hold_back(
    answer: Answer, stream: AsyncGenerator[bytes], limit: asyncio.Semaphore | None = None
) -> AsyncGenerator[bytes]:
    """Read the whole stream of an answer, and then yield it. Sets `size_bytes` before the first bytes.

    limit: limits how many streams are read at the same time; None = no limit.

    Raises NotStored if the disk has no space for a long answer.
    """
    with tempfile.SpooledTemporaryFile(HELD_IN_MEMORY_BYTES) as file:
        async with limit or contextlib.nullcontext(), contextlib.aclosing(stream):
            async for data in stream:
                try:
                    file.write(data)
                except OSError as error:
                    raise NotStored(
                        "The answer can't be held back until it is checked, because its temporary file can't be "
                        f"written ({error.strerror or error}). Free some space in the temporary folder, or turn the "
                        "check off (`verify`, `best_of`, TTS_VERIFY)."
                    ) from error
        answer.size_bytes = file.tell()
        file.seek(0)
        while data := file.read(SENT_BLOCK_BYTES):
            yield data
