"""SpeechGenerator with a scripted engine, and with the real offline voice.

The audio of a scripted utterance has a constant level and no silent sample, so the tests can measure every length and
every pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from app.audio import pcm
from app.audio.threads import ThreadLimit
from app.audio.watermark import Watermark
from app.engines import admission
from app.engines.model_manager import ModelManager
from app.engines.registry import BUILT_IN, Builder, EngineSpec
from app.errors import (
    Busy,
    EmptyText,
    EngineError,
    EngineUnavailable,
    NothingSpoken,
    NotReady,
    SpeechTooShort,
    TextTooLong,
    UnknownModel,
    UnknownVoice,
    UnsupportedParameter,
)
from app.generator import lookahead, output, pacing, sound, speech, take
from app.generator.cache import AnswerCache
from app.generator.job import SpeechJob
from app.generator.output import AnswerEncoder
from app.generator.planning import SILENT_TEXT_S
from app.generator.speech import Answer, SpeechGenerator
from app.generator.take import SENTENCE_GAP_S
from app.metrics import Metrics
from app.settings import Settings
from app.text.normalizer import Normalizer
from app.types import (
    AudioChunk,
    Capabilities,
    EngineInfo,
    Line,
    Load,
    PromptLimits,
    Reference,
    Sampling,
    SpeechRequest,
    TextPacking,
    Utterance,
    Voice,
    VoicePrompt,
)
from app.voices.store import VoiceStore
from tests.support.scripted_runner import info

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
CHUNK = 1920  # 80 ms
FRAMES = 5
SPOKEN = CHUNK * FRAMES  # samples of one utterance
GAP = round(SENTENCE_GAP_S * RATE_HZ)
THREE = "One is the first. Two is the second. Three is the third."
SENTENCES = ["One is the first.", "Two is the second.", "Three is the third."]


@dataclasses.dataclass
class Part:
    """How the scripted engine speaks one utterance."""

    frames: int = FRAMES
    level: float | None = None  # None = 0.1 for the first utterance, 0.2 for the second, and so on
    error: Exception | None = None  # raised before the chunk with the index `at`
    at: int = 0
    gate: asyncio.Event | None = None  # the engine waits for this event before chunk 1
    chunk: int = CHUNK
    rules: tuple[str, ...] = ()  # rules of the output guard, reported with the last chunk


class ScriptedEngine:
    """Implements `app.engines.protocol.Engine`. Speaks the parts in order; `events` records beginnings and ends."""

    def __init__(self, *parts: Part, **about: Any) -> None:
        self._info = info("scripted", **({"rate_hz": RATE_HZ, "frame_s": 0.08} | about))
        self._parts = parts
        self.utterances: list[Utterance] = []
        self.events: list[str] = []
        self.open = 0
        self.healthy = True

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def load(self) -> Load:
        return Load(self.open, 32, 0, 64)

    @property
    def texts(self) -> list[str]:
        return [line.text for utterance in self.utterances for line in utterance.lines]

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        number = len(self.utterances)
        self.utterances.append(utterance)
        self.events.append(f"begin {number}")
        self.open += 1
        part = self._parts[number] if number < len(self._parts) else Part()
        level = 0.1 * (number % 9 + 1) if part.level is None else part.level
        try:
            for frame in range(part.frames):
                if part.error is not None and frame == part.at:
                    raise part.error
                if part.gate is not None and frame == 1:
                    await part.gate.wait()
                await asyncio.sleep(0)
                rules = part.rules if frame == part.frames - 1 else ()
                samples = np.full(part.chunk, level, np.float32)
                yield AudioChunk(samples, self.info.rate_hz, frame * part.chunk, rules=rules)
            self.events.append(f"end {number}")
        finally:
            self.open -= 1

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.healthy = False


@dataclasses.dataclass(frozen=True)
class ReadySpec(EngineSpec):
    """The spec of an existing engine. build: None = the weights of the engine are missing."""

    engine: ScriptedEngine | None = None

    def builder(self) -> Builder:
        if self.engine is None:
            raise EngineUnavailable("The weights are missing.")
        return lambda settings, context: self.engine  # type: ignore[return-value]


@dataclasses.dataclass
class Setup:
    generator: SpeechGenerator
    manager: ModelManager
    metrics: Metrics
    folder: Path

    @property
    def stored(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    async def pcm(self, text: str, **changes: Any) -> np.ndarray:
        """Return (N,) float32 of the whole answer."""
        return pcm.from_bytes(await read(await self.generator.answer(speech_request(text, **changes))))

    def counted(self, name: str) -> float:
        lines = [line for line in self.metrics.text().decode().splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextlib.asynccontextmanager
async def set_up(folder: Path, known: dict[str, EngineSpec], engine: str, fallback: str = "") -> AsyncIterator[Setup]:
    settings = Settings(_env_file=None, TTS_ENGINE=engine, TTS_FALLBACK_ENGINE=fallback, TTS_DATA_DIR=folder)
    cache = AnswerCache(folder / "cache", 10_000_000)
    metrics = Metrics()
    async with ModelManager(settings, known) as manager:
        await manager.settled()
        generator = SpeechGenerator(
            manager,
            VoiceStore(),
            cache,
            metrics,
            Normalizer(),
            watermark=Watermark("off"),
            uploads=ThreadLimit(1),
            enhance=False,
        )  # enhance=False: the samples of the engine are unchanged
        yield Setup(generator, manager, metrics, folder / "cache")


@pytest.fixture
def over(tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Setup]]:
    """Return a function: over(engine) opens a generator with this engine. fallback=True: the engine is the fallback
    of an engine without weights."""

    def make(engine: ScriptedEngine, *, fallback: bool = False) -> contextlib.AbstractAsyncContextManager[Setup]:
        known: dict[str, EngineSpec] = {
            "scripted": ReadySpec("scripted", "scripted-1b", "", engine=engine),
            "lost": ReadySpec("lost", "lost-1b", ""),
        }
        return set_up(tmp_path, known, "lost" if fallback else "scripted", "scripted" if fallback else "")

    return make


@pytest.fixture
async def offline(tmp_path: Path) -> AsyncIterator[Setup]:
    async with set_up(tmp_path, {spec.name: spec for spec in BUILT_IN}, "espeak") as setup:
        yield setup


def speech_request(text: str = THREE, *, voice: str = "alloy", **changes: Any) -> SpeechRequest:
    return SpeechRequest(**({"model": "tts-1", "lines": (Line(text, voice),), "format": "pcm"} | changes))


async def read(answer: Answer) -> bytes:
    async with contextlib.aclosing(answer.stream) as stream:
        return b"".join([data async for data in stream])


def without_length(data: bytes, audio_format: str) -> bytes:
    """Return a file without the fields that state its length, since only an answer from the cache knows its length."""
    known = bytearray(data)
    for start, end in {"wav": [(4, 8), (40, 44)], "flac": [(21, 26)]}.get(audio_format, []):
        known[start:end] = bytes(end - start)
    return bytes(known)


async def nothing_left(engine: ScriptedEngine | None = None) -> None:
    """Assert that no stream of the engine is open and no task of the generator runs."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert engine is None or engine.open == 0


def assert_is(samples: np.ndarray, *expected: tuple[float, int]) -> None:
    """Assert that `samples` are exactly these parts: (level, number of samples); level 0.0 is silence.

    The first and last samples of a fade may be 0.
    """
    assert len(samples) == sum(count for _, count in expected)
    at = 0
    for level, count in expected:
        part = samples[at : at + count]
        at += count
        if level:
            assert (part[2:-2] != 0).all()
            assert float(np.median(part)) == pytest.approx(level, abs=0.001)
        else:
            assert (part == 0).all()


# ---- order and timing of utterances


