"""Spoken books become files that other programs read: chapters, cover, tags, captions, loudness.

FFmpeg (through PyAV and ffprobe) and epubcheck read the files.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import tracemalloc
import wave
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from app.books.book import Book, Chapter, SpokenSentence
from app.books.cover import Picture, picture
from app.books.mastering import LevelRange, Levels, Meter, mastered
from app.books.reading import read_book
from app.books.results import write_result
from app.types import TimedWord

if TYPE_CHECKING:
    from app.types import Samples

pytestmark = pytest.mark.unit

RATE = 24_000
COMMENT = "Synthetic speech; source=algorithmicMedia; generator=x; model=m; voice=v; created=2026-11-29T00:00:00Z"
EPUBCHECK = Path("/usr/share/java/epubcheck.jar")


def png() -> bytes:
    """Return a picture of 2 x 3 grey pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 3, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0\x80\x80" * 3)), chunk(b"IEND", b""))
    )


BOOK = Book(
    "The Lamp & the Keeper: a tale",
    "Ada Example",
    (
        Chapter("Chapter 1. The Harbour", ""),
        Chapter("Ünused", ""),
        Chapter("Der Sturm / 嵐", ""),
        Chapter("End?", ""),
    ),
    narrator="Alloy",
    language="en-GB",
    cover=png(),
)
TEXTS = [
    (0, "Chapter 1.", True), (0, "The harbour was quiet & <dark>.", True), (0, "A light burned.", False),
    (2, "Der Sturm.", True), (2, "The wind is west,\nthe sea is still.", True), (3, "All was well.", True),
]  # fmt: skip
SECONDS, PAUSE_S = 0.8, 0.2
STARTS_S = [0.0, 3.0, 5.0]  # of the chapters


def voice(seconds: float, level: float, seed: int, rate_hz: int = RATE) -> Samples:
    """Return noise with the loudness of syllables."""
    count = round(seconds * rate_hz)
    envelope = 0.1 + np.square(np.sin(np.arange(count) * (2 * np.pi * 2 / rate_hz)))
    return (np.random.default_rng(seed).normal(0, level, count) * envelope).astype(np.float32)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[SpokenSentence]:
    folder = tmp_path_factory.mktemp("sound")
    spoken = []
    for number, (chapter, text, starts) in enumerate(TEXTS):
        path = folder / f"{number}.raw"
        path.write_bytes((voice(SECONDS, 0.05, number).clip(-1, 1) * 32767).astype("<i2").tobytes())
        spoken.append(SpokenSentence(chapter, text, path, SECONDS, PAUSE_S, starts_paragraph=starts))
    return spoken


