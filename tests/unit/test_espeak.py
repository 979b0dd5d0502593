"""The offline voice: choice of the language, different voices, and data folders with long paths."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.engines import espeak
from app.engines.batched import BatchedEngine
from app.engines.espeak import TIMBRES, EspeakRunner, Library, resolve_language
from app.engines.espeak_ipa import CONSONANTS, SYMBOLS, VOWELS, to_phonemes
from app.engines.registry import BuildContext
from app.errors import EngineError, EngineUnavailable, UnsupportedParameter
from app.settings import Settings
from app.text import writing_systems
from app.text.pronunciations import unknown_symbol
from app.text.writing_systems import script_language
from app.types import Sampling, SpokenLine, Utterance, Voice
from app.voices.presets import PROFILES, preset
from tests.support.ears import loudness_lufs

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CONTEXT = BuildContext(lambda progress: None, lambda: False)
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody minds."


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture
async def engine() -> AsyncIterator[BatchedEngine]:
    async with espeak.build(Settings(_env_file=None, TTS_ENGINE="espeak"), CONTEXT) as engine:
        yield engine


async def spoken(
    engine: BatchedEngine, text: str, *, voice: str = "alloy", language: str | None = None, max_seconds: float = 30.0
) -> np.ndarray:
    line = SpokenLine(text, 0, preset(voice))
    chunks = [chunk async for chunk in engine.speak(Utterance((line,), Sampling(), 1, max_seconds, language=language))]
    return np.concatenate([np.zeros(0, np.float32), *(chunk.samples for chunk in chunks)])


def pitch_hz(samples: np.ndarray, rate_hz: int) -> float:
    """Return the median pitch of voiced windows of 40 ms, by the best autocorrelation between 50 and 400 Hz."""
    window = round(0.04 * rate_hz)
    shortest, longest = rate_hz // 400, rate_hz // 50
    found = []
    for start in range(0, len(samples) - 2 * window, window):
        frame = samples[start : start + 2 * window] - samples[start : start + 2 * window].mean()
        if np.sqrt(np.mean(frame**2)) < 0.03:
            continue
        energy = np.correlate(frame, frame, "full")[len(frame) - 1 :]
        lags = energy[shortest:longest] / np.linspace(1, 1 - longest / len(frame), longest - shortest)
        if lags.max() > 0.5 * energy[0]:
            found.append(rate_hz / (shortest + int(lags.argmax())))
    assert len(found) > 10
    return float(np.median(found))


async def test_sentence_gives_audible_speech(engine):
    samples = await spoken(engine, SENTENCE)
    assert 2 < len(samples) / engine.info.rate_hz < 6
    assert samples.dtype == np.float32
    level_dbfs = 20 * np.log10(np.sqrt(np.mean(samples**2)))
    assert -26 < level_dbfs < -14


# Some sounds outside English, such as the German r between vowels, depend on a counter of the library. So two answers
# for the same text may differ in samples, but their lengths differ by less than 1 %.
SAME = pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("voice", TIMBRES)
async def test_equal_requests_give_equal_audio(engine, voice):
    """eSpeak NG keeps a random state from call to call. Voices without random parts do not depend on this state."""
    first = await spoken(engine, SENTENCE, voice=voice)
    for other in ("Something else comes between.", "Ssh! Half of us felt this breath, s s s s."):
        await spoken(engine, other, voice=voice)
        assert np.array_equal(await spoken(engine, SENTENCE, voice=voice), first)


@pytest.mark.parametrize(("language", "text"), [("es", "El 1º de mayo es fiesta."), ("ja", "おはようございます。")])
async def test_equal_requests_give_equal_audio_in_other_languages(engine, language, text):
    first = await spoken(engine, text, language=language)
    await spoken(engine, SENTENCE)
    assert np.array_equal(await spoken(engine, text, language=language), first)


async def test_concurrent_synthesis_does_not_change_the_audio(engine):
    alone = await spoken(engine, SENTENCE)
    with ThreadPoolExecutor(1) as other:
        noise = other.submit(lambda: Library().synthesize("Something else is said meanwhile.", "gmw/de+f3", 30))
        again = await spoken(engine, SENTENCE)
        assert len(noise.result())
    assert np.array_equal(again, alone)


def test_two_libraries_in_one_process_are_independent():
    first, second = Library(), Library()
    one = first.synthesize(SENTENCE, "gmw/en-US+f2", 50)
    two = second.synthesize(SENTENCE, "gmw/en-US+f2", 50)
    assert len(one) > 20_000
    assert np.array_equal(one, two)


def test_pronunciations_do_not_change_the_next_sentence(library):
    """A new voice is checked with the pronunciations of its words, while other clients speak."""
    expected = library.synthesize("the quick brown fox jumps over the lazy dog", "gmw/en-US+f2", 50)
    for word in "This is how I sound when I talk for a while over the of and hello dog to an in Ada".split():
        for voice in ("gmw/en-US", "gmw/en-GB-x-rp"):
            assert library.ipa(word, voice)
    found = library.synthesize("the quick brown fox jumps over the lazy dog", "gmw/en-US+f2", 50)
    assert np.array_equal(found, expected)


def test_first_sentence_of_a_further_library_sounds_like_the_next():
    """eSpeak NG adds a pause to the first sentence after it was initialised for the third time."""
    library = [Library() for _ in range(4)][-1]
    first, second = (library.synthesize(SENTENCE, "gmw/en-US+f2", 50) for _ in range(2))
    assert np.array_equal(first, second)


def test_library_works_without_a_temporary_folder(tmp_path):
    """The speech then differs a little from call to call.

    A process of its own is needed: after the library was initialised again in one process, a later sentence has another
    pause.
    """
    code = f"""
        import tempfile
        from app.engines.espeak import Library
        tempfile.tempdir = {str(tmp_path / "missing")!r}
        print(len(Library().synthesize({SENTENCE!r}, "gmw/en-US+f2", 50)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 20_000
    assert "eSpeak NG has no temporary folder" in done.stderr


async def test_speech_ends_at_max_seconds(engine):
    samples = await spoken(engine, SENTENCE, max_seconds=0.5)
    assert len(samples) == round(0.5 * engine.info.rate_hz)


@pytest.mark.parametrize("text", ["", " ", ".", "\x00", "\ud83d", "<speak>&amp;", "\U0001f600", "%n%s", "a" * 399])
async def test_unusual_text_does_not_break_the_engine(engine, text):
    assert np.isfinite(await spoken(engine, text)).all()
    assert len(await spoken(engine, "Still here.")) > 1000


# ---- voices


def test_every_preset_has_a_unique_timbre():
    assert TIMBRES.keys() == PROFILES.keys()
    assert len({(timbre.accent, timbre.variant, timbre.pitch) for timbre in TIMBRES.values()}) == len(TIMBRES)


async def test_voices_differ_in_pitch(engine):
    """Listeners notice differences of about 3 %."""
    onyx, alloy, shimmer = [
        pitch_hz(await spoken(engine, SENTENCE, voice=voice), engine.info.rate_hz)
        for voice in ("onyx", "alloy", "shimmer")
    ]
    assert 55 < onyx < 0.8 * alloy
    assert 1.1 * alloy < shimmer < 320


@pytest.mark.parametrize("voice", TIMBRES)
async def test_every_voice_is_equally_loud(engine, voice):
    text = "We walked along the river after dinner, and the library closes at eight this evening. Please call me back."
    assert loudness_lufs(await spoken(engine, text, voice=voice), engine.info.rate_hz) == pytest.approx(-20, abs=0.6)


async def test_every_voice_produces_different_audio(engine):
    spoken_by = {voice: await spoken(engine, "Good morning to you.", voice=voice) for voice in TIMBRES}
    assert all(len(samples) > engine.info.rate_hz / 2 for samples in spoken_by.values())
    assert len({samples.tobytes() for samples in spoken_by.values()}) == len(TIMBRES)


def test_unknown_voice_is_an_error(library):
    with pytest.raises(EngineError, match="no voice"):
        library.synthesize("x", "gmw/nowhere", 50)
    assert len(library.synthesize("x", "gmw/en-US", 50))


# ---- languages


async def test_engine_lists_its_languages(engine, library):
    assert {"en-us", "en", "zh", "de", "fr", "es", "cmn", "ja", "ru", "ar", "hi"} <= library.languages.keys()
    assert engine.info.languages == tuple(sorted(library.languages))
    assert engine.info.capabilities.language


@pytest.mark.parametrize(
    ("tag", "same_as"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("de-AT", "de"),
        ("de_CH", "de"),
        ("en-US", "en-us"),
        ("en-GB", "en-gb-x-rp"),
        ("en", "en-gb"),
        ("en-NZ", "en"),
        ("fr-CA", "fr-fr"),
        ("fr-BE", "fr-be"),
        ("pt-PT", "pt"),
        ("es-MX", "es-419"),
        ("pt-BR", "pt-br"),
        ("fr", "fr-fr"),
        ("zh", "cmn"),
        ("zh-CN", "cmn"),
        ("zh-HK", "yue"),
        ("zh-Hant-TW", "cmn"),
        ("no", "nb"),
        ("sr-Latn-RS", "sr"),
    ],
)
def test_language_tags_are_resolved(library, tag, same_as):
    assert resolve_language(tag, library.languages) == library.languages[same_as]


@pytest.mark.parametrize("tag", ["tlh", "xx-YY", "zz", "-", "english"])
async def test_error_for_an_unknown_language_lists_the_supported_ones(engine, library, tag):
    with pytest.raises(UnsupportedParameter) as error:
        resolve_language(tag, library.languages)
    assert error.value.param == "language"
    assert "en-us, " in error.value.message
    assert repr(tag) in error.value.message
    with pytest.raises(UnsupportedParameter):  # the engine reports the same fault as an error of the request
        await spoken(engine, SENTENCE, language=tag)
    assert len(await spoken(engine, SENTENCE, language="de"))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Das kostet 3,50 Euro am 24.12.2024.", "de"),
        ("Le train part à 14 h 35 du quai 2.", "fr"),
        ("El 1º de mayo es fiesta.", "es"),
        ("请看 https://github.com/foo/bar 这个项目。", "cmn"),
    ],
)
async def test_language_of_the_words_is_spoken(engine, text, language):
    alone = await spoken(engine, text)
    assert len(alone) / len(await spoken(engine, text, language=language)) == SAME
    assert len(alone) / len(await spoken(engine, text, language="en-US")) != SAME


