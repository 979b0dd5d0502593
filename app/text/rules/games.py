"""Rules for games: moves in chess, minutes of a football match."""

from __future__ import annotations

import re

from app.text import number_words
from app.text.rules.common import Match

_PIECES = {"K": "king", "Q": "queen", "R": "rook", "B": "bishop", "N": "knight"}
MOVE = re.compile(
    r"(?<![\w.+=-])(?:(O-O-O|0-0-0)|(O-O|0-0)|([KQRBN])([a-h]?[1-8]?)(x?)([a-h][1-8])|([a-h])(x)([a-h][1-8])|([a-h][18])(?==))"
    r"(?:=([QRBN]))?([+#]?)([!?]{0,2})(?![\w=-])"
)
# Signs that a text is about chess: a move number before a move ("1. e4", "12... Nf6"), or a notation that occurs only
# in chess ("exd5", "Qxf7#").
_IS_GAME = re.compile(
    r"(?<![\w.])[0-9]{1,3}(?:\.{1,3}|,) ?(?:[a-h][1-8]\b|[KQRBN][a-h1-8x]|O-O)"
    r"|\b[a-hKQRBN][a-h1-8]?x[a-h][1-8]\b|\bO-O\b"
)
MOVE_NUMBER = re.compile(
    r"(?<![\w.])([0-9]{1,3})(?:\.{3}|\.) ?(?=(?:[a-h][1-8]|[KQRBN][a-h1-8]?x?[a-h][1-8]|[a-h]x[a-h]|O-O))"
)
# ADDED_TIME matches a minute of added time: 45+2', 90'+3'. MINUTES matches minutes and seconds: 3'45".
ADDED_TIME = re.compile(r"(?<![\w.,])([0-9]{1,3})'?\+([0-9]{1,2})'?(?!\w)")
MINUTES = re.compile(r"(?<![\w.,'])([0-9]{1,3})' ?([0-9]{2})(?:″|'')(?!\w)")


def verbalize_move(match: Match) -> str:
    """Return the words for a move of chess: "Nxf3+" -> "knight takes F three check"."""
    if not match[2] and not match[1] and not (match[5] or match[8] or match[11] or match[12]) and not _is_game(match):
        return match[0]
    if match[2] == "0-0" and not _is_game(match):
        return match[0]
    if match[1] or match[2]:
        words = "castles queenside" if match[1] else "castles kingside"
    elif match[3]:
        origin = f" {_square(match[4])}" if match[4] else ""
        words = f"{_PIECES[match[3]]}{origin}{' takes' if match[5] else ''} {_square(match[6])}"
    else:
        words = f"{match[7]} takes {_square(match[9])}" if match[7] else _square(match[10])
    words += f" equals {_PIECES[match[11]]}" if match[11] else ""
    words += {"+": " check", "#": " checkmate", "": ""}[match[12]]
    return words + match[13]


def _is_game(match: Match) -> bool:
    return _IS_GAME.search(match.string[max(0, match.start() - 60) : match.end() + 60]) is not None


def _square(square: str) -> str:
    return " ".join(number_words.digits(char) if char.isdecimal() else char.upper() for char in square)


def verbalize_added_time(match: Match) -> str:
    if "'" not in match[0]:
        return match[0]
    return f"{number_words.integer(match[1])} plus {number_words.integer(match[2])} minutes"


def verbalize_minutes(match: Match) -> str:
    if int(match[2]) < 12 or int(match[2]) > 59:
        return match[0]
    return f"{number_words.integer(match[1])} minutes {number_words.integer(match[2])} seconds"
