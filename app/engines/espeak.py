"""The offline voice: eSpeak NG, in this process, through ctypes on the library that the `espeak` extra brings.

It needs no weights, no GPU and no network, and starts in milliseconds. It is a Runner like any model, so that queueing,
pausing and cancelling are the same code; its frames carry no codes. Knows no HTTP and no voice store.

eSpeak NG is GPL-3.0-or-later, which is why it is an optional extra.
"""

from __future__ import annotations

import ctypes
import importlib.util
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
from app.engines.batched import BatchedEngine
from app.errors import EngineError, EngineUnavailable, UnsupportedParameter
from app.runtime.runner import StepResult
from app.text.writing_systems import script_language
from app.types import Capabilities, EngineInfo, TextPacking

if TYPE_CHECKING:
    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Codes, Samples, Utterance

FRAME_S = 0.08  # as long as a Mimi frame: what usage is counted in
# What the first step of an utterance hands out, and each next one: the sound is there already, and a step costs Python
# time that the event loop wants for other callers' first sounds.
FIRST_S, NEXT_S = 0.16, 1.0
WORDS_PER_MINUTE = 165
AUTO_ROWS = 32
MAX_TEXT_CHARS = 400  # about 25 s of speech: one sentence is synthesised in one go, in 10-20 ms

# From speak_lib.h of eSpeak NG 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_END_PAUSE = 0x1000
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_BUFFER_MS = 200  # of sound in one callback, each of which costs Python time
_MAX_DATA_PATH_BYTES = 150  # the library's own buffer holds 160 and overruns silently

_library_lock = threading.Lock()  # eSpeak NG keeps its state in globals: one synthesis at a time in a process


@dataclass(frozen=True, slots=True)
class Timbre:
    """How eSpeak NG tells one name from another: accent, variant file, pitch 0-99, gain to a common loudness."""

    accent: str
    variant: str
    pitch: int
    gain_db: float


# Chosen from 210 accent/variant pairs by how well a recogniser told 25 sentences apart (23-25 of 25 for all of these)
# and by distance in measured pitch (72-235 Hz) and brightness. Gains bring each to -20 LUFS.
TIMBRES: dict[str, Timbre] = {
    "alloy": Timbre("gmw/en-US", "f2", 50, -0.7),
    "ash": Timbre("gmw/en-US", "edward", 60, -0.9),
    "ballad": Timbre("gmw/en-GB-x-rp", "edward", 60, -0.8),
    "cedar": Timbre("gmw/en-US", "mike2", 40, -2.1),
    "coral": Timbre("gmw/en-US", "f3", 58, 0.1),
    "echo": Timbre("gmw/en-US", "klatt4", 50, -1.1),
    "fable": Timbre("gmw/en-GB-x-rp", "Reed", 55, -1.6),
    "marin": Timbre("gmw/en-GB-x-rp", "f5", 60, 0.0),
    "nova": Timbre("gmw/en-US", "f2", 42, -0.3),
    "onyx": Timbre("gmw/en-US", "announcer", 55, 1.7),
    "sage": Timbre("gmw/en-GB-x-rp", "f2", 40, -0.8),
    "shimmer": Timbre("gmw/en-US", "f5", 62, 0.4),
    "verse": Timbre("gmw/en-US", "klatt4", 70, -1.9),
}
_DEFAULT_TIMBRE = TIMBRES["alloy"]


