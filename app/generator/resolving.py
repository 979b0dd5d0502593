"""Checks a request against the running engine, and looks up its model, voices, parameters, seed and cache key."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from app import __version__
from app.audio import watermark
from app.audio.encoders import check_rate
from app.audio.formats import AUDIO_FORMATS
from app.audio.provenance import Provenance, now_s
from app.audio.verification import is_english_tag
from app.errors import BadReference, InvalidValue, NotReady, UnknownModel, UnknownVoice, UnsupportedParameter
from app.generator.job import LineText, SpeechJob, number_speakers
from app.generator.planning import HELD_PASSAGE_CHARS, LONG_TEXT_CHARS, check_not_blank, parse_lines, spell_sounds
from app.generator.preset_voices import seed_of
from app.generator.prompts import check_speakable
from app.lru import LRU
from app.runtime.playback import Playback
from app.text.machine_text import remove_machine_text
from app.text.pronunciations import Lexicon, WordList, unknown_symbol
from app.text.script import SPEAKER_TAG, split_speakers
from app.text.spans import SpannedText, join
from app.types import Line
from app.voices import enhancement
from app.voices.presets import DEFAULT_VOICE, NO_VOICE, speaker_voice, standard_voices_of

if TYPE_CHECKING:
    from app.audio.watermark import Watermark
    from app.engines.adapters import AdapterRegistry
    from app.engines.manager import ModelUse
    from app.engines.model_manager import ModelManager
    from app.generator.job import ParsedLine
    from app.generator.lexicons import LexiconStore
    from app.generator.preset_voices import PresetVoiceMaker
    from app.types import EngineInfo, SpeechRequest, Voice
    from app.voices.store import VoiceStore

MODEL_ALIASES = (
    "tts-1",
    "tts-1-1106",
    "tts-1-hd",
    "tts-1-hd-1106",
    "gpt-4o-mini-tts",
    "gpt-4o-mini-tts-2025-03-20",
    "gpt-4o-mini-tts-2025-12-15",
)
# Names of models of other servers, without the organisation. Requests with these names are spoken by the running
# engine.
_FOREIGN_MODEL = re.compile(
    r"(?:tts-1(?:-hd)?|gpt-4o-mini-tts)(?:-[0-9-]+|-latest)?|kokoro(?:-.*)?|gpt-(?:4o-)?(?:mini-)?realtime(?:-[a-z0-9.-]+)?"
)
# Voices for the speakers of a text with speaker tags ([S1]) if the caller names no voice for them. Two neighbours in
# this list sound clearly different from each other.
OTHER_SPEAKERS = ("echo", "nova", "onyx", "shimmer", "fable", "sage", "ash", "coral", "ballad")

FAILED_SEED_STEP = 1 << 31  # added to a derived seed for each failure; larger than each derived seed
# If a request has more dictionary entries or more characters than these two limits, its pronunciations are looked up in
# a thread.
SMALL_LEXICON, SMALL_TEXT = 100, 20_000
AVOIDED_SEEDS = 10_000  # the number of failed seeds that are remembered


class RequestResolver:
    """Turns a validated request into a SpeechJob. Use it from one event loop."""

    def __init__(
        self,
        manager: ModelManager,
        voices: VoiceStore,
        watermark_scope: Watermark,
        *,
        enhance: bool,
        preset_voices: PresetVoiceMaker | None,
        lexicons: LexiconStore | None = None,
        adapters: AdapterRegistry | None = None,
    ) -> None:
        """enhance: the default of the request field `enhance`. preset_voices: creates missing recordings of preset
        voices; None = they are not created.

        lexicons: the pronunciation dictionaries of the server; None = only the dictionaries of requests are used.
        adapters: the LoRA adapters of the server; None = there are none.
        """
        self._adapters = adapters
        self._manager = manager
        self._voices = voices
        self._watermark = watermark_scope
        self._enhance = enhance
        self._preset_voices = preset_voices
        self._lexicons = lexicons
        self._random = random.SystemRandom()
        self._takes: LRU[int, int] = LRU(AVOIDED_SEEDS)  # derived seed -> how often speech with this seed has failed

    async def use(self, model: str) -> ModelUse:
        """Return the engine of a model, which stays loaded. model: as the caller has named it.

        Raises UnknownModel, NotReady.
        """
        return await self._manager.use(find_model(model, self._manager, self._adapters))

    async def resolve(self, request: SpeechRequest, extras: frozenset[str], *, random_seed: bool) -> SpeechJob:
        """Check a request and look up everything that is needed to speak it. Raises RequestError, NotReady.

        extras: the request fields that the caller has set and that OpenAI's API does not have. random_seed: True = draw
        a random seed for each call.
        """
        model_id = find_model(request.model, self._manager, self._adapters)
        other_model = model_id not in (None, *self._manager.model_ids)
        caller_texts = tuple(line.text for line in request.lines)
        if self._voices.stale:
            await asyncio.to_thread(self._voices.refresh)
        check_not_blank(request.lines)
        request = self._with_standard_voices(request)
        if sum(len(line.text) for line in request.lines) > LONG_TEXT_CHARS:
            request, turns, texts = await asyncio.to_thread(self._split_by_speaker, request)
        else:
            request, turns, texts = self._split_by_speaker(request)
        self._voices_of(request)  # check the voices first: an unknown voice is an error even while the engine starts
        use = await self._manager.use(model_id)
        info = use.info
        request, ignored = _supported(request, use, extras | ({"context"} if request.context else set()))
        if other_model:
            ignored = ("model", *ignored)
        request, replaced = self._with_known_speakers(self._with_only_speaker(request, info), use)
        ignored = (*ignored, *replaced)
        voices = await self._usable_voices(request, await self._ready_voices(request, info), use)
        long = sum(map(len, texts)) > LONG_TEXT_CHARS
        arguments = (texts, info.text.sounds, request.normalize)
        texts, parsed_lines = await asyncio.to_thread(_parsed, *arguments) if long else _parsed(*arguments)
        # Replace the name of a voice with its id, so that name and id give the same seed and the same cache key.
        lines = tuple(
            _changed_line(line, text.text, voice.id)
            for line, voice, text in zip(request.lines, voices, texts, strict=True)
        )
        request = replace(
            request,
            lines=lines,
            seed=self._random.getrandbits(31) if random_seed else request.seed,
            enhance=self._enhance if request.enhance is None else request.enhance,
            # A second request with the same text is a new turn of the conversation, so it must not get the same audio.
            use_cache=request.use_cache and not random_seed and request.conversation is None,
        )
        not_ready = [voice for voice in voices if voice.kind == "preset" and not voice.recorded]
        voice_not_ready = bool(not_ready) and info.can_clone
        if voice_not_ready:
            seed = seed_of(not_ready[0].id) if request.seed is None else request.seed
            request = replace(request, use_cache=False, seed=seed)
        lexicons, lexicon_key, ignored = await self._lexicons_of(request, use, voices, ignored)
        marked = self._watermark.marks(voices, trained=info.trained)
        # The audio also depends on values that are not in the request. The values in samples_key change the generated
        # samples. The values in finish_key change only the processing of these samples.
        samples_key = (__version__, info.fingerprint, *(voice.digest for voice in voices))
        if any(voice.adapter for voice in voices):
            samples_key += ("adapters", *(voice.adapter for voice in voices))
        finish_key: tuple[str, ...] = (
            enhancement.VERSION if request.enhance else "",
            watermark.VERSION if marked else "",
        )
        held = request.verify is True or request.best_of > 1
        if held and info.text.continues and sum(len(line.text) for line in lines) >= HELD_PASSAGE_CHARS:
            # The planner divides the text of a request that is held back into shorter utterances.
            finish_key += ("passages",)
        # The seed does not depend on pronunciations, so a new pronunciation changes no other sentence.
        finish_key += lexicon_key
        keyed = request.with_short_texts()
        return SpeechJob(
            request,
            use,
            voices,
            number_speakers(request, voices, info.speakers),
            parsed_lines,
            turns,
            seed=self._derived_seed(keyed, samples_key) if request.seed is None else request.seed,
            cache_key=keyed.digest(*samples_key, *finish_key),
            ignored=ignored,
            marked=marked,
            provenance=_provenance_of(request, use, voices),
            voice_not_ready=voice_not_ready,
            held=held,
            texts=caller_texts,
            lexicons=lexicons,
            playback=Playback(tempo=request.speed),
        )

    async def check(self, request: SpeechRequest, extras: frozenset[str]) -> None:
        """Check all fields of a request except its text, and raise the errors of `resolve`. Raises RequestError.

        If the model is not loaded, only the name of the model and the voice are checked. The check does not load a
        model, and does not wait for recordings of preset voices.
        """
        line = request.lines[0]
        manager = self._manager.of(find_model(request.model, self._manager, self._adapters))
        if self._voices.stale:
            await asyncio.to_thread(self._voices.refresh)
        # A voice with several names such as nova+echo is valid only for a text with speaker tags, so the text for this
        # check gets a tag.
        text = "[S1] Text." if "+" in line.voice else "Text."
        request = self._with_standard_voices(replace(request, lines=(replace(line, text=text),)))
        request, _, _ = self._split_by_speaker(request)
        self._voices_of(request)
        with contextlib.suppress(NotReady):
            use = manager.use()
            request, _ = _supported(request, use, extras)
            request, _ = self._with_known_speakers(request, use)
            voices = await self._usable_voices(request, self._voices_of(request), use)
            await self._lexicons_of(request, use, voices, ())

    async def resolve_later(self, job: SpeechJob, line: Line) -> list[LineText]:
        """Return the lines of a part of the text that arrives after the start of `job`. The lines have no prompts yet.

        line: the text, with the voice as the caller has named it. Adds the pronunciations of the words to
        `job.lexicons`. Raises RequestError.
        """
        request = self._with_standard_voices(replace(job.request, lines=(line,)))
        request, _, texts = self._split_by_speaker(request)
        request, _ = self._with_known_speakers(self._with_only_speaker(request, job.info), job.use)
        voices = await self._with_adapters(request, self._voices_of(request), job.use)
        texts, parsed = _parsed(texts, job.info.text.sounds, job.request.normalize)
        lines = tuple(
            _changed_line(each, text.text, voice.id)
            for each, voice, text in zip(request.lines, voices, texts, strict=True)
        )
        request = _with_lines(request, lines)
        job.lexicons.update((await self._lexicons_of(request, job.use, voices, ()))[0])
        speakers = number_speakers(request, voices, job.info.speakers)
        return [
            LineText(parts, voice, speaker, None, 0, new_turn=number > 0)
            for number, (parts, voice, speaker) in enumerate(zip(parsed, voices, speakers, strict=True))
        ]

    def _derived_seed(self, request: SpeechRequest, samples_key: tuple[str, ...]) -> int:
        """Return the seed that is derived from the content of the request. If speech with this seed has failed, return
        another seed, a new one after each failure.
        """
        derived = request.content_seed(*samples_key)
        return derived + FAILED_SEED_STEP * (self._takes.get(derived) or 0)

    def avoid_seed(self, job: SpeechJob) -> None:
        """Record that speech with the seed of this job failed. The next request with the same content gets another
        seed.

        Does nothing if the caller chose the seed.
        """
        if job.request.seed is None:
            derived = job.seed % FAILED_SEED_STEP
            self._takes.put(derived, 1 + job.seed // FAILED_SEED_STEP)

    # ---- voices

    def _with_standard_voices(self, request: SpeechRequest) -> SpeechRequest:
        """Replace voice names of the model Kokoro, such as af_heart, by preset voices.

        A name that is the name of a voice on this server is not replaced.
        """
        lines = []
        for line in request.lines:
            found = standard_voices_of(line.voice)
            if found and not self._voices.has(line.voice):
                several = line.speaker is None and SPEAKER_TAG.search(line.text)
                lines.append(replace(line, voice="+".join(found) if several else found[0]))
            else:
                lines.append(line)
        return _with_lines(request, lines)

    def _split_by_speaker(self, request: SpeechRequest) -> tuple[SpeechRequest, tuple[int, ...], list[SpannedText]]:
        """Split each line with speaker tags ([S1], [S2]) at its tags, into lines with one speaker.

        Returns the request with these lines, the index of the caller's line that each line comes from, and the text of
        each line. With `normalize`, text for machines is removed first, because it can contain tags.

        The speakers get the voices that the line names (such as "nova+echo"), and then voices from OTHER_SPEAKERS. If
        the caller's line has a speaker number or no voice, it is not split, and only its tags are removed. Raises
        UnknownVoice.
        """
        lines: list[Line] = []
        turns: list[int] = []
        texts: list[SpannedText] = []
        for turn, line in enumerate(request.lines):
            source = SpannedText(line.text)
            # In a long text without tags, the planner removes text for machines window by window.
            if request.normalize and (len(line.text) <= LONG_TEXT_CHARS or SPEAKER_TAG.search(line.text)):
                source = remove_machine_text(source)
            if not SPEAKER_TAG.search(source.text):
                split = [(line, source)]
            else:
                spoken = split_speakers(source)
                if line.speaker is not None or line.voice == NO_VOICE.id:
                    split = [(line, join((text for _, text in spoken), " "))]
                else:
                    speakers = max((speaker for speaker, _ in spoken), default=0) + 1
                    voices = self._voices_for_speakers(line.voice, speakers)
                    split = [(Line(text.text, voices[speaker], speaker), text) for speaker, text in spoken]
                    split = split or [(Line("", voices[0]), SpannedText(""))]
            for each, text in split:
                lines.append(_changed_line(each, text.text, each.voice))
                turns.append(turn)
                texts.append(text)
        return _with_lines(request, lines), tuple(turns), texts

    def _voices_for_speakers(self, requested: str, speakers: int) -> list[str]:
        """Return the voice of each speaker. requested: one voice, or several voices such as nova+echo. Raises
        UnknownVoice.
        """
        named = [requested]
        if "+" in requested:
            try:
                self._voices.get(requested)
            except UnknownVoice:
                named = requested.split("+")
        for name in named:
            self._voices.get(name)
        others = [name for name in OTHER_SPEAKERS if name not in named]
        return [*named, *others, *named][:speakers]

    async def _usable_voices(
        self, request: SpeechRequest, voices: tuple[Voice, ...], use: ModelUse
    ) -> tuple[Voice, ...]:
        """Return the voices with their adapters. Raises the errors of `_with_adapters` and `check_speakable`, and
        UnsupportedParameter if the format does not support the sample rate.
        """
        voices = await self._with_adapters(request, voices, use)
        for voice in voices:
            check_speakable(voice, use.info, is_fallback=use.is_fallback)
        check_rate(request.format, request.sample_rate_hz)
        return voices

    async def _ready_voices(self, request: SpeechRequest, info: EngineInfo) -> tuple[Voice, ...]:
        """Wait until the preset voices of the request have recordings, but only for a limited time. Then return the
        voice of each line.
        """
        if self._preset_voices is not None and info.can_clone:
            await self._preset_voices.wait_for([voice.id for voice in self._voices_of(request) if not voice.recorded])
        return self._voices_of(request)

    def _voices_of(self, request: SpeechRequest) -> tuple[Voice, ...]:
        """Return the voice of each line. Raises UnknownVoice."""
        voices = []
        for index, line in enumerate(request.lines):
            try:
                voices.append(NO_VOICE if line.voice == NO_VOICE.id else self._voices.get(line.voice))
            except UnknownVoice as error:
                if len(request.lines) > 1:
                    error.param = f"turns.{index}.voice"
                raise
        return tuple(voices)

    async def _with_adapters(
        self, request: SpeechRequest, voices: tuple[Voice, ...], use: ModelUse
    ) -> tuple[Voice, ...]:
        """Return the voices, each with the adapter that speaks it: the adapter that the request's model names, or the
        voice's own adapter.

        Raises InvalidValue if the model names one adapter and a voice belongs to another one. Raises UnknownModel,
        NotSupported or NotReady if the engine can't speak with an adapter.
        """
        _, named = split_adapter(request.model, self._adapters)
        if self._adapters is None or not (named or any(voice.kind == "adapter" for voice in voices)):
            return voices
        found = []
        for voice in voices:
            own = voice.id if voice.kind == "adapter" else ""
            if named and own and own.casefold() != named.casefold():
                raise InvalidValue(
                    f"The voice {own!r} belongs to the adapter {own!r}, and `model` names the adapter {named!r}. Send "
                    "one of them.",
                    param="voice",
                )
            if named or own:
                adapter = await self._adapters.ready(named or own, use, param="model" if named else "voice")
                found.append(replace(voice, adapter=adapter.key))
            else:
                found.append(voice)
        return tuple(found)

    # ---- pronunciations

    async def _lexicons_of(
        self, request: SpeechRequest, use: ModelUse, voices: Sequence[Voice], ignored: tuple[str, ...]
    ) -> tuple[dict[str, Lexicon], tuple[str, ...], tuple[str, ...]]:
        """Return the pronunciations by voice id, the part of the cache key that depends on them, and the names of the
        ignored fields.

        A voice is left out if its texts contain no word of its dictionaries. Some entries have only IPA, which the
        engine may not accept. Such an entry raises UnsupportedParameter if it is in the request and the configured
        engine runs. Otherwise, `lexicon` becomes an ignored field.
        """
        if self._lexicons is None and not request.lexicon:
            return {}, (), ignored
        info = use.info
        english = request.language is None or is_english_tag(request.language)
        ipa = info.text.ipa if english else frozenset[str]()
        for place, entry in enumerate(request.lexicon):
            if entry.ipa and not entry.say and not use.is_fallback:
                unknown = unknown_symbol(entry.ipa, ipa)
                if unknown:
                    what = f"the IPA symbol {unknown!r}" if ipa else "pronunciations in IPA"
                    raise UnsupportedParameter(
                        f"The {info.id} engine does not accept {what} here. Send `say` for {entry.word!r}.",
                        param=f"lexicon.{place}.ipa",
                    )
        texts: dict[str, list[str]] = {}
        for line, voice in zip(request.lines, voices, strict=True):
            texts.setdefault(voice.id, []).append(line.text)
        store = self._lexicons

        def find() -> tuple[dict[str, Lexicon], tuple[str, ...], bool]:
            own = WordList(request.lexicon)
            found: dict[str, Lexicon] = {}
            digests: list[str] = []
            unusable = False
            for name, spoken in texts.items():
                lexicon = Lexicon((own, *(store.lists(name) if store else ())), ipa=ipa)
                acting = [entry for text in spoken for entry in lexicon.candidates(text)]
                unusable = unusable or not all(map(lexicon.usable, acting))
                if acting:
                    found[name] = lexicon
                    digests.append(lexicon.digest(acting))
            return found, (("lexicon", *digests) if digests else ()), unusable

        reads_files = store is not None and store.needs_check(list(texts))
        large = len(request.lexicon) > SMALL_LEXICON or sum(map(len, itertools.chain(*texts.values()))) > SMALL_TEXT
        found, key, unusable = await asyncio.to_thread(find) if reads_files or large else find()
        return found, key, (*ignored, "lexicon") if unusable else ignored

    def _with_only_speaker(self, request: SpeechRequest, info: EngineInfo) -> SpeechRequest:
        """Replace preset voices without a recording by the speaker of a model that was trained with one speaker."""
        if info.only_speaker is None:
            return request
        lines = (
            replace(line, voice=f"speaker:{info.only_speaker}")
            if voice.kind == "preset" and not voice.recorded
            else line
            for line, voice in zip(request.lines, self._voices_of(request), strict=True)
        )
        return replace(request, lines=tuple(lines))

    def _with_known_speakers(self, request: SpeechRequest, use: ModelUse) -> tuple[SpeechRequest, tuple[str, ...]]:
        """Refuse the voices `speaker:N` if the engine has no numbered speakers. Raises UnknownVoice.

        If the fallback engine runs, the default voice is used instead, and `voice` is returned as ignored.
        """
        if use.info.capabilities.context or not any(speaker_voice(voice.id) for voice in self._voices_of(request)):
            return request, ()
        if not use.is_fallback:
            raise UnknownVoice(
                f"The {use.info.id} engine has no numbered speakers. Send another `voice`, see GET /v1/audio/voices.",
                param="voice",
            )
        lines = (replace(line, voice=DEFAULT_VOICE) if speaker_voice(line.voice) else line for line in request.lines)
        return replace(request, lines=tuple(lines)), ("voice",)


def _with_lines(request: SpeechRequest, lines: Sequence[Line]) -> SpeechRequest:
    """Return the request with these lines. If no line has changed, it is the same object, because copies take time."""
    if len(lines) == len(request.lines) and all(map(operator.is_, lines, request.lines)):
        return request
    return replace(request, lines=tuple(lines))


def _changed_line(line: Line, text: str, voice: str) -> Line:
    """Return the line with this text and this voice. If both are equal, it is the same object."""
    return line if line.text == text and line.voice == voice else replace(line, text=text, voice=voice)


def split_adapter(name: str, adapters: AdapterRegistry | None) -> tuple[str, str]:
    """Return the model and the adapter of a model id such as csm-1b:danish. The adapter is "" if the id names none."""
    model, _, adapter = name.strip().rpartition(":")
    if adapters is None or not model or adapters.find(adapter) is None:
        return name, ""
    return model, adapter


def find_model(name: str, manager: ModelManager, adapters: AdapterRegistry | None = None) -> str | None:
    """Return the id of the model with this name; None if the name is an alias for the running model.

    If only one model is served here, the result can be the id of a model that is not served. The served model then
    speaks instead. The name of an adapter may follow the name of the model that it changes, as in csm-1b:danish. Raises
    UnknownModel.
    """
    model, adapter = split_adapter(name, adapters)
    found = manager.find_model(model)
    if manager.several and found is not None and found not in manager.model_ids:
        raise UnknownModel(
            f"The model `{found}` is not served here. The models of this server are "
            f"{', '.join(f'`{each}`' for each in manager.model_ids)}; see GET /v1/models.",
            param="model",
        )
    foreign = found is None and not _FOREIGN_MODEL.fullmatch(model.strip().casefold().rpartition("/")[2])
    changed = adapters.find(adapter) if adapters is not None and adapter else None
    other_model = changed is not None and changed.model != (found or manager.requested.model_id)
    if foreign or other_model:
        raise UnknownModel(
            f"The model `{name[:80]}` does not exist or is not running here. This server runs "
            f"`{manager.model_ids[-1]}`; see GET /v1/models.",
            param="model",
        )
    return found


def _supported(request: SpeechRequest, use: ModelUse, extras: frozenset[str]) -> tuple[SpeechRequest, tuple[str, ...]]:
    """Return the request without the fields that this engine does not support, and the names of these fields.

    extras: the fields of the request that OpenAI's API does not have. If the engine does not support a field of
    `extras`, this is an error. If the fallback engine runs, such a field is ignored instead. `speaker_id` is never
    an error, because it only selects a speaker of the earlier turns.
    """
    info, ignored = use.info, []
    if request.instructions and not info.capabilities.instructions:
        ignored.append("instructions")
        request = replace(request, instructions=None)
    if request.parallel and not info.capabilities.parallel:
        ignored.append("parallel")
        request = replace(request, parallel=False)
    if request.best_of > 1 and not info.seeded:  # without a seed, all takes are equal
        ignored.append("best_of")
        request = replace(request, best_of=1)
    for name in sorted(name for name in extras if not info.capabilities.supports(name)):
        if not use.is_fallback and name != "speaker_id":
            check_extra(name, info)
        ignored.append(name)
    request = _without(request, ignored)
    _check_language(request.language, info)
    _check_context_length(request, info)
    return request, tuple(ignored)


def _parsed(
    texts: list[SpannedText], sounds: frozenset[str], normalize: bool
) -> tuple[list[SpannedText], tuple[ParsedLine, ...]]:
    """Write the non-verbal sounds of each line as tags of the engine, and split each line into words and pauses.

    Returns the texts, and the words and pauses of each line. In a long line the sounds are not changed, because the
    planner changes them window by window. Raises TextTooLong.
    """
    texts = [text if len(text) > LONG_TEXT_CHARS else spell_sounds(text, sounds, normalize=normalize) for text in texts]
    return texts, parse_lines(texts)


def check_extra(name: str, info: EngineInfo) -> None:
    """Check that the engine supports the request field `name`. Raises UnsupportedParameter."""
    if not info.capabilities.supports(name):
        supported = ", ".join(info.capabilities.names) or "none"
        raise UnsupportedParameter(
            f"The {info.id} engine does not support the field `{name}`. Leave the field out. The engine supports these "
            f"optional fields: {supported}.",
            param=name,
        )


def _provenance_of(request: SpeechRequest, use: ModelUse, voices: Sequence[Voice]) -> Provenance | None:
    """Return the provenance to write into the header of the file; None if the header gets no comment.

    The provenance contains the time only if the request has `provenance`. Without the time, answers to equal requests
    have equal bytes.
    """
    if not request.provenance and not AUDIO_FORMATS[request.format].always_comment:
        return None
    ids = tuple(dict.fromkeys(voice.id for voice in voices))
    return Provenance(use.model_id, ids, now_s() if request.provenance else None, trained=use.info.trained)


def _check_language(language: str | None, info: EngineInfo) -> None:
    """Check that the engine speaks a language, in any region. Raises UnsupportedParameter.

    If an engine has the capability `language` but lists only one language, its list is not complete, so every language
    passes.
    """
    if language is None or not info.capabilities.language or len(info.languages) == 1:
        return
    if _language_of(language) in map(_language_of, info.languages):
        return
    raise UnsupportedParameter(
        f"The {info.id} engine does not speak the language {language!r}. It speaks: {', '.join(info.languages)}.",
        param="language",
    )


def _language_of(tag: str) -> str:
    """Return the language of a BCP 47 tag without its region."""
    return tag.replace("_", "-").partition("-")[0].lower()


def _without(request: SpeechRequest, ignored: list[str]) -> SpeechRequest:
    """Return the request with the `ignored` fields reset to their defaults."""
    cleared = {name: None for name in ("temperature", "top_k", "top_p", "cfg_scale") if name in ignored}
    if cleared:
        request = replace(request, sampling=replace(request.sampling, **cleared))
    if "language" in ignored:
        request = replace(request, language=None)
    if "conversation_id" in ignored:
        request = replace(request, conversation=None)
    if "speaker_id" in ignored:
        request = replace(
            request, lines=tuple(replace(line, speaker=request.default_speaker) for line in request.lines)
        )
    if "context" in ignored:  # the earlier turns define the voice, so without them the default voice is used
        lines = (replace(x, voice=DEFAULT_VOICE) if x.voice == NO_VOICE.id else x for x in request.lines)
        request = replace(request, context=(), lines=tuple(lines))
    return request


def _check_context_length(request: SpeechRequest, info: EngineInfo) -> None:
    """Check that the recordings in `context` are not too long for the engine. Raises BadReference."""
    context_s = sum(turn.reference.seconds for turn in request.context)
    if info.prompts.max_context_s is not None and context_s > info.prompts.max_context_s:
        raise BadReference(
            f"The recordings in `context` are {context_s:.0f} s long together; the {info.id} engine accepts at most "
            f"{info.prompts.max_context_s:.0f} s. Leave out the oldest turns.",
            param="context",
        )
