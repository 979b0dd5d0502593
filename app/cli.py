"""The command line `python -m app.cli`: starts the server, speaks texts, and manages voices, keys and models."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import shutil
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take seconds; with this handler, Ctrl+C ends them without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import numpy as np
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from app import __version__, first_day, wiring
from app import main as server
from app.api.job_requests import JobBody
from app.audio.decode import decode
from app.audio.encoders import open_encoder
from app.audio.formats import AUDIO_FORMATS
from app.books.book import MAX_TEXT_CHARS
from app.books.reading import read_book
from app.engines.registry import BUILT_IN, BuildContext, EngineSpec, find_spec, specs
from app.errors import EngineUnavailable, SpeechError
from app.first_day_page import page
from app.generator import preset_voices
from app.generator.job import spoken_language
from app.generator.lexicons import LexiconStore, with_entry
from app.generator.planning import read_text
from app.generator.prompts import check_speakable
from app.jobs.state import ENDED
from app.jobs.store import JobStore
from app.keys import SCOPES, BadKeys, KeyFile, KeyRing
from app.settings import Settings, as_markdown
from app.text.captions import MEDIA_TYPES, caption_file
from app.text.languages import language_tag
from app.text.lexicon_file import format_lexicon
from app.text.normalizer import Normalizer
from app.text.pronunciations import Lexicon, WordList, check_entry
from app.types import Line, Reference, Sampling, SpeechRequest, SpokenLine, Utterance, Voice
from app.voices.cloning import Cloner, import_preset_files
from app.voices.presets import DEFAULT_VOICE, PROFILES, UNNAMED_VOICE
from app.voices.store import VoiceStore
from app.voices.transcribe import NoTranscriber
from app.voices.transcript_words import TranscriptChecker
from app.weights import hub
from app.weights.download import Progress as DownloadProgress
from app.weights.download import fetch
from app.weights.hub_token import find_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.engines.model_manager import ModelManager
    from app.jobs.runner import JobRunner
    from app.jobs.state import Job, NewJob
    from app.text.captions import CaptionFormat
    from app.types import AudioFormat
    from app.voices.transcribe import Transcriber

# rich_markup_mode=None is necessary because rich would remove words in brackets, such as [speaker], from help texts.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Text to speech on your own machine.", rich_markup_mode=None
)
out = Console()
err = Console(stderr=True)

NO_VOICE = "none"
INTERRUPTED = 130  # the exit status after Ctrl+C
MODEL_SETTINGS = ", ".join(spec.model_setting for spec in BUILT_IN if spec.model_setting)
RECORDING_RATE_HZ, MAX_RECORDING_S = 24_000, 30.0
SETTINGS_PAGE = Path("docs/settings.md")


def _show_version(value: bool) -> None:
    """If the option --version is set, print the version and exit."""
    if value:
        print(f"tts-server {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Text to speech on your own machine."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT).")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine to use (TTS_ENGINE).")] = None,
) -> None:
    """Start the server."""
    server.serve(_settings(HOST=host, PORT=port, TTS_ENGINE=engine))


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="The text to speak; '-' = read it from standard input.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write; '-' = standard output.")] = Path(
        "speech.mp3"
    ),
    voice: Annotated[
        str | None,
        typer.Option(help=f"The id of a voice; `voices` lists them. Default: {DEFAULT_VOICE}, or the adapter's voice."),
    ] = None,
    audio_format: Annotated[
        str | None, typer.Option("--format", help="The audio format. Default: from the file name, or mp3.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.25, max=4.0)] = 1.0,
    sample_rate: Annotated[int, typer.Option(min=8_000, max=48_000)] = 24_000,
    engine: Annotated[str | None, typer.Option(help="Engine to use (TTS_ENGINE).")] = None,
    language: Annotated[
        str | None, typer.Option(help="The language as a BCP 47 tag, for engines with several languages.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0)] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    seed: Annotated[int | None, typer.Option(help="The random seed. Default: derived from the text.")] = None,
    normalize: Annotated[bool, typer.Option(help="Write numbers, dates and symbols as words.")] = True,
    cfg_scale: Annotated[
        float | None, typer.Option(min=0.0, help="The scale of classifier-free guidance, for engines that support it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"The weights: a folder or a Hugging Face id ({MODEL_SETTINGS}). Or a LoRA adapter: MODEL:NAME."
        ),
    ] = None,
    speaker: Annotated[int | None, typer.Option(min=0, help="With --voice none: the number of the speaker.")] = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="With --voice none: the maximum number of frames.")
    ] = None,
    codes: Annotated[
        Path | None, typer.Option(help="With --voice none: write the codes (K, T) to this .npy file.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Write captions to this file: .srt, .vtt, .lrc or .json.")
    ] = None,
    reference_noise: Annotated[
        bool, typer.Option(help="With --voice none: use the random numbers of torch.manual_seed and torch.multinomial.")
    ] = False,
) -> None:
    """Speak a text into a file.

    `--voice none` runs the model without the server's text rules, to compare the model with other implementations. The
    whole text is one prompt in the format of the model's authors, and the output is neither checked nor trimmed.
    """
    chosen = (audio_format or output.suffix.lstrip(".") or "mp3").lower()
    if chosen not in AUDIO_FORMATS:
        _fail(f"{chosen!r} is not a supported audio format. Use one of: {', '.join(AUDIO_FORMATS)}.")
    if captions is not None and (voice == NO_VOICE or _caption_format(captions) not in MEDIA_TYPES):
        _fail(f"--captions needs a voice and a file with one of these endings: {', '.join(MEDIA_TYPES)}.")
    input_text = sys.stdin.read() if text == "-" else text
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, cfg_scale=cfg_scale)
    weights: dict[str, object] = {}
    base, _, adapter = (model or "").rpartition(":")
    adapted = find_spec(base, specs().values()) if base else None  # None if --model does not have the form MODEL:NAME
    if adapted is not None:
        engine = engine or adapted.name
    elif model is not None:
        spec = specs().get(engine or _settings().engine)
        if spec is None or not spec.model_setting:
            _fail(f"--model is not supported by the {engine or _settings().engine} engine.")
        weights[spec.model_setting] = model
    if voice == NO_VOICE:
        settings = _settings(TTS_ENGINE=engine, TTS_MAX_ROWS=1, **weights)
        bare = [spec for spec in specs().values() if spec.bare]
        spec = next((spec for spec in bare if spec.name == settings.engine), None)
        if spec is None:
            _fail(f"--voice none is supported by these engines only: {', '.join(spec.name for spec in bare)}.")
        spoken_text = Normalizer().normalize(input_text) if normalize else input_text
        line = SpokenLine(spoken_text, speaker or 0, Voice(NO_VOICE, NO_VOICE, "offline"))
        utterance = Utterance((line,), sampling, seed or 0, 0.0)  # `_say_bare` sets max_seconds
        asyncio.run(
            _say_bare(spec, settings, utterance, max_frames, output, chosen, codes, reference_noise=reference_noise)
        )
        return
    if speaker is not None or max_frames or codes or reference_noise:
        _fail("--speaker, --max-frames, --codes and --reference-noise require --voice none.")
    settings = _settings(TTS_ENGINE=engine, **weights)
    request = SpeechRequest(
        model="tts-1" if adapted is None else f"{adapted.model_id}:{adapter}",
        lines=(Line(input_text, voice or (UNNAMED_VOICE if adapted is None else adapter)),),
        format=chosen,
        speed=speed,
        sample_rate_hz=sample_rate,
        sampling=sampling,
        seed=seed,
        language=language,
        normalize=normalize,
        timestamps=captions is not None,
        provenance=str(output) != "-",
    )
    extras = {
        "language": language,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "cfg_scale": cfg_scale,
    }
    names = frozenset(name for name, value in extras.items() if value is not None)
    asyncio.run(_say(settings, request, output, names, captions))


@app.command()
def book(
    file: Annotated[Path, typer.Argument(help="The book: .epub, .html, .md or .txt; '-' = text from standard input.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write. Default: the name of the book, with .m4b.")
    ] = None,
    voice: Annotated[
        str | None, typer.Option(help="The id of a voice; `voices` lists them. Default: that of the model.")
    ] = None,
    result_format: Annotated[
        str | None,
        typer.Option("--format", help="m4b, mp3, flac, opus, wav, zip or epub. Default: from the file name, or m4b."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The title. Default: from the book.")] = None,
    author: Annotated[str | None, typer.Option(help="The author. Default: from the book.")] = None,
    narrator: Annotated[str | None, typer.Option(help="The narrator, for the tags of the file.")] = None,
    captions: Annotated[
        str | None,
        typer.Option(help="Also write captions beside the file: srt, vtt, lrc, json, or several with commas."),
    ] = None,
    loudness: Annotated[str | None, typer.Option(help="The loudness in LUFS, such as -18; or acx.")] = None,
    speed: Annotated[float, typer.Option(min=0.25, max=4.0)] = 1.0,
    language: Annotated[str | None, typer.Option(help="The language as a BCP 47 tag.")] = None,
    seed: Annotated[int | None, typer.Option(help="The random seed. Default: derived from the book.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine to use (TTS_ENGINE).")] = None,
) -> None:
    """Speak a book into one file with chapters.

    Each sentence is stored when it is spoken. After Ctrl+C or a crash, the same command continues where it was stopped.
    """
    settings = _settings(TTS_ENGINE=engine)
    out_file = output or Path(f"{file.stem if str(file) != '-' else 'book'}.{result_format or 'm4b'}")
    if not out_file.parent.is_dir():
        _fail(f"{out_file} can't be written: the folder {out_file.parent} does not exist.")
    if out_file.is_dir():
        _fail(f"{out_file} is a folder. Name a file in it.")
    fields = {
        "response_format": result_format or out_file.suffix.lstrip(".") or "m4b",
        "voice": voice,
        "title": title,
        "author": author,
        "narrator": narrator,
        "captions": captions,
        "loudness": loudness,
        "speed": speed,
        "language": language,
        "seed": seed,
    }
    try:
        body = JobBody.model_validate(fields)
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        content = read_book(data, "book.txt" if str(file) == "-" else file.name)
        new = body.to_job("", content, default_model="tts-1", max_chars=MAX_TEXT_CHARS)
    except ValidationError as error:
        problem = error.errors()[0]
        _fail(f"--{str(problem['loc'][0]).replace('response_', '')}: {problem['msg']}")
    except SpeechError as error:
        _fail(error.message)
    except OSError as error:
        _fail(f"{file} can't be read: {error.strerror}.")
    try:
        asyncio.run(_book(settings, new, out_file))
    except KeyboardInterrupt:
        err.print("Stopped. The same command continues here.")
        raise typer.Exit(INTERRUPTED) from None


async def _book(settings: Settings, new: NewJob, output: Path) -> None:
    """Speak a book, or continue to speak it, and move its result to `output`."""
    services = _services(settings)
    store = JobStore(settings.data_dir / "books")
    async with services.manager, services.preset_voices:
        await _wait_for_engine(services.manager)
        runner = wiring.create_jobs(services, store, keep_days=0)
        async with runner:
            try:
                if (line := new.request.lines[0]).voice == UNNAMED_VOICE:
                    line = replace(line, voice=services.manager.default_voice())
                    new = replace(new, request=replace(new.request, lines=(line,)))
                await services.generator.ignored_fields(_test_request(new), new.extras)
                # The same book with the same options and the same engine has the same key, so its job continues. With
                # a different engine, a new job begins.
                engine = services.manager.engine().info.id
                job, is_new = await store.call(store.create, new, f"{engine} {new.digest}")
                if job.status in ("failed", "cancelled"):
                    job = await store.call(store.retry, job.id)
                elif job.status == "paused":
                    job = await store.call(store.set_status, job.id, "queued", of=["paused"])
                runner.wake()
                if not is_new and job.progress.sentences_done:
                    err.print(f"continuing after {_sentences(job)}", highlight=False)
                job = await _shown_to_end(runner, job)
                if job.status != "completed" or job.result is None:
                    for sentence in (await store.call(store.sentences, job.id))[0]:
                        if sentence.problem is not None:
                            err.print(f"sentence {sentence.index}: {sentence.problem.message}", highlight=False)
                    _fail(job.problem.message if job.problem else f"The book is {job.status}.")
                await asyncio.to_thread(_move_results, store.job_folder(job.id) / job.result, output)
                await runner.remove(job.id)
            except SpeechError as error:
                _fail(error.message)
            except OSError as error:
                _fail(f"{output} can't be written: {error.strerror}.")
    length = timedelta(seconds=round(job.result_facts["seconds"]))
    err.print(f"{engine}: {_sentences(job)}, {length} -> {output}", highlight=False)


def _sentences(job: Job) -> str:
    """Return the number of spoken sentences as a text, such as "3 sentences"."""
    count = job.progress.sentences_done
    return f"{count} sentence{'' if count == 1 else 's'}"


def _test_request(new: NewJob) -> SpeechRequest:
    """Return a short request that has the voice and the other fields of a job, so that they can be checked."""
    return replace(new.request, lines=(replace(new.request.lines[0], text="Yes."),))


async def _shown_to_end(runner: JobRunner, job: Job) -> Job:
    """Show the progress of a job until the job has ended or is paused, and return the job."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("sentences", left="")
        while job.status not in (*ENDED, "paused"):
            await runner.changed(1.0)
            job = await runner.store.call(runner.store.get, job.id)
            progress = job.progress
            left_s = "" if progress.eta_s is None else f"{timedelta(seconds=round(progress.eta_s))} left"
            bar.update(
                task,
                completed=progress.sentences_done,
                total=progress.sentences_total if progress.planned else None,
                left=left_s,
            )
    return job