class _VoiceRecord(ctypes.Structure):
    """espeak_VOICE of speak_lib.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # a priority byte, then the tag, NUL; more of the same; NUL
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Library:
    """libespeak-ng. Thread-safe. Raises EngineUnavailable where the extra is missing or the data can't be read."""

    def __init__(self) -> None:
        if importlib.util.find_spec("espeakng_loader") is None:
            raise EngineUnavailable(
                "The offline voice (eSpeak NG) is not installed.",
                remedy="Install it with: pip install 'espeakng-loader==0.2.4'  (eSpeak NG is GPL-3.0-or-later)",
            )
        import espeakng_loader  # noqa: PLC0415 - an optional extra

        self._shortcut: tempfile.TemporaryDirectory[str] | None = None
        with _library_lock:
            self._dll = ctypes.CDLL(espeakng_loader.get_library_path())
            self._dll.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceRecord))
            data = self._short(Path(espeakng_loader.get_data_path()))
            self.rate_hz: int = self._dll.espeak_Initialize(
                _AUDIO_OUTPUT_SYNCHRONOUS, _BUFFER_MS, os.fsencode(data), _INITIALIZE_DONT_EXIT
            )
            if self.rate_hz <= 0:
                raise EngineUnavailable(
                    f"eSpeak NG could not read its data in {data}.", remedy="Reinstall espeakng-loader."
                )
            self._parts: list[bytes] = []  # of the present synthesis, int16 as they came
            self._callback = _Callback(self._receive)  # kept: the library holds only a bare pointer
            self.languages = self._list_languages()

    def _short(self, data: Path) -> Path:
        if len(os.fsencode(data)) <= _MAX_DATA_PATH_BYTES:
            return data
        self._shortcut = tempfile.TemporaryDirectory(prefix="espeak-")
        link = Path(self._shortcut.name) / "espeak-ng-data"
        if len(os.fsencode(link)) > _MAX_DATA_PATH_BYTES:
            raise EngineUnavailable(
                f"The path of eSpeak NG's data is too long for it: {data}.", remedy="Set TMPDIR to a shorter path."
            )
        link.symlink_to(data)
        return link

    def _list_languages(self) -> dict[str, str]:
        """Language tag (lower case) -> the identifier of the voice that claims it most: its lowest priority byte."""
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
        claims.sort(key=lambda claim: claim[0])  # stable: among equals the library's own order
        return {tag: identifier for _, tag, identifier in reversed(claims)}

    def _receive(self, wave: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if wave and count > 0:
            self._parts.append(ctypes.string_at(wave, 2 * count))
        return 0

    def synthesize(self, text: str, voice: str, pitch: int) -> Samples:
        """The whole text as samples (N,) float32 at `rate_hz`. `voice` = identifier, or identifier+variant."""
        data = text.encode("utf-8", "ignore").replace(b"\0", b"")
        with _library_lock:
            self._dll.espeak_SetSynthCallback(self._callback)  # the process may hold a second Library
            if self._dll.espeak_SetVoiceByName(voice.encode()) != 0:
                raise EngineError(f"eSpeak NG has no voice {voice!r}.")
            self._dll.espeak_SetParameter(_PARAMETER_RATE, WORDS_PER_MINUTE, 0)
            self._dll.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
            self._parts = []
            status = self._dll.espeak_Synth(data, len(data) + 1, 0, 1, 0, _CHARS_UTF8 | _END_PAUSE, None, None)
            if status != 0:
                raise EngineError(f"eSpeak NG failed with status {status}.")
            parts, self._parts = self._parts, []
        return pcm.from_bytes(b"".join(parts))


def resolve_language(tag: str, languages: dict[str, str]) -> str:
    """The library's identifier for a BCP 47 tag: exact, then ever shorter, then any of the same language.

    Raises UnsupportedParameter.
    """
    wanted = tag.lower().replace("_", "-")
    wanted = {"zh-hk": "yue", "en-gb": "en-gb-x-rp"}.get(wanted, wanted)
    parts = wanted.split("-")
    for length in range(len(parts), 0, -1):
        if found := languages.get("-".join(parts[:length])):
            return found
    for known, identifier in languages.items():
        if known.split("-")[0] == parts[0]:
            return identifier
    raise UnsupportedParameter(
        f"The offline voice does not know the language {tag!r}. Known are: {', '.join(sorted(languages))}.",
        param="language",
    )


class EspeakRunner:
    """eSpeak NG in rows: prefill synthesises a sentence, each step hands out its next stretch of sound."""

    def __init__(self, library: Library, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rate_hz = library.rate_hz
        self._library = library
        self._utterances: dict[int, Utterance] = {}
        self._unsaid: dict[int, deque[Samples]] = {}  # what each speaking row has still to say, a part for each step

    def admit(self, row: int, utterance: Utterance) -> None:
        self._utterances[row] = utterance

    def prefill(self, row: int) -> bool:
        utterance = self._utterances[row]
        said = [self._say(line.text, line.voice.id, utterance.language) for line in utterance.lines]
        sound = np.concatenate(said)[: int(utterance.max_seconds * self.rate_hz)]
        first, each = round(FIRST_S * self.rate_hz), round(NEXT_S * self.rate_hz)
        self._unsaid[row] = deque(np.split(sound, range(first, len(sound), each)))
        return True

    def _say(self, text: str, voice_id: str, language: str | None) -> Samples:
        timbre = TIMBRES.get(voice_id, _DEFAULT_TIMBRE)
        tag = language or script_language(text)
        base = timbre.accent
        if tag is not None and tag.lower() not in ("en", base.removeprefix("gmw/").lower()):
            base = resolve_language(tag, self._library.languages)
        samples = self._library.synthesize(text, f"{base}+{timbre.variant}", timbre.pitch)
        return Gain(timbre.gain_db).push(samples)

    def step(self, rows: Sequence[int]) -> StepResult:
        ended = np.array([not self._unsaid[row] for row in rows])
        return StepResult(np.zeros((len(rows), 0), np.int16), ended)

    def decode(self, rows: Sequence[int], codes: Codes) -> list[Samples]:
        return [self._unsaid[row].popleft() for row in rows]

    def drain(self, row: int) -> Samples:
        return np.zeros(0, np.float32)  # a row's last frame has brought it

    def release(self, row: int) -> None:
        self._utterances.pop(row, None)
        self._unsaid.pop(row, None)


def build(settings: Settings, _: BuildContext) -> BatchedEngine:
    """The offline voice as an engine. Raises EngineUnavailable."""
    library = Library()
    info = EngineInfo(
        id="espeak",
        name="eSpeak NG",
        rate_hz=library.rate_hz,
        frame_s=FRAME_S,
        capabilities=Capabilities(language=True),
        languages=tuple(sorted(library.languages)),
        fingerprint=f"espeak-ng-1.52 {WORDS_PER_MINUTE} {sorted(TIMBRES.items())}",
        text=TextPacking(max_chars=MAX_TEXT_CHARS),
    )
    runner = EspeakRunner(library, settings.rows(AUTO_ROWS))
    return BatchedEngine(info, runner, max_queue=settings.max_queue, audio_queue_s=settings.audio_queue_s)