async def test_short_sentence_is_spoken_in_the_language_of_the_whole_text(engine):
    async def seconds(text: str, language: str | None) -> int:
        line = SpokenLine(text, 0, preset("alloy"), language=language)
        chunks = [chunk async for chunk in engine.speak(Utterance((line,), Sampling(), 1, 30.0))]
        return sum(len(chunk.samples) for chunk in chunks)

    numbers = "1984, 1985, 1986."
    assert await seconds(numbers, "de") / len(await spoken(engine, numbers, language="de")) == SAME
    assert await seconds(numbers, "de") / await seconds(numbers, None) != SAME
    assert await seconds("The cat is on the mat.", "de") / await seconds("The cat is on the mat.", None) == SAME


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello there", None),
        ("Übermäßig schön", None),
        ("Привет, мир", "ru"),
        ("Καλημέρα", "el"),
        ("你好，世界", "cmn"),
        ("今日は良い天気ですね", "ja"),
        ("漢字漢字漢字の", "ja"),
        ("안녕하세요", "ko"),
        ("नमस्ते दुनिया", "hi"),
        ("مرحبا بالعالم", "ar"),
        ("שלום עולם", "he"),
        ("The word мир means peace in Russian", None),
        ("The sign の is hiragana, and common", None),
        ("Слово peace", "ru"),
        ("", None),
        ("123 ...", None),
        ("\ud83d\x00", None),
    ],
)
def test_writing_system_determines_the_language(text, language):
    assert script_language(text) == language


