"""The commands of app.cli, each in a separate process."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import av
import httpx
import huggingface_hub
import numpy as np
import pytest
import typer

from app import __version__
from app import cli as command_line
from app.audio.formats import AUDIO_FORMATS
from app.jobs.store import JobStore
from app.types import Reference
from app.voices.store import VoiceStore
from tests.support import samples as recordings
from tests.support.commands import run_command
from tests.support.ears import SENTENCES, Recogniser, decode
from tests.support.fake_hub import FakeHub
from tests.support.jobs import sentences
from tests.support.live import ROOT, Process, environment, free_port, wait_until
from tests.unit.test_hub_cache import listing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def cli(
    folder: Path, *arguments: str, stdin: str = "", limit_s: float = 60, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end, with its own working folder and data folder."""
    folder.mkdir(exist_ok=True)
    env = {**environment(folder / "data"), **variables}
    return run_command(arguments, folder, env, stdin=stdin.encode(), limit_s=limit_s)


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_say_writes_the_format_of_the_file_name(tmp_path: Path, recogniser: Recogniser, audio_format: str) -> None:
    done = cli(tmp_path, "say", SENTENCES[0], "-o", f"out.{audio_format}")
    assert done.returncode == 0, done.stderr
    samples = decode((tmp_path / f"out.{audio_format}").read_bytes(), audio_format)
    assert recogniser.recognise(samples) == SENTENCES[0]


@pytest.mark.parametrize("module", ["app.cli", "app.main"])
def test_version_is_shown(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tts-server {__version__}\n"


def test_commands_are_those_of_the_documentation() -> None:
    def names(command: Any) -> dict[str, Any] | None:
        commands = getattr(command, "commands", None)  # None = the command is not a group
        return None if commands is None else {name: names(each) for name, each in commands.items()}

    simple = ("serve", "say", "book", "normalize", "check", "models", "plan", "download", "docs")
    changes = dict.fromkeys(("add", "list", "remove"))
    groups = {"voices": {"cast": None}, "keys": changes, "lexicon": changes}
    assert names(typer.main.get_command(command_line.app)) == dict.fromkeys(simple) | groups


def test_say_reads_standard_input_and_writes_standard_output(tmp_path: Path, recogniser: Recogniser) -> None:
    done = cli(tmp_path, "say", "-", "-o", "-", "--format", "wav", "--voice", "nova", stdin=SENTENCES[1])
    assert done.returncode == 0
    assert recogniser.recognise(decode(done.stdout, "wav")) == SENTENCES[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("say", "Hello.", "-o", "out.xyz"), "mp3"),
        (("say", "Hello.", "--voice", "nobody"), "alloy"),
        (("say", "Hello.", "--speed", "9"), "speed"),
        (("say", "   "), "nothing that can be spoken"),
        (("say", "Hello.", "--temperature", "0.5"), "temperature"),
        (("say", "Hello.", "-o", "no/such/folder/out.mp3"), "written"),
        (("book", "no-such-book.epub"), "can't be read"),
        (("book", "-", "--format", "xyz"), "--format"),
        (("book", "-", "-o", "/"), "is a folder"),
        (("download", "espeak"), "needs no weights"),
        (("download", "nonsense"), "is not an engine"),
        (("say", "Hello.", "--engine", "nonsense"), "TTS_ENGINE"),
        (("say", "Hello.", "--engine", "espeak", "--model", "some/model"), "--model is not supported"),
        (("say", "Hello.", "--engine", "espeak", "--voice", "none"), "csm, dia"),
        (("say", "Hello.", "--speaker", "1"), "--voice none"),
        (("say", "Hello.", "TTS_DATA_DIR=/dev/null/data"), "TTS_DATA_DIR"),
        (("voices", "TTS_DATA_DIR=/dev/null/data"), "TTS_DATA_DIR"),
    ],
)
def test_invalid_commands_end_with_a_message(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    variables = dict(argument.split("=") for argument in arguments if "=" in argument)
    options = [argument for argument in arguments if "=" not in argument]
    done = cli(tmp_path, *options, COLUMNS="200", **variables)
    assert done.returncode != 0
    assert word in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.part"))


def test_ctrl_c_leaves_no_partial_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "say", "-", "-o", str(tmp_path / "long.mp3")]
    with subprocess.Popen(
        command,
        env=environment(tmp_path / "data"),
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Background jobs of a shell ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as child:
        assert child.stdin is not None
        child.stdin.write(b"A sentence that is said many times. " * 5_000)
        child.stdin.close()
        wait_until((tmp_path / "long.mp3.part").exists)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) != 0
    assert not list(tmp_path.glob("long.mp3*"))


