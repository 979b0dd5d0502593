"""The pronunciation dictionary: which words it replaces, its file format, its files on disk, and linear time."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest

from app.engines.espeak_ipa import SYMBOLS
from app.errors import InvalidValue, NotFound, NotStored
from app.generator import lexicons as lexicons_module
from app.generator.lexicons import LexiconStore
from app.text.lexicon_file import LexiconFile, format_lexicon, parse_lexicon
from app.text.normalizer import Normalizer
from app.text.pronunciations import MAX_CHARS, MAX_ENTRIES, Lexicon, WordList, check_distinct, check_entry, take_ipa
from app.text.spans import SpannedText
from app.types import LexiconEntry, Line, SpeechRequest
from app.voices.store import VoiceStore
from tests.support.growth import LINEAR, order

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

ENTRIES = (
    ("SQL", "sequel"),
    ("Nguyen", "Win"),
    ("New York", "Noo Yawk"),
    ("York", "Yawk"),
    ("New York City", "the city"),
    ("r\u00e9sum\u00e9", "rezoomay"),
    ("na\u00efve", "nigh eve"),
    ("C++", "see plus plus"),
    ("GIF", "jif"),
    ("box", "bocks"),
    ("\u91cd\u5e86", "chong ching"),
    ("\u6771\u4eac", "\u3068\u3046\u304d\u3087\u3046"),
    ("\uc11c\uc6b8", "soul"),
    ("\u0e44\u0e17\u0e22", "tie"),
    ("\u0928\u092e\u0938\u094d\u0924\u0947", "num us tay"),
    ("API", "A P I"),
    ("24/7", "around the clock"),
    ("404", "four oh four"),
    ("R&D", "are and dee"),
    ("e-mail", "ee mail"),
    ("can", "kan"),
    ("U.S.", "United States"),
    ("o'clock", "on the clock"),
    ("stra\u00dfe", "shtrasser"),
    ("\u0645\u0631\u062d\u0628\u0627", "mar ha ba"),
    ("\u041a\u0438\u0435\u0432", "Keev"),
    ("tomato", "toe may toe"),
    ("toe", "foot"),
    ("\u2605", "star"),
)
CASED = (("US", "you ess"), ("us", "ussss"), ("Polish", "Poe lish"), ("iOS", "eye oh ess"))

# What is written -> what is spoken, without other text rules.
REPLACED = {
    # any case, whole words
    "SQL is fun, sql too, Sql!": "sequel is fun, sequel too, sequel!",
    "MySQL, SQLite, SQL5, 5SQL and NoSQL stay.": "MySQL, SQLite, SQL5, 5SQL and NoSQL stay.",
    "(SQL) [SQL] \"SQL\" 'SQL' *SQL* _SQL_ SQL/SQL SQL-SQL": (
        "(sequel) [SQL] \"sequel\" 'sequel' *sequel* _sequel_ sequel/sequel sequel-sequel"
    ),
    "#SQL and @SQL": "#sequel and @sequel",
    # possessives, plurals, contractions
    "Nguyen's cat and Nguyen\u2019s dog": "Win's cat and Win\u2019s dog",
    "the SQL's, the GIFs, a GIF's": "the sequel's, the jifs, a jif's",
    "Nguyen'll go, Nguyen'd go, NGUYEN'S": "Win'll go, Win'd go, Win'S",
    "gifs, Gifs and boxs stay, BOXs go": "gifs, Gifs and boxs stay, bockses go",
    "can't and can, cannot": "can't and kan, cannot",
    "l'API, d\u2019API, qu'API, O'API": "l'A P I, d\u2019A P I, qu'A P I, O'API",
    "five o'clock, five o\u2019clock": "five on the clock, five on the clock",
    # phrases, longest match first, no recursion
    "New York, New  York, New\nYork": "Noo Yawk, Noo Yawk, Noo Yawk",
    "New\n\nYork": "New\n\nYawk",
    "in New York City or York City": "in the city or Yawk City",
    "New Yorker, New York's": "New Yorker, Noo Yawk's",
    "a tomato on a toe": "a toe may toe on a foot",
    # accents, case folding, other scripts
    "re\u0301sume\u0301 R\u00c9SUM\u00c9 resume": "rezoomay rezoomay resume",
    "NAI\u0308VE na\u00efve naive": "nigh eve nigh eve naive",
    "STRASSE Stra\u00dfe strasse": "shtrasser shtrasser shtrasser",
    "\u6211\u5728\u91cd\u5e86\u5de5\u4f5c": "\u6211\u5728chong ching\u5de5\u4f5c",
    "\u6771\u4eac\u6771\u4eac": "\u3068\u3046\u304d\u3087\u3046\u3068\u3046\u304d\u3087\u3046",
    "\uc11c\uc6b8\uc5d0\uc11c": "soul\uc5d0\uc11c",
    "\u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28\u0e44\u0e17\u0e22": "\u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28tie",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0928\u092e\u0938\u094d\u0924\u0947\u0902": (
        "num us tay \u0928\u092e\u0938\u094d\u0924\u0947\u0902"
    ),
    "\u0645\u0631\u062d\u0628\u0627 \u0648\u0645\u0631\u062d\u0628\u0627": (
        "mar ha ba \u0648\u0645\u0631\u062d\u0628\u0627"
    ),
    "\u041a\u0418\u0415\u0412 \u043a\u0438\u0435\u0432 \u041a\u0438\u0435\u0432\u0430": (
        "Keev Keev \u041a\u0438\u0435\u0432\u0430"
    ),
    "\u7528SQL\u6570\u636e\u5e93": "\u7528sequel\u6570\u636e\u5e93",
    # numbers and signs
    "open 24/7, 124/7, 24/70, 2024/7": "open around the clock, 124/7, 24/70, 2024/7",
    "error 404, 1,404, 404.5, 3-404-5": "error four oh four, 1,404, 404.5, 3-404-5",
    "R&D, C++, C++11": "are and dee, see plus plus, see plus plus 11",
    "e-mail, E-Mail, e\u2011mail": "ee mail, ee mail, ee mail",
    "the U.S. and the U.S.A.": "the United States and the U.S.A.",
    "\u2605\u2605 \u2605a": "star star star a",
    # case-sensitive entries win
    "Tell us about the US, Us": "Tell ussss about the you ess, Us",
    "Polish the Polish table, polish": "Poe lish the Poe lish table, polish",
    "iOS, IOS, ios": "eye oh ess, IOS, ios",
    "US$5 and US dollars": "US$5 and you ess dollars",
    # not in addresses, mail, code, files, tags
    "https://sql.example.com/SQL?x=SQL#SQL SQL": "https://sql.example.com/SQL?x=SQL#SQL sequel",
    "www.york.com, york.com, a@york.com, York": "www.york.com, york.com, a@york.com, Yawk",
    "`SQL` and ``York`` and SQL": "`SQL` and ``York`` and sequel",
    "```\nSQL York\n```\nSQL": "```\nSQL York\n```\nsequel",
    "~~~sql\nSQL": "~~~sql\nSQL",
    "[SQL](https://x.org/SQL) and [York](/york/SQL)": "[sequel](https://x.org/SQL) and [Yawk](/york/SQL)",
    "sql.py, /usr/SQL/york, C:\\SQL\\york": "sql.py, /usr/SQL/york, C:\\SQL\\york",
    "<a title='SQL'>SQL</a>": "<a title='SQL'>sequel</a>",
    "": "",
    " \n": " \n",
}

# What is written -> what is spoken in English, with all text rules.
SPOKEN = {
    "Dr. Nguyen has 5 GIFs.": "Doctor Win has five jifs.",
    "It costs $5. SQL is free.": "It costs five dollars. sequel is free.",
    "**SQL** is a _language_.": "sequel is a language.",
    "# SQL\n\n* York\n* GIF": "sequel.\n\nYawk. jif.",
    "|SQL|York|\n|--|--|\n|GIF|b|": "sequel, Yawk. jif, b.",
    "caf&eacute; R&amp;D": "caf\u00e9 are and dee",
    "<b>New</b> York": "Noo Yawk",
    "the \uff33\uff31\uff2c": "the sequel",
    "SQL 2019": "sequel twenty nineteen",
    "At 5 SQL St.": "At five sequel Street.",
    "SQL's 2nd": "sequel's second",
    "`SQL` or SQL": "SQL or sequel",
    "\u2605": "star",
    "zqjbq SQL": "zqjbq sequel",
}


def word_list(*entries: tuple[str, str], cased: tuple[tuple[str, str], ...] = ()) -> WordList:
    found = [check_entry(word, say) for word, say in entries]
    return WordList([*found, *(check_entry(word, say, case_sensitive=True) for word, say in cased)])


ALL = Lexicon([word_list(*ENTRIES, cased=CASED)])


@pytest.fixture(scope="module")
def normalizer() -> Normalizer:
    return Normalizer()


@pytest.mark.parametrize(("written", "spoken"), REPLACED.items())
def test_only_whole_words_are_replaced(written: str, spoken: str) -> None:
    assert ALL.replaced(SpannedText(written)).text == spoken


@pytest.mark.parametrize(("written", "spoken"), SPOKEN.items())
def test_respelling_is_spoken_as_written(written: str, spoken: str, normalizer: Normalizer) -> None:
    assert normalizer.spoken(SpannedText(written), lexicon=ALL).text == spoken


@pytest.mark.parametrize("english", [True, False])
def test_lexicon_works_in_every_language(normalizer: Normalizer, english: bool) -> None:
    spoken = normalizer.spoken(SpannedText("SQL kostet, **SQL**"), english=english, lexicon=ALL)
    assert spoken.text == "sequel kostet, sequel"


@pytest.mark.parametrize(
    ("say", "english", "spoken"),
    [
        ("Web 2", True, "Web two"),
        ("50%", True, "fifty percent"),
        ("3 dee", True, "three dee"),
        ("Web 2", False, "Web 2"),
        ("St. Dr.", True, "St. Dr."),  # letters and full stops: as written
        ("SQL", True, "SQL"),
        ("NASA, e.g. now", True, "NASA, e.g. now"),
    ],
)
def test_respelling_with_digits_is_normalised(normalizer: Normalizer, say: str, english: bool, spoken: str) -> None:
    lexicon = Lexicon([word_list(("word", say))])
    assert normalizer.spoken(SpannedText("a word!"), english=english, lexicon=lexicon).text == f"a {spoken}!"


def test_spans_of_a_respelling_are_those_of_the_word(normalizer: Normalizer) -> None:
    text = "In **New York** we have 5 GIFs."
    words = normalizer.spoken(SpannedText(text), lexicon=ALL).words()
    assert [(each.word, text[each.start_char : each.end_char]) for each in words] == [
        ("In", "In"),
        ("Noo", "New York"),
        ("Yawk", "New York"),
        ("we", "we"),
        ("have", "have"),
        ("five", "5"),
        ("jifs.", "GIFs."),
    ]


def test_longer_match_has_priority_and_then_the_earlier_list() -> None:
    request, voice, server = (
        word_list(("SQL", "from the request")),
        word_list(("sql", "from the voice"), ("GIF", "voice gif"), ("York", "voice york")),
        word_list(("GIF", "server gif"), ("API", "server api"), ("New York", "server new york")),
    )
    lexicon = Lexicon([request, voice, server])
    replaced = lexicon.replaced(SpannedText("SQL GIF API New York York")).text
    assert replaced == "from the request voice gif server api server new york voice york"


@pytest.mark.parametrize("text", ["!Ii", "Hello , there", "Plain prose.", "It costs $5.", "--- "])
def test_text_without_words_of_the_lexicon_is_spoken_as_before(normalizer: Normalizer, text: str) -> None:
    assert normalizer.spoken(SpannedText(text), lexicon=ALL).text == normalizer.normalize(text)


def test_text_without_words_of_the_lexicon_is_the_same_object() -> None:
    text = SpannedText("Nothing to do here.")
    assert ALL.replaced(text) is text


# ---- pronunciations in IPA


@pytest.mark.parametrize(
    ("text", "spoken", "pronounced"),
    [
        ("An SQL.", "An SQL.", [("SQL", "si\u02d0kw\u0259l")]),
        ("SQL's sql", "SQL's sql", [("SQL's", "si\u02d0kw\u0259lz"), ("sql", "si\u02d0kw\u0259l")]),
        ("the SQLs", "the SQLs", [("SQLs", "si\u02d0kw\u0259lz")]),
        ("Box's SQL'll", "box's SQL'll", [("box's", "b\u0252ks\u026az"), ("SQL'll", "si\u02d0kw\u0259l\u0259l")]),
        ("NYC NYC", "New York New York", [("New York", "nu\u02d0 j\u0254\u02d0k")] * 2),
        ("Brun and SQL", "brown and SQL", [("SQL", "si\u02d0kw\u0259l")]),
        ("Xu is it", "Xu is it", []),
    ],
)
def test_ipa_is_stored_separately_from_the_text(
    normalizer: Normalizer, text: str, spoken: str, pronounced: list[tuple[str, str]]
) -> None:
    entries = [
        check_entry("SQL", "", ipa="si\u02d0kw\u0259l"),
        check_entry("Box", "box", ipa="b\u0252ks"),
        check_entry("NYC", "New York", ipa="nu\u02d0 j\u0254\u02d0k"),
        check_entry("Brun", "brown", ipa="b\u0281\u0153\u0303"),  # unknown sounds: `say`
        check_entry("Xu", "", ipa="\u0255y"),
    ]
    lexicon = Lexicon([WordList(entries)], ipa=SYMBOLS)
    for marked in (normalizer.spoken(SpannedText(text), lexicon=lexicon), lexicon.replaced(SpannedText(text))):
        sentence, found = take_ipa(marked)
        assert sentence.text == spoken
        assert [(sentence.text[start:end], ipa) for start, end, ipa in found] == pronounced
    assert Lexicon([WordList(entries)]).replaced(SpannedText("An SQL in NYC")).text == "An SQL in New York"


def test_cut_marks_of_ipa_leave_the_words() -> None:
    lexicon = Lexicon([word_list(("x", "y")), WordList([check_entry("NYC", "New York", ipa="nu\u02d0")])], ipa=SYMBOLS)
    marked = lexicon.replaced(SpannedText("in NYC"))
    cut = marked.text.index(" York")
    assert (take_ipa(marked[:cut])[0].text, take_ipa(marked[cut:])[0].text) == ("in New", " York")
    assert take_ipa(marked[:cut])[1] == ()


# ---- the cache key


@pytest.mark.parametrize(
    ("text", "word", "acts"),
    [
        ("Plain text.", "SQL", False),
        ("Plain sql.", "SQL", True),
        ("in New  York", "New York", True),
        ("in New Jersey", "New York", False),
        ("the GIFs", "GIF", True),
        ("caf&eacute;", "caf\u00e9", True),
        ("S<b>Q</b>L", "SQL", True),
        ("S\u00adQL", "SQL", True),
        ("\uff33\uff31\uff2c", "SQL", True),
        ("re\u0301sume\u0301", "r\u00e9sum\u00e9", True),
        ("o\u2019clock", "o'clock", True),
        ("\u6211\u5728\u91cd\u5e86", "\u91cd\u5e86", True),
        ("\u6211\u5728\u91cd", "\u91cd\u5e86", False),
        ("open 24/7", "24/7", True),
    ],
)
def test_only_entries_with_a_word_of_the_text_are_candidates(text: str, word: str, acts: bool) -> None:
    lexicon = Lexicon([word_list((word, "this"))])
    assert bool(lexicon.candidates(text)) is acts


@pytest.mark.parametrize("written", [*REPLACED, *SPOKEN])
def test_every_entry_that_changes_the_text_is_a_candidate(written: str, normalizer: Normalizer) -> None:
    for entry in ALL._lists[0].entries:
        lexicon = Lexicon([WordList([entry])])
        if not lexicon.candidates(written):
            plain = normalizer.spoken(SpannedText(written))
            assert normalizer.spoken(SpannedText(written), lexicon=lexicon).text == plain.text, entry


def test_digest_depends_on_the_pronunciation_and_not_on_its_list() -> None:
    entry, other = check_entry("SQL", "sequel"), check_entry("SQL", "squeal")
    of_request, of_server = Lexicon([WordList([entry]), WordList([other])]), Lexicon([WordList(), WordList([entry])])
    text = "SQL!"
    digest = of_server.digest(of_server.candidates(text))
    assert of_request.digest(of_request.candidates(text)) == digest
    swapped = Lexicon([WordList([other]), WordList([entry])])
    assert swapped.digest(swapped.candidates(text)) != digest


def test_request_without_entries_keeps_its_cache_key_and_seed() -> None:
    plain = SpeechRequest("tts-1", (Line("Hello.", "alloy"),))
    with_entry = SpeechRequest("tts-1", (Line("Hello.", "alloy"),), lexicon=(check_entry("SQL", "sequel"),))
    assert with_entry.digest() == plain.digest()
    assert with_entry.content_seed() == plain.content_seed()


# ---- entries


@pytest.mark.parametrize(
    ("word", "say", "ipa", "param"),
    [
        ("", "x", None, "word"),
        (" \n", "x", None, "word"),
        ("...", "x", None, "word"),
        ("'", "x", None, "word"),
        ("a" * (MAX_CHARS + 1), "x", None, "word"),
        ("a\x00b", "x", None, "word"),
        ("\ud800", "x", None, "word"),
        ("\ue000", "x", None, "word"),
        ("a", "", None, "say"),
        ("a", "...", None, "say"),
        ("a", "b" * (MAX_CHARS + 1), None, "say"),
        ("a", "b\x07", None, "say"),
        ("a", None, None, "say"),
        ("a", None, "n5n", "ipa"),
        ("a", "b", "NG", "ipa"),
        ("a", "b", "n" * (MAX_CHARS + 1), "ipa"),
    ],
)
def test_wrong_entry_names_its_field(word: str, say: str | None, ipa: str | None, param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        check_entry(word, say, ipa=ipa)
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


def test_entry_is_cleaned() -> None:
    entry = check_entry("  re\u0301sume\u0301\n x ", " a  b\t", ipa="/\u02c8n\u026a/")
    assert entry == LexiconEntry("r\u00e9sum\u00e9 x", "a b", ipa="\u02c8n\u026a")
    assert check_entry("x", "", ipa="[n\u026a]") == LexiconEntry("x", "", ipa="n\u026a")


def test_two_entries_with_one_word_are_an_error() -> None:
    entries = [check_entry("SQL", "a"), check_entry("x", "y"), check_entry("sql", "b")]
    with pytest.raises(InvalidValue) as caught:
        check_distinct(entries)
    assert caught.value.param == "2.word"
    check_distinct([check_entry("SQL", "a"), check_entry("SQL", "b", case_sensitive=True)])
    check_distinct([check_entry("SQL", "a", case_sensitive=True), check_entry("sql", "b", case_sensitive=True)])


# ---- the file format


FILES: dict[bytes, tuple[list[LexiconEntry], list[int]]] = {
    b"SQL\tsequel\n": ([LexiconEntry("SQL", "sequel")], []),
    b"# comment\n\n  # another\nSQL\tsequel": ([LexiconEntry("SQL", "sequel")], []),
    b"US\tyou ess\tcase\n": ([LexiconEntry("US", "you ess", True)], []),
    "SQL\tsequel\tipa=s\u02c8i\u02d0kw\u0259l".encode(): (
        [LexiconEntry("SQL", "sequel", ipa="s\u02c8i\u02d0kw\u0259l")],
        [],
    ),
    "SQL\tsequel\tcase ipa=n\u026a w\u026an\r\n".encode(): (
        [LexiconEntry("SQL", "sequel", True, "n\u026a w\u026an")],
        [],
    ),
    "SQL\tn\u026a\tipa case\n".encode(): ([LexiconEntry("SQL", "", True, "n\u026a")], []),
    "\ufeffSQL\tsequel\rYork\tyawk\r".encode(): ([LexiconEntry("SQL", "sequel"), LexiconEntry("York", "yawk")], []),
    b"\\#1\tnumber one\n\\\\x\ty\n": ([LexiconEntry("#1", "number one"), LexiconEntry("\\x", "y")], []),
    b"SQL sequel\nYork\tyawk\n": ([LexiconEntry("York", "yawk")], [1]),
    b"York\tyawk\nSQL\t\n\tx\n": ([LexiconEntry("York", "yawk")], [2, 3]),
    b"SQL\tsequel\tbold\nYork\tyawk": ([LexiconEntry("York", "yawk")], [1]),
    b"caf\xe9\tcaffay\nYork\tyawk": ([LexiconEntry("York", "yawk")], [1]),
    b"SQL\ta\nsql\tb\n": ([LexiconEntry("sql", "b")], []),
    b"a" * 300 + b"\tb\n\x00\tx\n": ([], [1, 2]),
    b"": ([], []),
    b"\x00\xff" * 1000: ([], [1]),
}


@pytest.mark.parametrize(("data", "expected"), FILES.items(), ids=range(len(FILES)))
def test_file_is_read_line_by_line(data: bytes, expected: tuple[list[LexiconEntry], list[int]]) -> None:
    content = parse_lexicon(data)
    assert list(content.entries) == expected[0]
    assert [int(problem.removeprefix("line ").partition(":")[0]) for problem in content.problems] == expected[1]


def test_written_file_is_read_back() -> None:
    entries = (
        LexiconEntry("SQL", "sequel"),
        LexiconEntry("#1", "number one", True),
        LexiconEntry("\\x", "y", ipa="n\u026a"),
        LexiconEntry("New York", "", True, "nu\u02d0 j\u0254\u02d0k"),
        LexiconEntry("\u91cd\u5e86", "chong ching"),
    )
    assert parse_lexicon(format_lexicon(entries)) == LexiconFile(entries)


def test_comments_and_broken_lines_stay_in_a_written_file() -> None:
    before = parse_lexicon(b"# names\n# of towns\nYork\tyawk\nbroken line\n")
    data = format_lexicon([check_entry("SQL", "sequel")], before)
    assert data.decode() == "# names\n# of towns\n# not read: broken line\nSQL\tsequel\n"
    assert format_lexicon([check_entry("SQL", "sequel")], parse_lexicon(data)) == data


def test_file_with_too_many_entries_keeps_the_first_ones() -> None:
    content = parse_lexicon("".join(f"word{number}\tx\n" for number in range(MAX_ENTRIES + 2)).encode())
    assert len(content.entries) == MAX_ENTRIES
    assert len(content.problems) == 2


# ---- the files on disk


@pytest.fixture
def store(tmp_path: Path) -> LexiconStore:
    return LexiconStore(tmp_path, VoiceStore(tmp_path / "cloned_voices", tmp_path / "voice_references"))


def words(store: LexiconStore, voice: str | None = None) -> list[str]:
    return [entry.word for entry in store.content(voice).entries]


def test_dictionaries_of_server_and_voice_are_separate_private_files(store: LexiconStore, tmp_path: Path) -> None:
    store.replace([check_entry("SQL", "sequel")])
    store.replace([check_entry("York", "yawk")], "alloy")
    assert (words(store), words(store, "alloy"), words(store, "nova")) == (["SQL"], ["York"], [])
    assert (tmp_path / "lexicons" / "lexicon.tsv").read_text() == "SQL\tsequel\n"
    assert (tmp_path / "lexicons" / "alloy.tsv").read_text() == "York\tyawk\n"
    for path in (
        tmp_path / "lexicons" / "lexicon.tsv",
        tmp_path / "lexicons" / "alloy.tsv",
        tmp_path / "lexicons" / ".lock",
    ):
        assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "lexicons").stat().st_mode & 0o077 == 0


def test_changed_file_is_read_again(store: LexiconStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store.lists("alloy")[1]
    (tmp_path / "lexicons").mkdir()
    (tmp_path / "lexicons" / "lexicon.tsv").write_text("SQL\tsequel\n")
    monkeypatch.setattr(lexicons_module, "CHECK_FILES_S", -1.0)
    assert [entry.word for entry in store.lists("alloy")[1].entries] == ["SQL"]
    (tmp_path / "lexicons" / "lexicon.tsv").unlink()
    assert not store.lists("alloy")[1]


def test_broken_line_is_a_warning_with_file_and_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lexicons").mkdir()
    (tmp_path / "lexicons" / "lexicon.tsv").write_text("SQL\tsequel\nno tab here\n")
    with caplog.at_level(logging.WARNING):
        store = LexiconStore(tmp_path, VoiceStore())
    assert words(store) == ["SQL"]
    assert f"{tmp_path / 'lexicons' / 'lexicon.tsv'}" in caplog.text
    assert "line 2: The line has no tab." in caplog.text


def test_unreadable_file_keeps_the_earlier_entries(
    store: LexiconStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.replace([check_entry("SQL", "sequel")])
    (tmp_path / "lexicons" / "lexicon.tsv").unlink()
    (tmp_path / "lexicons" / "lexicon.tsv").mkdir()
    with caplog.at_level(logging.WARNING):
        assert words(store) == ["SQL"]
    assert "earlier entries stay" in caplog.text
    with pytest.raises(NotStored):
        store.replace([check_entry("York", "yawk")])


def test_removal_of_a_word(store: LexiconStore) -> None:
    store.replace(
        [check_entry("US", "you ess", case_sensitive=True), check_entry("us", "uss"), check_entry("SQL", "sequel")]
    )
    assert [entry.say for entry in store.remove("US")[0]] == ["you ess"]
    assert [entry.say for entry in store.remove("sql")[0]] == ["sequel"]
    assert words(store) == ["us"]
    with pytest.raises(NotFound):
        store.remove("SQL")


def test_concurrent_changes_lose_no_entry(store: LexiconStore, tmp_path: Path) -> None:
    others = LexiconStore(tmp_path, VoiceStore())  # as of another process

    def add(number: int) -> None:
        chosen = (store, others)[number % 2]
        chosen.change(lambda entries: (*entries, check_entry(f"word{number}", "x")))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(words(store)) == sorted(f"word{number}" for number in range(16))


def test_too_many_entries_are_an_error(store: LexiconStore) -> None:
    with pytest.raises(InvalidValue) as caught:
        store.replace([LexiconEntry(f"word{number}", "x") for number in range(MAX_ENTRIES + 1)])
    assert caught.value.param == "entries"


def test_checks_of_files_have_a_limited_rate(store: LexiconStore) -> None:
    assert store.needs_check(["alloy"])
    store.lists("alloy")
    assert not store.needs_check(["alloy"])
    assert store.needs_check(["alloy", "nova"])


# ---- time


def test_time_grows_linearly_with_the_text() -> None:
    prose = "The New York office uses SQL, and Nguyen's team of 24/7 R&D makes GIFs in York. "
    lexicon = Lexicon([word_list(*ENTRIES, *((f"word{number} and more", "x") for number in range(9_000)))])
    small, large = SpannedText(prose * 60), SpannedText(prose * 600)
    assert order(lambda: lexicon.replaced(small), lambda: lexicon.replaced(large), 10, LINEAR) <= LINEAR
    assert order(lambda: lexicon.candidates(small.text), lambda: lexicon.candidates(large.text), 10, LINEAR) <= LINEAR


@pytest.mark.parametrize(
    "piece",
    [
        "`",
        "<a ",
        "[a",
        "](a",
        "a.b",
        "/a",
        "data:",
        "\u0301",
        "'s ",
        "l'a ",
        "1.1",
        "a@",
        "~~~\n",
        "New ",
        "\u91cd",
        "zq",
        "(a",
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    small, large = piece * 1_000, piece * 10_000
    lexicon = Lexicon([word_list(("a", "b"), ("1", "c"), ("s", "d"), *ENTRIES)])
    growth = order(
        lambda: lexicon.replaced(SpannedText(f"SQL {small}")),
        lambda: lexicon.replaced(SpannedText(f"SQL {large}")),
        10,
        LINEAR,
    )
    assert growth <= LINEAR
