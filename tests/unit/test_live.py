"""Live speech without a network: the text arrives in parts, and the speech equals the speech of the whole text."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from app.audio.threads import ThreadLimit
from app.audio.watermark import Watermark
from app.engines.model_manager import ModelManager
from app.engines.registry import BUILT_IN, Builder, EngineSpec
from app.errors import EmptyText, TextTooLong, UnknownVoice
from app.generator.cache import AnswerCache
from app.generator.later_text import TextParts
from app.generator.live import (
    Audio,
    Cancelled,
    ContextSpec,
    Done,
    Event,
    Failed,
    LiveContext,
    LiveSession,
    SentenceDone,
    SentenceStarted,
    SpokenText,
    Words,
)
from app.generator.speech import KEPT_UTTERANCES, SpeechGenerator
from app.generator.take import SENTENCE_GAP_S
from app.metrics import Metrics
from app.runtime.playback import Playback
from app.text.normalizer import Normalizer
from app.types import (
    AnswerPart,
    AudioChunk,
    Capabilities,
    EngineInfo,
    Line,
    Load,
    Reference,
    SpeechRequest,
    TextPacking,
    TimedSentence,
    TimedWord,
    Utterance,
    VoicePrompt,
)
from app.voices.store import VoiceStore
from tests.support.live import settings
from tests.support.scripted_runner import info

pytestmark = pytest.mark.unit

# The first sentence is so short that it is not cut at a clause.
TEXTS = (
    "Hello there. It costs $3.50, i.e. less than 5 €. Is that so? Yes!",
    "Dr. Smith is here. He was born on 3/4/1984 at 5 p.m. in St. Ives. Nice.",
    "# A heading\n\nA first line.\n- one item\n- another item\n\nThe *end* of [the text](https://example.org/a.b).",
    "Wait [pause:0.2s] for it. Then 10 % of 2.5 km. <break time='100ms'/> Done.",
    "Say it. (laughs) Then say it again... and stop.",
    "Guten Tag. Das kostet 3,50 Euro, z. B. am 3. Oktober. Ja.",
    "Use `pip install x` now. Then mail a.b@example.org. Bye.",
    "<think>Not this. Never.</think>Only this. And that.",
    "[S1] Hello you. How are you? [S2] I am fine. Thank you.",
    "?!",
)


# No first sentence is so short that it is joined to another one, and none is cut at a clause.
LONG_SENTENCES = (
    "This is the first one. It costs $3.50 on 3/4/1984 at 5 p.m. here. And what is the third?",
    "Wait for it now. [pause:0.2s] Then 10 % of 2.5 km are left. <break time='100ms'/> That is all.",
    "I have looked it up. Yes! It is open until ten. I see. Thank you very much for that. Bye. See you all there.",
    "Guten Tag zusammen. Das kostet heute 3,50 Euro. Ist das nicht schön?",
)


class CodedEngine:
    """An engine that continues a voice from the codes of earlier turns, as CSM does.

    It speaks 5 frames for each sentence.
    """

    def __init__(self) -> None:
        self._info = info(
            "coded",
            rate_hz=24_000,
            frame_s=0.08,
            capabilities=Capabilities(temperature=True, context=True),
            text=TextPacking(continues=True),
        )
        self.utterances: list[Utterance] = []
        self.open = 0
        self.healthy = True
        self.keeps_state = True
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def spoken(self) -> str:
        """Return all texts, in order."""
        return " ".join(line.text for utterance in self.utterances for line in utterance.lines)

    @property
    def load(self) -> Load:
        return Load(self.open, 32, 0, 64)

    async def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        number = len(self.utterances)
        self.utterances.append(utterance)
        self.open += 1
        if self.keeps_state and utterance.part is not None and utterance.part.index:
            utterance.part.resumed.set()
        try:
            for frame in range(5 * len(utterance.lines)):
                await asyncio.sleep(0)
                if frame:
                    await self.gate.wait()
                codes = np.full((32, 1), 100 * number + frame, np.int16)
                yield AudioChunk(np.full(1920, 0.2, np.float32), 24_000, frame * 1920, codes)
        finally:
            self.open -= 1

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class CodedSpec(EngineSpec):
    engine: CodedEngine | None = None

    def builder(self) -> Builder:
        return lambda settings, context: self.engine  # type: ignore[return-value]


@dataclasses.dataclass
class Server:
    generator: SpeechGenerator
    session: LiveSession
    metrics: Metrics
    manager: ModelManager

    def open(self, text: str = "", **fields: Any) -> LiveContext:
        voice = fields.pop("voice", "alloy")
        words = fields.pop("words", False)
        request = SpeechRequest("tts-1", (Line(text, voice),), format="pcm", **fields)
        return self.session.open(ContextSpec(request, words=words))

    async def speech(self, text: str, **fields: Any) -> bytes:
        """Return the answer to the whole text, as POST /v1/audio/speech gives it."""
        request = SpeechRequest("tts-1", (Line(text, "alloy"),), format="pcm", **fields)
        answer = await self.generator.answer(dataclasses.replace(request, use_cache=False))
        return b"".join([data async for data in answer.stream])


@contextlib.asynccontextmanager
async def serve(tmp_path: Path, engine: Any = None) -> AsyncIterator[Server]:
    config = settings(tmp_path, **({} if engine is None else {"TTS_ENGINE": "coded", "TTS_FALLBACK_ENGINE": ""}))
    specs = {spec.name: spec for spec in BUILT_IN}
    if engine is not None:
        specs["coded"] = CodedSpec("coded", "coded-1b", "", engine=engine)
    metrics = Metrics()
    manager = ModelManager(config, specs, metrics.guard)
    voices = VoiceStore(tmp_path / "voices", tmp_path / "references")
    cache = AnswerCache(tmp_path / "cache", 0)
    generator = SpeechGenerator(
        manager, voices, cache, metrics, Normalizer(), watermark=Watermark("off"), uploads=ThreadLimit(), enhance=True
    )
    async with manager:
        await manager.settled()
        yield Server(generator, LiveSession(generator, metrics, max_chars=20_000), metrics, manager)


async def read(context: LiveContext) -> list[Event]:
    return [event async for event in context.events()]


def audio_of(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Audio))


async def append_in(context: LiveContext, text: str, size: int) -> None:
    for start in range(0, len(text), size):
        await context.append(text[start : start + size])
    context.end()


@pytest.mark.parametrize("size", [1, 3, 7, 1_000])
async def test_text_in_parts_is_spoken_as_the_whole_text(tmp_path: Path, size: int) -> None:
    """The same words with the same normalisation."""
    engine = CodedEngine()
    async with serve(tmp_path, engine) as server:
        for text in TEXTS:
            engine.utterances = []
            context = server.open()
            _, events = await asyncio.gather(append_in(context, text, size), read(context))
            assert isinstance(events[-1], Done), text
            in_parts, engine.utterances = engine.spoken, []
            await server.speech(text)
            assert in_parts == engine.spoken


@pytest.mark.parametrize("size", [1, 5, 1_000])
@pytest.mark.parametrize("speed", [1.0, 1.5])
async def test_text_in_parts_gives_the_audio_of_the_whole_text(tmp_path: Path, size: int, speed: float) -> None:
    async with serve(tmp_path) as server:
        for text in LONG_SENTENCES:
            context = server.open(speed=speed)
            _, events = await asyncio.gather(append_in(context, text, size), read(context))
            assert audio_of(events) == await server.speech(text, speed=speed), text


async def test_whole_text_gives_the_same_answer_and_spans_of_the_callers_text(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        for text in TEXTS[:4]:
            events = await read(server.open(text))
            assert audio_of(events) == await server.speech(text)
            started = [event for event in events if isinstance(event, SentenceStarted)]
            assert [event.index for event in started] == list(range(len(started)))
            assert all(0 <= event.start_char < event.end_char <= len(text) for event in started)


async def test_spans_name_the_sentences_of_the_callers_text(tmp_path: Path) -> None:
    text = "Hello there. [S2] It costs $3.50 today. Really? "
    async with serve(tmp_path) as server:
        context = server.open()
        _, events = await asyncio.gather(append_in(context, text, 4), read(context))
    started = [event for event in events if isinstance(event, SentenceStarted)]
    assert [text[e.start_char : e.end_char] for e in started] == ["Hello there.", "It costs $3.50 today. Really?"]
    assert [e.start_s for e in started] == sorted(e.start_s for e in started)
    assert [event.index for event in events if isinstance(event, SentenceDone)] == [0, 1]


async def test_first_sentence_is_spoken_before_the_rest_of_the_text_arrives(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        context = server.open()
        events = context.events()
        await context.append("This is the first. And")
        seen = [await anext(events) for _ in range(2)]
        assert isinstance(seen[0], SentenceStarted)
        assert isinstance(seen[1], Audio)
        await context.append(" the second.")
        context.end()
        rest = [event async for event in events]
        assert isinstance(rest[-1], Done)


@pytest.mark.parametrize(
    "text", ["Yes.", "No!", "Wirklich?", "いいえ。", "one two three four", "well, so", 'He said "no."']
)
async def test_text_without_an_end_is_spoken_after_a_while(tmp_path: Path, text: str) -> None:
    """The end of such a text never arrives.

    The server speaks its words up to the last one that is certainly complete.
    """
    async with serve(tmp_path) as server:
        context = server.open()
        await context.append(text)
        events = context.events()
        while not isinstance(event := await anext(events), Audio):
            pass
        assert event.data
        await context.cancel()
        assert isinstance([event async for event in events][-1], Cancelled)


async def test_end_of_a_sentence_is_sent_while_the_next_text_is_late(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        whole = await server.speech("This is the first.")
        context = server.open()
        events = context.events()
        await context.append("This is the first. And")
        received = 0
        while received < len(whole):
            event = await anext(events)
            received += len(event.data) if isinstance(event, Audio) else 0
        await context.cancel()


async def test_flush_speaks_words_of_an_incomplete_sentence(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        context = server.open()
        await context.append("just these words")
        context.flush()
        events = context.events()
        started = await anext(events)
        assert isinstance(started, SentenceStarted)
        assert (started.start_char, started.end_char) == (0, 16)
        context.end()
        assert isinstance([event async for event in events][-1], Done)


async def test_cancel_frees_the_row_and_no_audio_follows(tmp_path: Path) -> None:
    engine = CodedEngine()
    async with serve(tmp_path, engine) as server:
        context, other = server.open(), server.open("Another one.")
        await context.append("One is first. Two is second. Three is third. ")
        events = context.events()
        while not isinstance(await anext(events), Audio):
            pass
        engine.gate.clear()
        await context.cancel()
        rest = [event async for event in events]
        assert len(rest) == 1
        cancelled = rest[0]
        assert isinstance(cancelled, Cancelled)
        assert cancelled.text_spoken + cancelled.text_unspoken == context.text
        assert len(cancelled.text_spoken) == cancelled.spoken_chars < len(context.text)
        assert cancelled.sent_ms > 0
        engine.gate.set()
        assert isinstance((await read(other))[-1], Done)
        assert engine.open == 0
        await context.append("Ignored.")
        await context.cancel()
        assert b"tts_cancelled_total 1.0" in server.metrics.text()


async def test_unread_context_pauses_only_itself(tmp_path: Path) -> None:
    engine = CodedEngine()
    async with serve(tmp_path, engine) as server:
        unread = server.open()
        await unread.append("One is the first. " * 200)
        unread.end()
        assert isinstance((await read(server.open("Another one.")))[-1], Done)
        spoken = sum(utterance.lines[0].text == "One is the first." for utterance in engine.utterances)
        assert spoken <= 2
        await server.session.close()
        assert engine.open == 0


async def test_voice_continues_from_the_codes_of_the_last_utterances(tmp_path: Path) -> None:
    engine = CodedEngine()
    text = "One is first. Two is second. Three is third. Four is fourth."
    async with serve(tmp_path, engine) as server:
        context = server.open(seed=5)
        _, events = await asyncio.gather(append_in(context, text, 5), read(context))
        assert isinstance(events[-1], Done)
        in_parts, engine.utterances = engine.utterances, []
        await server.speech(text, seed=5)
    assert [line.text for each in in_parts for line in each.lines] == [
        line.text for each in engine.utterances for line in each.lines
    ]
    for number, utterance in enumerate(in_parts):
        assert utterance.seed == 5
        assert utterance.part == AnswerPart(in_parts[0].part.answer, number)
        assert utterance.optional_turns == len(utterance.context) or not utterance.context
        earlier = in_parts[max(0, number - KEPT_UTTERANCES) : number]
        assert [turn.text for turn in utterance.context] == [each.lines[0].text for each in earlier]
        assert all(turn.codes.shape == (32, 5) for turn in utterance.context)
        assert utterance.part.over.is_set()


@pytest.mark.parametrize(("tag", "gaps"), [("[S1]", 0), ("[S2]", 1)])
async def test_only_sentences_of_the_same_voice_are_joined(tmp_path: Path, tag: str, gaps: int) -> None:
    """The state of an engine does not contain the prompt of another voice."""
    engine = CodedEngine()
    async with serve(tmp_path, engine) as server:
        context = server.open()
        text = f"[S1] Hello you there now. {tag} I am fine here today."
        _, events = await asyncio.gather(append_in(context, text, 5), read(context))
    assert len(engine.utterances) == 2
    voiced = np.frombuffer(audio_of(events), "<i2")[1920:-1920] != 0
    assert np.count_nonzero(np.diff(voiced.astype(int)) < 0) == gaps


async def test_sentences_are_faded_and_apart_if_the_engine_has_lost_the_state(tmp_path: Path) -> None:
    """Without a fade, the listener hears a click where one sentence ends and the next one begins."""
    engine = CodedEngine()
    joined, apart = [], []
    async with serve(tmp_path, engine) as server:
        for keeps, found in ((True, joined), (False, apart)):
            engine.keeps_state = keeps
            context = server.open(enhance=False)
            _, events = await asyncio.gather(
                append_in(context, "I am here now today. So are you all today.", 5), read(context)
            )
            assert isinstance(events[-1], Done)
            found.append(np.frombuffer(audio_of(events), "<i2").astype(int))
    frames, gap = 2 * 5 * 1920, round(SENTENCE_GAP_S * 24_000)
    assert [len(joined[0]), len(apart[0])] == [frames, frames + gap]
    assert np.count_nonzero(joined[0][1920:-1920] == 0) == 0
    assert np.abs(np.diff(apart[0])).max() == np.abs(np.diff(joined[0])).max() < 200
    assert not apart[0][frames // 2 : frames // 2 + gap].any()


@pytest.mark.parametrize("text", ["", "  \n ", "\u200b"])
async def test_text_without_words_is_an_error(tmp_path: Path, text: str) -> None:
    async with serve(tmp_path) as server:
        context = server.open()
        await context.append(text)
        context.end()
        last = (await read(context))[-1]
        assert isinstance(last, Failed | Done)
        if not text.strip():
            assert isinstance(last, Failed)
            assert isinstance(last.error, EmptyText)


async def test_error_ends_only_its_own_context(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        bad, good = server.open("Hello.", voice="nobody"), server.open("Hello.")
        last = (await read(bad))[-1]
        assert isinstance(last, Failed)
        assert isinstance(last.error, UnknownVoice)
        assert isinstance((await read(good))[-1], Done)
        long = server.open()
        with pytest.raises(TextTooLong, match="TTS_MAX_INPUT_CHARS"):
            await long.append("a" * 20_001)
        await long.append("Fine.")
        long.end()
        assert isinstance((await read(long))[-1], Done)


async def test_text_parts_end_only_one_time(tmp_path: Path) -> None:
    parts = TextParts(100)
    await parts.append("One. Two")
    parts.end()
    parts.end()
    await parts.append(" more")
    found = []
    while (piece := await parts.next()) is not None:
        found.append(piece.text)
    assert found == ["One.", "Two"]


async def pieces_of(text: str, *, audio_s: float = 0.0) -> list[str]:
    """Return the pieces of a text that is complete. audio_s: what the listener has not played yet."""
    parts = TextParts(1_000)
    if audio_s:
        parts.playback = Playback()
        parts.playback.add(audio_s, time.monotonic())
    await parts.append(text)
    parts.end()
    found = []
    while (piece := await parts.next()) is not None:
        assert text[piece.start_char : piece.end_char] == piece.text
        found.append(piece.text)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "Yes.|I think so. No.|That is wrong. I see.",
        "It is late here.|Yes. I see.|We go home now.",
        "It is late here.|Yes.\n|And this is a new line.",
        "It is late here.|**Yes.**|And then we go home.",
        "It is late here.|[S2] Yes.|[S1] And then we go home.",
        "It is late here.|Say $5.|And then we go home.",
        f"It is late here.|{'This is a long sentence ' * 13}now.|Yes.",
    ],
)
async def test_short_sentences_are_joined_to_a_neighbour(text: str) -> None:
    bare = text.replace("|", " ").replace("\n ", "\n")
    assert await pieces_of(bare) == [piece.strip() for piece in text.split("|")]


async def test_short_sentence_waits_for_the_next_one_while_the_listener_has_audio() -> None:
    parts = TextParts(1_000)
    parts.playback = Playback()
    parts.playback.add(3_600.0, time.monotonic())
    await parts.append("It is late here. Yes. And")
    first = await parts.next()
    assert first is not None
    assert (first.text, parts.ready) == ("It is late here.", False)
    await parts.append(" now it rains. I see. S")
    assert parts.ready
    assert (piece := await parts.next()) is not None
    assert piece.text == "Yes. And now it rains. I see."
    await parts.append("o. We")
    waiting = asyncio.create_task(parts.next())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert not parts.ready
    await parts.append(" go home now. And")
    assert (piece := await waiting) is not None
    assert piece.text == "So. We go home now."
    await parts.append(" so. We")
    parts.playback = None  # the listener has no audio left
    assert (piece := await parts.next()) is not None
    assert piece.text == "And so."


async def test_text_can_be_dropped_while_its_short_sentence_waits_for_the_next_one() -> None:
    parts = TextParts(1_000)
    parts.playback = Playback()
    parts.playback.add(3_600.0, time.monotonic())
    await parts.append("It is late here. Yes. And")
    await parts.next()
    waiting = asyncio.create_task(parts.next())
    await asyncio.sleep(0)
    parts.end(drop_unflushed=True)
    assert await waiting is None
    assert parts.text == "It is late here."


SENTENCES = [SentenceStarted(0, 0, 11, 0.0), SentenceStarted(1, 12, 33, 1.0), SentenceStarted(2, 34, 47, 3.0)]
TEXT = "Hi you all. Ten is a number, too. And the rest."


@pytest.mark.parametrize(
    ("seconds", "complete", "expected"),
    [
        (0.0, True, ""),
        (0.01, True, ""),
        (0.5, True, "Hi"),
        (0.99, True, "Hi you"),
        (1.0, True, "Hi you all."),
        (2.0, True, "Hi you all. Ten is a"),
        (4.0, True, TEXT),
        (9.0, True, TEXT),
        (4.0, False, TEXT),
        (3.3, False, "Hi you all. Ten is a number, too. And"),
    ],
)
def test_played_characters_end_at_a_word(seconds: float, complete: bool, expected: str) -> None:
    spoken = SpokenText(list(SENTENCES), audio_s=4.0, complete=complete)
    heard = TEXT[: spoken.chars_at(seconds, TEXT)]
    assert expected.startswith(heard)
    assert heard == expected or len(heard) >= len(expected) - 1


def test_played_characters_grow_with_the_time() -> None:
    spoken = SpokenText(list(SENTENCES), audio_s=4.0, complete=True)
    heard = [spoken.chars_at(step / 50, TEXT) for step in range(220)]
    assert heard == sorted(heard)
    assert heard[-1] == len(TEXT)
    assert all(not count or not TEXT[count : count + 1].isalnum() or not TEXT[count - 1].isalnum() for count in heard)


# ---- the times of words


async def words_of_speech(server: Server, text: str, **fields: Any) -> list[TimedWord]:
    """Return the words of the answer to the whole text."""
    request = SpeechRequest("tts-1", (Line(text, "alloy"),), format="pcm", timestamps=True, **fields)
    answer = await server.generator.answer(dataclasses.replace(request, use_cache=False))
    async for _ in answer.stream:
        pass
    return list((await answer.timestamps()).words)


@pytest.mark.parametrize("size", [0, 1, 6, 1_000])
async def test_words_have_the_same_times_as_in_the_whole_text(tmp_path: Path, size: int) -> None:
    """size: the size of the parts of the text; 0 = the whole text is known."""
    async with serve(tmp_path) as server:
        for text in LONG_SENTENCES:
            if size:
                context = server.open(timestamps=True, words=True)
                _, events = await asyncio.gather(append_in(context, text, size), read(context))
            else:
                events = await read(server.open(text, timestamps=True, words=True))
            found = [
                word for e in events if isinstance(e, Words) for sentence in e.sentences for word in sentence.words
            ]
            assert found == await words_of_speech(server, text)
            assert all(text[word.start_char : word.end_char] == word.word for word in found)
            assert isinstance(events[-1], Done)


async def test_words_of_a_speaker_tag_count_in_the_callers_text(tmp_path: Path) -> None:
    text = "[S1] Hello my dear friend. How are you today? [S2] I am very well. Thank you so much."
    async with serve(tmp_path) as server:
        context = server.open(timestamps=True, words=True)
        _, events = await asyncio.gather(append_in(context, text, 4), read(context))
    sentences = [sentence for event in events if isinstance(event, Words) for sentence in event.sentences]
    assert [text[each.start_char : each.end_char] == each.text for each in sentences] == [True] * len(sentences)
    words = [word for sentence in sentences for word in sentence.words]
    assert [word.word for word in words] == [word for word in text.split() if "[" not in word]
    assert all(text[word.start_char : word.end_char] == word.word for word in words)


async def test_words_are_events_only_if_the_caller_wants_them(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        context = server.open("It is a fine day. We like it.", timestamps=True)
        assert not [event for event in await read(context) if isinstance(event, Words)]
        await context.words_found(10)
        assert list(context.spoken.word_end_chars) == [2, 5, 7, 12, 17, 20, 25, 29]


async def test_cancelled_speech_names_the_words_that_were_sent(tmp_path: Path) -> None:
    """The reported words are those whose times are inside the sent audio, also in the middle of a sentence."""
    text = "This long sentence has many words, and nobody knows when it ends, because it goes on and on. " * 4
    async with serve(tmp_path) as server:
        words = await words_of_speech(server, text)
        context = server.open(text, timestamps=True)
        events = context.events()
        sent = 0
        while sent < 3:
            sent += isinstance(await anext(events), Audio)
        await context.cancel(words_s=10)
        cancelled = [event async for event in events][-1]
        assert isinstance(cancelled, Cancelled)
        expected = [word for word in words if word.end_s * 1000 < cancelled.sent_ms - 20]
        assert cancelled.spoken_words == len(expected) > 0
        assert cancelled.text_spoken.split() == [word.word for word in expected]


async def test_speech_cancelled_before_its_first_audio_leaves_no_task(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        before = asyncio.all_tasks()
        for steps in range(12):
            context = server.open("One. Two. Three.", timestamps=True, words=True)
            for _ in range(steps):
                await asyncio.sleep(0)
            await context.cancel(words_s=10)
            assert isinstance([event async for event in context.events()][-1], Cancelled)
        await asyncio.sleep(0)
        assert not {task for task in asyncio.all_tasks() - before if "live" in task.get_name()}


def timed(*words: tuple[str, float, float]) -> TimedSentence:
    found = []
    for word, start_s, end_s in words:
        start = f"{TEXT} ".index(f"{word} ", found[-1].end_char if found else 0)
        found.append(TimedWord(word, start_s, end_s, start, start + len(word)))
    first, last = found[0], found[-1]
    text = TEXT[first.start_char : last.end_char]
    return TimedSentence(text, first.start_s, last.end_s, first.start_char, last.end_char, words=tuple(found))


TIMED = [
    timed(("Hi", 0.0, 0.7), ("you", 0.7, 0.8), ("all.", 0.8, 0.9)),
    timed(("Ten", 1.0, 1.1), ("is", 1.1, 2.5), ("a", 2.5, 2.6), ("number,", 2.6, 2.8), ("too.", 2.8, 2.95)),
]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, ""),
        (0.5, ""),
        (0.69, "Hi"),
        (0.75, "Hi"),
        (0.85, "Hi you"),
        (0.9, "Hi you all."),
        (1.05, "Hi you all."),
        (2.4, "Hi you all. Ten"),
        (2.5, "Hi you all. Ten is"),
        (2.7, "Hi you all. Ten is a"),
        (2.96, "Hi you all. Ten is a number, too."),
        (3.01, "Hi you all. Ten is a number, too."),  # the last sentence has no times: an estimate
        (3.9, "Hi you all. Ten is a number, too. And the"),
    ],
)
def test_only_words_that_have_ended_count_as_played(seconds: float, expected: str) -> None:
    spoken = SpokenText(list(SENTENCES), audio_s=4.0, complete=True)
    spoken.add(TIMED)
    assert TEXT[: spoken.chars_at(seconds, TEXT)] == expected


def test_word_at_the_end_of_cancelled_audio_does_not_count_as_played() -> None:
    cut = timed(("Hi", 0.0, 0.7), ("you", 0.7, 0.85))
    spoken = SpokenText(SENTENCES[:1], audio_s=0.85)
    spoken.add([cut])
    assert TEXT[: spoken.chars_at(0.85, TEXT)] == "Hi"