def probe(path: Path) -> dict[str, object]:
    """Return what ffprobe reads: chapters, tags, kinds of streams."""
    done = subprocess.run(
        ["ffprobe", "-v", "error", "-show_chapters", "-show_format", "-show_streams", "-of", "json", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return {
        "chapters": [(each["tags"]["title"], float(each["start_time"])) for each in found["chapters"]],
        "tags": found["format"].get("tags") or found["streams"][0]["tags"],
        "covers": [each["codec_name"] for each in found["streams"] if each["disposition"]["attached_pic"]],
        "seconds": float(found["format"]["duration"]),
    }


def decoded(data: Path | io.BytesIO) -> tuple[Samples, int]:
    with av.open(str(data) if isinstance(data, Path) else data) as container:
        rate = container.streams.audio[0].rate
        parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    joined = np.concatenate(parts)
    return joined.astype(np.float32) / (32768 if joined.dtype == np.int16 else 1), rate


needs_ffprobe = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")


@needs_ffprobe
@pytest.mark.parametrize("kind", ["mp3", "m4b", "flac", "opus", "wav"])
def test_audio_file_has_chapters_cover_and_tags(kind: str, sentences: list[SpokenSentence], tmp_path: Path) -> None:
    out = tmp_path / f"book.{kind}"
    result = write_result(BOOK, sentences, response_format=kind, out=out, tags={"comment": COMMENT})
    titles = ["Chapter 1. The Harbour", "Der Sturm / 嵐", "End?"]
    assert [(mark.title, mark.start_s) for mark in result.chapters] == list(zip(titles, STARTS_S, strict=True))
    assert list(tmp_path.iterdir()) == [out]
    found = probe(out)
    tags = {name.lower(): value for name, value in found["tags"].items()}
    assert tags["title"] == tags["album"] == BOOK.title
    assert (tags["artist"], tags["comment"]) == ("Ada Example", COMMENT)
    assert found["seconds"] == pytest.approx(result.seconds, abs=0.1)
    if kind == "wav":
        return
    assert found["chapters"] == list(zip(titles, STARTS_S, strict=True))
    assert tags["composer"] == "Alloy"
    assert found["covers"] == ["png"]
    if kind == "m4b":
        assert out.read_bytes()[4:12] == b"ftypM4B "
        assert out.read_bytes().find(b"moov") < out.read_bytes().find(b"mdat")
    samples, rate = decoded(out)
    # The third sentence is where its time says: the sound of another sentence differs.
    at = round(2.0 * rate)
    expected = np.frombuffer(sentences[2].sound.read_bytes(), "<i2") / 32768
    step = rate // RATE
    assert np.corrcoef(samples[at : at + step * len(expected) : step], expected)[0, 1] > 0.8


def test_same_sentences_give_the_same_bytes(sentences: list[SpokenSentence], tmp_path: Path) -> None:
    for kind in ("m4b", "zip", "epub"):
        first, second = (
            write_result(
                BOOK, sentences, response_format=kind, out=tmp_path / f"{n}.{kind}", tags={"comment": COMMENT}
            ).path
            for n in (1, 2)
        )
        assert first.read_bytes() == second.read_bytes()


def test_wav_has_exact_sizes(sentences: list[SpokenSentence], tmp_path: Path) -> None:
    write_result(BOOK, sentences, response_format="wav", out=tmp_path / "a.wav")
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnframes(), file.getframerate()) == (6 * RATE, RATE)


def test_zip_has_the_folders_of_audiobookshelf(sentences: list[SpokenSentence], tmp_path: Path) -> None:
    result = write_result(
        BOOK, sentences, response_format="zip", out=tmp_path / "b.zip", captions=["srt"], tags={"comment": COMMENT}
    )
    folder = "Ada Example/The Lamp & the Keeper a tale"
    with zipfile.ZipFile(result.path) as archive:
        assert archive.namelist() == [
            f"{folder}/cover.png",
            f"{folder}/metadata.opf",
            *(
                f"{folder}/{name}.{suffix}"
                for name in ("01 - Chapter 1. The Harbour", "02 - Der Sturm 嵐", "03 - End")
                for suffix in ("mp3", "srt")
            ),
        ]
        opf = ElementTree.fromstring(archive.read(f"{folder}/metadata.opf"))
        roles = {
            each.attrib["{http://www.idpf.org/2007/opf}role"]: each.text for each in opf.iter() if "creator" in each.tag
        }
        assert roles == {"aut": "Ada Example", "nrt": "Alloy"}
        with av.open(io.BytesIO(archive.read(f"{folder}/02 - Der Sturm 嵐.mp3"))) as file:
            assert file.metadata["title"] == "Der Sturm / 嵐"
            assert (file.metadata["track"], file.metadata["album"]) == ("2/3", BOOK.title)
            assert file.metadata["comment"] == COMMENT
        assert "00:00:01" in archive.read(f"{folder}/02 - Der Sturm 嵐.srt").decode()
    assert [part.title for part in result.files] == ["Chapter 1. The Harbour", "Der Sturm / 嵐", "End?"]
    assert sum(part.seconds for part in result.files) == pytest.approx(result.seconds)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a/b\\c:d*", "CON", ". .", "", "x" * 500, "..", "嵐" * 100, "\u202egpj.exe"],
    ids=range(9),
)
def test_names_in_a_zip_are_safe(name: str, sentences: list[SpokenSentence], tmp_path: Path) -> None:
    book = replace(BOOK, title=name, author=name, cover=None, chapters=tuple(Chapter(name, "") for _ in range(4)))
    result = write_result(book, sentences[-1:], response_format="zip", out=tmp_path / "b.zip")
    with zipfile.ZipFile(result.path) as archive:
        for each in archive.namelist():
            parts = each.split("/")
            assert len(parts) == 3
            for part in parts:
                assert part not in {"", ".", ".."}
                assert not re.search(r'[<>:"\\|?*\x00-\x1f\u202e]', part)
                assert part.upper() != "CON"
                assert len(part.encode()) < 200