async def test_sentences_are_spoken_in_order_with_a_gap_between_them(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        samples = await setup.pcm(THREE)
        assert_is(samples, (0.1, SPOKEN), (0.0, GAP), (0.2, SPOKEN), (0.0, GAP), (0.3, SPOKEN))
        assert engine.texts == SENTENCES
        await nothing_left(engine)


async def test_every_utterance_except_the_first_is_a_continuation(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        await setup.pcm(THREE, seed=70)
        assert [utterance.scheduling.continuation for utterance in engine.utterances] == [False, True, True]
        assert len({utterance.seed for utterance in engine.utterances}) == 3
        assert engine.utterances[0].seed == 70
        assert all(utterance.max_seconds > 10 for utterance in engine.utterances)


async def test_next_utterance_is_submitted_while_one_speaks(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(gate=gate))
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request(THREE))
        assert engine.events == []  # the engine gets no request before the bytes are read
        reading = asyncio.create_task(read(answer))
        for _ in range(50):
            await asyncio.sleep(0)
        # only one utterance is submitted ahead, so the third one is not submitted
        assert engine.events == ["begin 0", "begin 1"]
        gate.set()
        await reading
        assert engine.events == ["begin 0", "begin 1", "end 0", "begin 2", "end 1", "end 2"]


async def test_first_bytes_are_sent_before_the_utterance_ends(over):
    engine = ScriptedEngine(Part(gate=asyncio.Event()))
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request(THREE))
        assert len(await asyncio.wait_for(anext(answer.stream), 60)) > 0
        assert "end 0" not in engine.events
        await answer.stream.aclose()
        await nothing_left(engine)


async def test_lines_are_spoken_by_their_voices(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        lines = (Line("How are you?", "nova"), Line("Very well, thanks.", "echo"), Line("Good to hear.", "nova"))
        await read(await setup.generator.answer(speech_request(lines=lines)))
        spoken = [line for utterance in engine.utterances for line in utterance.lines]
        assert [line.voice.id for line in spoken] == ["nova", "echo", "nova"]
        assert spoken[0].speaker == spoken[2].speaker != spoken[1].speaker


async def test_continuing_engine_gets_all_sentences_up_to_a_pause_in_one_utterance(over):
    engine = ScriptedEngine(text=TextPacking(continues=True))
    async with over(engine) as setup:
        await setup.pcm(f"{THREE} [pause:1s] And the last comes after it.")
        *before, last = engine.utterances
        assert [len(utterance.lines) for utterance in before] == [3]
        assert [line.text for line in last.lines] == ["And the last comes after it."]
        assert [utterance.scheduling.continuation for utterance in engine.utterances] == [False, True]


async def test_parallel_sentences_are_submitted_separately_and_sent_in_order(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(gate=gate), text=TextPacking(continues=True), capabilities=Capabilities(parallel=True))
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request(THREE, parallel=True, seed=70))
        reading = asyncio.create_task(read(answer))
        for _ in range(50):
            await asyncio.sleep(0)
        assert engine.events == ["begin 0", "begin 1", "begin 2"]
        gate.set()
        assert_is(pcm.from_bytes(await reading), (0.1, SPOKEN), (0.0, GAP), (0.2, SPOKEN), (0.0, GAP), (0.3, SPOKEN))
        assert engine.texts == SENTENCES
        assert [utterance.scheduling.index for utterance in engine.utterances] == [0, 1, 2]
        assert [utterance.seed for utterance in engine.utterances] == [70, 71, 72]
        (playback,) = {utterance.scheduling.playback for utterance in engine.utterances}
        assert playback is not None
        assert playback.current_index == 2
        await nothing_left(engine)


async def test_parallel_is_part_of_the_cache_key_and_off_by_default(over):
    engine = ScriptedEngine(text=TextPacking(continues=True), capabilities=Capabilities(parallel=True))
    async with over(engine) as setup:
        assert not (await setup.generator.answer(speech_request(THREE))).hit
        await setup.pcm(THREE)
        await setup.pcm(THREE, parallel=True)
        assert [len(utterance.lines) for utterance in engine.utterances] == [3, 1, 1, 1]
        assert (await setup.generator.answer(speech_request(THREE))).hit
        assert (await setup.generator.answer(speech_request(THREE, parallel=True))).hit


