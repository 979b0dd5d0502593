"""Rules for science and music: ions, isotopes, signed exponents, units with "/" and "·", sharps and flats."""

from __future__ import annotations

import re

from app.text import number_words, tables
from app.text.rules.common import DASH, NUM, SUPERSCRIPT_DIGITS, Match, is_adjective

_POWERS = "⁰¹²³⁴-⁹"
_ELEMENTS = {
    "H": ("hydrogen", 1), "He": ("helium", 2), "Li": ("lithium", 3), "Be": ("beryllium", 4), "B": ("boron", 5),
    "C": ("carbon", 6), "N": ("nitrogen", 7), "O": ("oxygen", 8), "F": ("fluorine", 9), "Ne": ("neon", 10),
    "Na": ("sodium", 11), "Mg": ("magnesium", 12), "Al": ("aluminum", 13), "Si": ("silicon", 14),
    "P": ("phosphorus", 15), "S": ("sulfur", 16), "Cl": ("chlorine", 17), "Ar": ("argon", 18), "K": ("potassium", 19),
    "Ca": ("calcium", 20), "Ti": ("titanium", 22), "Cr": ("chromium", 24), "Mn": ("manganese", 25), "Fe": ("iron", 26),
    "Co": ("cobalt", 27), "Ni": ("nickel", 28), "Cu": ("copper", 29), "Zn": ("zinc", 30), "Ga": ("gallium", 31),
    "As": ("arsenic", 33), "Se": ("selenium", 34), "Br": ("bromine", 35), "Kr": ("krypton", 36), "Rb": ("rubidium", 37),
    "Sr": ("strontium", 38), "Y": ("yttrium", 39), "Zr": ("zirconium", 40), "Mo": ("molybdenum", 42),
    "Tc": ("technetium", 43), "Ru": ("ruthenium", 44), "Rh": ("rhodium", 45), "Pd": ("palladium", 46),
    "Ag": ("silver", 47), "Cd": ("cadmium", 48), "In": ("indium", 49), "Sn": ("tin", 50), "Sb": ("antimony", 51),
    "I": ("iodine", 53), "Xe": ("xenon", 54), "Cs": ("cesium", 55), "Ba": ("barium", 56), "La": ("lanthanum", 57),
    "Ce": ("cerium", 58), "Nd": ("neodymium", 60), "Sm": ("samarium", 62), "Eu": ("europium", 63),
    "Gd": ("gadolinium", 64), "Lu": ("lutetium", 71), "W": ("tungsten", 74), "Re": ("rhenium", 75),
    "Os": ("osmium", 76),
    "Ir": ("iridium", 77), "Pt": ("platinum", 78), "Au": ("gold", 79), "Hg": ("mercury", 80), "Tl": ("thallium", 81),
    "Pb": ("lead", 82), "Bi": ("bismuth", 83), "Po": ("polonium", 84), "At": ("astatine", 85), "Rn": ("radon", 86),
    "Fr": ("francium", 87), "Ra": ("radium", 88), "Ac": ("actinium", 89), "Th": ("thorium", 90), "U": ("uranium", 92),
    "Np": ("neptunium", 93), "Pu": ("plutonium", 94), "Am": ("americium", 95), "Cm": ("curium", 96),
}  # fmt: skip

