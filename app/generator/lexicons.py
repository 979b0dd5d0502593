"""The pronunciation dictionaries of the server and of each voice. They are files that people can edit. When a file has
changed, it is read again.

The server's dictionary is `TTS_DATA_DIR/lexicons/lexicon.tsv`. The dictionaries of preset voices are in the same
folder. The dictionary of a cloned voice is in the folder of the voice, so an export of the voice contains the
dictionary, and a deletion removes it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.durable_file import lock_file, replace_file
from app.errors import InvalidValue, NotFound, NotStored
from app.text.lexicon_file import LexiconFile, format_lexicon, parse_lexicon
from app.text.pronunciations import MAX_ENTRIES, WordList, check_distinct, folded, key_of
from app.voices.voice_file import LEXICON_FILE

if TYPE_CHECKING:
    from app.types import LexiconEntry
    from app.voices.store import VoiceStore

log = logging.getLogger(__name__)

FOLDER = "lexicons"  # in the data folder
CHECK_FILES_S = 1.0  # seconds between two checks of a file; until then, a change on disk has no effect
MAX_FILE_BYTES = 32 << 20
_Signature = tuple[int, int, int]
_Change = Callable[[tuple["LexiconEntry", ...]], Sequence["LexiconEntry"]]
# A function that is called with a dictionary before it is changed. It raises an error to prevent the change.
_Check = Callable[[LexiconFile], None]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The content of a dictionary file when it was last read."""

    signature: _Signature | None  # None = the file does not exist
    checked_s: float
    content: LexiconFile
    words: WordList


