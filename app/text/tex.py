r"""Read TeX: replace formulas such as `$x^2$` by words, and remove TeX commands from text.

`replace_tex` finds the formulas ($...$, $$...$$, \(...\), \[...\] and environments) and decides whether a dollar sign
is money. A formula is read from left to right in one pass with an explicit stack, so deep nesting needs no recursion.
The output keeps the order of the input, so each word keeps the span of the characters that it comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.text import number_words
from app.text.spans import SpannedText

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

Edit = tuple[int, int, str]


def _table(rows: str) -> dict[str, tuple[str, str]]:
    """Parse `name = words | symbol` entries, separated by semicolons or line breaks."""
    found = {}
    for entry in rows.replace("\n", ";").split(";"):
        if entry.strip():
            name, _, value = entry.partition("=")
            words, _, symbol = value.partition("|")
            found[name.strip()] = (words.strip(), symbol.strip() or words.strip())
    return found


# Name of a command -> its words in English, and its symbol for other languages.
_NAMES = _table(
    r"""
    alpha = alpha | α; beta = beta | β; gamma = gamma | γ; delta = delta | δ; epsilon = epsilon | ε
    varepsilon = epsilon | ε; zeta = zeta | ζ; eta = eta | η; theta = theta | θ; vartheta = theta | θ; iota = iota | ι
    kappa = kappa | κ; lambda = lambda | λ; mu = mu | μ; nu = nu | ν; xi = xi | ξ; omicron = omicron | ο; pi = pi | π
    varpi = pi | π; rho = rho | ρ; varrho = rho | ρ; sigma = sigma | σ; varsigma = sigma | ς; tau = tau | τ
    upsilon = upsilon | υ; phi = phi | φ; varphi = phi | φ; chi = chi | χ; psi = psi | ψ; omega = omega | ω
    Gamma = Gamma | Γ; Delta = Delta | Δ; Theta = Theta | Θ; Lambda = Lambda | Λ; Xi = Xi | Ξ; Pi = Pi | Π
    Sigma = Sigma | Σ; Upsilon = Upsilon | Υ; Phi = Phi | Φ; Psi = Psi | Ψ; Omega = Omega | Ω
    times = times | ×; cdot = times | ·; ast = times | *; star = star | *; div = divided by | ÷; pm = plus or minus | ±
    mp = minus or plus | ∓; circ = composed with | ∘; bullet = times | ·; oplus = direct sum | ⊕; otimes = tensor | ⊗
    le = is less than or equal to | ≤; leq = is less than or equal to | ≤; leqslant = is less than or equal to | ≤
    ge = is greater than or equal to | ≥; geq = is greater than or equal to | ≥
    geqslant = is greater than or equal to | ≥; lt = is less than | <; gt = is greater than | >
    ll = is much less than | ≪; gg = is much greater than | ≫; ne = is not equal to | ≠; neq = is not equal to | ≠
    approx = is approximately | ≈; simeq = is approximately | ≈; cong = is congruent to | ≅; sim = is similar to | ~
    equiv = is equivalent to | ≡; propto = is proportional to | ∝; in = in | ∈; notin = is not in | ∉; ni = contains | ∋
    subset = is a subset of | ⊂; subseteq = is a subset of | ⊆; supset = is a superset of | ⊃
    supseteq = is a superset of | ⊇; cup = union | ∪; cap = intersection | ∩; setminus = minus | ∖
    emptyset = the empty set | ∅; varnothing = the empty set | ∅; forall = for all | ∀; exists = there exists | ∃
    nexists = there is no | ∄; neg = not | ¬; lnot = not | ¬; land = and | ∧; wedge = and | ∧
    lor = or | ∨; vee = or | ∨
    to = to | →; rightarrow = to | →; longrightarrow = to | →; xrightarrow = to | →; mapsto = maps to | ↦
    leftarrow = from | ←; gets = from | ←; leftrightarrow = if and only if | ↔; Rightarrow = implies | ⇒
    implies = implies | ⇒; Longrightarrow = implies | ⇒; Leftarrow = is implied by | ⇐; iff = if and only if | ⇔
    Leftrightarrow = if and only if | ⇔; rightleftharpoons = in equilibrium with | ⇌; uparrow = up | ↑
    downarrow = down | ↓; infty = infinity | ∞; partial = partial | ∂; nabla = nabla | ∇; hbar = h bar | ℏ; ell = l | ℓ
    Re = the real part of | ℜ; Im = the imaginary part of | ℑ; aleph = aleph | ℵ; degree = degrees | °
    angle = angle | ∠; perp = is perpendicular to | ⊥; parallel = is parallel to | ∥; mid = such that | ∣
    therefore = therefore | ∴; because = because | ∵; ldots = ... ; dots = ... ; cdots = ... ; vdots = ... ; ddots = ...
    prime = prime | ′; dagger = dagger | †; top = transpose | ᵀ; bot = bottom | ⊥; triangle = triangle | △
    square = square | □; mod = mod; bmod = mod; pmod = mod; lfloor = the floor of | ⌊; rfloor = | ⌋
    lceil = the ceiling of | ⌈; rceil = | ⌉; langle = | ⟨; rangle = | ⟩; lVert = the norm of | ‖; rVert = | ‖
    lvert = the absolute value of | |; rvert = | |; S = section | §; copyright = copyright; LaTeX = LaTeX; TeX = TeX
    """
)
# Name of an operator with limits -> (its words, the words before its lower limit, its symbol). The limits follow the
# operator as a subscript and a superscript.
_BIG = {
    "sum": ("the sum", "from", "∑"),
    "prod": ("the product", "from", "∏"),
    "coprod": ("the coproduct", "from", "∐"),
    "int": ("the integral", "from", "∫"),
    "iint": ("the double integral", "over", "∬"),
    "iiint": ("the triple integral", "over", "∭"),
    "oint": ("the contour integral", "over", "∮"),
    "bigcup": ("the union", "over", "⋃"),
    "bigcap": ("the intersection", "over", "⋂"),
    "lim": ("the limit", "as", "lim"),
    "limsup": ("the limit superior", "as", "lim sup"),
    "liminf": ("the limit inferior", "as", "lim inf"),
    "max": ("the maximum", "over", "max"),
    "min": ("the minimum", "over", "min"),
    "sup": ("the supremum", "over", "sup"),
    "inf": ("the infimum", "over", "inf"),
    "argmax": ("the arg max", "over", "arg max"),
    "argmin": ("the arg min", "over", "arg min"),
    "log": ("log", "base", "log"),
}
_FUNCTIONS = {
    "sin": "sine", "cos": "cosine", "tan": "tangent", "cot": "cotangent", "sec": "secant", "csc": "cosecant",
    "arcsin": "arc sine", "arccos": "arc cosine", "arctan": "arc tangent", "sinh": "hyperbolic sine",
    "cosh": "hyperbolic cosine", "tanh": "hyperbolic tangent", "ln": "natural log", "lg": "log", "exp": "e to the",
    "det": "determinant", "dim": "dimension", "ker": "kernel", "deg": "degree", "gcd": "greatest common divisor",
    "Pr": "probability", "arg": "argument", "hom": "hom",
}  # fmt: skip
# Name of an accent or a frame -> (the words before its argument, the words after its argument).
_AROUND = {
    "hat": ("", "hat"), "widehat": ("", "hat"), "bar": ("", "bar"), "overline": ("", "bar"), "tilde": ("", "tilde"),
    "widetilde": ("", "tilde"), "dot": ("", "dot"), "ddot": ("", "double dot"), "vec": ("vector", ""),
    "overrightarrow": ("vector", ""), "mathcal": ("", ""), "underline": ("", ""), "boxed": ("", ""),
}  # fmt: skip
_TEXT_NAMES = frozenset({
    "text", "textrm", "textbf", "textit", "textsf", "texttt", "textnormal", "mbox", "hbox", "emph", "operatorname",
    "mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathbb", "mathfrak", "boldsymbol", "bm", "bf", "rm", "it", "ce",
    "underbrace", "overbrace", "section", "subsection", "subsubsection", "paragraph", "chapter", "title", "author",
    "caption", "item", "textsc", "large", "Large", "small", "centering",
})  # fmt: skip
_DROPPED_ARGUMENT = frozenset({
    "label", "tag", "cite", "citep", "citet", "ref", "eqref", "hspace", "vspace", "color", "textcolor", "phantom",
    "begin", "end", "documentclass", "usepackage", "includegraphics", "hspace*", "vspace*", "tag*", "footnotemark",
    "newpage", "clearpage", "maketitle", "tableofcontents", "noindent", "bigskip", "medskip", "bibliography",
    "bibliographystyle", "pagestyle", "setlength", "arraystretch",
})  # fmt: skip
_FRACTIONS = frozenset({"frac", "dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"})
_CHOICES = frozenset({"binom", "dbinom", "tbinom"})
_ENVIRONMENTS = (
    r"(?:align|alignat|aligned|equation|gather|gathered|multline|split|cases|eqnarray|math|displaymath|array|"
    r"[bBpvV]?matrix|smallmatrix)\*?"
)

_OPENING = re.compile(
    r"(?P<fence>^[ ]{0,8}(?:`{3,}|~{3,}))|(?P<code>`+)|(?P<escaped>\\\\(?![()\[\]])|\\[$`])"
    rf"|\\begin\{{(?P<environment>{_ENVIRONMENTS})\}}|(?P<display>\$\$)|(?P<paren>\\\()|(?P<bracket>\\\[)"
    r"|(?P<dollar>(?<![\w$\\])\$(?=[^\s$]))|(?P<command>(?<![\w:\\/.])\\[A-Za-z]+(?:\s?\{)?)",
    re.MULTILINE,
)
_CLOSING = {"display": "$$", "paren": "\\)", "bracket": "\\]"}
_CLOSING_DOLLAR = re.compile(r"(?<=[^\s\\$])\$(?:(?![\w$])|(?=(?:th|st|nd|rd|s)\b))")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_EVIDENCE = re.compile(r"[\\^_={}<>]|[0-9][a-zA-Z]\b|\b[a-zA-Z] ?[+*/|-]|[+*/|-] ?[a-zA-Z]\b")
_FIGURES = re.compile(r"[0-9.,/+*()= :!-]+")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}[,;]? +[A-Za-z]{3,}")
_SYMBOLS_ONLY = re.compile(r"[A-Za-z]{1,12}'{0,2}|[^\x00-\x7f]{1,3}")

_BRACE = re.compile(r"[{}]")
_BRACE_FOLLOWS = re.compile(r"\s?\{")
_TOKEN = re.compile(
    r"(?P<name>\\(?:[A-Za-z]+\*?|.))|(?P<script>[\^_])|(?P<open>\{)|(?P<close>\})"
    r"|(?P<number>[0-9]+(?:(?:,|\{,\})[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+)|(?P<letters>[A-Za-z]+)|(?P<space>[\s~]+)"
    r"|(?P<primes>'+)|(?P<sign>.)",
    re.DOTALL,
)
_SIGNS = {
    "=": "equals", "+": "plus", "-": "minus", "−": "minus", "<": "is less than", ">": "is greater than", "/": "over",
    "*": "times", "!": "factorial", "&": "", "%": "percent", "|": "", "#": "", "$": "", "@": "at", "\"": "",
}  # fmt: skip
_SHORT_NAMES = {
    ",": " ", ";": " ", ":": " ", "!": "", " ": " ", "\\": ", ", "{": "", "}": "", "|": " ", "%": "%", "$": "$",
    "&": " and ", "#": "#", "_": " ", "-": "", "'": "", "`": "", '"': "", "^": "", "~": "", "=": "", ".": "", "/": "",
    "(": " ", ")": " ", "[": " ", "]": " ",
}  # fmt: skip
_ARGUMENT = re.compile(r"\s?(?:\[[^\[\]]*\])?\s?\{([^{}]*)\}")
_PLAIN_DEGREE = re.compile(r"[A-Za-z0-9 ]{1,10}")
_OPTIONAL = re.compile(r"\s?\[([^\[\]{}]*)\]\s?")
_SMALL_FRACTION = re.compile(r"\s?(?:\{\s?([0-9]{1,3})\s?\}|([0-9]))\s?(?:\{\s?([0-9]{1,3})\s?\}|([0-9]))")
_POWER = re.compile(
    r"\s?(?:\{\s*(?P<braced>[23T]|\\circ|\\degree|\\prime|\\top|[*+-]|th|st|nd|rd)\s*\}"
    r"|(?P<bare>[23T*+-](?![0-9])|\\circ(?![A-Za-z])|\\prime(?![A-Za-z])|\\top(?![A-Za-z])))"
)
_POWERS = {
    "2": "squared", "3": "cubed", "\\circ": "degrees", "\\degree": "degrees", "\\prime": "prime", "T": "transpose",
    "\\top": "transpose", "*": "star", "+": "plus", "-": "minus", "th": "th", "st": "st", "nd": "nd", "rd": "rd",
}  # fmt: skip
_POWER_SYMBOLS = {"2": "²", "3": "³", "\\circ": "°", "\\degree": "°", "\\prime": "′", "+": "⁺", "-": "⁻"}
_WORDS_IN_FORMULAS = frozenset("if and or for is in the of on by to sin cos tan log max min exp det mod lim".split(" "))


def replace_tex(text: SpannedText, *, english: bool) -> SpannedText:
    """Return the text with English words in place of TeX; if `english` is False, with symbols in place of TeX.

    Code and money do not change.
    """
    if "\\" not in text.text and "$" not in text.text:
        return text
    return text.edited(_all_edits(text.text, english=english))


def _all_edits(text: str, *, english: bool) -> Iterator[Edit]:
    position = 0
    missing: set[str] = set()  # closing marks that do not occur after `position`
    braces = _Braces(text)
    while (opening := _OPENING.search(text, position)) is not None:
        kind = opening.lastgroup or ""
        start, inside = opening.span()
        position = inside
        if kind in ("fence", "code"):
            closing = opening[0].strip()[:3]
            end = -1 if closing in missing else text.find(closing, inside)
            if end < 0:
                missing.add(closing)
            else:
                position = end + len(closing)
        elif kind == "escaped":
            if opening[0] == "\\$":
                yield start, inside, "$"
        elif kind == "command":
            position = yield from _command_in_text(text, opening, braces, english=english)
        elif kind == "dollar":
            end = _end_of_inline_formula(text, inside)
            if end >= 0:
                yield start, inside, ""
                yield from _read(text, inside, end, english=english)
                yield end, end + 1, ""
                position = end + 1
        else:
            closing = _CLOSING.get(kind) or f"\\end{{{opening['environment']}}}"
            end = -1 if closing in missing else text.find(closing, inside)
            if end < 0:
                missing.add(closing)
                if kind == "display":
                    yield start, inside, " "
                continue
            yield start, inside, _around(text, start - 1)
            yield from _read(text, inside, end, english=english)
            position = end + len(closing)
            yield end, position, _around(text, position)


def _around(text: str, place: int) -> str:
    """Return what separates a formula from the character at index `place`: " " for a letter or digit, else ""."""
    return " " if 0 <= place < len(text) and text[place].isalnum() else ""


def _end_of_inline_formula(text: str, start: int) -> int:
    """Return the place of the dollar sign that closes a formula; -1 if the opening dollar sign is money or a name."""
    closing = text.find("$", start)
    while closing > 0 and text[closing - 1] == "\\":
        closing = text.find("$", closing + 1)
    if closing < 0 or _CLOSING_DOLLAR.match(text, closing) is None:
        return -1
    content = text[start:closing]
    if _BLANK_LINE.search(content):
        return -1
    if "\\" in content or _FIGURES.fullmatch(content) or _SYMBOLS_ONLY.fullmatch(content):
        return closing
    if content[0].isdecimal():
        return closing if _EVIDENCE.search(content) and not _PROSE.search(content) else -1
    return -1 if _PROSE.search(content) and not re.search(r"[\^_={}]", content) else closing


def _command_in_text(
    text: str, opening: re.Match[str], braces: _Braces, *, english: bool
) -> Generator[Edit, None, int]:
    """Yield the edits of a command in ordinary text, and return the index after the command."""
    name = opening["command"].rstrip("{ \n\t")[1:]
    start = opening.start()
    after = start + 1 + len(name)
    if name in _DROPPED_ARGUMENT or (name in _TEXT_NAMES and not opening["command"].endswith("{")):
        argument = _ARGUMENT.match(text, after)
        after = argument.end() if argument and name in _DROPPED_ARGUMENT else after
        yield start, after, " "
        return after
    if name in _TEXT_NAMES:
        end = braces.end(opening.end())
        yield start, opening.end(), ""
        if end >= 0:
            yield end, end + 1, ""
            return end + 1
        return opening.end()
    if name in _FRACTIONS or name in _CHOICES or name == "sqrt" or name in _AROUND:
        end = after
        for _ in range(2 if name in _FRACTIONS or name in _CHOICES else 1):
            optional = _OPTIONAL.match(text, end)
            end = optional.end() if optional else end
            gap = _BRACE_FOLLOWS.match(text, end)
            close = braces.end(gap.end()) if gap else -1
            if close < 0:
                break
            end = close + 1
        if end > after:
            yield from _read(text, start, end, english=english)
            return end
    elif name in _NAMES or name in _BIG or name in ("left", "right", "quad", "qquad"):
        yield from _read(text, start, after, english=english)
        return after
    return after


class _Braces:
    """The places of the closing braces of a text. The first call of `end` finds all closing braces in one pass."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends: dict[int, int] | None = None

    def end(self, inside: int) -> int:
        """Return the place of the closing brace for the opening brace before `inside`; -1 if it is missing."""
        if self._ends is None:
            self._ends = {}
            opened: list[int] = []
            for brace in _BRACE.finditer(self._text):
                if brace[0] == "{":
                    opened.append(brace.end())
                elif opened:
                    self._ends[opened.pop()] = brace.start()
        return self._ends.get(inside, -1)