ISOTOPE = re.compile(rf"(?<!\w)([{_POWERS}]{{1,3}})(ᵐ?)([A-Z][a-z]?)(?![a-z])")
ION = re.compile(
    rf"(?<![\w\])])\[?((?:[A-Z][a-z]?[₀-₉0-9]{{0,3}}|\((?:[A-Z][a-z]?[₀-₉0-9]{{0,3}}){{1,6}}\)[₀-₉0-9]{{0,2}}){{1,12}}"
    rf"|e)\]?([{_POWERS}]{{0,2}})([⁺⁻])(?!\w)"
)
PLAIN_ION = re.compile(r"(?<![\w-])(?:(Ca|Mg|Fe|Cu|Zn|Mn|Ni|Co|Pb|Hg|Al|Cr|Sn|Ba)([234])|(Na|Li|Ag))\+(?![\w+])")
FORMULA = re.compile(
    r"(?<![\w·])(?=[A-Za-z()]{1,12}[₀-₉])((?:[A-Z][a-z]?[₀-₉]{0,3}|\([A-Za-z₀-₉]{1,12}\)[₀-₉]{0,2}){1,12})"
    r"(?:·([0-9]{0,2})(H₂O))?(?![\w⁺⁻⁰¹²³⁴-⁹])"
)
SUPERSCRIPT = re.compile(rf"(?<=[A-Za-z0-9)\]α-ωΑ-Ω])([⁺⁻]?)([{_POWERS}]{{1,6}})|(?<=[A-Za-z0-9)\]])([⁺⁻ⁿ])")
_RAISED = dict(zip("ˣʸᶻⁿⁱʲᵏᵐᵗᵃᵇᵀᶜᵖʳᵈᵉ", "xyzNijkmtabTcprde", strict=True))
_LOWERED = dict(zip("ₐₑₒₓₕₖₗₘₙₚₛₜᵢⱼᵣᵤᵥ", "aeoxhklmnpstijruv", strict=True))
RAISED_LETTER = re.compile(rf"(?<=[\w)\]])([⁺⁻]?)([{''.join(_RAISED)}])(?![\w])")
LOWERED_SUM = re.compile(f"(?<=[A-Za-z])([{''.join(_LOWERED)}])([₊₋])([₀-₉]{{1,3}})")
LOWERED_LETTER = re.compile(f"(?<=[A-Za-z∑Σ])([{''.join(_LOWERED)}])")
_GREEK_SIGN = "".join(tables.GREEK)
GREEK = re.compile(rf"(?<![\u0370-\u03ff\u1f00-\u1fff])[{_GREEK_SIGN}](?![\u0370-\u03ff\u1f00-\u1fff])")
# Accents of variables. In formulas, a bar over a letter means the mean, a hat an estimate, and an arrow a vector.
_ACCENTS = {"\u0304": "bar", "\u0305": "bar", "\u0302": "hat", "\u0303": "tilde", "\u20d7": "vector", "\u0307": "dot"}
ACCENTED = re.compile(rf"(?<!\w)([A-Za-z])([{''.join(_ACCENTS)}])(?!\w)")
NOTE = re.compile(r"([A-Ga-g])?([♯♭♮])")
_NOTES = {"♯": "sharp", "♭": "flat", "♮": "natural"}

_PREFIXES = {
    "n": "nano", "μ": "micro", "m": "milli", "c": "centi", "d": "deci", "h": "hecto", "k": "kilo", "M": "mega",
    "G": "giga", "T": "tera", "p": "pico", "f": "femto",
}  # fmt: skip
_BASE = {
    "m": "meter", "g": "gram", "s": "second", "A": "ampere", "K": "kelvin", "mol": "mole", "cd": "candela",
    "Hz": "hertz", "N": "newton", "Pa": "pascal", "J": "joule", "W": "watt", "C": "coulomb", "V": "volt", "F": "farad",
    "Ω": "ohm", "S": "siemens", "Wb": "weber", "T": "tesla", "H": "henry", "lm": "lumen", "lx": "lux",
    "Bq": "becquerel", "Gy": "gray", "Sv": "sievert", "L": "liter", "l": "liter", "eV": "electronvolt", "bar": "bar",
    "cal": "calorie", "rad": "radian", "B": "byte", "bit": "bit",
}  # fmt: skip
_OTHER = {
    "h": "hour", "hr": "hour", "min": "minute", "d": "day", "day": "day", "yr": "year", "wk": "week", "t": "ton",
    "ft": "foot", "in": "inch", "mi": "mile", "yd": "yard", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "gal": "gallon", "ha": "hectare", "kWh": "kilowatt hour", "Wh": "watt hour", "MWh": "megawatt hour",
    "mAh": "milliamp hour", "sec": "second", "sr": "steradian", "sq": "square", "°C": "degree Celsius",
    "°": "degree", "IU": "international unit", "beats": "beat", "breaths": "breath", "U": "unit", "cell": "cell",
    "cells": "cell", "person": "person", "kB": "kilobyte", "ppm": "p p m",
}  # fmt: skip
_LENGTHS = ("meter", "inch", "foot", "mile", "yard")
_SYMBOLS = {
    **{f"{prefix}{symbol}": f"{name}{base}" for symbol, base in _BASE.items() for prefix, name in _PREFIXES.items()},
    **_BASE,
    **_OTHER,
}
_PLURALS = {"foot": "feet", "inch": "inches", "henry": "henries", "hertz": "hertz", "siemens": "siemens", "lux": "lux"}

