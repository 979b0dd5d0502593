"""The offline voice: eSpeak NG in this process. ctypes calls the library that the extra `espeak` installs.

eSpeak NG needs no weights, no GPU and no network, and starts in milliseconds. EspeakRunner is a Runner, so the batch
loop queues, pauses and cancels its utterances like those of a model. Its frames have no codes. This module does not
depend on HTTP or stored voices.

eSpeak NG has the licence GPL-3.0-or-later. Therefore eSpeak NG is an optional extra.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.util
import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from app.audio import pcm
from app.audio.shape import Gain
from app.engines import espeak_ipa
from app.engines.batched import BatchedEngine
from app.errors import EngineError, EngineUnavailable, UnsupportedParameter
from app.runtime.runner import StepResult
from app.text.languages import guess_language
from app.types import Capabilities, EngineInfo, TextPacking, WordMark

if TYPE_CHECKING:
    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Codes, Samples, SpokenLine, Utterance

log = logging.getLogger(__name__)

FRAME_S = 0.08  # the server counts usage in frames of this length, as for CSM
# Seconds of audio that the first, the second, and each later step of an utterance returns. Prefill computes all audio
# of the utterance. The second step is short because its audio is soon needed. Later steps are long, because a small
# number of steps leaves more CPU time for other requests.
FIRST_S, SECOND_S, NEXT_S = 0.4, 0.4, 1.0
WORDS_PER_MINUTE = 165
AUTO_ROWS = 32
# 400 characters give about 25 s of speech. Prefill synthesises the whole text at once. Other rows wait meanwhile, but
# not for long: the library needs only 10 to 20 ms for a sentence.
TEXT = TextPacking(max_chars=400, ipa=espeak_ipa.SYMBOLS)

# These constants come from speak_lib.h of eSpeak NG 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_PHONEMES_IPA = 2
_PHONEME_NAMES = 0x100
_END_PAUSE = 0x1000
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
# Audio in each call of the callback, in milliseconds. Each call waits for the GIL, so few calls save time while the
# event loop is busy. The audio of the variant klatt4 depends on this value.
_BUFFER_MS = 4_000
_MAX_DATA_PATH_BYTES = 150  # the library copies the path into 160 bytes without a check of its length

# Random parts of a voice: variations of the pitch, and noise. The library keeps the state of its random numbers from
# call to call, and no function resets this state. Without these parts, equal calls give equal audio.
_RANDOM_PARTS = {
    b"flutter": b"flutter 0",
    b"roughness": b"roughness 0",
    b"breath": b"breath 0 0 0 0 0 0 0 0",
    b"breathw": b"",
}
_folders: list[tempfile.TemporaryDirectory[str]] = []  # these temporary folders are removed when the process ends

_library_lock = threading.Lock()  # eSpeak NG has global state, so a process runs one synthesis at a time


@dataclass(frozen=True, slots=True)
class Timbre:
    """The eSpeak NG settings with which one voice of the server speaks."""

    accent: str  # identifier of an eSpeak NG voice
    variant: str  # name of a variant file
    pitch: int  # 0 to 99
    gain_db: float  # brings the voice to -20 LUFS


# These timbres were chosen from 210 pairs of accent and variant. A speech recogniser understood at least 23 of 25
# sentences of each timbre. The timbres differ in measured pitch (72 to 235 Hz) and brightness.
TIMBRES: dict[str, Timbre] = {
    "alloy": Timbre("gmw/en-US", "f2", 50, -1.1),
    "ash": Timbre("gmw/en-US", "edward", 60, -0.9),
    "ballad": Timbre("gmw/en-GB-x-rp", "edward", 60, -0.9),
    "cedar": Timbre("gmw/en-US", "mike2", 40, -2.2),
    "coral": Timbre("gmw/en-US", "f3", 50, -0.9),
    "echo": Timbre("gmw/en-US", "klatt4", 50, -1.1),
    "fable": Timbre("gmw/en-GB-x-rp", "Reed", 55, -1.6),
    "marin": Timbre("gmw/en-GB-x-rp", "f5", 60, 0.1),
    "nova": Timbre("gmw/en-US", "f2", 42, -0.7),
    "onyx": Timbre("gmw/en-US", "announcer", 55, 1.7),
    "sage": Timbre("gmw/en-GB-x-rp", "f2", 40, -1.1),
    "shimmer": Timbre("gmw/en-US", "f5", 62, 0.5),
    "verse": Timbre("gmw/en-US", "klatt4", 70, -1.8),
}
_DEFAULT_TIMBRE = TIMBRES["alloy"]


class _VoiceRecord(ctypes.Structure):
    """The struct espeak_VOICE of speak_lib.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # each entry: a priority byte, a tag, NUL; one more NUL ends the list
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


