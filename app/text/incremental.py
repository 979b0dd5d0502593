"""Cut a text that arrives in parts, for example from a language model, into pieces that can be spoken.

A piece is a sentence, a line of a list, a heading or a block of code. Markdown, HTML and numbers have their meaning
only in a whole piece, so callers must normalise whole pieces. The pieces depend only on the text, and not on the parts
in which it arrives. A piece is returned as soon as its end is certain.

The end of a sentence is certain only when white space and one visible character have arrived after its punctuation,
because "3." can become "3.5". After an abbreviation ("Acme Inc. The"), the next word decides whether the sentence ends.
A sentence never ends inside a quotation, a link, a tag, code or a formula.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from app.text.machine_text import REASONING_NAME

# The listener waits in silence for the first piece. So it may end at a clause that has 30 characters or 6 words, or at
# the end of a word after 60 characters.
CLAUSE_CHARS, CLAUSE_WORDS, WORD_END_CHARS = 30, 6, 60
MAX_PIECE_CHARS = 400  # a piece with more characters than this is cut after a word
_BLOCK_CHARS = 4_096
_MAX_QUOTE_CHARS = 250  # if a quotation is longer than this, its opening mark is ignored
_MAX_RUN = 16  # the longest run of punctuation or of one mark that is treated as a unit
_MAX_SPACE = 200  # if more white space than this follows the punctuation, the sentence has ended, whatever comes next
_MAX_MARK_CHARS = 600  # if a link or tag is longer than this, its opening bracket is an ordinary character

_ENDS = ".!?…"
_CJK_ENDS = "。！？"
_CLOSING = "\"'”’»)]}*_~`」』）】"
_OPENING = "\"'“‘«([{*_~`「『（【¿¡"
_CLAUSE_ENDS = ",;:–—"
_CJK_CLAUSE_ENDS = "，、；："

_TITLES = frozenset(
    "mr mrs ms dr prof st rev gen sen rep gov capt cpt lt col sgt hon mme mlle mag ing dipl fr hr frau herr sra sr jr "
    "vs cf viz bzw bspw ggf inkl evtl usw".split()
)
_BEFORE_NUMBERS = frozenset("no nos nr fig figs sec eq eqs ch chap vol p pp approx ca c art para abs tab ver v".split())
_MONTHS = frozenset(
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun".split()
)
_EITHER = frozenset("inc ltd co corp llc plc etc al ave rd blvd sq bros dept est govt univ assn gmbh".split())
_DAY_PREPOSITIONS = frozenset(
    "am vom zum der den dem des im bis ab seit und den le il el".split()
)  # words before the number of a day, such as "am" in "am 3. Oktober"
_STARTERS = frozenset(
    (
        "a an the he she it they we i you this that these those there here in on at by for from with when "
        "while if as but and or so then now what who why how where is are was were do does did can could will "
        "would should may my your his her its our their no not yes please let after before since because "
        "although however also first second finally both all some most many each every one two der die das er "
        "sie es wir ihr ich ein eine il elle ils elles nous vous je le la les un une el los las ella "
    ).split()
)
_NOT_AFTER_HOURS = frozenset(
    (
        "est pst cst mst edt pdt cdt mdt et pt gmt utc bst cet cest monday tuesday wednesday thursday friday "
        "saturday sunday "
    ).split()
)

# initials and abbreviations without their last full stop: "J", "U.S", "a.m"
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_HOURS = re.compile(r"[ap]\.?m", re.IGNORECASE)
_LABEL = re.compile(r"\s*[(\[]?(?:[0-9]{1,3}|[A-Za-z]|[ivxIVX]{1,5})")
_LINE_OF_ITS_OWN = re.compile(r"[ \t]{0,40}(?:#{1,6}\s|(?:[-*+•–]|\(?[0-9]{1,3}[.)])[ \t]{1,40}\S|\|)")
_MAY_BE_MARKED = re.compile(r"[ \t]{0,40}(?:#{0,6}|[-*+•–][ \t]{0,40}|\(?[0-9]{0,3}[.)]?[ \t]{0,40}|`{0,2}|~{0,2})")
_FENCE = re.compile(r"[ \t]{0,40}(`{3,}|~{3,})")
_NEXT_STOP = re.compile("[" + re.escape(_ENDS + _CJK_ENDS + _CLAUSE_ENDS + _CJK_CLAUSE_ENDS + '"“”«»`<[$\\') + r"\s]")
_TAG = re.compile(r"</?[A-Za-z!]|<\|")
_OPEN_REASONING = re.compile(rf"<({REASONING_NAME})>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the caller's text that can be normalised and spoken. A piece does not begin or end with white space."""

    text: str
    start_char: int  # index of the first character of `text` in the whole text that was appended
    end_char: int  # exclusive