_FACTOR = r"°?[A-Za-zμΩ°]{1,6}(?:[⁺⁻]?[¹²³⁴]|\^-?[1-4](?![0-9]))?"
_EXPRESSION = rf"{_FACTOR}(?:(?:[·⋅/]| ?per ){_FACTOR}){{1,3}}|{_FACTOR}(?: {_FACTOR}){{0,2}}(?<=[⁻¹²³⁴][¹²³⁴])"
PARENTHESES = re.compile(rf"({_FACTOR})/\(({_FACTOR}(?:[·⋅ *]{_FACTOR}){{1,2}})\)")
AREA = re.compile(r"(?<![\w.,/·^])(?<![0-9] )([kcmd]m|ft|mi)([²³])(?![\w/·⋅⁻^])")
UNIT_AFTER_NUMBER = re.compile(
    rf"(?<![\w.,])((?:(?<![\w)\]])[-−+])?)({NUM})(?:({DASH}| to )({NUM}))?( ?)({_EXPRESSION})(?![\w/·⋅⁻{_POWERS}])"
)
UNIT_AFTER_POWER = re.compile(rf"(?<=[{_POWERS}]) ?({_EXPRESSION}|{_FACTOR})(?![\w/·⋅⁻{_POWERS}])")
BARE_UNIT = re.compile(rf"(?<![\w.,/$€£·⋅°])({_EXPRESSION})(?![\w/·⋅⁻{_POWERS}])")
_POWER_BEFORE = re.compile(rf"[0-9][⁺⁻]?[{_POWERS}]{{1,4}}$")
_BARE_FACTORS = frozenset({"m/s", "g/L", "J/K", "C/kg", "V/m", "N/m", "W/m", "J/g"})


def verbalize_lowered_sum(match: Match) -> str:
    """Return the words for a sum in a subscript: "ₙ₊₁" -> " n plus one"."""
    sign = " plus " if match[2] == "₊" else " minus "
    digits = "".join(chr(ord(char) - ord("₀") + ord("0")) for char in match[3])
    return f" {_LOWERED[match[1]]}{sign}{number_words.integer(digits)}"


def superscript_number(text: str) -> str:
    """Return the words for a signed run of superscript digits: "⁻³" -> "minus three"."""
    sign = {"⁻": "minus ", "⁺": "plus "}.get(text[:1], "")
    return sign + number_words.integer(text.lstrip("⁺⁻").translate(SUPERSCRIPT_DIGITS))


def verbalize_isotope(match: Match) -> str:
    """Return the words for an isotope: "²³⁵U" -> "uranium two thirty five"."""
    mass = match[1].translate(SUPERSCRIPT_DIGITS)
    name, protons = _ELEMENTS.get(match[3], ("", 0))
    if not name or not protons <= int(mass) <= 3 * protons:
        return match[0]
    return f"{name} {number_words.label(mass)}{' M' if match[2] else ''}"


def _formula(text: str) -> str:
    """Return the words for a chemical formula: "SO₄" -> "S O four"."""
    return " ".join(
        number_words.integer(part) if part.isdecimal() else " ".join(part.upper())
        for part in re.findall(r"[A-Z][a-z]?|[0-9]+|e", text.translate(SUPERSCRIPT_DIGITS))
    )


def verbalize_ion(match: Match) -> str:
    """Return the words for an ion: "Ca²⁺" -> "C A two plus"."""
    if match[1] != "e" and not all(symbol in _ELEMENTS for symbol in re.findall(r"[A-Z][a-z]?", match[1])):
        return match[0]
    charge = f"{superscript_number(match[2])} " if match[2] else ""
    return f"{_formula(match[1])} {charge}{'minus' if match[3] == '⁻' else 'plus'}"


def verbalize_plain_ion(match: Match) -> str:
    return f"{_formula(match[1] or match[3])} {number_words.digits(match[2] or '')} plus".replace("  ", " ")


def verbalize_formula(match: Match) -> str:
    """Return the words for a chemical formula with subscripts: "NaHCO₃" -> "N A H C O three"."""
    if not all(symbol in _ELEMENTS for symbol in re.findall(r"[A-Z][a-z]?", match[1])):
        return match[0]
    water = f" dot {number_words.integer(match[2] or '1')} {_formula(match[3])}" if match[3] else ""
    return _formula(match[1]) + water


def verbalize_superscript(match: Match) -> str:
    if match[3]:
        return {"⁺": " plus", "⁻": " minus"}.get(match[3], " to the power of N")
    known = {"2": " squared", "3": " cubed"}.get(match[2].translate(SUPERSCRIPT_DIGITS)) if not match[1] else None
    after = " " if match.string[match.end() : match.end() + 1].isalpha() else ""
    return (known or f" to the power of {superscript_number(match[0])}") + after


def verbalize_raised_letter(match: Match) -> str:
    sign = {"⁻": "minus ", "⁺": "plus "}.get(match[1], "")
    return f" to the power of {sign}{_RAISED[match[2]]}"


def verbalize_lowered_letter(match: Match) -> str:
    return f" {_LOWERED[match[1]]}"