def _move_results(result: Path, output: Path) -> None:
    """Move the result of a job, and the caption files beside the result, to the place of `output`. Raises OSError."""
    for path in sorted(result.parent.glob(f"{result.stem}.*")):
        target = output if path == result else output.with_suffix(path.suffix)
        partial = target.with_name(target.name + ".part")
        shutil.copyfile(path, partial)
        partial.replace(target)


def _caption_format(file: Path) -> str:
    """Return the format of a caption file: the ending of its name, without the dot."""
    return file.suffix.lstrip(".").lower()


@app.command(context_settings={"ignore_unknown_options": True})  # so that "---" is a text and not an option
def normalize(
    text: Annotated[str, typer.Argument(help="The text; '-' = read it from standard input.")],
    language: Annotated[
        str | None,
        typer.Option(help="The language as a BCP 47 tag or a name. Default: the language of the text."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine to use (TTS_ENGINE).")] = None,
) -> None:
    """Print the words that an engine would speak for a text, one sentence per line.

    Uses the server's pronunciation dictionary. If the text contains nothing to speak, prints nothing.
    """
    name = (engine or _settings().engine).lower()
    spec = specs().get(name)
    if spec is None:
        _fail(f"{name!r} is not an engine. Use one of: {', '.join(sorted(specs()))}.")
    written = sys.stdin.read() if text == "-" else text
    tag = language_tag(language or "")
    try:
        words = LexiconStore(_settings().data_dir, VoiceStore()).content().entries
        sentences = read_text(
            written,
            Normalizer(),
            spec.text_packing(),
            lambda part: spoken_language(tag, part, "en"),
            Lexicon([WordList(words)]) if words else None,
        )
    except SpeechError as error:
        _fail(error.message)
    for sentence in sentences:
        print(sentence.text)


async def _say(
    settings: Settings, request: SpeechRequest, output: Path, extras: frozenset[str], captions: Path | None
) -> None:
    """Speak a request into a file. extras: request fields that OpenAI's API does not have.

    captions: the file for the captions; None = no captions.
    """
    services = _services(settings)
    generator, manager = services.generator, services.manager
    if (line := request.lines[0]).voice == UNNAMED_VOICE:
        request = replace(request, lines=(replace(line, voice=manager.default_voice()),))
    async with manager:
        await _wait_for_engine(manager)
        sink = sys.stdout.buffer if str(output) == "-" else None
        partial = output.with_name(output.name + ".part")
        try:
            answer = await generator.answer(request, extras=extras, to_file=sink is None)
            size = 0
            with err.status(f"{answer.engine} speaks ...") as status:
                file = sink or partial.open("wb")
                async for data in answer.stream:
                    file.write(data)
                    size += len(data)
                    status.update(f"{answer.engine} speaks ... {size / 1000:.0f} kB")
                if sink is None:
                    file.close()
                    partial.replace(output)
            err.print(f"{answer.engine}: {size} bytes -> {output}", highlight=False)
            if captions is not None:
                line = request.lines[0]
                voice = services.voices.get(line.voice)
                content = caption_file(
                    await answer.timestamps(),
                    cast("CaptionFormat", _caption_format(captions)),
                    texts=[line.text],
                    language=spoken_language(request.language, line.text, voice.language),
                )
                await asyncio.to_thread(captions.write_bytes, content.encode())
                err.print(f"captions -> {captions}", highlight=False)
            if answer.verified == "uncertain":
                err.print("[yellow]The speech may differ from the text. Listen to it, or try another --seed.[/]")
        except SpeechError as error:
            _fail(error.message)
        except OSError as error:
            _fail(f"{error.filename or output} can't be written: {error.strerror}.")
        finally:
            with contextlib.suppress(OSError):  # after Ctrl+C or an error, this removes the partial file
                partial.unlink(missing_ok=True)


async def _say_bare(
    spec: EngineSpec,
    settings: Settings,
    utterance: Utterance,
    max_frames: int | None,
    output: Path,
    audio_format: AudioFormat,
    codes: Path | None,
    *,
    reference_noise: bool,
) -> None:
    """Run only the model. Write the audio to the file `output`.

    codes: the file for the codec tokens; None = the tokens are not written.
    """
    context = BuildContext(on_progress=lambda _: None, cancelled=lambda: False)
    samples, frames = [], []
    try:
        with err.status("loading the model ..."):
            bare = await asyncio.to_thread(spec.build_bare, settings, context, reference_noise=reference_noise)
        max_seconds = (max_frames or bare.default_frames) * bare.engine.info.frame_s
        utterance = replace(utterance, max_seconds=max_seconds)
        async with bare.engine as engine:
            with err.status(f"{settings.engine} speaks ...") as status:
                async for chunk in engine.speak(utterance):
                    samples.append(chunk.samples)
                    if chunk.codes is not None:
                        frames.append(chunk.codes)
                    status.update(f"{settings.engine} speaks ... {sum(part.shape[1] for part in frames)} frames")
            if codes is not None:
                empty = np.zeros((bare.codebooks, 0), np.int16)
                np.save(codes, np.concatenate(frames or [empty], axis=1))
        encoder = open_encoder(audio_format, engine.info.rate_hz)
        data = b"".join([*(encoder.encode(part) for part in samples), encoder.flush()])
        with sys.stdout.buffer if str(output) == "-" else output.open("wb") as sink:
            sink.write(data)
    except SpeechError as error:
        _fail(error.message)
    except EngineUnavailable as error:
        _fail(f"{error.reason}\n{error.remedy}")
    except OSError as error:
        _fail(f"{error.filename} can't be written: {error.strerror}.")
    count = sum(part.shape[1] for part in frames)
    err.print(f"{settings.engine}: {count} frames -> {output}", highlight=False)


async def _wait_for_engine(manager: ModelManager) -> None:
    """Wait until an engine runs. Shows the progress of a download. If the fallback engine runs, prints a notice."""
    settled = asyncio.create_task(manager.settled())
    with _bar() as bar:
        task = None
        while not settled.done():
            await asyncio.wait([settled], timeout=0.2)
            if (progress := manager.status().progress) is not None:
                task = bar.add_task(progress.source) if task is None else task
                bar.update(task, description=progress.source, completed=progress.done_bytes, total=progress.total_bytes)
    status = settled.result()
    if status.running is None:
        _fail(f"{status.reason} {status.remedy}")
    elif status.state == "degraded":
        err.print(
            f"[yellow]{status.running.model_id} speaks instead of {status.requested.model_id}.[/] Reason: "
            f"{status.reason}"
        )


voices = typer.Typer(
    help="List the voices, or create recordings for the preset voices.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(voices, name="voices")


@voices.callback()
def list_voices(context: typer.Context) -> None:
    """List the voices. Does nothing if a subcommand was given."""
    if context.invoked_subcommand is not None:
        return
    store = _services(_settings()).voices
    table = Table(Column("id", no_wrap=True), "name", "kind", "recording", "description", box=None)
    for voice in store.all():
        table.add_row(voice.id, voice.name, voice.kind, "yes" if voice.recorded else "no", voice.description)
    out.print(table)


@voices.command("cast")
def create_recordings(
    voice: Annotated[
        list[str] | None, typer.Option(help="A preset voice; may be repeated. Default: all without a recording.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="An audio file of up to 30 s that becomes the recording, without the engine.")
    ] = None,
    transcript: Annotated[str | None, typer.Option(help="The exact words that are spoken in --file.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine to use (TTS_ENGINE).")] = None,
) -> None:
    """Create recordings for preset voices with the engine or from a file. New recordings replace existing ones."""
    settings = _settings(TTS_ENGINE=engine)
    store = _services(settings).voices
    if unknown := [name for name in voice or () if name not in PROFILES]:
        _fail(f"{unknown[0]!r} is not a preset voice. Use one of: {', '.join(PROFILES)}.")
    if file is not None:
        if not transcript or len(voice or ()) != 1:
            _fail("--file requires exactly one --voice, and --transcript with the exact words of the recording.")
        _store_file(store, (voice or [""])[0], file, transcript)
        return
    names = voice or [name for name in PROFILES if store.recording_of(name) is None]
    asyncio.run(_create_recordings(_services(settings), names, wiring.create_transcriber(settings)))


def _store_file(store: VoiceStore, name: str, file: Path, transcript: str) -> None:
    """Store an audio file as the recording of a preset voice."""
    try:
        decoded = decode(file.read_bytes(), RECORDING_RATE_HZ, max_seconds=MAX_RECORDING_S, what=file.name)
        if decoded.truncated:
            _fail(f"{file} is longer than {MAX_RECORDING_S:g} s. Use a shorter recording.")
        reference = Reference(decoded.samples, RECORDING_RATE_HZ, transcript)
        store.set_reference(name, reference, origin="file")
        cloner = Cloner(NoTranscriber(), checker=TranscriptChecker(spoken=Normalizer().normalize))
        problem, _ = cloner.problem_of(reference, store.get(name).language)
    except SpeechError as error:
        _fail(error.message)
    except OSError as error:
        _fail(f"{file} can't be read: {error.strerror}.")
    err.print(f"{name}: {file}, {reference.seconds:.1f} s", highlight=False)
    if problem:
        err.print(f"[yellow]The voice {name} may sound wrong.[/] {problem}", highlight=False)


async def _create_recordings(services: wiring.CoreServices, names: list[str], transcriber: Transcriber) -> None:
    """Let the engine create a recording for each of these preset voices."""
    async with services.manager:
        await _wait_for_engine(services.manager)
        engine = services.manager.engine()
        if not engine.info.can_clone:
            _fail(f"The {engine.info.id} engine has built-in voices and uses no recordings.")
        examples = await asyncio.to_thread(
            preset_voices.match_examples, engine.info, transcriber, services.voices.references
        )
        rejected = []
        for name in names:
            before = services.voices.recording_of(name)
            take = 0 if before is None else int(before.quality.get("take", 0)) + 1
            try:
                with err.status(f"creating a recording for {name} ..."):
                    chosen = await preset_voices.choose_recording(
                        engine, name, None if take else examples.get(name), take=take
                    )
                    await asyncio.to_thread(preset_voices.store_recording, services.voices, name, chosen, take=take)
            except (preset_voices.RejectedRecording, SpeechError) as problem:
                err.print(f"{name}: {problem}", style="red", highlight=False)
                rejected.append(name)
                continue
            err.print(f"{name}: {preset_voices.describe(chosen)}", highlight=False)
        if rejected:
            _fail(f"No recording was created for: {', '.join(rejected)}.")


keys = typer.Typer(
    help="Create, list and remove API keys. A running server applies a change within a second.", rich_markup_mode=None
)
app.add_typer(keys, name="keys", no_args_is_help=True)


@keys.command()
def add(
    name: Annotated[
        str, typer.Argument(help="The name of the key in logs and metrics: letters, digits, `.`, `_`, `-`.")
    ],
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope: speak, clone or admin; may be repeated. Default: speak.")
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Allowed requests per minute. Default: no limit.")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Allowed requests at the same time. Default: no limit.")
    ] = None,
) -> None:
    """Create an API key and print the key. The key is shown only once: the server stores a hash of the key.

    Once a key exists, requests for speech need a key.
    """
    if unknown := [each for each in scope or () if each not in SCOPES]:
        _fail(f"{unknown[0]!r} is not a scope. Use one of: {', '.join(SCOPES)}.")
    file = KeyFile(_settings().data_dir)
    scopes = [each for each in SCOPES if each in (scope or ["speak"])]
    try:
        first = file.signature() is None
        key = file.add(name, scopes, per_minute=per_minute, concurrent=concurrent)
    except (BadKeys, OSError) as error:
        _fail(f"{name!r} was not added. {error}")
    print(key)
    err.print(
        f"{name} has these scopes: {', '.join(scopes)}. The key is shown only once; {file.path} has its hash.",
        highlight=False,
    )
    if first and not _settings().api_keys:
        err.print("From now on, requests for speech need a key.", style="yellow")


@keys.command("list")
def list_keys() -> None:
    """List the API keys with their scopes and limits."""
    settings = _settings()
    try:
        ring = KeyRing([key.get_secret_value() for key in settings.api_keys], KeyFile(settings.data_dir))
    except (BadKeys, OSError) as error:
        _fail(str(error))
    table = Table("name", "scopes", "per minute", "concurrent", "created", box=None)
    for key in ring.keys:
        created = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d") if key.created_at else "-"
        table.add_row(key.name, " ".join(key.scopes), str(key.per_minute or "-"), str(key.concurrent or "-"), created)
    out.print(table)
    if not ring.needed:
        err.print("The server has no API keys, so everyone who can reach the server can use it.", style="yellow")


@keys.command()
def remove(name: Annotated[str, typer.Argument(help="Name of the key; see `keys list`.")]) -> None:
    """Remove an API key. Requests that are already running finish normally."""
    file = KeyFile(_settings().data_dir)
    try:
        left = file.remove(name)
    except (BadKeys, OSError) as error:
        _fail(str(error))
    err.print(f"{name} was removed.", highlight=False)
    if not left:
        err.print(
            f"The key file contains no keys now, but the server still requires a key. To run the server without keys, "
            f"delete {file.path} and restart the server."
        )


lexicon = typer.Typer(help="List, add and remove pronunciations. A running server applies a change within a second.")
app.add_typer(lexicon, name="lexicon", no_args_is_help=True)
VoiceOption = Annotated[
    str | None,
    typer.Option(help="The id or name of a voice, for the voice's dictionary. Default: the server's dictionary."),
]


def _lexicons(voice: str | None) -> tuple[LexiconStore, str | None]:
    """Return all pronunciation dictionaries, and the id of `voice`.

    The id is None if no voice was chosen. Then the command uses the server's dictionary.
    """
    services = _services(_settings())
    try:
        return services.lexicons, None if voice is None else services.voices.get(voice).id
    except SpeechError as error:
        _fail(error.message)


@lexicon.command("list")
def list_pronunciations(voice: VoiceOption = None) -> None:
    """Print a pronunciation dictionary in the format of the file lexicon.tsv."""
    lexicons, name = _lexicons(voice)
    content = lexicons.content(name)
    sys.stdout.write(format_lexicon(content.entries).decode())
    for problem in content.problems:
        err.print(f"{lexicons.path(name)}, {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@lexicon.command("add")
def add_pronunciation(
    word: Annotated[str, typer.Argument(help="A word or a phrase.")],
    say: Annotated[str, typer.Argument(help="The words that are spoken instead. Optional if --ipa is given.")] = "",
    voice: VoiceOption = None,
    case: Annotated[bool, typer.Option("--case", help="Match only words with the same capital letters.")] = False,
    ipa: Annotated[str | None, typer.Option(help="The pronunciation in IPA, for engines that accept it.")] = None,
) -> None:
    """Add a pronunciation. An entry with the same word is replaced."""
    lexicons, name = _lexicons(voice)
    try:
        entry = check_entry(word, say, case_sensitive=case, ipa=ipa)
        lexicons.change(lambda entries: with_entry(entries, entry), name)
    except SpeechError as error:
        _fail(error.message)
    err.print(f"{entry.word} was stored in {lexicons.path(name)}.", markup=False, highlight=False, soft_wrap=True)


@lexicon.command("remove")
def remove_pronunciation(
    word: Annotated[str, typer.Argument(help="The word of the entry; see `lexicon list`.")], voice: VoiceOption = None
) -> None:
    """Remove a pronunciation."""
    lexicons, name = _lexicons(voice)
    try:
        removed, _ = lexicons.remove(word, name)
    except SpeechError as error:
        _fail(error.message)
    for entry in removed:
        err.print(f"{entry.word} was removed.", markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(
    engine: Annotated[str | None, typer.Option(help="Engine to use (TTS_ENGINE).")] = None,
    voices: Annotated[
        str, typer.Option(help="Ids of voices, separated by commas; `voices` lists them. Default: all voices.")
    ] = "",
    folder: Annotated[
        Path, typer.Option("--out", help="The folder for report.html, report.json and the audio files.")
    ] = Path("first-day"),
    sentences: Annotated[int, typer.Option(min=1, max=len(first_day.SENTENCES), hidden=True)] = len(
        first_day.SENTENCES
    ),
) -> None:
    """Check the speech of an engine: each voice speaks 20 sentences, and a report lists the problems.

    The exit status is 1 if there is a problem.
    """
    settings = _settings(TTS_ENGINE=engine, TTS_FALLBACK_ENGINE="")
    names = list(dict.fromkeys(name.strip() for name in voices.split(",") if name.strip()))
    report = asyncio.run(_check(settings, names, folder, first_day.SENTENCES[:sentences]))
    for finding in report.findings:
        style = "red" if finding.severity == "problem" else "yellow"
        out.print(f"[{style}]{finding.voice or 'All voices'} ({finding.severity}):[/]", end=" ")
        out.print(f"{finding.text} {finding.advice}", markup=False, highlight=False, soft_wrap=True)
    out.print(
        "The check found no problem." if report.ok else "The check found problems.",
        style="green" if report.ok else "red",
    )
    out.print(f"The report is in {folder / 'report.html'}.", highlight=False)
    if not report.ok:
        raise typer.Exit(1)


async def _check(settings: Settings, names: list[str], folder: Path, sentences: Sequence[str]) -> first_day.Report:
    """Run the first-day check and write the report."""
    services = _services(settings)
    try:  # these checks come before the start of the engine, because the start takes long
        for name in names:
            services.voices.get(name)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    except SpeechError as error:
        _fail(error.message)
    except OSError as error:
        _fail(f"{folder} can't be written: {error.strerror}.")
    async with services.manager:
        await _wait_for_engine(services.manager)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        try:
            can_clone = services.manager.engine().info.can_clone
            if can_clone:  # import the recordings in the folder, as the server does when it starts
                cloner = Cloner(wiring.create_transcriber(settings), checker=services.checker)
                folder_of_files = settings.folder("voice_references")
                await asyncio.to_thread(import_preset_files, services.voices, folder_of_files, cloner)
            chosen = [services.voices.get(name) for name in names]
            for voice in chosen:
                check_speakable(voice, services.manager.engine().info, is_fallback=False)
            if not names:
                chosen = [voice for voice in services.voices.all() if can_clone or voice.kind == "preset"]
            with Progress(*columns, console=err, transient=True) as bar:
                task = bar.add_task("", total=len(chosen) * len(sentences))
                report = await first_day.run(
                    services,
                    settings,
                    chosen,
                    folder,
                    normalizer=Normalizer(),
                    sentences=sentences,
                    on_progress=lambda done, step: bar.update(task, completed=done, description=step),
                )
            (folder / "report.json").write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")
            (folder / "report.html").write_text(page(report), encoding="utf-8")
        except SpeechError as error:
            _fail(error.message)
        except OSError as error:
            _fail(f"{folder} can't be written: {error.strerror}.")
    return report


@app.command()
def models() -> None:
    """List the engines, the sources of their weights, and whether the weights are on disk."""
    settings = _settings()
    table = Table("engine", "model id", "weights", "state", box=None)
    for spec in specs().values():
        sources = spec.files(settings)
        states = []
        for files in sources:
            try:
                states.append("on disk" if hub.find(files, settings.folder("models")) else "not downloaded")
            except EngineUnavailable as error:
                states.append(error.reason)
        chosen = " (TTS_ENGINE)" if spec.name == settings.engine else ""
        table.add_row(
            spec.name + chosen, spec.model_id, ", ".join(f.source for f in sources) or "none needed", ", ".join(states)
        )
    out.print(table)


def _card_bytes(text: str) -> int:
    """Convert the size of a GPU's memory to bytes, for example "12GB" to 12 * 2^30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?", text.strip().lower())
    if found is None or not (size := int(float(found[1]) * (1 << 30))):
        _fail(f"{text!r} is not a size of memory. Write it in gigabytes, for example 12GB.")
    return size


@app.command()
def plan(
    memory: Annotated[
        str, typer.Option(help="Sizes of GPUs, separated by commas, for example 12GB or 8GB,24GB.")
    ] = "6GB,8GB,12GB,16GB,24GB,48GB,80GB,141GB",
    engine: Annotated[
        str | None, typer.Option(help="Name of the engine; see `models`. Default: all engines with a model.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print how many requests GPUs of given memory sizes can process at the same time.

    The server makes the same calculation at its start if TTS_MAX_ROWS is auto. The calculation needs no GPU and no
    weights.
    """
    from app.runtime.device import CONTEXT_BYTES, DTYPES, plan_memory  # noqa: PLC0415 - imports torch

    settings = _settings()
    sized = {name: spec for name, spec in specs().items() if spec.sizes}
    if engine is not None and engine not in sized:
        _fail(f"{engine!r} has no model to plan for. Use one of: {', '.join(sorted(sized))}.")
    if dtype not in DTYPES:
        _fail(f"Unknown dtype {dtype!r}. Use one of: {', '.join(DTYPES)}.")
    sizes = [(text.strip(), _card_bytes(text)) for text in memory.split(",")]
    found: list[dict[str, Any]] = []
    for name in [engine] if engine else sized:
        bytes_of = functools.cache(sized[name].bytes_by_rows(DTYPES[dtype]))
        for text, size in sizes:
            planned = plan_memory(
                [max(0, size - CONTEXT_BYTES)],
                settings.gpu_memory_fraction,
                bytes_of,
                most=sized[name].rows_gpu,
                spare_bytes=sized[name].spare_bytes,
            )
            found.append(
                {"engine": name, "memory": text, "dtype": dtype, "fits": planned.rows > 0}
                | {"rows": planned.rows, "buckets": list(planned.buckets), "used_bytes": planned.used_bytes}
                | dict(planned.facts)
            )
    if as_json:
        print(json.dumps({"gpu_memory_fraction": settings.gpu_memory_fraction, "plans": found}))
        return
    table = Table("engine", "GPU", "rows", "CUDA graphs", "model", "one row", "in use", "usable", box=None)
    for each in found:
        fits = each["fits"]
        table.add_row(
            str(each["engine"]),
            str(each["memory"]),
            str(each["rows"]) if fits else "does not fit",
            f"{each['buckets'][0]} to {each['rows']} rows" if each["rows"] > 1 else "1 row" if fits else "",
            f"{each['model_bytes'] / 1e9:.2f} GB",
            f"{each['row_bytes'] / 1e6:.0f} MB",
            f"{each['used_bytes'] / 1e9:.2f} GB" if fits else "",
            f"{each['usable_bytes'] / 1e9:.2f} GB",
        )
    out.print(table)


@app.command()
def download(
    engine: Annotated[str | None, typer.Argument(help="Name of the engine; see `models`. Default: TTS_ENGINE.")] = None,
) -> None:
    """Download an engine's weights into the models folder, or resume an interrupted download."""
    settings = _settings()
    name = engine or settings.engine
    spec = specs().get(name)
    if spec is None:
        _fail(f"{name!r} is not an engine. Use one of: {', '.join(sorted(specs()))}.")
    if not spec.files(settings):
        _fail(f"The {name} engine needs no weights.")
    fetched: set[hub.ModelFiles] = set()
    with _bar() as bar:
        # Call `spec.files` again after each download, because a downloaded model may need a codec from another source.
        while files := next((each for each in spec.files(settings) if each not in fetched), None):
            task = bar.add_task(files.source, total=None)

            def show(progress: DownloadProgress, task: object = task) -> None:
                bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)  # type: ignore[arg-type]

            try:
                folder = fetch(files, settings.folder("models"), token=find_token(settings), on_progress=show)
            except EngineUnavailable as error:
                _fail(f"{error.reason}\n{error.remedy}")
            bar.console.print(f"{files.source} -> {folder}", highlight=False)
            fetched.add(files)


@app.command(hidden=True)
def docs() -> None:
    """Write docs/settings.md from the fields of Settings."""
    SETTINGS_PAGE.write_text(as_markdown(), encoding="utf-8")
    out.print(f"{SETTINGS_PAGE} written")


def _services(settings: Settings) -> wiring.CoreServices:
    """Create the services that the server uses. If a setting or the data folder is wrong, print the reason and exit."""
    try:
        return wiring.core_services(settings)
    except ValueError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"TTS_DATA_DIR={settings.data_dir} can't be used: {error.strerror}.")


def _bar() -> Progress:
    """Create a progress bar for downloads."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


def _settings(**options: object) -> Settings:
    """Read the settings. options: variable name -> value; None = the value from the environment."""
    return server.read_settings(**{name: value for name, value in options.items() if value is not None})


def _fail(message: str) -> NoReturn:
    """Print an error and exit with status 1."""
    err.print(message, style="red", highlight=False)
    raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app()


if __name__ == "__main__":
    main()