async def test_parallel_is_listed_as_ignored_if_the_engine_does_not_support_it(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        first = await setup.generator.answer(speech_request(THREE, parallel=True))
        assert first.ignored == ("parallel",)
        await read(first)
        assert (await setup.generator.answer(speech_request(THREE))).hit  # the same answer


async def test_engine_gets_the_playback_position_of_the_listener(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        await setup.pcm(THREE, speed=2.0)
        playback = engine.utterances[0].scheduling.playback
        assert playback is not None
        assert playback.tempo == 2.0
        buffered_s = playback.buffered_s(time.monotonic())
        assert 0 < buffered_s <= (3 * SPOKEN + 2 * 2 * GAP) / RATE_HZ  # gaps have the same length at any speed


# ---- pauses


async def test_pauses_have_the_requested_length(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        text = "[pause:0.5s] One is the first. [pause: 250 ms] Two is the second. [pause 1s]"
        assert_is(
            await setup.pcm(text),
            (0.0, RATE_HZ // 2),
            (0.1, SPOKEN),
            (0.0, RATE_HZ // 4),
            (0.2, SPOKEN),
            (0.0, RATE_HZ),
        )
        assert engine.texts == SENTENCES[:2]


async def test_leading_pauses_of_several_lines_add_up(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        lines = (Line("[pause:1s]", "nova"), Line("[pause:0.5s] One is the first.", "echo"))
        samples = pcm.from_bytes(await read(await setup.generator.answer(speech_request(lines=lines))))
        assert_is(samples, (0.0, RATE_HZ * 3 // 2), (0.1, SPOKEN))


@pytest.mark.parametrize("audio_format", ["pcm", "wav", "mp3"])
async def test_leading_pause_is_sent_after_the_engine_has_accepted_the_request(over, audio_format):
    """So a full queue causes an error response, and not an answer that begins with silence and breaks off."""
    engine = ScriptedEngine(Part(error=Busy("full")))
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request("[pause:2s] " + THREE, format=audio_format))
        with pytest.raises(Busy):
            await anext(answer.stream)
        assert setup.stored == []
        await nothing_left(engine)


# ---- length, tempo, rate


@pytest.mark.parametrize("limit_ms", [100, 250, 333, 401, 1_200])
async def test_length_limit_is_exact_and_ends_in_a_fade(over, limit_ms):
    engine = ScriptedEngine(Part(level=0.5), Part(level=0.5), Part(level=0.5))
    async with over(engine) as setup:
        samples = await setup.pcm("One is the first.[pause:0]" + THREE, max_audio_ms=limit_ms)
        assert len(samples) == limit_ms * RATE_HZ // 1000
        fade = round(0.01 * RATE_HZ)
        if limit_ms != 401:  # 401 ms ends in a gap
            assert abs(samples[-1]) < 0.002
            assert samples[-fade // 2] == pytest.approx(0.25, abs=0.02)
            assert samples[-fade - 1] == pytest.approx(0.5, abs=0.001)
        assert f"end {limit_ms // 500}" not in engine.events or limit_ms == 401  # no audio is generated after the limit
        await nothing_left(engine)


async def test_answer_within_the_length_limit_is_complete(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        assert len(await setup.pcm("One is the first.", max_audio_ms=60_000)) == SPOKEN


@pytest.mark.parametrize(
    ("speed", "rate_hz"), [(2.0, 24_000), (0.5, 24_000), (1.25, 16_000), (1.0, 8_000), (1.0, 48_000)]
)
async def test_tempo_and_rate_change_the_number_of_samples(over, speed, rate_hz):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        samples = await setup.pcm(THREE, speed=speed, sample_rate_hz=rate_hz)
        assert len(samples) == pytest.approx((3 * SPOKEN + 2 * GAP) / speed * rate_hz / RATE_HZ, abs=2)


async def test_audio_of_an_engine_with_another_rate_is_resampled(over):
    engine = ScriptedEngine(rate_hz=22_050)
    async with over(engine) as setup:
        samples = await setup.pcm("One is the first.")
        assert len(samples) == pytest.approx(SPOKEN * 24_000 / 22_050, abs=2)


# ---- unsupported fields


async def test_instructions_are_never_spoken(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        answer = await setup.generator.answer(
            speech_request("One is the first.", instructions="Whisper this secretly.")
        )
        assert answer.ignored == ("instructions",)
        await read(answer)
        assert engine.texts == ["One is the first."]
        same = await setup.generator.answer(speech_request("One is the first."))
        assert same.hit  # an ignored field does not change the audio
        assert same.ignored == ()


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "cfg_scale", "language", "conversation_id"])
async def test_unsupported_extra_is_an_error(over, name):
    engine = ScriptedEngine(capabilities=Capabilities(parallel=True))
    async with over(engine) as setup:
        with pytest.raises(UnsupportedParameter) as error:
            await setup.generator.answer(speech_request(), extras=frozenset({name}))
        assert error.value.param == name
        assert "supports these optional fields: parallel." in error.value.message
        assert engine.events == []


async def test_supported_extras_reach_the_engine(over):
    engine = ScriptedEngine(capabilities=Capabilities(temperature=True, top_k=True, language=True))
    async with over(engine) as setup:
        request = speech_request("Eins.", sampling=Sampling(temperature=0.0, top_k=4), language="de")
        answer = await setup.generator.answer(request, extras=frozenset({"temperature", "top_k", "language"}))
        assert answer.ignored == ()
        await read(answer)
        assert engine.utterances[0].sampling == Sampling(temperature=0.0, top_k=4)
        assert engine.utterances[0].language == "de"


async def test_fallback_engine_ignores_unsupported_fields_and_names_them(over):
    """The operator did not choose the fallback engine, so an unsupported field is no error."""
    engine = ScriptedEngine(capabilities=Capabilities(top_k=True))
    async with over(engine, fallback=True) as setup:
        assert setup.manager.default.is_fallback
        request = speech_request(
            THREE, sampling=Sampling(0.5, 4, 0.9, 2.0), language="en-GB", instructions="Shout.", model="lost-1b"
        )
        extras = frozenset({"temperature", "top_k", "top_p", "cfg_scale", "language", "conversation_id"})
        answer = await setup.generator.answer(request, extras=extras)
        assert set(answer.ignored) == (extras | {"instructions"}) - {"top_k"}
        await read(answer)
        assert engine.utterances[0].sampling == Sampling(top_k=4)
        assert engine.utterances[0].language is None


# ---- takes that broke a rule of the output guard

RANDOM_DRAWS = Capabilities(temperature=True)
LONG = Part(frames=100)  # 8 s of speech: the listener has enough audio while the next utterance is checked


async def test_unsent_take_that_failed_is_spoken_again_with_another_seed(over):
    engine = ScriptedEngine(LONG, Part(rules=("too_short",)), Part(level=0.7), capabilities=RANDOM_DRAWS)
    async with over(engine) as setup:
        samples = await setup.pcm("One is the first.\n\nTwo is the second.", seed=5)
        assert_is(samples, (0.1, 100 * CHUNK), (0.0, GAP), (0.7, SPOKEN))
        assert engine.texts == ["One is the first.", "Two is the second.", "Two is the second."]
        assert len({utterance.seed for utterance in engine.utterances}) == 3
        assert setup.counted('tts_guard_total{rule="retry"}') == 1
        assert setup.stored, "the answer is whole, so it is cached"
        await nothing_left(engine)


async def test_take_that_is_too_short_twice_is_an_error(over):
    engine = ScriptedEngine(LONG, Part(rules=("too_short",)), Part(rules=("too_short",)), capabilities=RANDOM_DRAWS)
    async with over(engine) as setup:
        with pytest.raises(SpeechTooShort):
            await setup.pcm("One is the first.\n\nTwo is the second.")
        assert not setup.stored
        await nothing_left(engine)


async def test_sent_take_is_not_spoken_again_and_its_answer_is_not_cached(over):
    """The first utterance is sent while it is generated, so its failure is known too late."""
    engine = ScriptedEngine(Part(rules=("repeat",)), Part(level=0.4), capabilities=RANDOM_DRAWS)
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request("One is the first."))
        assert len(pcm.from_bytes(await read(answer))) == SPOKEN
        assert answer.broken_rules == ["repeat"]
        assert not setup.stored
        again = await setup.generator.answer(speech_request("One is the first."))
        assert (again.hit, again.seed == answer.seed) == (False, False), "its seed is not used again"
        await read(again)
        assert setup.stored
        third = await setup.generator.answer(speech_request("One is the first."))
        assert (third.hit, third.seed) == (True, again.seed)
        await read(third)


async def test_seed_that_the_caller_chose_is_kept_after_a_failure(over):
    engine = ScriptedEngine(Part(rules=("repeat",)), capabilities=RANDOM_DRAWS)
    async with over(engine) as setup:
        seeds = []
        for _ in range(2):
            answer = await setup.generator.answer(speech_request("One is the first.", seed=3))
            await read(answer)
            seeds.append(answer.seed)
        assert seeds == [3, 3]


async def test_held_take_is_sent_when_the_listener_has_little_audio_left(over, monkeypatch):
    monkeypatch.setattr(take, "RELEASE_S", 7.9)
    gate = asyncio.Event()
    engine = ScriptedEngine(LONG, Part(gate=gate), capabilities=RANDOM_DRAWS)
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request("One is the first.\n\nTwo is the second."))
        count = 0
        async with contextlib.aclosing(answer.stream) as stream:
            async for data in stream:
                count += len(data) // 2
                if count > 100 * CHUNK + GAP:  # the audio belongs to the second utterance, which has not ended
                    gate.set()
        assert engine.events[-1] == "end 1"
        assert count == 100 * CHUNK + GAP + SPOKEN


# ---- the cache


@pytest.mark.parametrize("audio_format", ["pcm", "wav", "mp3", "opus", "aac", "flac"])
@pytest.mark.parametrize("text", ["One is the first.", THREE])
async def test_repeated_request_gets_the_same_bytes_without_the_engine(over, audio_format, text):
    engine = ScriptedEngine(Part(frames=1))  # the speech is so short that some formats send all bytes at the end
    async with over(engine) as setup:
        first = await setup.generator.answer(speech_request(text, format=audio_format))
        data = await read(first)
        begun = len(engine.events)
        second = await setup.generator.answer(speech_request(text, format=audio_format))
        assert (first.hit, second.hit) == (False, True)
        assert second.size_bytes == len(data)
        assert without_length(await read(second), audio_format) == without_length(data, audio_format)
        assert second.usage == first.usage
        assert second.seed == first.seed
        assert second.media_type == first.media_type
        assert len(engine.events) == begun
        assert setup.counted('tts_cache_total{result="hit"}') == 1


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the format of each encoder that the generator opens."""
    opened: list[str] = []

    class Counted(AnswerEncoder):
        def __init__(self, job: SpeechJob, rate_hz: int, samples: int | None = None) -> None:
            opened.append(job.request.format)
            super().__init__(job, rate_hz, samples)

    monkeypatch.setattr(speech, "AnswerEncoder", Counted)
    return opened


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "ogg", "aac", "m4a", "flac"])
@pytest.mark.parametrize("rate_hz", [24_000, 48_000])
async def test_second_equal_request_is_not_encoded(over, encoders, audio_format, rate_hz):
    request = speech_request(THREE, format=audio_format, sample_rate_hz=rate_hz)
    async with over(ScriptedEngine()) as setup:
        made = await read(await setup.generator.answer(request))
        hits = [await setup.generator.answer(request) for _ in range(3)]
        bodies = [await read(answer) for answer in hits]
        assert encoders == [audio_format]
        assert {answer.cache for answer in hits} == {"hit"}
        assert {answer.size_bytes for answer in hits} == {len(made)}
    async with over(ScriptedEngine()) as setup:  # the second generator shares only the cache files of the first one
        encoded = await setup.generator.answer(request)
        assert {await read(encoded), *bodies} == {bodies[0]}
        assert encoded.cache == "hit"
        assert await read(await setup.generator.answer(request)) == bodies[0]
    assert encoders == [audio_format] * 2


async def test_each_format_and_rate_of_a_hit_is_encoded_once(over, encoders):
    changes: list[dict[str, Any]] = [
        *({"format": name} for name in ("mp3", "opus", "aac", "flac")),
        *({"format": "mp3", "sample_rate_hz": rate_hz} for rate_hz in (16_000, 48_000)),
    ]
    async with over(ScriptedEngine()) as setup:
        await setup.pcm(THREE)
        encoders.clear()
        rounds = [[await read(answer) for answer in await answers_of(setup, *changes)] for _ in range(3)]
        assert encoders == [change["format"] for change in changes]
        assert rounds[0] == rounds[1] == rounds[2]
        assert len(set(rounds[0])) == len(changes)


@pytest.mark.parametrize("random_seed", [True, False])
async def test_answer_without_the_cache_is_encoded_each_time(over, encoders, random_seed):
    request = speech_request(THREE, format="mp3", use_cache=random_seed)
    async with over(ScriptedEngine()) as setup:
        for _ in range(2):
            await read(await setup.generator.answer(request, random_seed=random_seed))
        assert len(encoders) == 2


async def test_incomplete_answer_is_not_kept_in_memory(over, encoders, monkeypatch):
    monkeypatch.setattr(speech, "MEASURED_S", 0.0)  # the cached answer is sent while it is encoded
    request = speech_request(THREE, format="mp3")
    async with over(ScriptedEngine()) as setup:
        await setup.pcm(THREE)
        for _ in range(2):
            answer = await setup.generator.answer(request)
            async with contextlib.aclosing(answer.stream) as stream:
                await anext(stream)
            assert (answer.cache, answer.size_bytes) == ("hit", None)
        whole = await read(await setup.generator.answer(request))
        again = await setup.generator.answer(request)
        assert (await read(again), again.size_bytes) == (whole, len(whole))
        assert encoders == ["pcm", "mp3", "mp3", "mp3"]


async def test_changed_file_of_the_cache_is_never_answered_from_memory(over, encoders):
    """The key contains the checksum of the samples."""
    request, other = speech_request(THREE, format="mp3"), speech_request("One is the first.", format="mp3")
    async with over(ScriptedEngine()) as setup:
        await read(await setup.generator.answer(request))
        (path,) = setup.stored
        first = path.read_bytes()
        expected = await read(await setup.generator.answer(other))
        (source,) = (stored for stored in setup.stored if stored != path)
        path.write_bytes(source.read_bytes())
        assert await read(await setup.generator.answer(request)) == expected
        assert encoders == ["mp3"] * 3
        path.unlink()
        assert (await setup.generator.answer(request)).cache == "miss"
        path.write_bytes(first)
        assert (await setup.generator.answer(request)).cache == "hit"


async def test_random_seed_is_new_each_time_and_never_cached(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        answers = [
            await setup.generator.answer(speech_request("One is the first."), random_seed=True) for _ in range(3)
        ]
        for answer in answers:
            await read(answer)
            assert not answer.hit
        assert len({answer.seed for answer in answers}) == 3
        assert [spoken.seed for spoken in engine.utterances] == [answer.seed for answer in answers]
        assert all(0 <= answer.seed < 2**31 for answer in answers)
        assert setup.stored == []


async def test_reported_seed_is_the_seed_that_was_used(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        drawn = await setup.generator.answer(speech_request("One is the first."))
        await read(drawn)
        again = await setup.generator.answer(speech_request("One is the first.", seed=drawn.seed))
        await read(again)
        assert drawn.seed == again.seed == engine.utterances[0].seed == engine.utterances[1].seed
        assert (await setup.generator.answer(speech_request("One is the first.", seed=0, use_cache=False))).seed == 0


async def test_request_without_cache_neither_reads_nor_stores(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        for _ in range(2):
            answer = await setup.generator.answer(speech_request("One is the first.", use_cache=False))
            await read(answer)
            assert not answer.hit
        assert len(engine.utterances) == 2
        assert setup.stored == []


async def test_cache_that_fails_at_first_stores_no_partial_answer(over, monkeypatch):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        mkdir = Path.mkdir
        failures = [OSError(28, "No space left on device")]

        def fails_once(path, *arguments, **named):
            if failures:
                raise failures.pop()
            mkdir(path, *arguments, **named)

        monkeypatch.setattr(Path, "mkdir", fails_once)
        whole = await setup.pcm(THREE)
        answer = await setup.generator.answer(speech_request(THREE))
        assert len(pcm.from_bytes(await read(answer))) == len(whole)
        assert not answer.hit


@pytest.mark.parametrize(
    ("text", "language", "spoken"),
    [
        ("**Hallo** <b>Welt</b>, das kostet 5 Euro &amp; mehr. 😀", "de", "Hallo Welt, das kostet 5 Euro & mehr."),
        ("Siehe [hier](https://example.com/x).", "de", "Siehe hier."),
        ("我有3个苹果。", None, "我有3个苹果。"),
        ("I have 3 apples.", None, "I have three apples."),
        ("I have 3 apples.", "en-GB", "I have three apples."),
        ("Das kostet 3,50 € am 24.12.2024.", None, "Das kostet 3,50 € am 24.12.2024."),
        ("Le train part à 14 h 35 du quai 2.", None, "Le train part à 14 h 35 du quai 2."),
        ("El 1º de mayo es fiesta.", None, "El 1º de mayo es fiesta."),
        (
            "The train leaves at 14:35 for Los Angeles.",
            None,
            "The train leaves at fourteen thirty five for Los Angeles.",
        ),
    ],
)
async def test_only_english_is_normalised_and_markup_is_removed_in_all_languages(over, text, language, spoken):
    engine = ScriptedEngine(capabilities=Capabilities(language=True))
    async with over(engine) as setup:
        await setup.pcm(text, language=language)
        assert " ".join(engine.texts) == spoken


async def test_text_with_too_long_pauses_is_rejected(over):
    async with over(ScriptedEngine()) as setup:
        with pytest.raises(TextTooLong, match="pauses"):
            await setup.pcm("One. " + "[pause:10s] and. " * 61)


# ---- texts that can't be spoken, and invalid requests


@pytest.mark.parametrize("part", [Part(level=0.0), Part(frames=0)])
@pytest.mark.parametrize("audio_format", ["pcm", "wav", "mp3"])
async def test_silent_speech_is_an_error(over, part, audio_format):
    engine = ScriptedEngine(part, part)
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request("One is the first.", format=audio_format))
        with pytest.raises(NothingSpoken):
            await read(answer)
        assert setup.stored == []
        await nothing_left(engine)


@pytest.mark.parametrize("part", [Part(level=0.0), Part(frames=0)])
async def test_silent_utterance_is_repeated_once_with_another_seed(over, part):
    engine = ScriptedEngine(Part(), part, Part(), Part())
    async with over(engine) as setup:
        samples = await setup.pcm("One is the first. Two is the second. Three is the third.")
        assert engine.texts.count("Two is the second.") == 2
        first, again = (u for u in engine.utterances if u.lines[0].text == "Two is the second.")
        assert first.seed != again.seed
        assert len(samples) > 0
        assert setup.counted('tts_guard_total{rule="retry"}') == 1
        await nothing_left(engine)


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
async def test_blank_text_is_rejected(over, text):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        with pytest.raises(EmptyText) as error:
            await read(await setup.generator.answer(speech_request(text)))
        assert error.value.param == "input"
        assert engine.events == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *((text, SILENT_TEXT_S) for text in ("---", "...", '"', "<br>", "&nbsp;", "(laughs)", "[laughs]", "[S2]")),
        *(
            (text, SILENT_TEXT_S)
            for text in ("\u200b", "***", "**", "- ", "> ", "```", "</answer>", "\ufeff", ")", "’")
        ),
        *((text, SILENT_TEXT_S) for text in ("<think>Hm.</think>", "<|eot_id|>", "===", "|---|")),
        ("[pause:0.2s]", 0.2),
        (" [pause] <break/> ", 1.0),
        ("[pause] \x07", 0.5),
        ("... <break time='1s'/> ...", 1.0),
        ("[S1] [pause:0.3s] (sighs)", 0.3),
    ],
)
async def test_text_with_only_layout_is_silence_of_its_length(over, text, seconds):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        samples = await setup.pcm(text)
        assert_is(samples, (0.0, round(seconds * RATE_HZ)))
        assert engine.events == []
        await nothing_left(engine)


@pytest.mark.parametrize("text", ["\x00", "\ud83d", "\x07 \x1b"])
async def test_text_of_unpronounceable_characters_is_rejected(over, text):
    engine = ScriptedEngine(Part(level=0.0), Part(level=0.0))
    async with over(engine) as setup:
        with pytest.raises(EmptyText):
            await read(await setup.generator.answer(speech_request(text)))
        await nothing_left(engine)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("?!", "question mark, exclamation mark"),
        ("[pause:0.5s] ?", "question mark"),  # the tag itself is not spoken as "left square bracket, p, a, u ..."
        ("... <break time='1s'/> !", "exclamation mark"),
        ("\u20ac", "euros"),
        ("\u2192", "to"),
        ("\U0001f600", "grinning face"),
        ("\U0001f1eb\U0001f1f7", "flag of France"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "flag of England"),
    ],
)
async def test_punctuation_alone_is_spoken_by_name(over, text, spoken):
    engine = ScriptedEngine(*[Part(level=0.0)] * 9)
    async with over(engine) as setup:
        with contextlib.suppress(NothingSpoken):
            await setup.pcm(text)
        assert engine.texts[-1] == spoken


async def test_silent_punctuation_between_sentences_is_not_an_error(over):
    engine = ScriptedEngine(Part(), Part(level=0.0), Part())
    async with over(engine) as setup:
        samples = await setup.pcm("One is the first.\n\n* * *\n\nTwo is the second.", normalize=False)
        assert engine.texts == ["One is the first.", "* * *", "Two is the second."]
        assert_is(samples, (0.1, SPOKEN), (0.0, 2 * GAP), (0.3, SPOKEN))


@pytest.mark.parametrize(
    ("changes", "error", "param"),
    [
        ({"model": "gpt-5"}, UnknownModel, "model"),
        ({"model": ""}, UnknownModel, "model"),
        ({"voice": "nobody"}, UnknownVoice, "voice"),
        ({"format": "mp3", "sample_rate_hz": 10_000}, UnsupportedParameter, "sample_rate"),
    ],
)
async def test_invalid_request_is_an_error_before_the_engine_gets_it(over, changes, error, param):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        with pytest.raises(error) as raised:
            await setup.generator.answer(speech_request(**changes))
        assert raised.value.param == param
        assert engine.events == []


async def test_answer_without_a_healthy_engine_is_an_error(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        engine.healthy = False
        with pytest.raises(NotReady):
            await setup.generator.answer(speech_request())


# ---- errors in the stream, and cancelled requests


@pytest.mark.parametrize("at", [0, 3])
async def test_error_in_a_later_utterance_breaks_the_stream(over, at):
    """After audio was sent, an error can only break the stream: an answer with a missing sentence would be wrong."""
    engine = ScriptedEngine(Part(), Part(error=EngineError("broken"), at=at), Part())
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request(THREE))
        received = [await anext(answer.stream)]
        with pytest.raises(EngineError, match="broken"):
            received += [data async for data in answer.stream]
        assert len(received[0]) > CHUNK
        assert answer.usage is None
        assert setup.stored == []
        assert "begin 3" not in engine.events
        await nothing_left(engine)
        assert not (await setup.generator.answer(speech_request(THREE))).hit


async def test_closing_the_stream_cancels_all_utterances(over):
    for reads in range(6):
        engine = ScriptedEngine(Part(gate=asyncio.Event()) if reads < 2 else Part())
        async with over(engine) as setup:
            answer = await setup.generator.answer(speech_request(THREE))
            for _ in range(min(reads, 1) if reads < 2 else reads):
                await anext(answer.stream)
            await answer.stream.aclose()
            await nothing_left(engine)
            assert setup.stored == []


async def test_cancelled_reader_leaves_no_stream_and_no_task(over):
    for turns in range(12):
        engine = ScriptedEngine(Part(gate=asyncio.Event()))
        async with over(engine) as setup:
            reading = asyncio.create_task(read(await setup.generator.answer(speech_request(THREE))))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await nothing_left(engine)
            assert setup.stored == []


async def test_encoder_is_not_closed_while_a_thread_uses_it(over, monkeypatch):
    """Otherwise FFmpeg frees the memory that the running encoder uses."""
    inside, closed_inside = asyncio.Event(), []
    loop = asyncio.get_running_loop()
    open_encoder = output.open_encoder

    class Slow:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._encoder = open_encoder(*arguments, **options)
            self.busy = False

        def encode(self, samples: np.ndarray) -> bytes:
            self.busy = True
            loop.call_soon_threadsafe(inside.set)
            time.sleep(0.1)
            data = self._encoder.encode(samples)
            self.busy = False
            return data

        def flush(self) -> bytes:
            return self._encoder.flush()

        def close(self) -> None:
            closed_inside.append(self.busy)
            self._encoder.close()

    monkeypatch.setattr(output, "open_encoder", Slow)
    engine = ScriptedEngine(Part(chunk=RATE_HZ))  # one second of audio in one chunk is encoded in a thread
    async with over(engine) as setup:
        reading = asyncio.create_task(read(await setup.generator.answer(speech_request(THREE, format="mp3"))))
        await asyncio.wait_for(inside.wait(), 60)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert closed_inside == [False]
        await nothing_left(engine)


# ---- single flight: equal requests at the same time


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition is true."""
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("the condition did not become true")


async def answers_of(setup: Setup, *changes: dict[str, Any]) -> list[Answer]:
    return [await setup.generator.answer(speech_request(THREE, **change)) for change in changes]


async def test_equal_requests_at_the_same_time_make_one_generation(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        answers = await answers_of(setup, *[{}] * 24)
        bodies = await asyncio.gather(*map(read, answers))
        assert engine.texts == SENTENCES
        assert len(set(bodies)) == 1
        assert sorted({answer.cache for answer in answers}) == ["miss", "shared"]
        assert sum(answer.cache == "miss" for answer in answers) == 1
        assert len({(answer.seed, answer.usage, answer.verified) for answer in answers}) == 1
        assert setup.counted('tts_cache_total{result="shared"}') == 23
        assert len(setup.stored) == 1
        await nothing_left(engine)


async def test_every_listener_gets_its_own_format_from_the_first_sample_on(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(), Part(gate=gate))
    changes = [
        *({"format": name} for name in ("pcm", "wav", "mp3", "opus", "aac", "flac")),
        *({"sample_rate_hz": rate_hz} for rate_hz in (8_000, 16_000, 44_100, 48_000)),
    ]
    async with over(engine) as setup:
        (first,) = await answers_of(setup, {})
        leading = asyncio.create_task(read(first))
        await until(lambda: "begin 1" in engine.events)
        followers = await answers_of(setup, *changes)  # these requests join a running answer
        following = [asyncio.create_task(read(answer)) for answer in followers]
        for _ in range(20):
            await asyncio.sleep(0)
        gate.set()
        shared = await asyncio.gather(leading, *following)
        assert engine.texts == SENTENCES
        assert {answer.cache for answer in followers} == {"shared"}
        alone = await answers_of(setup, {}, *changes)
        assert {answer.cache for answer in alone} == {"hit"}
        for change, one, other in zip([{}, *changes], shared, [await read(each) for each in alone], strict=True):
            name = change.get("format", "pcm")
            assert without_length(one, name) == without_length(other, name), change
        await nothing_left(engine)


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_generation_continues_until_its_last_listener_disconnects(over, leaver):
    """The generation also continues if the answer that started it is cancelled."""
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(gate=gate))
    async with over(engine) as setup:
        answers = await answers_of(setup, *[{}] * 3)
        for answer in answers:
            await anext(answer.stream)
        await answers[leaver].stream.aclose()
        assert engine.open > 0
        gate.set()
        stayed = [answer for answer in answers if answer is not answers[leaver]]
        bodies = await asyncio.gather(*map(read, stayed))
        assert len(set(bodies)) == 1
        assert len(setup.stored) == 1
        await nothing_left(engine)


async def test_generation_ends_when_all_listeners_have_disconnected(over):
    engine = ScriptedEngine(Part(gate=asyncio.Event()))
    async with over(engine) as setup:
        answers = await answers_of(setup, *[{}] * 3)
        for answer in answers:
            await anext(answer.stream)
        for answer in answers:
            assert engine.open > 0
            await answer.stream.aclose()
        await nothing_left(engine)
        assert setup.stored == []
        engine._parts = ()
        (later,) = await answers_of(setup, {})
        assert len(await read(later)) > 2 * SPOKEN
        assert later.cache == "miss"


async def test_listener_that_reads_no_data_does_not_delay_other_listeners(over):
    engine = ScriptedEngine(Part(frames=200))  # 16 s of audio, which is more than the memory limit
    async with over(engine) as setup:
        slow, fast = await answers_of(setup, {}, {})
        beginning = await anext(slow.stream)
        whole = await asyncio.wait_for(read(fast), 20)
        assert len(whole) > 2 * 200 * CHUNK
        rest = await read(slow)  # the rest is read from the file
        assert beginning + rest == whole
        await nothing_left(engine)


async def test_slow_listener_gets_all_audio_although_the_disk_is_full(over, monkeypatch):
    """If the disk is full, the samples stay in memory, and the generation waits when there are too many."""
    monkeypatch.setattr(sound, "MAX_BEHIND_BYTES", 100_000)
    engine = ScriptedEngine(Part(frames=200))
    async with over(engine) as setup:
        (setup.folder.parent / "cache").write_text("not a folder")
        slow, fast = await answers_of(setup, {}, {})
        beginnings = await asyncio.gather(anext(slow.stream), anext(fast.stream))
        reading = asyncio.create_task(read(fast))
        for _ in range(2_000):
            await asyncio.sleep(0)
        assert not reading.done(), "the generation waits for the slow listener"
        rests = await asyncio.gather(read(slow), reading)
        assert fast.cache == "shared"
        assert beginnings[0] + rests[0] == beginnings[1] + rests[1]
        await nothing_left(engine)


async def test_late_request_starts_its_own_generation_if_the_first_samples_are_gone(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(frames=30), Part(gate=gate))
    async with over(engine) as setup:
        (setup.folder.parent / "cache").write_text("not a folder")
        (first,) = await answers_of(setup, {})
        leading = asyncio.create_task(read(first))
        await until(lambda: "end 0" in engine.events)
        (second,) = await answers_of(setup, {})
        following = asyncio.create_task(read(second))
        gate.set()
        bodies = await asyncio.gather(leading, following)
        assert second.cache == "miss"
        assert all(bodies)
        await nothing_left(engine)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(
    "error", [Busy("The queue is full.", retry_after_s=7), EngineError("The engine failed.", param="input")]
)
async def test_every_listener_gets_its_own_copy_of_the_error(over, error, at):
    engine = ScriptedEngine(Part(error=error, at=at))
    async with over(engine) as setup:
        answers = await answers_of(setup, *[{}] * 5)
        raised = await asyncio.gather(*map(read, answers), return_exceptions=True)
        assert {type(each) for each in raised} == {type(error)}
        assert len({id(each) for each in raised}) == 5
        for each in raised:
            assert (str(each), vars(each)) == (str(error), vars(error))
        assert [answer.cache for answer in answers] == ["miss", *["shared"] * 4]
        assert setup.stored == []
        await nothing_left(engine)


@pytest.mark.parametrize(
    ("change", "random_seed"), [({"use_cache": False}, False), ({}, True), ({"conversation": "a talk"}, False)]
)
async def test_requests_without_cache_are_never_shared(over, change, random_seed):
    engine = ScriptedEngine(capabilities=Capabilities(context=True))
    async with over(engine) as setup:
        request = speech_request("One is the first.", **change)
        answers = [await setup.generator.answer(request, random_seed=random_seed) for _ in range(3)]
        await asyncio.gather(*map(read, answers))
        assert len(engine.utterances) == 3
        assert {answer.cache for answer in answers} == {"off"}
        assert setup.stored == []


async def test_without_a_cache_budget_nothing_is_shared(over, monkeypatch):
    monkeypatch.setattr(AnswerCache, "enabled", property(lambda _: False))
    engine = ScriptedEngine()
    async with over(engine) as setup:
        answers = await answers_of(setup, {}, {})
        await asyncio.gather(*map(read, answers))
        assert len(engine.utterances) == 6
        assert {answer.cache for answer in answers} == {"off"}


async def test_speech_that_broke_a_rule_gets_no_further_listeners(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(rules=("silence",)), Part(gate=gate))
    async with over(engine) as setup:
        (first,) = await answers_of(setup, {})
        leading = asyncio.create_task(read(first))
        await until(lambda: "begin 1" in engine.events and bool(first.broken_rules))
        (second,) = await answers_of(setup, {})
        following = asyncio.create_task(read(second))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(leading, following)
        assert second.cache == "miss"
        assert len(setup.stored) == 1, "only the second answer is stored"


async def test_progress_of_a_follower_begins_with_its_own_audio(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(), Part(), Part(gate=gate))
    async with over(engine) as setup:
        (first,) = await answers_of(setup, {})
        leading = asyncio.create_task(read(first))
        await until(lambda: "end 1" in engine.events)
        (second,) = await answers_of(setup, {})
        await anext(second.stream)
        assert second.progress.utterances
        gate.set()
        await asyncio.gather(leading, read(second))
        assert second.progress.utterances == first.progress.utterances
        assert len(first.progress.utterances) == 3


async def test_held_answers_share_one_generation(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        answers = await answers_of(setup, *({"verify": True, "format": name} for name in ("wav", "flac", "mp3")), {})
        bodies = await asyncio.gather(*map(read, answers))
        assert len(engine.utterances) == 6, "a request without a check does not wait for the check of another one"
        assert [answer.cache for answer in answers] == ["miss", "shared", "shared", "miss"]
        assert [answer.size_bytes for answer in answers[:3]] == [len(body) for body in bodies[:3]]
        assert bodies[0][4:8] == (len(bodies[0]) - 8).to_bytes(4, "little")
        await nothing_left(engine)


# ---- usage and metrics


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two answers are generated at the same time."""
    monkeypatch.setattr(admission, "ANSWERS_PER_ROW", 0)
    monkeypatch.setattr(admission, "LEAST_ANSWERS", 2)


@pytest.mark.usefixtures("few_places")
async def test_flood_of_answers_is_generated_in_order_and_counted_as_queued(over, encoders):
    gate = asyncio.Event()
    engine = ScriptedEngine(*[Part(gate=gate)] * 6)
    async with over(engine) as setup:
        answers = [await setup.generator.answer(speech_request(f"Text {name}.")) for name in "abcdef"]
        reading = [asyncio.create_task(read(answer)) for answer in answers]
        await until(lambda: len(engine.events) == 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert engine.texts == ["Text a.", "Text b."]
        assert len(encoders) <= 2  # a waiting answer has no encoder yet
        load = setup.manager.load()
        assert load is not None
        assert (load.active_rows, load.queued) == (2, 4)
        gate.set()
        assert all(await asyncio.gather(*reading))
        assert engine.texts == [f"Text {name}." for name in "abcdef"]
        load = setup.manager.load()
        assert load is not None
        assert load.queued == 0
        await nothing_left(engine)


@pytest.mark.usefixtures("few_places")
async def test_equal_and_cached_answers_need_no_place_in_the_queue(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(), Part(gate=gate), Part(gate=gate))
    async with over(engine) as setup:
        cached = await read(await setup.generator.answer(speech_request("Text a.")))
        answers = [await setup.generator.answer(speech_request(f"Text {name}.")) for name in "bc"]
        reading = [asyncio.create_task(read(answer)) for answer in answers]
        await until(lambda: len(engine.utterances) == 3)
        followers = [await setup.generator.answer(speech_request("Text b.", format="wav")) for _ in range(3)]
        following = [asyncio.create_task(read(answer)) for answer in followers]
        hit = await setup.generator.answer(speech_request("Text a."))
        assert (await read(hit), hit.cache) == (cached, "hit")
        await until(lambda: {answer.cache for answer in followers} == {"shared"})
        gate.set()
        assert len({*await asyncio.gather(*following)}) == 1
        await asyncio.gather(*reading)
        await nothing_left(engine)


@pytest.mark.usefixtures("few_places")
async def test_listener_that_disconnects_while_waiting_frees_its_place(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(*[Part(gate=gate)] * 3)
    async with over(engine) as setup:
        answers = [await setup.generator.answer(speech_request(f"Text {name}.")) for name in "abcd"]
        reading = [asyncio.create_task(read(answer)) for answer in answers]
        await until(lambda: setup.manager.default.admission.waiting == 2)
        reading[2].cancel()
        await asyncio.gather(reading[2], return_exceptions=True)
        gate.set()
        assert all(await asyncio.gather(reading[0], reading[1], reading[3]))
        assert engine.texts == ["Text a.", "Text b.", "Text d."]
        await nothing_left(engine)


async def test_usage_counts_text_and_audio(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request(THREE))
        assert answer.usage is None
        await read(answer)
        seconds = (3 * SPOKEN + 2 * GAP) / RATE_HZ
        assert answer.usage.output_tokens == round(seconds / 0.08)
        assert answer.usage.input_tokens == -(-len(THREE) // 4)
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        assert setup.counted("tts_audio_seconds_total") == pytest.approx(seconds)
        hit = await setup.generator.answer(speech_request(THREE))
        assert hit.usage == answer.usage
        await read(hit)
        assert setup.counted("tts_audio_seconds_total") == pytest.approx(seconds)  # generated once


# ---- with the real offline voice


async def test_offline_voice_speaks_a_text(offline):
    short = await offline.pcm("One is the first.")
    whole = await offline.pcm(THREE)
    assert 0.5 < len(short) / RATE_HZ < 2.5
    assert len(whole) > 2 * len(short)
    assert 0.05 < float(np.sqrt(np.mean(whole**2))) < 0.3
    await asyncio.sleep(0.05)
    assert offline.manager.load().active_rows == 0


@pytest.mark.parametrize("text", ["?!", "\U0001f600", "123", "Привет", "\u20ac"])
async def test_offline_voice_produces_audio_for_any_text(offline, text):
    samples = await offline.pcm(text)
    assert len(samples) > RATE_HZ / 5
    assert np.abs(samples).max() > 0.02


async def test_offline_voice_reads_numbers_unless_normalize_is_off(offline):
    assert len(await offline.pcm("$3.50")) > len(await offline.pcm("3.50"))
    assert not np.array_equal(await offline.pcm("Dr. 5 kg", normalize=False), await offline.pcm("Dr. 5 kg"))


async def test_unknown_language_of_the_offline_voice_is_an_error(offline):
    for language in ("de", "pt-BR", "zh-HK", "en_GB"):
        await offline.generator.answer(speech_request(language=language), extras=frozenset({"language"}))
    with pytest.raises(UnsupportedParameter, match="does not speak the language 'tlh'"):
        await offline.generator.answer(speech_request(language="tlh"), extras=frozenset({"language"}))
    assert offline.stored == []


async def test_closing_the_stream_early_frees_the_row_of_the_offline_voice(offline):
    answer = await offline.generator.answer(speech_request(THREE * 20))
    await anext(answer.stream)
    await answer.stream.aclose()
    for _ in range(100):
        if offline.manager.load() == Load(0, 32, 0, 64):
            break
        await asyncio.sleep(0.01)
    assert offline.manager.load() == Load(0, 32, 0, 64)
    await nothing_left()


# ---- speaker tags, several lines in one utterance, encode order


async def test_speaker_tags_split_a_text_among_voices(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        await setup.pcm("[S1] How are you? [S2] Very well, thanks. [S1] Good to hear.", voice="nova")
        await setup.pcm("[S1] How are you? [S2] Very well, thanks.", voice="onyx+shimmer")
        voices = [line.voice.id for utterance in engine.utterances for line in utterance.lines]
        assert voices == ["nova", "echo", "nova", "onyx", "shimmer"]
        assert engine.texts == [
            *("How are you?", "Very well, thanks.", "Good to hear."),
            *("How are you?", "Very well, thanks."),
        ]
        for voice in ("onyx+nobody", "nobody", "onyx+"):
            with pytest.raises(UnknownVoice) as caught:
                await setup.generator.answer(speech_request("[S1] How are you? [S2] Fine.", voice=voice))
            assert caught.value.param == "voice"


async def test_speaker_tags_inside_a_line_are_not_spoken(over):
    engine = ScriptedEngine()
    async with over(engine) as setup:
        lines = (Line("[S2] How are you?", "nova", 0), Line("Very [S1] well, thanks.", "echo", 1))
        await read(await setup.generator.answer(speech_request(lines=lines)))
        assert engine.texts == ["How are you?", "Very well, thanks."]


TALK = (
    Line("How are you today?", "nova"),
    Line("Very well, thanks.", "echo"),
    Line("Good to hear that.", "nova"),
    Line("And how are you?", "onyx"),
    Line("I can not complain.", "echo"),
)


async def test_utterance_has_as_many_lines_as_the_engine_can_take(over):
    engine = ScriptedEngine(text=TextPacking(max_passage_chars=60, max_speakers=2))
    async with over(engine) as setup:
        await read(await setup.generator.answer(speech_request(lines=TALK)))
        spoken = [[(line.voice.id, line.text) for line in utterance.lines] for utterance in engine.utterances]
        assert [[voice for voice, _ in lines] for lines in spoken] == [["nova", "echo", "nova"], ["onyx", "echo"]]
        assert [text for lines in spoken for _, text in lines] == [line.text for line in TALK]
        assert all(sum(len(text) for _, text in lines) <= 60 for lines in spoken)


async def test_independent_sentences_are_submitted_to_free_rows(over):
    gate = asyncio.Event()
    engine = ScriptedEngine(Part(gate=gate), text=TextPacking(independent=True))
    async with over(engine) as setup:
        text = " ".join(f"This is sentence number {word}." for word in ("one", "two", "three", "four", "five", "six"))
        answer = await setup.generator.answer(speech_request(text))
        reading = asyncio.create_task(read(answer))
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(engine.utterances) == 1 + lookahead.MAX_AHEAD
        gate.set()
        samples = pcm.from_bytes(await reading)
        levels = [(0.1 * number, SPOKEN) for number in range(1, 7)]
        assert_is(samples, *[part for level in levels for part in (level, (0.0, GAP))][:-1])
        await nothing_left(engine)


async def test_only_one_utterance_is_submitted_ahead_while_other_requests_wait_for_rows(over, monkeypatch):
    engine = ScriptedEngine(Part(gate=asyncio.Event()), text=TextPacking(independent=True))
    monkeypatch.setattr(ScriptedEngine, "load", property(lambda self: Load(self.open, 4, 3, 64)))
    async with over(engine) as setup:
        answer = await setup.generator.answer(speech_request(THREE + THREE))
        await anext(answer.stream)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(engine.utterances) == 2
        await answer.stream.aclose()
        await nothing_left(engine)


async def test_unsupported_non_verbal_sounds_are_not_read_aloud(over):
    text = "Well (laughs), I (CLEARS  throat) never (said he) thought so. (applause)"
    for able, left in ((frozenset(), "said he"), (frozenset({"laughs"}), "laughs")):
        engine = ScriptedEngine(text=TextPacking(sounds=able))
        async with over(engine) as setup:
            await setup.pcm(text, normalize=False)
            spoken = " ".join(engine.texts)
            assert left in spoken
            assert "throat" not in spoken
            assert "applause" not in spoken
            assert ("laughs" in spoken) is bool(able)
            assert_is(await setup.pcm("(applause)"), (0.0, round(SILENT_TEXT_S * RATE_HZ)))


async def test_voices_whose_prompts_do_not_fit_together_get_separate_utterances(over):
    prompts = {
        name: VoicePrompt(name, "dac", np.zeros((9, frames), np.int16), "Words.")
        for name, frames in (("nova", 60), ("echo", 50), ("onyx", 70))
    }
    engine = ScriptedEngine(
        text=TextPacking(max_passage_chars=500, max_speakers=2), prompts=PromptLimits(max_prompt_s=10.0), frame_s=0.08
    )
    async with over(engine) as setup:

        async def of(voice: Voice, _: Any) -> VoicePrompt:
            return prompts[voice.id]

        setup.generator._prompts.of = of  # the prompts have recordings, as in a voice store
        await read(await setup.generator.answer(speech_request(lines=TALK)))
        assert [[line.voice.id for line in utterance.lines] for utterance in engine.utterances] == [
            ["nova", "echo", "nova"],
            ["onyx", "echo"],
        ]
        engine.utterances.clear()
        prompts["echo"] = VoicePrompt("echo", "dac", np.zeros((9, 90), np.int16), "Words.")
        await read(await setup.generator.answer(speech_request(lines=TALK, use_cache=False)))
        assert [len(utterance.lines) for utterance in engine.utterances] == [1, 1, 1, 1, 1]


async def test_prompt_of_a_voice_counts_once_for_each_speaker(over):
    frames = {"nova": 70}
    engine = ScriptedEngine(
        text=TextPacking(max_passage_chars=500, max_speakers=2), prompts=PromptLimits(max_prompt_s=10.0), frame_s=0.08
    )
    lines = (Line("How are you today?", "nova", 0), Line("Very well, thanks.", "nova", 1))
    async with over(engine) as setup:

        async def of(voice: Voice, _: Any) -> VoicePrompt:
            return VoicePrompt(voice.id, "dac", np.zeros((9, frames[voice.id]), np.int16), "Words.")

        setup.generator._prompts.of = of
        await read(await setup.generator.answer(speech_request(lines=lines)))
        assert [len(utterance.lines) for utterance in engine.utterances] == [1, 1]
        engine.utterances.clear()
        frames["nova"] = 60
        await read(await setup.generator.answer(speech_request(lines=lines, use_cache=False)))
        assert [len(utterance.lines) for utterance in engine.utterances] == [2]


@pytest.mark.parametrize(("utf8_bytes", "most"), [(True, 50), (False, 100)])
async def test_length_limit_counts_bytes_or_characters_as_the_engine_does(over, utf8_bytes, most):
    engine = ScriptedEngine(text=TextPacking(max_chars=100, utf8_bytes=utf8_bytes))
    async with over(engine) as setup:
        await read(
            await setup.generator.answer(
                speech_request("Это длинное предложение на русском языке, " * 9, max_audio_ms=None)
            )
        )
        sizes = [len(text) for text in engine.texts]
        assert most // 2 < max(sizes) <= most
        assert "".join("".join(engine.texts).split()) == ("Этодлинноепредложениенарусскомязыке," * 9)


async def test_answers_ahead_of_their_listeners_wait_briefly_for_first_audio(monkeypatch):
    async def a_little() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    order = pacing.EncodeOrder()
    await order.on_loop(10.0)  # no other answer is pending
    first, second = order.begin(), order.begin()
    waiting = asyncio.create_task(order.on_loop(10.0))
    first.done()
    first.done()
    await a_little()
    assert not waiting.done()
    second.done()
    await a_little()
    assert waiting.done()
    order.begin()
    # the listener of the answer has too little audio left
    hurried = asyncio.create_task(order.on_loop(pacing.ON_LOOP_AHEAD_S))
    await a_little()
    assert hurried.done()
    await asyncio.wait_for(order.on_loop(10.0), 60)  # the wait for the first audio has a limit
    monkeypatch.setattr(pacing, "MAX_YIELD_S", 60.0)
    order.begin()  # other answers wait for this answer only for MAX_PENDING_S
    await asyncio.wait_for(order.on_loop(10.0), 60)


async def test_answers_that_begin_later_do_not_extend_a_wait(monkeypatch):
    monkeypatch.setattr(pacing, "MAX_YIELD_S", 60.0)
    monkeypatch.setattr(pacing, "MAX_PENDING_S", 60.0)
    order = pacing.EncodeOrder()
    first, second = order.begin(), order.begin()
    waiting = asyncio.create_task(order.next_chunk(100.0))
    given_up = asyncio.create_task(order.next_chunk(100.0))
    await asyncio.sleep(0.01)
    given_up.cancel()
    later = order.begin()
    for_later = asyncio.create_task(order.next_chunk(100.0))
    second.done()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    first.done()
    await asyncio.wait_for(waiting, 20)
    assert not for_later.done()
    later.done()
    await asyncio.wait_for(for_later, 60)


async def test_answers_ahead_of_their_listeners_take_no_chunk_before_the_first_audio_of_others():
    order = pacing.EncodeOrder()
    pending = order.begin()
    waiting = asyncio.create_task(order.next_chunk(10.0))
    hurried = asyncio.create_task(order.next_chunk(pacing.CHUNK_AHEAD_S))
    await asyncio.wait({hurried}, timeout=60)
    assert hurried.done()
    assert not waiting.done()
    pending.done()
    await asyncio.wait_for(waiting, 60)


async def test_chunks_are_processed_one_in_each_iteration_and_first_for_the_listener_with_the_least_audio():
    order = pacing.EncodeOrder()
    processed: list[float] = []

    async def process(ahead_s: float) -> None:
        await order.one_by_one(ahead_s)
        processed.append(ahead_s)

    tasks = [asyncio.create_task(process(ahead_s)) for ahead_s in (5.0, 3.0, math.inf, 1.0, 2.0)]
    tasks[4].cancel()
    iterations = [await asyncio.sleep(0, len(processed)) for _ in range(20)]
    assert processed == [5.0, 1.0, 3.0, math.inf]  # the first one found no other chunk
    assert max(after - before for before, after in itertools.pairwise(iterations)) == 1
    await asyncio.wait_for(order.one_by_one(0.0), 60)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_underruns_count_only_after_the_first_audio():
    async def audio() -> AsyncGenerator[np.ndarray]:
        for _ in range(3):
            await asyncio.sleep(0.005)
            yield np.zeros(CHUNK, np.float32)

    held_back, playing = pacing.ListenerClock(), pacing.ListenerClock()
    produced = audio()
    while await held_back.timed(produced) is not None:
        held_back.encoded(0.0)  # the tempo filter has returned nothing yet
    assert held_back.underruns == 0
    produced = audio()
    while await playing.timed(produced) is not None:
        playing.encoded(0.001)  # each chunk adds too little audio
    assert playing.underruns == 2


async def test_lines_of_only_punctuation_are_spoken_by_the_first_voice(over):
    engine = ScriptedEngine(*[Part(level=0.0)] * 9)
    async with over(engine) as setup:
        with contextlib.suppress(NothingSpoken):
            await setup.pcm("", lines=(Line("?", "onyx"), Line("!", "nova")))
        assert [line.voice.id for line in engine.utterances[0].lines] == ["onyx"]


@pytest.mark.parametrize(
    ("lines", "speakers"),
    [
        ([("verse", None)], [0]),
        ([("verse", None), ("onyx", None), ("verse", None)], [0, 1, 0]),
        ([("verse", 1), ("onyx", None), ("sage", None)], [1, 0, 2]),
        ([("verse", 0), ("onyx", None)], [0, 1]),
    ],
)
async def test_speakers_are_numbered_in_order_of_appearance(over, lines, speakers):
    engine = ScriptedEngine(text=TextPacking(max_speakers=3))
    async with over(engine) as setup:
        await setup.pcm("", lines=tuple(Line("One is the first.", voice, speaker) for voice, speaker in lines))
        assert [line.speaker for utterance in engine.utterances for line in utterance.lines] == speakers
