"""Non-verbal sounds in all spellings become the engine's tag or are removed; other words stay."""

from __future__ import annotations

import pytest

from app.text.nonverbal import NON_VERBAL_SOUNDS, perform_sounds
from app.text.spans import SpannedText
from tests.support.growth import LINEAR, order

pytestmark = pytest.mark.unit


def performed(text: str, supported: frozenset[str] = NON_VERBAL_SOUNDS) -> str:
    return " ".join(perform_sounds(SpannedText(text), supported).text.split())


SPELLINGS = {
    "laughs": ["[laughs]", "(laughs)", "(Laughs softly)", "<laugh>", "[LAUGHTER]", "[nervous laughter]", "(laughing)",
               "*laughs*", "*laughs nervously*", "(laugh)", "[starts laughing]", "*giggles*", "<giggle>", "( laughs )",
               "[laughs harder]", "*bursts out laughing*", "[soft laugh]"],
    "sighs": ["*sighs deeply*", "(sigh)", "[sighs]", "<sigh>", "*sigh*", "(sighing)", "[deep sigh]",
              "*lets out a sigh*", "(sighs)", "[sighs with relief]"],
    "clears throat": ["[clears throat]", "(clears his throat)", "*clears throat*", "(clearing throat)",
                      "[clear throat]"],
    "gasps": ["*gasp*", "[gasps]", "<gasp>", "(gasping)"],
    "coughs": ["(coughs)", "<cough>", "(coughs twice)", "*cough*", "[coughing]"],
    "chuckle": ["*chuckles*", "<chuckle>", "(chuckles warmly)", "[chuckling]"],
    "sniffs": ["<sniffle>", "[sniffs]", "*sniffles*"],
    "groans": ["<groan>", "*groans loudly*"],
    "inhales": ["[inhales deeply]", "*takes a deep breath*", "(breathes in)"],
    "exhales": ["[exhales]", "*breathes out*"],
    "applause": ["[applause]", "(Applause)"],
    "sneezes": ["*sneezes*", "(achoo)"],
    "": ["<yawn>", "[whispers]", "[excited]", "*yawns*", "[music]", "[crying]", "*gulps*"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("sound", "spelling"), [(sound, spelling) for sound, spellings in SPELLINGS.items() for spelling in spellings]
)
def test_each_spelling_is_performed_or_removed(sound: str, spelling: str) -> None:
    tag = f"({sound})" if sound else ""
    for before, after in (("", " Right."), ("Well. ", " okay."), ("Well ", ""), ("“", "” he said")):
        text = f"{before}{spelling}{after}"
        if spelling == "<yawn>":  # a tag without a sound is removed with other markup
            continue
        assert performed(text) == " ".join(f"{before}{tag or ' '}{after}".split()), text
        assert performed(text, frozenset()) == " ".join(f"{before} {after}".split()), text


def test_two_sounds_in_one_tag_are_performed() -> None:
    assert performed("*laughs and claps* Yes.") == "(laughs) (claps) Yes."
    assert performed("(sighs, then coughs) No.") == "(sighs) (coughs) No."


@pytest.mark.parametrize(
    "text",
    [
        "I *laughed* at it.",
        "He *sighs* a lot.",
        "I love *singing* in the rain.",
        "They *never* laugh.",
        "[singing](https://a.b) ok",
        "(said he) and (laughter is the best medicine)",
        "a [note] and a [list]",
        "(see the cough in chapter 2)",
        "*walks away* and *smiles*",
        "f(x) and (a) and [b]",
        "**laughs**",
        "a < b > c",
        "We laugh. We sigh.",
        "(sighs of relief were heard everywhere today)",
        "List<sigh>foo",
    ],
)
def test_words_of_a_sentence_are_not_removed_as_sounds(text: str) -> None:
    assert performed(text) == text


def test_only_supported_sounds_are_performed() -> None:
    assert performed("[laughs] [coughs] Hi.", frozenset({"laughs"})) == "(laughs) Hi."


def test_sound_has_the_position_of_its_tag() -> None:
    text = perform_sounds(SpannedText("Well *sighs deeply* okay."), NON_VERBAL_SOUNDS)
    assert [(word.word, word.start_char, word.end_char) for word in text.words()] == [
        ("Well", 0, 4),
        ("(sighs)", 5, 19),
        ("okay.", 20, 25),
    ]


@pytest.mark.parametrize("piece", ["(laughs ", "[a", "*a", "<a ", "(laughs)", "* ", "(very ", "*laughs", "(a, "])
def test_time_of_hostile_texts_grows_linearly(piece: str) -> None:
    small, large = (piece * (size // len(piece)) for size in (10_000, 40_000))
    assert order(lambda: performed(small), lambda: performed(large), 4, LINEAR) <= LINEAR
