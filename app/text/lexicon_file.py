"""The file format of a pronunciation dictionary: one entry per line, with tabs between the columns.

    # A comment.
    SQL<TAB>sequel
    US<TAB>you ess<TAB>case
    Nguyen<TAB>win<TAB>ipa=ˈnwɪn

The third column has flags, with spaces between them: `case` for a case-sensitive entry, and `ipa=` with a pronunciation
in IPA up to the end of the line. With the flag `ipa` the second column is the pronunciation in IPA. A word that begins
with `#` or `\\` has a `\\` before it. A line that can't be read is left out, and the other lines are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.errors import InvalidValue
from app.text.pronunciations import MAX_ENTRIES, check_entry, key_of
from app.types import LexiconEntry

_LINE_END = re.compile(rb"\r\n|\n|\r")
_NOT_READ = "# not read: "


@dataclass(frozen=True, slots=True)
class LexiconFile:
    """The content of a dictionary file."""

    entries: tuple[LexiconEntry, ...] = ()
    problems: tuple[str, ...] = ()  # a sentence for each line that can't be read, with the number of the line
    broken: tuple[str, ...] = ()  # the lines that can't be read
    comments: tuple[str, ...] = ()  # the comment lines before the first entry


def parse_lexicon(data: bytes) -> LexiconFile:
    """Read the content of a dictionary file. Never raises. If two lines have the same word, the later line is used."""
    entries: dict[tuple[bool, str], LexiconEntry] = {}
    problems: list[str] = []
    broken: list[str] = []
    comments: list[str] = []
    for number, raw in enumerate(_LINE_END.split(data.removeprefix(b"\xef\xbb\xbf")), 1):
        line = raw.decode("utf-8", "replace")
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            if not entries:
                comments.append(line)
            continue
        try:
            raw.decode("utf-8")
            entry = _entry(line)
        except UnicodeDecodeError:
            problems.append(f"line {number}: The line is not encoded in UTF-8.")
            broken.append(line)
        except InvalidValue as error:
            problems.append(f"line {number}: {error.message}")
            broken.append(line)
        else:
            if len(entries) < MAX_ENTRIES or key_of(entry) in entries:
                entries[key_of(entry)] = entry
            else:
                problems.append(f"line {number}: A dictionary has at most {MAX_ENTRIES} entries.")
                broken.append(line)
    return LexiconFile(tuple(entries.values()), tuple(problems), tuple(broken), tuple(comments))


def _entry(line: str) -> LexiconEntry:
    """Return the entry of one line. Raises InvalidValue if the line is not a valid entry."""
    word, tab, rest = line.strip("\n").partition("\t")
    if not tab:
        raise InvalidValue("The line has no tab. Write the word, a tab, and how the word is spoken.")
    say, _, flags = rest.partition("\t")
    ipa, case_sensitive = "", False
    before, names_ipa, value = f" {flags}".partition(" ipa=")
    if names_ipa:
        ipa = value
    for flag in before.split():
        if flag == "case":
            case_sensitive = True
        elif flag == "ipa" and not names_ipa:
            ipa, say = say, ""
        else:
            raise InvalidValue(f"{flag[:40]!r} is not a flag. Use `case`, `ipa` or `ipa=...`.")
    word = word.lstrip()
    return check_entry(word.removeprefix("\\"), say, case_sensitive=case_sensitive, ipa=ipa)


def format_lexicon(entries: Iterable[LexiconEntry], before: LexiconFile | None = None) -> bytes:
    """Return the content of a dictionary file with these entries.

    before: the old content. Comments at the start of the old content are kept, and lines that can't be read become
    comments, so that nothing that a person wrote is lost.
    """
    lines = list(before.comments if before else ())
    lines += [_NOT_READ + line for line in (before.broken if before else ())]
    for entry in entries:
        flags = ["case"] if entry.case_sensitive else []
        if entry.ipa and entry.say:
            flags.append(f"ipa={entry.ipa}")
        elif entry.ipa:
            flags.append("ipa")
        word = f"\\{entry.word}" if entry.word[0] in "#\\" else entry.word
        lines.append("\t".join([word, entry.say or entry.ipa or "", *([" ".join(flags)] if flags else [])]))
    return "".join(f"{line}\n" for line in lines).encode()