def test_language_of_every_writing_system_is_supported(library):
    known = writing_systems._SCRIPT_LANGUAGES
    missing = [tag for tag in known.values() if not _resolves(tag, library.languages)]
    assert missing == []


def _resolves(tag: str, languages: dict[str, str]) -> bool:
    try:
        resolve_language(tag, languages)
    except UnsupportedParameter:
        return False
    return True


async def test_language_changes_the_audio(engine):
    english = await spoken(engine, "restaurant die Chance")
    german = await spoken(engine, "restaurant die Chance", language="de")
    assert english.tobytes() != german.tobytes()
    assert len(await spoken(engine, "Привет, мир. Как дела?")) > engine.info.rate_hz / 2


# ---- at the start


def test_error_for_a_missing_extra_names_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailable, match="not installed") as error:
        espeak.build(Settings(_env_file=None), CONTEXT)
    assert "pip install" in error.value.remedy


LONG_PATH = """
    import json, sys
    from pathlib import Path
    import espeakng_loader

    real = Path(espeakng_loader.get_data_path())
    link = Path(sys.argv[1])
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    espeakng_loader.get_data_path = lambda: str(link)

    from app.engines.espeak import Library
    from app.errors import EngineUnavailable
    try:
        library = Library()
    except EngineUnavailable as error:
        print(json.dumps(error.reason))
    else:
        print(json.dumps([len(library.languages), len(library.synthesize("Guten Tag.", "gmw/de", 50))]))
"""