class LexiconStore:
    """All pronunciation dictionaries of this server. Thread-safe. All methods except `needs_check` can block."""

    def __init__(self, data_dir: Path, voices: VoiceStore) -> None:
        """Read the server's dictionary. If the file can't be read, no error is raised, and the log has the reason."""
        self._folder = data_dir / FOLDER
        self._voices = voices
        self._lock = threading.RLock()
        # dictionaries by voice id; the key None is the dictionary of the server
        self._loaded: dict[str | None, _Loaded] = {}
        self._logged: dict[Path, object] = {}  # the last problem of each file
        self._look(None)

    def path(self, voice: str | None = None) -> Path:
        """Return the path of the dictionary of a voice. voice: None = the dictionary of the server."""
        if voice is None:
            return self._folder / LEXICON_FILE
        folder = self._voices.folder_of(voice)
        return self._folder / f"{voice}.tsv" if folder is None else folder / LEXICON_FILE

    def needs_check(self, voices: Sequence[str]) -> bool:
        """Return whether `lists` would block for one of these voices, because it must check a file on disk."""
        now_s = time.monotonic()
        return any(
            (found := self._loaded.get(name)) is None or now_s - found.checked_s > CHECK_FILES_S
            for name in (None, *voices)
        )

    def lists(self, voice: str) -> tuple[WordList, WordList]:
        """Return the dictionaries that apply to a voice: its own, and the server's."""
        return self._look(voice).words, self._look(None).words

    def content(self, voice: str | None = None) -> LexiconFile:
        """Read a dictionary from its file."""
        return self._look(voice, now=True).content

    def replace(
        self, entries: Sequence[LexiconEntry], voice: str | None = None, *, check: _Check | None = None
    ) -> LexiconFile:
        """Replace all entries of a dictionary. Raises InvalidValue, NotFound, NotStored, and the errors of `check`."""
        return self.change(lambda _: entries, voice, check=check)

    def remove(
        self, word: str, voice: str | None = None, *, check: _Check | None = None
    ) -> tuple[tuple[LexiconEntry, ...], LexiconFile]:
        """Remove the entries with this word. Returns the removed entries and the changed dictionary.

        If no entry has exactly this spelling, the entry with the same letters in another case is removed. Raises
        NotFound, NotStored, and the errors of `check`.
        """
        removed: list[LexiconEntry] = []

        def without(entries: tuple[LexiconEntry, ...]) -> Sequence[LexiconEntry]:
            wanted = " ".join(word.split())
            removed[:] = matching_entries(wanted, entries)
            if not removed:
                raise NotFound(f"The dictionary has no entry for {word[:80]!r}.", param="word")
            return [entry for entry in entries if entry not in removed]

        content = self.change(without, voice, check=check)
        return tuple(removed), content

    def change(self, change: _Change, voice: str | None = None, *, check: _Check | None = None) -> LexiconFile:
        """Change the entries of a dictionary, and store them atomically. Other changes wait meanwhile.

        change: gets the entries and returns the new ones. Raises InvalidValue, NotFound, NotStored, and the errors of
        `check`.
        """
        with self._lock, self._exclusively():
            before = self._look(voice, now=True).content
            if check is not None:
                check(before)
            entries = change(before.entries)
            if len(entries) > MAX_ENTRIES:
                raise InvalidValue(
                    f"`entries` has {len(entries)} entries; a dictionary has at most {MAX_ENTRIES}.", param="entries"
                )
            try:
                check_distinct(entries)
            except InvalidValue as error:
                error.param = f"entries.{error.param}"
                raise
            self._write(self.path(voice), format_lexicon(entries, before))
            return self._look(voice, now=True).content

    def _look(self, voice: str | None, *, now: bool = False) -> _Loaded:
        """Return a dictionary. If its file has changed, the file is read again.

        now: True = check the file, even if the last check was less than CHECK_FILES_S ago.
        """
        found = self._loaded.get(voice)
        now_s = time.monotonic()
        if found is not None and not now and now_s - found.checked_s <= CHECK_FILES_S:
            return found
        with self._lock:
            path = self.path(voice)
            try:
                signature = _signature(path)
                if found is not None and signature == found.signature:
                    loaded = _Loaded(signature, now_s, found.content, found.words)
                else:
                    loaded = self._read(path, signature, now_s)
            except OSError as error:
                self._log(path, f"The dictionary {path} can't be read, so its earlier entries stay: {error}")
                kept = found or _Loaded(None, now_s, LexiconFile(), WordList())
                loaded = _Loaded(kept.signature, now_s, kept.content, kept.words)
            self._loaded[voice] = loaded
            return loaded

    def _read(self, path: Path, signature: _Signature | None, now_s: float) -> _Loaded:
        if signature is None:
            return _Loaded(None, now_s, LexiconFile(), WordList())
        with path.open("rb") as file:
            content = parse_lexicon(file.read(MAX_FILE_BYTES))
        if content.problems:
            shown = "; ".join(content.problems[:5]) + ("; ..." if len(content.problems) > 5 else "")
            self._log(path, f"{len(content.problems)} lines of {path} can't be read and have no effect: {shown}")
        elif content.entries:
            log.info("read %d pronunciations from %s", len(content.entries), path)
        return _Loaded(signature, now_s, content, WordList(content.entries))

    def _log(self, path: Path, message: str) -> None:
        """Log a problem of a file, but not the same problem twice in a row."""
        if self._logged.get(path) != message:
            self._logged[path] = message
            log.warning("%s", message)

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Hold the lock of all dictionaries, so that two processes do not overwrite each other's changes."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = lock_file(self._folder / ".lock")
        except OSError as error:
            raise _not_stored(error) from error
        with file:
            yield

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        """Replace a file atomically. Only its owner can read it. Raises NotStored."""
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            # A fixed temporary name is enough, because the lock allows only one writer.
            replace_file(path, data, temporary=path.with_name(f".{path.name}.new"))
        except OSError as error:
            raise _not_stored(error) from error


def with_entry(entries: Sequence[LexiconEntry], entry: LexiconEntry) -> list[LexiconEntry]:
    """Return the entries and one new entry. If an old entry has the same word, the new entry replaces it."""
    return [*(each for each in entries if key_of(each) != key_of(entry)), entry]


def matching_entries(word: str, entries: Sequence[LexiconEntry]) -> list[LexiconEntry]:
    """Return the entries with exactly this word; if there are none, the entries with this word in another case."""
    exact = [entry for entry in entries if entry.word == word]
    return exact or [entry for entry in entries if not entry.case_sensitive and key_of(entry)[1] == folded(word)]


def _signature(path: Path) -> _Signature | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _not_stored(error: OSError) -> NotStored:
    return NotStored(f"The dictionary could not be stored on this server's disk: {error.strerror or error}.")