class _Event(ctypes.Structure):
    """The struct espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # counted in characters; the first character has the position 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),  # index of a sample, counted from the start of the synthesis
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_EVENT_LIST_END, _EVENT_WORD, _EVENT_CLAUSE_END = 0, 1, 5

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Library:
    """The loaded library libespeak-ng. Thread-safe.

    Raises EngineUnavailable if the extra is not installed, or if the library's data can't be read.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("espeakng_loader") is None:
            raise EngineUnavailable(
                "The offline voice (eSpeak NG) is not installed.",
                remedy="Install it with: pip install 'espeakng-loader==0.2.4'  (eSpeak NG is GPL-3.0-or-later)",
            )
        with _library_lock:
            self._dll, self.rate_hz = _initialized()
            self._parts: list[bytes] = []  # int16 samples of the current synthesis, one entry for each callback
            # For each word of the current synthesis: the index of its first sample, and the index of its first
            # character in the text. If the second index is None, the entry is the end of a clause.
            self._places: list[tuple[int, int | None]] = []
            # kept here, because otherwise Python would free it: the library has only a pointer to it
            self._callback = _Callback(self._receive)
            self.languages = self._list_languages()

    def _list_languages(self) -> dict[str, str]:
        """Return the voice identifier of each language tag (lower case).

        If several voices name a language, returns the voice with the lowest priority byte for this language.
        """
        records = self._dll.espeak_ListVoices(None)
        claims: list[tuple[int, str, str]] = []
        index = 0
        while records[index]:
            record = records[index].contents
            index += 1
            at = record.languages
            while priority := ctypes.string_at(at, 1)[0]:
                tag = ctypes.string_at(at + 1)
                claims.append((priority, tag.decode().lower(), record.identifier.decode()))
                at += 1 + len(tag) + 1
        claims.sort(key=lambda claim: claim[0])  # a stable sort: equal priorities keep the library's order
        return {tag: identifier for _, tag, identifier in reversed(claims)}

    def _receive(self, wave: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        """Add `count` samples to `_parts`, and words to `_places`. eSpeak NG calls this method during synthesis.

        Returns 0 to continue.
        """
        if wave and count > 0:
            self._parts.append(ctypes.string_at(wave, 2 * count))
        at = 0
        while events and (kind := events[at].kind) != _EVENT_LIST_END:
            if kind == _EVENT_WORD:
                self._places.append((events[at].sample, events[at].text_position - 1))
            elif kind == _EVENT_CLAUSE_END:
                self._places.append((events[at].sample, None))
            at += 1
        return 0

    def ipa(self, word: str, voice: str) -> str:
        """Return the pronunciation of a word in IPA. Raises EngineError for an unknown voice.

        voice: the identifier of the eSpeak NG voice whose rules are used.
        """
        text = ctypes.create_string_buffer(_no_brackets(word).encode("utf-8", "ignore").replace(b"\0", b""))
        at = ctypes.c_void_p(ctypes.addressof(text))
        with _library_lock:
            if self._dll.espeak_SetVoiceByName(voice.encode()) != 0:
                raise EngineError(f"eSpeak NG has no voice {voice!r}.")
            clauses = []
            while at.value:  # the library moves this pointer behind each clause, and sets it to NULL at the end
                spoken: bytes = self._dll.espeak_TextToPhonemes(ctypes.byref(at), _CHARS_UTF8, _PHONEMES_IPA)
                clauses.append(spoken.decode("utf-8"))
            # After several calls of this method, the next synthesis would have a longer pause before one of its words.
            # An empty synthesis prevents this.
            self._dll.espeak_SetSynthCallback(self._callback)
            self._dll.espeak_Synth(b"", 1, 0, 1, 0, _CHARS_UTF8, None, None)
        return " ".join(clauses).strip()

    def synthesize(self, text: str, voice: str, pitch: int, *, phonemes: bool = False) -> Samples:
        """Synthesise the whole text, and return samples (N,) float32 at `rate_hz`. Raises EngineError.

        See `synthesize_words`.
        """
        return self.synthesize_words(text, voice, pitch, phonemes=phonemes)[0]

    def synthesize_words(
        self, text: str, voice: str, pitch: int, *, phonemes: bool = False
    ) -> tuple[Samples, list[tuple[int, int | None]]]:
        """Synthesise the whole text. Returns samples (N,) float32 at `rate_hz`, and the places of the words.

        A place is a pair: the index of the word's first sample, and the index of the word's first character in the
        text. The library reads some words together, such as "of the". Then only the first of these words has a place.
        If the second value of a place is None, the place is the end of a clause, after the pause of the clause. Raises
        EngineError.

        voice: "identifier" or "identifier+variant". pitch: 0 to 99. phonemes: read `[[...]]` as phoneme names.
        """
        flags = _CHARS_UTF8 | _END_PAUSE | (_PHONEME_NAMES if phonemes else 0)
        data = text.encode("utf-8", "ignore").replace(b"\0", b"")
        with _library_lock:
            self._dll.espeak_SetSynthCallback(self._callback)  # another Library object may have set another callback
            if self._dll.espeak_SetVoiceByName(voice.encode()) != 0:
                raise EngineError(f"eSpeak NG has no voice {voice!r}.")
            self._dll.espeak_SetParameter(_PARAMETER_RATE, WORDS_PER_MINUTE, 0)
            self._dll.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
            self._parts, self._places = [], []
            status = self._dll.espeak_Synth(data, len(data) + 1, 0, 1, 0, flags, None, None)
            if status != 0:
                raise EngineError(f"eSpeak NG failed with status {status}.")
            parts, self._parts = self._parts, []
            places, self._places = self._places, []
        return pcm.from_bytes(b"".join(parts)), places


@functools.cache
def _initialized() -> tuple[ctypes.CDLL, int]:
    """Load the library and initialise it. Returns the library and its sample rate in Hz. Raises EngineUnavailable.

    The library has only one state in a process. If this state were initialised again, the pauses in the next synthesis
    could become longer or shorter.
    """
    import espeakng_loader  # noqa: PLC0415 - an optional extra

    dll = ctypes.CDLL(espeakng_loader.get_library_path())
    dll.espeak_TextToPhonemes.restype = ctypes.c_char_p
    dll.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceRecord))
    data = _prepared(Path(espeakng_loader.get_data_path()))
    rate_hz = dll.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, _BUFFER_MS, os.fsencode(data), _INITIALIZE_DONT_EXIT)
    if rate_hz <= 0:
        raise EngineUnavailable(f"eSpeak NG could not read its data in {data}.", remedy="Reinstall espeakng-loader.")
    return dll, rate_hz