class _Answer(Enum):
    YES = 1
    NO = 2
    UNKNOWN = 3  # more text must arrive before the answer is known


class IncrementalSplitter:
    """Collects a text and returns its pieces as soon as they are complete. Use it in one task at a time.

    The time grows linearly with the length of the text.
    """

    def __init__(self, *, eager: bool = True, clauses: bool = False) -> None:
        """eager: whether the first piece may end at a clause, so that the speech starts earlier. clauses: whether every
        piece may end at a clause.
        """
        self._eager = eager
        self._clauses = clauses
        self._text = ""  # the text that has not been returned as a piece yet
        self._offset = 0  # index at which `_text` begins in the whole text
        self._at = 0  # no piece ends before this index of `_text`
        self._line = 0  # index of the start of the line that contains _at
        self._quote: int | None = None  # index of the open quotation mark
        self._fence = ""  # the marker of the open block of code
        self._searched = 0  # the open block of code or reasoning does not end before this index of `_text`

    @property
    def pending(self) -> str:
        """The text that has not been returned as a piece yet."""
        return self._text.strip()

    @property
    def ends_with_sentence(self) -> bool:
        """Whether the pending text may be a whole sentence.

        Such a text ends with a full stop or a similar mark, and no quotation, code, link or formula is open at its end.
        """
        bare = self._text.rstrip().rstrip(_CLOSING)
        return bool(bare) and bare[-1] in _ENDS + _CJK_ENDS and not self._fence and self._open_mark() is None

    def append(self, text: str) -> list[Piece]:
        """Add a part of the text, and return the pieces that are complete with this part."""
        pieces: list[Piece] = []
        # cutting copies the pending text, so only a short block is added at a time
        for start in range(0, len(text), _BLOCK_CHARS):
            self._text += text[start : start + _BLOCK_CHARS]
            pieces += self._cut(final=False)
        return pieces

    def finish(self) -> list[Piece]:
        """Return all pending text as pieces. Text that is appended later begins a new line."""
        pieces = self._cut(final=True)
        pieces += self._take(len(self._text))
        return pieces

    def take_words(self) -> list[Piece]:
        """Return the pending text up to its last white space, even if the sentence is not complete. Returns nothing if
        a quotation, code or another mark is open.
        """
        if self._fence or (self._open_mark() is not None):
            return []
        end = max((self._text.rfind(char) for char in " \n\t"), default=-1)
        return self._take(end) if end > 0 else []

    def restart(self) -> None:
        """Allow the next piece to end at a clause. Call this method when the listener waits for speech."""
        self._eager = True

    # ---- scanning

    def _cut(self, *, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        self._drop_white_space()
        while (end := self._find_end(final=final)) is not None:
            pieces += self._take(end)
            self._drop_white_space()
        return pieces

    def _drop_white_space(self) -> None:
        """Remove white space from the start of the next piece."""
        if self._at == 0:
            bare = self._text.lstrip()
            self._offset += len(self._text) - len(bare)
            self._text = bare

    def _take(self, end: int) -> list[Piece]:
        """Remove the text before `end` and return it as a piece, unless it is blank."""
        taken, self._text = self._text[:end], self._text[end:]
        start = self._offset
        self._offset += end
        self._at = self._line = 0
        self._quote = None
        self._fence = ""
        self._searched = 0
        bare = taken.strip()
        if not bare:
            return []
        self._eager = False
        start += len(taken) - len(taken.lstrip())
        return [Piece(bare, start, start + len(bare))]

    def _find_end(self, *, final: bool) -> int | None:
        """Return the index at which the next piece ends; None if this end is not known yet."""
        text = self._text
        while True:
            if self._at == self._line and (self._fence or self._at < len(text)):
                decided = self._begin_line(final=final)
                if isinstance(decided, int):
                    return decided
                if decided is _Answer.UNKNOWN:
                    return None
            stop = _NEXT_STOP.search(text, self._at)
            if stop is None:
                self._at = max(self._at, len(text) - 1 if not final else len(text))
                # The last character is searched again, because the next text can change its meaning.
                return None
            at, char = stop.start(), stop[0]
            if char == "\n":
                end = self._at_line_end(at, final=final)
                if end is _Answer.UNKNOWN:
                    return None
                if isinstance(end, int):
                    return end
                self._at = self._line = at + 1
                continue
            if char in "`<[$\\":
                after = self._after_mark(at, final=final)
                if after is None:
                    return None
                if after < 0:
                    return -after
                self._at = after
                continue
            if char in '"“”«»':
                self._count_quote(at, char)
                self._at = at + 1
                continue
            if char in _ENDS or char in _CJK_ENDS:
                end_at, answer = self._sentence_end(at, final=final)
                if answer is _Answer.UNKNOWN:
                    return None
                if answer is _Answer.YES:
                    return end_at
                self._at = max(at + 1, end_at)
                continue
            end = self._early_end(at, char, final=final)
            if end is _Answer.UNKNOWN:
                return None
            if isinstance(end, int):
                return end
            self._at = at + 1

    def _begin_line(self, *, final: bool) -> int | _Answer:
        """Decide whether a piece ends at the start of the current line, or at the end of a block of code. Returns the
        index of the end, NO or UNKNOWN.
        """
        text, line = self._text, self._line
        if self._fence:
            return self._fence_end(final=final)
        newline = text.find("\n", line, line + _MAX_MARK_CHARS)
        head = text[line : newline if newline >= 0 else line + _MAX_MARK_CHARS]
        is_open = newline < 0 and len(head) < _MAX_MARK_CHARS and not final
        if is_open and _MAY_BE_MARKED.fullmatch(head):
            return _Answer.UNKNOWN
        if fence := _FENCE.match(head):
            if is_open:
                return _Answer.UNKNOWN  # the line may become "```a```", which is code inside a sentence
            if newline >= 0 and "`" not in head[fence.end() :]:
                if text[:line].strip():
                    return line
                self._fence = fence[1]
                self._line = self._at = newline + 1
                return self._fence_end(final=final)
        return line if _LINE_OF_ITS_OWN.match(head) and text[:line].strip() else _Answer.NO

    def _fence_end(self, *, final: bool) -> int | _Answer:
        """Return the index after the line that closes the block of code, or UNKNOWN."""
        text = self._text
        while True:
            newline = text.find("\n", max(self._line, self._searched))
            if newline < 0 and not final:
                self._searched = len(text)
                return _Answer.UNKNOWN
            end = newline if newline >= 0 else len(text)
            line = text[self._line : end]
            fence = _FENCE.match(line)
            if fence and fence[1].startswith(self._fence) and not line[fence.end() :].strip():
                return min(end + 1, len(text))
            if newline < 0:
                return len(text)
            self._line = self._at = newline + 1

    def _at_line_end(self, at: int, *, final: bool) -> int | _Answer:
        """Decide whether the piece ends at the line break at index `at`."""
        text = self._text
        if _LINE_OF_ITS_OWN.match(text, self._line, at):
            return at + 1
        after = at + 1
        while after < len(text) and text[after] in " \t":
            after += 1
        if after == len(text):
            return at + 1 if final else _Answer.UNKNOWN
        if text[after] == "\n":
            self._quote = None
            return after + 1 if text[:at].strip() else _Answer.NO
        return self._early_end(at, "\n", final=final)

    def _early_end(self, at: int, char: str, *, final: bool) -> int | _Answer:
        """Decide whether the piece ends at a clause or a word.

        Only the first piece, or a piece that is too long, may end at a word. If `clauses` is set, each piece may end at
        a clause, otherwise only the first piece.
        """
        text = self._text
        length = at - (len(text) - len(text.lstrip()))
        if length > MAX_PIECE_CHARS and char.isspace():
            return at
        if not (self._eager or self._clauses) or self._quote is not None:
            return _Answer.NO
        if char.isspace():
            return at if self._eager and length >= WORD_END_CHARS else _Answer.NO
        if char in _CJK_CLAUSE_ENDS:
            return at + 1 if length >= CLAUSE_CHARS // 2 else _Answer.NO
        if char in _CLAUSE_ENDS and (length + 1 >= CLAUSE_CHARS or len(text[:at].split()) >= CLAUSE_WORDS):
            if at + 1 == len(text):
                return _Answer.NO if final else _Answer.UNKNOWN
            return at + 1 if text[at + 1].isspace() else _Answer.NO
        return _Answer.NO

    def _count_quote(self, at: int, char: str) -> None:
        if self._quote is not None and at - self._quote > _MAX_QUOTE_CHARS:
            self._quote = None
        if char in "”»" or (char == '"' and self._quote is not None):
            self._quote = None
        elif not (char == '"' and at and self._text[at - 1].isdigit()):  # in 5", the quotation mark means inches
            self._quote = at

    def _open_mark(self) -> int | None:
        """Return the index of the mark that is open at the end of the pending text, such as a quotation mark.

        The result is None if no mark is open.
        """
        text = self._text
        if self._quote is not None and not any(mark in text[self._quote + 1 :] for mark in '"”»'):
            return self._quote
        return self._at if self._at < len(text) and text[self._at] in "`<[$\\" else None

    def _after_mark(self, at: int, *, final: bool) -> int | None:
        """Return the index after the code, link, tag or formula that begins at `at`; None if its end has not arrived.

        A negative result -n means that the piece ends at index n, because a block of reasoning is a separate piece.
        """
        text, char = self._text, self._text[at]
        rest = len(text) - at
        if char == "<":
            return self._after_angle(at, final=final)
        if char == "`":
            run = 1
            while at + run < len(text) and text[at + run] == "`" and run < _MAX_RUN:
                run += 1
            if at + run == len(text) and run < _MAX_RUN and not final:
                return None
            return self._closed(at, at + run, "`" * run, "\n", final=final)
        if char == "[":
            end = self._closed(at, at + 1, "]", "\n", final=final)
            if end is None or text[end - 1] != "]":
                return end
            if end == len(text):
                return end if final else None
            return self._closed(end, end + 1, ")", "\n ", final=final) if text[end] == "(" else end
        if char == "$":
            if rest == 1:
                return at + 1 if final else None
            return self._closed(at, at + 2, "$$", "\0", final=final) if text[at + 1] == "$" else at + 1
        if rest == 1:
            return at + 1 if final else None
        closing = {"(": "\\)", "[": "\\]"}.get(text[at + 1])
        return self._closed(at, at + 2, closing, "\0", final=final) if closing else at + 1

    def _after_angle(self, at: int, *, final: bool) -> int | None:
        text = self._text
        if len(text) - at < 2:
            return at + 1 if final else None
        if not _TAG.match(text, at):
            return at + 1
        end = self._closed(at, at + 1, ">", "\n", final=final)
        if end is None or not (name := _OPEN_REASONING.fullmatch(text, at, end)):
            return end
        if text[:at].strip():
            return -at
        close = re.compile(f"</{name[1]}>", re.IGNORECASE).search(text, max(end, self._searched))
        if close is None:
            self._searched = max(end, len(text) - len(name[1]) - 3)
            return len(text) if final else None
        return -close.end()

    def _closed(self, at: int, start: int, closing: str, forbidden: str, *, final: bool) -> int | None:
        """Return the index after `closing`. Returns `start` if the mark is never closed, and None if more text must
        arrive.

        forbidden: if one of these characters comes before `closing`, the mark is never closed.
        """
        text = self._text
        end = text.find(closing, start, at + _MAX_MARK_CHARS)
        stop = min(
            (place for char in forbidden if (place := text.find(char, start, at + _MAX_MARK_CHARS)) >= 0), default=-1
        )
        if end >= 0 and not 0 <= stop < end:
            return end + len(closing)
        if stop >= 0 or final or len(text) >= at + _MAX_MARK_CHARS:
            return start
        return None

    # ---- sentence ends

    def _sentence_end(self, at: int, *, final: bool) -> tuple[int, _Answer]:
        """Decide whether a sentence ends with the punctuation at index `at`. Returns the index after the punctuation
        and its closing marks, and the decision.
        """
        text = self._text
        end = at
        while end < len(text) and text[end] in _ENDS + _CJK_ENDS and end - at < _MAX_RUN:
            end += 1
        marks = text[at:end]
        quote = self._quote
        if quote is not None and end - quote > _MAX_QUOTE_CHARS:
            quote = None
        while end < len(text) and text[end] in _CLOSING and end - at < 2 * _MAX_RUN:
            if text[end] in '"”»':
                if quote is None and text[end] == '"':
                    break  # this mark opens the next quotation
                quote = None
            elif text[end] in "([{" or (text[end] in "*_~`" and end + 1 < len(text) and text[end + 1].isalnum()):
                break
            end += 1
        if end == len(text):
            return end, _Answer.YES if final else _Answer.UNKNOWN
        if quote is not None:
            return at + len(marks), _Answer.NO
        is_cjk = marks[-1] in _CJK_ENDS
        if not text[end].isspace():
            if not is_cjk:
                return at + len(marks), _Answer.NO
            self._quote = None
            return end, _Answer.YES
        following = end
        while following < len(text) and text[following].isspace():
            if text[following] == "\n" and "\n" in text[end:following]:
                return end, _Answer.YES
            following += 1
            if following - end > _MAX_SPACE:
                return end, _Answer.YES
        visible = following
        while visible < len(text) and text[visible] in _OPENING and visible - following < 4:
            visible += 1
        if visible >= len(text):
            return end, _Answer.YES if final else _Answer.UNKNOWN
        answer = self._continues(text[:at], marks, text[visible:], final=final)
        self._quote = quote if answer is _Answer.YES else self._quote
        return (end if answer is _Answer.YES else at + len(marks)), answer

    def _continues(self, before: str, marks: str, after: str, *, final: bool) -> _Answer:
        """Decide whether a sentence ends after the text `before` and the punctuation `marks`. after: the text that
        follows.
        """
        if after[0].islower():
            return _Answer.NO
        if marks != ".":
            return _Answer.YES
        last = f" {before[-60:]}".split(" ")[-1].split("\n")[-1].lstrip(_OPENING).lower()
        line = before[before.rfind("\n") + 1 :]
        if _LABEL.fullmatch(line):
            return _Answer.NO
        word = re.match(r"[^\W\d_]*(?:['’-][^\W\d_]+)*", after)
        next_word = word[0] if word else ""
        is_whole = final or len(next_word) < len(after)
        is_number = after[0].isdigit()
        if last in _TITLES:
            return _Answer.NO
        if last in _BEFORE_NUMBERS:
            if is_number:
                return _Answer.NO
            if last == "no":
                return _Answer.YES
            return _starts(next_word, is_whole)
        if last in _MONTHS:
            return _Answer.NO if is_number else _starts(next_word, is_whole)
        if last in _EITHER:
            return _starts(next_word, is_whole)
        if _HOURS.fullmatch(last) and "." in last:
            if is_number:
                return _Answer.YES
            if not is_whole:
                return _Answer.UNKNOWN
            return _Answer.NO if next_word.lower() in _NOT_AFTER_HOURS else _Answer.YES
        if last == "i" and before[-2:-1].isspace():
            return _Answer.YES
        if _INITIALS.fullmatch(last):
            return _Answer.NO if is_number else _starts(next_word, is_whole)
        if last.isdigit() and len(last) <= 2:
            words = before[-60:].lower().split()
            if len(words) > 1 and words[-2] in _DAY_PREPOSITIONS and not is_number:
                return _Answer.NO
        return _Answer.YES


def _starts(word: str, is_whole: bool) -> _Answer:
    """Decide whether a word after an abbreviation begins a sentence: YES only if the word is in _STARTERS.

    is_whole: False = more letters of the word may arrive, so the answer is UNKNOWN.
    """
    if not is_whole:
        return _Answer.UNKNOWN
    return _Answer.YES if word.lower() in _STARTERS else _Answer.NO