@dataclass(slots=True)
class _Group:
    """The state of an open brace, of an argument without braces, or of the whole formula."""

    after: str = ""  # the spoken words that replace the closing brace
    verbatim: bool = False  # whether the content is text and not a formula
    lower: str = ""  # the words for "_" after an operator, such as "from"; "" = the last token was not an operator
    pending: str = ""  # the words that are spoken after the limits of the last operator, before its argument
    scripts: bool = False  # whether this group is a subscript or a superscript


def _read(text: str, start: int, end: int, *, english: bool) -> Iterator[Edit]:
    """Yield the edits that turn the formula `text[start:end]` into words."""
    reader = _Reader(text, english=english)
    position = start
    while position < end and (token := _TOKEN.match(text, position, end)) is not None:
        position = yield from reader.token(token, end)
    yield from reader.close_all(end)


class _Reader:
    """Reads the tokens of one formula."""

    def __init__(self, text: str, *, english: bool) -> None:
        self._text = text
        self._english = english
        self._groups = [_Group()]
        # The arguments that have not begun yet; the last one in the list begins first. An argument without braces is
        # one token: x^2, \hat x.
        self._single: list[_Group] = []
        self._base = ""  # the single letter directly before the current token, which is needed to read f(x)
        # Whether the previous token can end a term, and whether a bar or a double bar is open. These values are needed
        # to read |x|, ‖x‖ and P(A|B).
        self._after_atom = self._open_bar = self._open_norm = False

    def token(self, token: re.Match[str], end: int) -> Generator[Edit, None, int]:
        """Yield the edits of one token, and return the index after the token."""
        kind, written = token.lastgroup or "", token[0]
        start, after = token.span()
        group = self._groups[-1]
        if group.verbatim and kind not in ("open", "close", "name"):
            return after
        if kind == "space":
            if written != " ":
                yield start, after, " "
            return after
        if kind == "script":
            return (yield from self._script(token, end))
        if kind == "close":
            if len(self._groups) > 1:
                closed = self._groups.pop()
                yield start, after, f" {closed.after} " if closed.after else ""
                yield from self._end_single(after)
            else:
                yield start, after, ""
            self._base = ""
            return after
        before = "" if self._single and self._single[-1].scripts else self._before_atom()
        if kind == "open":
            yield start, after, before
            self._groups.append(self._single.pop() if self._single else _Group())
            return after
        if kind == "name":
            return (yield from self._name(token, before, end))
        new = self._bar() if written == "|" and self._english else self._atom(kind, written)
        self._after_atom = kind in ("letters", "number", "primes") or written == ")"
        if before or new != written:
            yield start, after, before + new
        if kind in ("letters", "number", "sign"):
            self._base = written if kind == "letters" and len(written) == 1 else ""
            yield from self._end_single(after)
        return after

    def close_all(self, end: int) -> Iterator[Edit]:
        """Yield the words of the groups that are still open at the end of the formula."""
        words = [group.after for group in [*self._single[::-1], *self._groups[:0:-1]] if group.after]
        if words:
            yield end, end, f" {' '.join(words)} "

    def _before_atom(self) -> str:
        """Return the words between an operator with its limits and the argument that begins now, such as "of"."""
        group = self._groups[-1]
        pending, group.pending, group.lower = group.pending, "", ""
        return f" {pending} " if pending and self._english else " " if pending else ""

    def _end_single(self, place: int) -> Iterator[Edit]:
        if self._single:
            words = self._single.pop().after
            self._base = ""
            if words:
                yield place, place, f" {words} "

    def _atom(self, kind: str, written: str) -> str:
        """Return the spoken words for one number, sign, group of letters or group of prime marks."""
        if not self._english:
            return "" if written in "&$#" else written
        if kind == "number":
            return f" {number_words.number(written.replace('{', '').replace('}', ''))} "
        if kind == "letters":
            if len(written) > 3 or written.lower() in _WORDS_IN_FORMULAS or len(written) == 1:
                return written
            return f" {' '.join(written)} " if written.islower() else written
        if kind == "primes":
            return f" {('', 'double ', 'triple ')[min(len(written), 3) - 1]}prime "
        if written == "(" and self._base:
            return " of ("
        if written in "[]":
            return " "
        words = _SIGNS.get(written)
        return written if words is None else f" {words} " if words else " "

    def _bar(self) -> str:
        """Return the words of a vertical bar: around an absolute value, or between an event and its condition."""
        if self._open_bar:
            self._open_bar = False
            return " "
        if self._after_atom:
            return " given "
        self._open_bar = True
        return " the absolute value of "

    def _script(self, token: re.Match[str], end: int) -> Generator[Edit, None, int]:
        """Yield the edit of "^" or "_". The edit of a simple power includes its argument. Returns the index after the
        edited characters.
        """
        start, after = token.span()
        group = self._groups[-1]
        if token[0] == "^" and not group.lower and (power := _POWER.match(self._text, after, end)) is not None:
            name = power["braced"] or power["bare"]
            if self._english:
                words = _POWERS[name]
                yield start, power.end(), f"{words} " if name in ("th", "st", "nd", "rd") else f" {words} "
            else:
                yield start, power.end(), _POWER_SYMBOLS.get(name, f"^{name.lstrip(chr(92))}")
            return power.end()
        if not self._english:
            words = " " if token[0] == "_" or group.lower else "^"
        elif token[0] == "_":
            words = f" {group.lower or 'sub'} "
        else:
            words = " to " if group.lower else " to the power of "
        yield start, after, words
        self._single.append(_Group(scripts=True))
        return after

    def _name(self, token: re.Match[str], before: str, end: int) -> Generator[Edit, None, int]:
        """Yield the edits of a command, and return the index after the command."""
        start, after = token.span()
        name = token[0][1:].removesuffix("*")
        english, group = self._english, self._groups[-1]
        if name in ("left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "middle"):
            if self._text[after : after + 1] == "." and after < end:
                after += 1
            yield start, after, ""
            return after
        if name == "|" and english:
            self._open_norm = not self._open_norm
            yield start, after, f"{before}{' the norm of ' if self._open_norm else ' '}"
            return after
        if name in _DROPPED_ARGUMENT:
            argument = _ARGUMENT.match(self._text, after, end)
            after = argument.end() if argument else after
            yield start, after, f"{before} "
            return after
        if name in _FRACTIONS:
            return (yield from self._fraction(start, after, before, end))
        if name in _CHOICES or name in ("SI", "qty", "stackrel", "overset", "underset"):
            yield start, after, before
            self._single += [_Group(), _Group(after="choose" if english and name in _CHOICES else "")]
            return after
        if name == "sqrt":
            return (yield from self._root(start, after, before, end))
        if name in _BIG:
            words, lower, symbol = _BIG[name]
            yield start, after, f"{before} {words if english else symbol} "
            group.lower, group.pending = lower, "of" if name != "log" else ""
            return after
        if name in _FUNCTIONS:
            yield start, after, f"{before} {_FUNCTIONS[name] if english else name} "
            group.pending = "" if name == "exp" else "of"
            self._base = ""
            return after
        if name in _AROUND:
            first, last = _AROUND[name]
            yield start, after, f"{before} {first} " if english and first else before
            self._single.append(_Group(after=last if english else ""))
            return after
        if name in _TEXT_NAMES:
            yield start, after, before
            self._single.append(_Group(verbatim=name.startswith(("text", "mbox", "hbox", "operatorname", "emph"))))
            return after
        if name in _NAMES:
            words = _NAMES[name][0 if english else 1]
            if english and name in ("to", "rightarrow") and any(each.scripts for each in self._groups):
                words = "approaches"
            yield start, after, f"{before} {words} "
        elif name in ("quad", "qquad", "displaystyle", "textstyle", "limits", "nolimits", "nonumber", "notag", "hline"):
            yield start, after, f"{before} "
        elif name in _SHORT_NAMES:
            yield start, after, before + _SHORT_NAMES[name]
            return after
        else:
            yield start, after, f"{before} {name} " if name.isalpha() else before + name
        self._base, self._after_atom = "", name.isalpha()
        yield from self._end_single(after)
        return after

    def _fraction(self, start: int, after: int, before: str, end: int) -> Generator[Edit, None, int]:
        small = _SMALL_FRACTION.match(self._text, after, end)
        if small is not None:
            top, bottom = small[1] or small[2], small[3] or small[4]
            yield start, small.end(), f"{before} {_fraction_words(top, bottom, english=self._english)} "
            yield from self._end_single(small.end())
            return small.end()
        yield start, after, before
        self._single += [_Group(), _Group(after="over" if self._english else "/")]
        return after

    def _root(self, start: int, after: int, before: str, end: int) -> Generator[Edit, None, int]:
        degree = _OPTIONAL.match(self._text, after, end)
        if degree is not None:
            after = degree.end()
        if not self._english:
            yield start, after, f"{before} √"
        elif degree is None or degree[1].strip() == "2":
            yield start, after, f"{before} the square root of "
        elif degree[1].strip() == "3":
            yield start, after, f"{before} the cube root of "
        elif _PLAIN_DEGREE.fullmatch(degree[1].strip()) is None:
            yield start, after, f"{before} the root of "
        else:
            name = degree[1].strip()
            spoken = number_words.ordinal(int(name)) if name.isdecimal() and len(name) < 4 else f"{name}th"
            yield start, after, f"{before} the {spoken} root of "
        self._single.append(_Group())
        return after


def _fraction_words(top: str, bottom: str, *, english: bool) -> str:
    if not english:
        return f"{top}/{bottom}"
    return f"{number_words.integer(top)} over {number_words.integer(bottom)}"