def started_from(data: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Use the library in a new process, because its data path is global and a path that is too long overflows its
    buffer."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LONG_PATH), str(data)],
        cwd=ROOT,
        env={"PYTHONUTF8": "1", "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("folder", ["d" * 60, "日本語のとても長いフォルダの名前"])
def test_data_under_a_long_path_is_read(folder):
    """The paths have more than 160 bytes. The second path has few characters but many bytes."""
    with tempfile.TemporaryDirectory(prefix="e") as short:
        data = Path(short) / folder / folder / folder / "espeak-ng-data"
        assert len(str(data).encode()) > 160
        done = started_from(data)
        assert done.returncode == 0, done.stderr
        languages, samples = json.loads(done.stdout)
        assert languages > 100
        assert samples > 10_000


def test_missing_short_path_is_an_error():
    with tempfile.TemporaryDirectory(prefix="e") as short:
        deep = Path(short) / ("d" * 80) / ("e" * 80)
        deep.mkdir(parents=True)
        done = started_from(deep / "f" / "espeak-ng-data", TMPDIR=str(deep))
        assert done.returncode == 0, done.stderr
        assert "path" in json.loads(done.stdout)


# ---- pronunciations in IPA


def phonemes_of(library: Library, ipa: str, voice: str) -> str:
    """Return what the library speaks for a pronunciation, as its own IPA without stress marks."""
    names = to_phonemes(ipa)
    assert names is not None
    assert len(library.synthesize(f"[[{names}]]", voice, 50, phonemes=True)) > 0
    text = ctypes.create_string_buffer(f"[[{names}]]".encode())
    at = ctypes.c_void_p(ctypes.addressof(text))
    library._dll.espeak_SetVoiceByName(voice.encode())
    return without_stress(library._dll.espeak_TextToPhonemes(ctypes.byref(at), 1, 2).decode())


def without_stress(ipa: str) -> str:
    return re.sub("[\u02c8\u02cc]", "", ipa)


# eSpeak's American voice writes some sounds with other IPA symbols than the input.
AMERICAN = {"g": "ɡ", "r": "ɹ", "ɫ": "l", "ʧ": "tʃ", "ʤ": "dʒ", "e": "ɛ", "a": "æ"} | {
    "ɑ": "ɑː", "ɒ": "ɑː", "u": "uː", "ɜ": "ɜː", "ɝ": "ɜː",
    "əʊ": "oʊ", "ɪə": "iə", "eə": "ɛɹ", "ɛə": "ɛɹ",
    "ʊə": "ʊɹ", "n\u0329": "ən", "l\u0329": "əl", "m\u0329": "əm",
}  # fmt: skip


@pytest.mark.parametrize("symbol", [*CONSONANTS, *VOWELS])
def test_each_ipa_symbol_has_its_sound(library: Library, symbol: str) -> None:
    ipa = f"\u02c8{symbol}" if symbol in VOWELS else f"{symbol}\u02c8\u0259"
    spoken = phonemes_of(library, ipa, "gmw/en-US")
    assert spoken == AMERICAN.get(symbol, symbol) + ("" if symbol in VOWELS else "\u0259")


@pytest.mark.parametrize(
    "ipa",
    [
        "\u02c8si\u02d0kw\u0259l",
        "h\u0259\u02c8lo\u028a",
        "\u02c8nw\u026an",
        "\u02c8\u0283\u0279u\u02d0zb\u0279i",
        "\u02c8d\u0292\u026af",
        "\u02c8nju\u02d0 \u02c8j\u0254\u02d0k",
        "p\u0279\u0259\u02ccn\u028cnsi\u02c8e\u026a\u0283\u0259n",
        "\u02c8v\u026a\u0292\u0259n",
        "\u02c8s\u026a\u014b\u026a\u014b",
        "\u02c8\u025bnd\u0292\u026an \u02c8\u025bks",
        "\u02c8kju\u02d0b k\u0259n\u02c8t\u0279o\u028al",
        "\u02c8l\u026an\u0259ks",
    ],
)
def test_ipa_of_a_word_is_spoken(library: Library, ipa: str) -> None:
    assert phonemes_of(library, ipa, "gmw/en-US") == without_stress(ipa)


@pytest.mark.parametrize(
    "ipa", ["\u02c8b\u0254\u0303", "\u02c8\u025b\u02d0x\u02d0", "\u03c7a", "y", "\u00f8", "abc1", "", " "]
)
def test_unknown_ipa_has_no_phoneme_names(ipa: str) -> None:
    assert to_phonemes(ipa) is None
    assert unknown_symbol(ipa, SYMBOLS) or not ipa.strip()


def test_ipa_changes_only_its_word(library: Library) -> None:
    voice = Voice("alloy", "Alloy", "preset")
    runner = EspeakRunner(library, 1)
    plain = SpokenLine("The SQL server", 0, voice)
    with_ipa = replace(plain, ipa=((4, 7, "\u02c8si\u02d0kw\u0259l"),))
    respelled = replace(plain, text="The sequel server")
    assert not np.array_equal(runner._synthesize(with_ipa, None)[0], runner._synthesize(plain, None)[0])
    assert len(runner._synthesize(with_ipa, None)[0]) == pytest.approx(
        len(runner._synthesize(respelled, None)[0]), rel=0.03
    )
    german = len(runner._synthesize(plain, "de")[0]), len(runner._synthesize(with_ipa, "de")[0])
    assert german[1] == pytest.approx(german[0], rel=0.01)  # phoneme names have the meaning of English in each voice


def test_brackets_in_a_text_are_not_read_as_phoneme_names(library: Library) -> None:
    voice = Voice("alloy", "Alloy", "preset")
    line = SpokenLine("x [[h@l'oU]]", 0, voice, ipa=((0, 1, "\u02c8\u025bks"),))
    runner = EspeakRunner(library, 1)
    assert len(runner._synthesize(line, None)[0]) > 1.5 * len(
        runner._synthesize(replace(line, text="x hello"), None)[0]
    )