def verbalize_greek(match: Match) -> str:
    """Return the name of a Greek letter: "Δt" -> "delta t".

    A space separates the name from a letter or digit beside it.
    """
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    start, end = " " * (before.isalnum() or before == ")"), " " * (after.isalnum() or after == "(")
    return f"{start}{tables.GREEK[match[0]]}{end}"


def verbalize_accented(match: Match) -> str:
    name = _ACCENTS[match[2]]
    return f"vector {match[1]}" if name == "vector" else f"{match[1]} {name}"


def verbalize_note(match: Match) -> str:
    name = _NOTES[match[2]]
    after = " " if match.string[match.end() : match.end() + 1].isalnum() else ""
    return f"{match[1].upper()} {name}{after}" if match[1] else f" {name} "


def unit_words(expression: str, *, plural: bool) -> str | None:
    """Return the words for a unit with "/", "·" or exponents: "W/m²" -> "watts per square meter".

    The result is None if a symbol is not a unit.
    """
    top: list[str] = []
    bottom: list[str] = []
    below = False
    for mark, symbol, power in re.findall(
        r"([·⋅/ ]|per )?(°?[A-Za-zμΩ°]{1,6})((?:[⁺⁻]?[¹²³⁴]|\^-?[1-4])?)", expression.replace(" per ", "/")
    ):
        name = _SYMBOLS.get(symbol)
        if name is None:
            return None
        below = below or mark == "/"
        exponent = power.translate(SUPERSCRIPT_DIGITS).lstrip("^⁺")
        negative = exponent[:1] in {"⁻", "-"}
        exponent = exponent.lstrip("⁻-")
        if exponent in {"2", "3"} and name.endswith(_LENGTHS):
            name = f"{'square' if exponent == '2' else 'cubic'} {name}"
        elif exponent not in {"", "1"}:
            name += {"2": " squared", "3": " cubed"}.get(exponent, f" to the power of {number_words.integer(exponent)}")
        (bottom if below or negative else top).append(name)
    if not top and not bottom:
        return None
    if top and plural:
        top[-1] = _plural(top[-1])
    return " ".join([*top, *(f"per {name}" for name in bottom)])


def _plural(name: str) -> str:
    head, _, tail = name.partition(" squared")
    if tail or name.endswith((" squared", " cubed")):
        return name
    if head.startswith("degree"):
        return name.replace("degree", "degrees", 1)
    first, space, last = head.rpartition(" ")
    return f"{first}{space}{_PLURALS.get(last, f'{last}s')}"


def verbalize_unit_after_number(match: Match) -> str:
    sign, value, joint, value2, gap, expression = match.groups()
    last = value2 or value
    name = unit_words(expression, plural=last != "1" and not is_adjective(match))
    if name is None or (" " in expression and not gap):
        return match[0]
    minus = {"-": "minus ", "−": "minus ", "+": "plus "}.get(sign, "")
    to = f" to {number_words.number(value2)}" if joint else ""
    return f"{minus}{number_words.number(value)}{to} {name}"


def verbalize_unit_after_power(match: Match) -> str:
    if not _POWER_BEFORE.search(match.string[max(0, match.start() - 8) : match.start()]):
        return match[0]
    name = unit_words(match[1], plural=True)
    return match[0] if name is None or match[1] in {"in", "a", "d", "sq", "cell", "day"} else f" {name}"


def verbalize_area(match: Match) -> str:
    return unit_words(match[0], plural=True) or match[0]


def rewrite_parentheses(match: Match) -> str:
    """Return "J/kg·K" for "J/(kg·K)". If a symbol is not a unit, the text does not change."""
    flat = f"{match[1]}/{re.sub('[⋅ *]', '·', match[2])}"
    return match[0] if unit_words(flat, plural=True) is None else flat


def verbalize_bare_unit(match: Match) -> str:
    """Return the words for a unit without a number: "kJ/mol" -> "kilojoules per mole". A word that is no unit does not
    change.
    """
    expression = match[1]
    names = re.findall(r"[A-Za-zμΩ°]{1,6}", expression)
    marked = re.search(r"[·⋅⁻¹²³⁴^]", expression) is not None
    if not marked and (
        (all(len(name) == 1 for name in names) and expression not in _BARE_FACTORS)
        or any(name in {"in", "min", "day", "person", "sec", "bar", "bit", "U"} for name in names[:1])
        or {_SYMBOLS.get(name) for name in names} <= _ALTERNATIVES
        or " " in expression
    ):
        return match[0]
    if " " in expression and not re.search("[⁻]", expression):
        return match[0]
    return unit_words(expression, plural=True) or match[0]


_ALTERNATIVES = {"foot", "inch", "mile", "yard", "meter", "pound", "ounce", "kilogram", "kilometer", "centimeter"}