def test_captions_are_beside_the_audio(sentences: list[SpokenSentence], tmp_path: Path) -> None:
    words = (TimedWord("Der", 0.1, 0.4, 0, 3), TimedWord("Sturm.", 0.4, 0.7, 4, 10))
    spoken = [replace(each, words=words) if each.text == "Der Sturm." else each for each in sentences]
    result = write_result(
        BOOK, spoken, response_format="opus", out=tmp_path / "b.opus", captions=["srt", "vtt", "lrc", "json"]
    )
    assert result.captions == tuple(tmp_path / f"b.{kind}" for kind in ("srt", "vtt", "lrc", "json"))
    srt = (tmp_path / "b.srt").read_bytes().decode()
    blocks = [block.split("\r\n") for block in srt.strip().split("\r\n\r\n")]
    assert [block[0] for block in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    assert " ".join(" ".join(block[2:]) for block in blocks) == " ".join(" ".join(text.split()) for _, text, _ in TEXTS)
    assert next(block[1] for block in blocks if block[2] == "Der Sturm.").startswith("00:00:03,100 --> ")
    vtt = (tmp_path / "b.vtt").read_text()
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert vtt.count("WEBVTT") == 1
    assert len(re.findall(r"\n\n00:", vtt)) == len(blocks)
    assert json.loads((tmp_path / "b.json").read_text())["duration"] == 6.0
    assert "[00:03.10]Der Sturm." in (tmp_path / "b.lrc").read_text()


# ---- EPUB


@pytest.fixture(scope="module")
def read_along(sentences: list[SpokenSentence], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("epub") / "b.epub"
    write_result(BOOK, sentences, response_format="epub", out=out, tags={"comment": COMMENT})
    return out


def test_overlays_connect_each_sentence_with_its_sound(read_along: Path, sentences: list[SpokenSentence]) -> None:
    clips = []
    with zipfile.ZipFile(read_along) as archive:
        assert archive.namelist()[0] == "mimetype"
        assert archive.getinfo("mimetype").compress_type == zipfile.ZIP_STORED
        for number in (1, 2, 3):
            name = f"chapter-{number:04}"
            page = ElementTree.fromstring(archive.read(f"EPUB/text/{name}.xhtml"))
            texts = {
                each.get("id"): " ".join(each.itertext()) for each in page.iter("{http://www.w3.org/1999/xhtml}span")
            }
            smil = ElementTree.fromstring(archive.read(f"EPUB/overlays/{name}.smil"))
            for par in smil.iter("{http://www.w3.org/ns/SMIL}par"):
                text, audio = par
                assert audio.attrib["src"] == f"../audio/{name}.m4a"
                times = float(audio.attrib["clipBegin"][:-1]), float(audio.attrib["clipEnd"][:-1])
                clips.append((texts[text.attrib["src"].partition("#")[2]], times))
            with av.open(io.BytesIO(archive.read(f"EPUB/audio/{name}.m4a"))) as file:
                assert file.duration / 1e6 == pytest.approx(clips[-1][1][1], abs=0.05)
                assert file.metadata["comment"] == COMMENT
    step = SECONDS + PAUSE_S
    assert clips == [
        (text.replace("\n", " "), (pytest.approx(place * step), pytest.approx((place + 1) * step)))
        for text, place in zip([each.text for each in sentences], [0, 1, 2, 0, 1, 0], strict=True)
    ]


def test_own_epub_can_be_read_again(read_along: Path) -> None:
    book = read_book(read_along.read_bytes(), "b.epub")
    assert (book.title, book.author, book.language, book.cover) == (BOOK.title, "Ada Example", "en-GB", BOOK.cover)
    assert [(each.title, each.text) for each in book.chapters] == [
        ("Chapter 1.", "Chapter 1.\n\nThe harbour was quiet & <dark>. A light burned."),
        ("Der Sturm.", "Der Sturm.\n\nThe wind is west,\nthe sea is still."),
        ("End?", "All was well."),
    ]


@pytest.mark.skipif(not EPUBCHECK.exists() or shutil.which("java") is None, reason="epubcheck is not installed")
def test_epubcheck_finds_no_error(read_along: Path) -> None:
    done = subprocess.run(
        ["java", "-jar", str(EPUBCHECK), str(read_along)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "No errors or warnings" in done.stdout


# ---- loudness


def levels(samples: Samples, rate_hz: int) -> Meter:
    meter = Meter(rate_hz)
    for start in range(0, len(samples), 5_000):
        meter.push(samples[start : start + 5_000])
    return meter


@pytest.mark.parametrize("level", [0.01, 0.05, 0.4])
def test_loudness_target_is_reached(level: float) -> None:
    spoken = voice(6, level, 1)
    quiet = np.zeros(RATE, np.float32)
    given = np.concatenate((spoken, quiet, spoken))
    out = np.concatenate(list(mastered(lambda: np.array_split(given, 50), RATE, -18.0)))
    assert len(out) == len(given)
    found = levels(out, RATE).finish()
    assert found.lufs == pytest.approx(-18, abs=0.3)
    assert found.peak_db <= -1
    assert not out[len(spoken) + 1_000 : len(spoken) + RATE - 1_000].any()


def test_mp3_for_acx_keeps_its_rules(sentences: list[SpokenSentence], tmp_path: Path) -> None:
    result = write_result(BOOK, sentences, response_format="mp3", out=tmp_path / "b.mp3", loudness="acx")
    samples, rate = decoded(result.path)
    found = levels(samples, rate).finish()
    assert rate == 44_100
    assert -23 <= found.rms_db <= -18
    assert found.peak_db <= -3
    assert result.files[0].levels.rms_db == pytest.approx(found.rms_db, abs=0.5)
    assert result.levels.rms_db_lowest == result.levels.rms_db_highest == round(result.files[0].levels.rms_db, 1)
    assert result.levels.meets_acx == result.files[0].levels.meets_acx


def test_levels_of_known_signals() -> None:
    tone = np.sin(np.arange(4 * RATE) * (2 * np.pi * 1000 / RATE)).astype(np.float32)
    noise = np.full(RATE, 1e-4, np.float32)
    found = levels(np.concatenate((tone * 0.1, noise)), RATE).finish()
    assert found.peak_db == pytest.approx(-20, abs=0.01)
    assert found.noise_floor_db == pytest.approx(-80, abs=0.1)
    assert found.rms_db == pytest.approx(-23 + 10 * np.log10(4 / 5), abs=0.05)
    assert levels(tone, RATE).finish().lufs == pytest.approx(-3, abs=0.3)


def test_silence_stays_silent() -> None:
    silent = np.zeros(3 * RATE, np.float32)
    faint = np.random.default_rng(1).normal(0, 1e-5, 3 * RATE).astype(np.float32)
    for target in (-18.0, "acx"):
        assert not np.concatenate(list(mastered(lambda: [silent], RATE, target))).any()
        assert np.allclose(np.concatenate(list(mastered(lambda: [faint], RATE, target))), faint)


# ---- faults and limits


def test_iterator_is_refused(sentences: list[SpokenSentence], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="iterated several times"):
        write_result(BOOK, iter(sentences), response_format="mp3", out=tmp_path / "a.mp3")


@pytest.mark.parametrize("kind", ["m4b", "zip", "epub"])
def test_failed_result_leaves_the_old_file_and_nothing_else(
    kind: str, sentences: list[SpokenSentence], tmp_path: Path
) -> None:
    out = tmp_path / f"a.{kind}"
    out.write_bytes(b"old")
    missing = replace(sentences[-1], sound=tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        write_result(BOOK, [*sentences, missing], response_format=kind, out=out)
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"old"
    with pytest.raises(ValueError, match="no spoken sentence"):
        write_result(BOOK, [], response_format=kind, out=out)


def test_memory_does_not_grow_with_the_book(sentences: list[SpokenSentence], tmp_path: Path) -> None:
    peaks = []
    for times in (1, 30):
        tracemalloc.start()
        write_result(BOOK, sentences[:3] * times, response_format="wav", out=tmp_path / "a.wav", loudness=-18.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(), Picture("png", 2, 3)),
        (b"\xff\xd8\xff\xe0\x00\x04xx\xff\xc0\x00\x0b\x08\x00\x10\x00\x20\x01", Picture("mjpeg", 32, 16)),
        (b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01", None),
        (b"\xff\xd8\xff\xe0\x00\x00", None),
        (b"GIF89a", None),
        (b"", None),
    ],
)
def test_size_of_a_picture_is_read_without_decoding(data: bytes, expected: Picture | None) -> None:
    assert picture(data) == expected


def test_levels_of_a_quiet_file_are_exact() -> None:
    meter = Meter(24_000)
    meter.push(np.full(24_000, 1e-4, np.float32))
    found = meter.finish()
    assert (found.rms_db, found.peak_db, found.noise_floor_db) == pytest.approx((-80, -80, -80), abs=0.01)


def test_level_range_covers_all_files_and_is_rounded() -> None:
    found = LevelRange.of([Levels(-20.04, -21.06, -3.26, -60.44), Levels(-18.26, -19.04, -1.23, -70.0)])
    assert found == LevelRange(-20.0, -18.3, -21.1, -19.0, -1.2, -60.4, meets_acx=False)