@functools.cache
def _prepared(data: Path) -> Path:
    """Return a copy of the folder `data` in which the voice variants have no random parts.

    The copy is temporary. It contains links to the files in `data`, but the variants are new files. All Library objects
    of a process share the copy, because the library has only one data path. If no copy can be created, returns `data`,
    and speech differs a little from call to call. Raises EngineUnavailable if the path of `data` is too long for the
    library.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="espeak-")
        copy = Path(folder.name) / "espeak-ng-data"
        _check_length(copy)
        _copy_with_steady_variants(data, copy)
        # systemd-tmpfiles removes old files in /tmp, but not in a locked folder.
        fcntl.flock(os.open(folder.name, os.O_RDONLY), fcntl.LOCK_SH)
    except (OSError, EngineUnavailable) as error:
        _check_length(data)
        log.warning("eSpeak NG has no temporary folder, so equal requests give slightly different speech: %s", error)
        return data
    _folders.append(folder)
    return copy


def _check_length(data: Path) -> None:
    """Check that the library can use this path for its data. Raises EngineUnavailable."""
    if len(os.fsencode(data)) > _MAX_DATA_PATH_BYTES:
        raise EngineUnavailable(
            f"The path of eSpeak NG's data is too long: {data}.", remedy="Set TMPDIR to a shorter path."
        )


def _copy_with_steady_variants(data: Path, copy: Path) -> None:
    """Create the folder `copy`: links to the files in `data`, and variants without random parts. Raises OSError."""
    variants = copy / "voices" / "!v"
    variants.mkdir(parents=True)
    for source, target in ((data, copy), (data / "voices", copy / "voices")):
        for entry in source.iterdir():
            if entry.name not in ("voices", "!v"):
                (target / entry.name).symlink_to(entry.resolve())
    for name in {timbre.variant for timbre in TIMBRES.values()}:
        lines = (data / "voices" / "!v" / name).read_bytes().splitlines()
        kept = [line for line in lines if not line.split() or line.split()[0] not in _RANDOM_PARTS]
        (variants / name).write_bytes(b"\n".join([*kept, *_RANDOM_PARTS.values(), b""]))


def resolve_language(tag: str, languages: dict[str, str]) -> str:
    """Return eSpeak NG's voice identifier for a BCP 47 language tag.

    Tries the whole tag, then shorter prefixes of the tag, then any voice of the same language. languages: language tag
    -> voice identifier. Raises UnsupportedParameter if no voice speaks the language.
    """
    tag_lower = tag.lower().replace("_", "-")
    tag_lower = {"zh-hk": "yue", "en-gb": "en-gb-x-rp"}.get(tag_lower, tag_lower)
    parts = tag_lower.split("-")
    for length in range(len(parts), 0, -1):
        if found := languages.get("-".join(parts[:length])):
            return found
    for known, identifier in languages.items():
        if known.split("-")[0] == parts[0]:
            return identifier
    raise UnsupportedParameter(
        f"The offline voice does not speak the language {tag!r}. It speaks: {', '.join(sorted(languages))}.",
        param="language",
    )


def _with_phonemes(line: SpokenLine) -> tuple[str, list[int]]:
    """Return the text of a line with phoneme names in place of the words that have a pronunciation in IPA.

    Also returns, for each character of the result, the index of the character in `line.text` from which it comes.
    """
    parts: list[str] = []
    places: list[int] = []
    done = 0

    def add_plain(end: int) -> None:
        for at in range(done, end):
            at_brackets = line.text[at] == "[" == line.text[at + 1 : at + 2]
            parts.append("[ " if at_brackets else line.text[at])  # `_no_brackets` explains this space
            places.extend([at] * len(parts[-1]))

    for start, end, ipa in line.ipa:
        phonemes = espeak_ipa.to_phonemes(ipa)
        if phonemes is not None:
            add_plain(start)
            parts.append(f"[[{phonemes}]]")
            places += [start] * len(parts[-1])
            done = end
    add_plain(len(line.text))
    return "".join(parts), places


def _no_brackets(text: str) -> str:
    """Return the text with a space in each `[[`, because the library reads the text after `[[` as phoneme names."""
    return text.replace("[[", "[ [")


class EspeakRunner:
    """eSpeak NG as a Runner: `prefill` synthesises the whole utterance, and each step returns its next part."""

    def __init__(self, library: Library, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rate_hz = library.rate_hz
        self._library = library
        self._utterances: dict[int, Utterance] = {}
        self._parts: dict[int, deque[Samples]] = {}  # the audio that each row has not returned yet: one part per step
        self._marks: dict[int, list[WordMark]] = {}  # the places of words that each row has not returned yet

    def admit(self, row: int, utterance: Utterance) -> None:
        self._utterances[row] = utterance

    def prefill(self, row: int) -> bool:
        utterance = self._utterances[row]
        lines = []
        marks = self._marks[row] = []
        sample = 0
        for number, line in enumerate(utterance.lines):
            spoken, places = self._synthesize(line, utterance.language)
            lines.append(spoken)
            marks += [WordMark(sample + place, number, char) for place, char in places]
            sample += len(spoken)
        samples = np.concatenate(lines)[: int(utterance.max_seconds * self.rate_hz)]
        first, second = round(FIRST_S * self.rate_hz), round((FIRST_S + SECOND_S) * self.rate_hz)
        cuts = [first, *range(second, len(samples), round(NEXT_S * self.rate_hz))]
        self._parts[row] = deque(np.split(samples, [cut for cut in cuts if cut < len(samples)]))
        return True

    def _synthesize(self, line: SpokenLine, language: str | None) -> tuple[Samples, list[tuple[int, int | None]]]:
        """Speak one line. Returns its samples and the places of its words. See `Library.synthesize_words`."""
        timbre = TIMBRES.get(line.voice.id, _DEFAULT_TIMBRE)
        tag = language or guess_language(line.text) or line.language
        base = timbre.accent
        text, origins = line.text, None
        if tag is not None and tag.lower() not in ("en", base.removeprefix("gmw/").lower()):
            base = resolve_language(tag, self._library.languages)
        elif line.ipa:  # `_with_phonemes` writes phoneme names of the English voices
            text, origins = _with_phonemes(line)
        voice = f"{base}+{timbre.variant}"
        samples, places = self._library.synthesize_words(text, voice, timbre.pitch, phonemes=text is not line.text)
        if origins is not None:
            places = [
                (sample, None if char is None else origins[min(char, len(origins) - 1)]) for sample, char in places
            ]
        return Gain(timbre.gain_db).push(samples), places

    def step(self, rows: Sequence[int]) -> StepResult:
        ended = np.array([not self._parts[row] for row in rows])
        marks = {row: self._marks.pop(row) for row in rows if row in self._marks}
        return StepResult(np.zeros((len(rows), 0), np.int16), ended, marks=marks)

    def decode(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        return [self._parts[row].popleft() for row in rows]

    def drain(self, row: int) -> Samples:
        return np.zeros(0, np.float32)  # `decode` has returned all samples

    def release(self, row: int) -> None:
        self._utterances.pop(row, None)
        self._parts.pop(row, None)
        self._marks.pop(row, None)


def build(settings: Settings, _: BuildContext) -> BatchedEngine:
    """Build the engine of the offline voice. Raises EngineUnavailable."""
    library = Library()
    info = EngineInfo(
        id="espeak",
        name="eSpeak NG",
        rate_hz=library.rate_hz,
        frame_s=FRAME_S,
        capabilities=Capabilities(language=True),
        languages=tuple(sorted(library.languages)),
        trained=False,
        fingerprint=f"espeak-ng-1.52 steady {_BUFFER_MS} {WORDS_PER_MINUTE} {sorted(TIMBRES.items())}",
        text=TEXT,
    )
    runner = EspeakRunner(library, settings.rows(AUTO_ROWS))
    return BatchedEngine(info, runner, max_queue=settings.max_queue, audio_queue_s=settings.audio_queue_s)
