"""TeX is read as a formula, money stays money, and no backslash or brace is spoken."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.text.normalizer import Normalizer
from app.text.spans import SpannedText
from app.text.tex import replace_tex
from tests.support.growth import LINEAR, order

pytestmark = pytest.mark.unit

NORMALIZER = Normalizer()


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        (r"The area is $A = \pi r^2$ where $r$ is the radius.",
         "The area is A equals pi r squared where r is the radius."),
        (r"$\sum_{i=1}^{n} a_i$", "the sum from i equals one to n of a sub i"),
        (r"\begin{align} x &= 1 \\ y &= 2 \end{align}", "x equals one, y equals two"),
        (r"$$\frac{-b \pm \sqrt{b^2-4ac}}{2a}$$",
         "minus b plus or minus the square root of b squared minus four a c over two a"),
        (r"So \(E = mc^2\) holds.", "So E equals m c squared holds."),
        (r"\[\int_0^1 x^2\,dx = \frac{1}{3}\]", "the integral from zero to one of x squared d x equals one over three"),
        (r"$\lim_{x \to 0} \frac{\sin x}{x} = 1$", "the limit as x approaches zero of sine of x over x equals one"),
        (r"$x_1, x_2, \ldots, x_n$", "x sub one, x sub two, ... x sub n"),
        (r"$\alpha \leq \beta$", "alpha is less than or equal to beta"),
        (r"$f(x) = \sqrt[3]{x}$", "f of (x) equals the cube root of x"),
        (r"$\sqrt[n]{x}$", "the nth root of x"),
        (r"$10^{-3}$ m", "ten to the power of minus three m"),
        (r"$x \in \mathbb{R}^n$", "x in R to the power of n"),
        (r"$v = \frac{\text{distance}}{\text{time}}$", "v equals distance over time"),
        (r"$\hat{y}$ and $\vec v$ and $\bar{x}$", "y hat and vector v and x bar"),
        (r"$\begin{pmatrix} a & b \\ c & d \end{pmatrix}$", "a b, c d"),
        (r"$\unknown{x}$", "unknown x"),
        (r"$\log_2 8 = 3$", "log base two eight equals three"),
        (r"$90^\circ$", "ninety degrees"),
        (r"$n!$ and $n$th", "n factorial and nth"),
        (r"$\binom{n}{k}$", "n choose k"),
        (r"$\sin^2 x + \cos^2 x = 1$", "sine squared of x plus cosine squared of x equals one"),
        (r"$|x| \ge 0$", "the absolute value of x is greater than or equal to zero"),
        (r"$P(A|B)$", "P of (A given B)"),
        (r"$A^T A^{-1}$", "A transpose A to the power of minus one"),
        (r"$e^{i\pi} + 1 = 0$", "e to the power of i pi plus one equals zero"),
        (r"$\prod_{k} k$", "the product from k of k"),
        (r"$50\%$ of it", "fifty percent of it"),
        (r"$x\neq y\implies z$", "x is not equal to y implies z"),
        (r"\frac{a}{b} and \sqrt{2}", "a over b and the square root of two"),
        (r"\textbf{Bold} and \emph{this}", "Bold and this"),
        (r"\begin{cases} 1 & x > 0 \\ 0 & x \le 0 \end{cases}",
         "one x is greater than zero, zero x is less than or equal to zero"),
        (r"$\left( \frac{a}{b} \right)$", "(a over b)"),
        ("The formula:\n\n$$\nE = mc^2\n$$\n\nEnd.", "The formula:\n\nE equals m c squared\n\nEnd."),
        (r"$\nabla \cdot \vec{E} = \frac{\rho}{\varepsilon_0}$",
         "nabla times vector E equals rho over epsilon sub zero"),
        (r"$\{1, 2\}$", "one, two"),
        (r"$42$ is it", "forty two is it"),
    ],
)  # fmt: skip
def test_formula_is_read(text: str, spoken: str) -> None:
    assert NORMALIZER.normalize(text) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "It costs $10 and the discount is $5.",
        "I paid $20 for 3 at $10 each.",
        "From $5 to $10, or 5$.",
        "US$5 and US$6",
        "It's $5-$10, not $20-$30.",
        "$5 million in 2020 and $6 million in 2021",
        "Set $HOME and $PATH.",
        "A $1,000 phone, a $2,000 laptop",
        "between $5 and 10$",
        "`$x$` is code",
        "```\n$x$\n```",
        r"C:\alpha\beta\gamma",
        "5$ and 6$",
        "Costs $3 (was $4)",
        "$5/month, $50/year",
    ],
)
def test_money_names_and_code_are_not_read_as_formulas(text: str) -> None:
    assert replace_tex(SpannedText(text), english=True).text == text


def test_escaped_dollar_is_read_as_money() -> None:
    assert NORMALIZER.normalize(r"It costs \$5, or $x = 5$.") == "It costs five dollars, or x equals five."


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        (r"$\alpha \leq \beta$", "α ≤ β"),
        (r"$A = \pi r^2$", "A = π r²"),
        (r"$\frac{a}{b}$", "a / b"),
        (r"$\sqrt{2}$", "√2"),
        (r"\(x \in \mathbb{R}\)", "x ∈ R"),
    ],
)
def test_formulas_in_other_languages_become_symbols(text: str, symbols: str) -> None:
    assert " ".join(replace_tex(SpannedText(text), english=False).text.split()) == symbols


def test_words_of_a_formula_keep_their_positions() -> None:
    source = r"Let $A = \pi r^2$ be."
    words = [
        (word.word, source[word.start_char : word.end_char]) for word in NORMALIZER.spoken(SpannedText(source)).words()
    ]
    assert words == [
        ("Let", "Let"), ("A", "A"), ("equals", "="), ("pi", r"\pi"), ("r", "r"), ("squared", "^2"), ("be.", "be."),
    ]  # fmt: skip


PIECES = (
    "$", "$$", "\\(", "\\)", "\\[", "\\]", "{", "}", "^", "_", "\\frac", "\\sqrt", "\\sum", "\\text", "\\hat", "x", "2",
    "\\", "&", "\\\\", "\\begin{align}", "\\end{align}", " ", "\n", "[3]", "|", "(", ")", "\\left", "\\log",
    "\\unknown",
    "`", "```", "=", "\\label", "\\binom", "\\alpha", "'", "a b", "\\$", "10",
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.booleans())
def test_any_mixture_is_read_with_spans_in_order(text: str, english: bool) -> None:
    found = replace_tex(SpannedText(text), english=english)
    last = (0, 0)
    for index in range(len(found)):
        span = found.span_of(index, index + 1)
        assert last[0] <= span[0] <= span[1] <= len(text)
        assert last[1] <= span[1]
        last = span
    assert not re.search(r"[\\{}$]", NORMALIZER.normalize(f"$x {text.replace('$', '').replace('`', '')} x^2$"))


@pytest.mark.slow
@pytest.mark.parametrize("piece", [*PIECES, "$x$ ", "\\frac{", "{x}", "\\sqrt[", "$a^", "x_{", "\\hat\\hat", "$\\$"])
def test_time_of_hostile_texts_grows_linearly(piece: str) -> None:
    small, large = ("$" + piece * (size // len(piece)) + "x$" for size in (10_000, 40_000))

    def read(text: str) -> str:
        return replace_tex(SpannedText(text), english=True).text

    assert order(lambda: read(small), lambda: read(large), 4, LINEAR) <= LINEAR


def test_braces_nested_very_deep_are_read() -> None:
    text = "$" + "{" * 10_000 + "x" + "}" * 10_000 + "$"
    assert NORMALIZER.normalize(text) == "x"
    assert NORMALIZER.normalize(r"$\frac{" * 5_000 + "x").strip()
    assert NORMALIZER.normalize(r"$x^{" * 10_000).strip()