def test_ctrl_c_while_the_command_is_loaded_shows_no_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "app.cli", "book", "book.md"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as child:
        assert child.stderr is not None
        assert any(b"| numpy" in line or b"  numpy" in line for line in child.stderr)  # the imports have begun
        child.send_signal(signal.SIGINT)
        assert b"Traceback" not in child.stderr.read()
        assert child.wait(20) in (-signal.SIGINT, 130)


def test_book_continues_after_ctrl_c(tmp_path: Path) -> None:
    text = "".join(f"# Chapter {n}\n\n{sentences(12)} The chapter {n} ends here.\n\n" for n in range(2))
    (tmp_path / "book.md").write_text(text)
    data = tmp_path / "data"
    store = JobStore(data / "books")
    command = [sys.executable, "-m", "app.cli", "book", "book.md", "-o", "out.m4b"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**environment(data), "TTS_MAX_ROWS": "2"},
        stderr=subprocess.PIPE,
        # Background jobs of a shell ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as child:
        wait_until(lambda: [job for job in store.newest()[0] if job.progress.sentences_done > 2])
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stderr is not None
        assert b"continues here" in child.stderr.read()
    assert not (tmp_path / "out.m4b").exists()
    spoken = store.newest()[0][0].progress.sentences_done
    done = cli(tmp_path, "book", "book.md", "-o", "out.m4b", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert f"continuing after {spoken} sentences" in done.stderr.decode()
    with av.open(str(tmp_path / "out.m4b")) as file:
        assert [chapter["metadata"]["title"] for chapter in file.chapters()] == ["Chapter 0", "Chapter 1"]
    assert store.newest() == ([], False)  # nothing stays after the result was written
    assert [path.name for path in (data / "books").iterdir() if path.is_dir()] == []
    store.close()


def test_voice_ids_are_not_cut_in_a_narrow_terminal(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = VoiceStore(data / "cloned_voices", data / "voice_references")
    reference = Reference(np.zeros(24_000, np.float32), 24_000, "Hello.")
    added = store.add("A name with several words", reference, description="Warm, unhurried, low. " * 5)
    for columns in ("80", "60"):
        assert added.id in cli(tmp_path, "voices", COLUMNS=columns).stdout.decode()


def test_unsuitable_recording_of_the_operator_gets_a_warning(tmp_path: Path) -> None:
    """`voices cast --file` stores each recording, and prints what is wrong with it."""
    pytest.importorskip("pocketsphinx")
    said, words, other = (
        recordings.speech(recordings.WORDS[:2]),
        " ".join(recordings.WORDS[:2]),
        " ".join(recordings.WORDS[2:4]),
    )
    tmp_path.mkdir(exist_ok=True)
    for name, sound, transcript, word in (
        ("fits", said, words, ""),
        ("other words", said, other, "exact words"),
        ("few words", said, "Hello.", "exact words"),
        ("noise", recordings.noise(8 * recordings.RATE_HZ, 0.1), words, "No speech"),
        ("silence", np.zeros(6 * recordings.RATE_HZ, np.float32), words, "No speech"),
        ("short", said[: recordings.RATE_HZ // 5], words, "0.2 s"),
    ):
        (tmp_path / "mine.wav").write_bytes(recordings.file(sound))
        done = cli(tmp_path, "voices", "cast", "--voice", "onyx", "--file", "mine.wav", "--transcript", transcript)
        assert done.returncode == 0, done.stderr
        text = " ".join(done.stderr.decode().split())
        assert ("may sound wrong" in text) == bool(word), (name, text)
        assert word in text, (name, text)


def test_voices_and_models_are_listed(tmp_path: Path) -> None:
    assert b"shimmer" in cli(tmp_path, "voices").stdout
    listed = cli(tmp_path, "models", COLUMNS="200").stdout.decode()
    assert "csm-1b" in listed
    assert "not downloaded" in listed


def test_weights_in_the_hub_cache_are_used_offline_and_not_changed(tmp_path: Path, tiny_csm: Path) -> None:
    """huggingface_hub has filled the cache. The cache is read-only, and each command works with it alone."""
    files = {path.relative_to(tiny_csm).as_posix(): path.read_bytes() for path in tiny_csm.rglob("*") if path.is_file()}
    cache = tmp_path / "hub"
    with FakeHub({"sesame/csm-1b": files}) as fake:
        huggingface_hub.snapshot_download("sesame/csm-1b", cache_dir=cache, endpoint=fake.url)
        huggingface_hub.close_session()
    for path in [cache, *cache.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    before = listing(cache)
    variables = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "TTS_DTYPE": "float32", "COLUMNS": "400"}
    bare = ("--voice", "none", "--max-frames", "3", "-o", "out.wav")
    for command in (("models",), ("download", "csm"), ("say", "Hello.", "--engine", "csm", *bare)):
        done = cli(tmp_path / "run", *command, **variables)
        assert done.returncode == 0, done.stderr
        if command[0] == "models":
            assert b"on disk" in next(line for line in done.stdout.splitlines() if b"sesame/csm-1b" in line)
    assert (tmp_path / "run" / "out.wav").stat().st_size > 3 * 1920
    assert listing(cache) == before
    assert not (tmp_path / "run" / "data" / "models" / "hub").exists()
    for path in [cache, *cache.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)  # so that pytest can remove it


def test_models_lists_a_codec_beside_the_weights_and_an_invalid_source(tmp_path: Path) -> None:
    (tmp_path / "weights" / "dac").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "weights" / name).write_bytes(b"{}")
    variables = {"DIA_MODEL": str(tmp_path / "weights"), "CSM_MODEL": "/no/such/folder"}
    listed = " ".join(cli(tmp_path, "models", COLUMNS="400", **variables).stdout.decode().split())
    assert f"{tmp_path}/weights, {tmp_path}/weights/dac on disk, on disk" in listed
    assert "/no/such/folder CSM_MODEL=/no/such/folder names a folder that does not exist" in listed


def test_download_fetches_the_model_and_its_codec_only_one_time(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"x" * 50_000}
    codec = {"config.json": b"{}", "model.safetensors": b"y" * 20_000}
    with FakeHub({"sesame/csm-1b": files, "kyutai/mimi": codec}) as hub:
        done = cli(tmp_path, "download", "csm", HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        requests = len(hub.requests)
        assert cli(tmp_path, "download", "csm", HF_ENDPOINT=hub.url).returncode == 0
        assert len(hub.requests) == requests
        listed = cli(tmp_path, "models", COLUMNS="200").stdout.decode()
        assert "sesame/csm-1b, kyutai/mimi" in listed
        assert "on disk, on disk" in listed
        hub.gated = {"sesame/csm-1b"}
        refused = cli(tmp_path / "other", "download", "csm", HF_ENDPOINT=hub.url, COLUMNS="200")
        assert refused.returncode == 1
        assert b"HF_TOKEN" in refused.stderr


def test_serve_listens_on_the_port_of_the_option(tmp_path: Path) -> None:
    port = free_port()
    with Process(tmp_path, "app.cli", "serve", "--port", str(port), "--engine", "espeak", TTS_ENGINE="csm") as process:
        process.url = f"http://127.0.0.1:{port}"
        process.wait()
        assert httpx.get(f"{process.url}/health").json()["status"] == "ok"


def test_pronunciations_are_added_listed_and_removed(tmp_path: Path) -> None:
    assert cli(tmp_path, "lexicon", "add", "SQL", "sequel").returncode == 0
    assert cli(tmp_path, "lexicon", "add", "sql", "squeal").returncode == 0  # the second call replaces the entry
    assert cli(tmp_path, "lexicon", "add", "US", "you ess", "--case", "--ipa", "ju\u02d0\u025bs").returncode == 0
    assert cli(tmp_path, "lexicon", "add", "York", "yawk", "--voice", "Nova").returncode == 0
    listed = cli(tmp_path, "lexicon", "list").stdout.decode()
    assert listed == "sql\tsqueal\nUS\tyou ess\tcase ipa=ju\u02d0\u025bs\n"
    assert (tmp_path / "data" / "lexicons" / "lexicon.tsv").read_text() == listed
    assert cli(tmp_path, "lexicon", "list", "--voice", "nova").stdout == b"York\tyawk\n"
    assert cli(tmp_path, "normalize", "An SQL server in York.").stdout.decode() == "An squeal server in York.\n"
    assert cli(tmp_path, "lexicon", "remove", "SQL").returncode == 0
    assert cli(tmp_path, "lexicon", "list").stdout.decode().startswith("US\t")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("add", "SQL"), "`say`"),
        (("add", "...", "x"), "`word`"),
        (("add", "SQL", "x", "--ipa", "5"), "`ipa`"),
        (("remove", "SQL"), "no entry"),
        (("list", "--voice", "nobody"), "There is no voice"),
    ],
)
def test_wrong_pronunciation_commands_end_with_a_message(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    done = cli(tmp_path, "lexicon", *arguments)
    assert done.returncode == 1
    assert word in done.stderr.decode()
