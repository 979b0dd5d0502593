"""`python -m app.cli`: serve, say, voices, keys, models, download, docs. The server's studio without HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from app import __version__, wiring
from app import main as server
from app.audio.decode import decode
from app.audio.encoders import open_encoder
from app.audio.formats import AUDIO_FORMATS
from app.engines.registry import BuildContext, specs
from app.errors import EngineUnavailable, SpeechError
from app.generator import preset_voices
from app.keys import SCOPES, BadKeys, KeyFile, KeyRing
from app.settings import Settings, as_markdown
from app.text.normalizer import Normalizer
from app.types import Line, Reference, Sampling, SpeechRequest, SpokenLine, Utterance, Voice
from app.voices.presets import DEFAULT_VOICE, PROFILES
from app.weights import hub

if TYPE_CHECKING:
    from app.engines.batched import BatchedEngine
    from app.engines.manager import EngineManager
    from app.types import AudioFormat
    from app.voices.store import VoiceStore
    from app.voices.transcribe import Transcriber

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Text to speech on your own machine.")
out = Console()
err = Console(stderr=True)

NO_VOICE = "none"
# The engines that --voice none shows, and how many frames they say if nobody says how many.
BARE = {
    "csm": 1125,  # 90 s, as long as Sesame's own generator goes by default
    "dia": 3056,  # all its positions
}
CAST_RATE_HZ, MAX_CAST_S = 24_000, 30.0
SETTINGS_PAGE = Path("docs/settings.md")


def _show_version(wanted: bool) -> None:
    if wanted:
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
    engine: Annotated[str | None, typer.Option(help="Engine that speaks (TTS_ENGINE).")] = None,
) -> None:
    """Start the server."""
    server.serve(_settings(HOST=host, PORT=port, TTS_ENGINE=engine))


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="What to say; '-' reads it from standard input.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; '-' = standard output.")] = Path(
        "speech.mp3"
    ),
    voice: Annotated[str, typer.Option(help="A voice's id; see `voices`.")] = DEFAULT_VOICE,
    audio_format: Annotated[str | None, typer.Option("--format", help="Default: from the file's name, or mp3.")] = None,
    speed: Annotated[float, typer.Option(min=0.25, max=4.0)] = 1.0,
    sample_rate: Annotated[int, typer.Option(min=8_000, max=48_000)] = 24_000,
    engine: Annotated[str | None, typer.Option(help="Engine that speaks (TTS_ENGINE).")] = None,
    language: Annotated[str | None, typer.Option(help="BCP 47 tag, where the engine takes one.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0)] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    seed: Annotated[int | None, typer.Option(help="Default: derived from the text.")] = None,
    normalize: Annotated[bool, typer.Option(help="Turn numbers, dates, symbols into words.")] = True,
    cfg_scale: Annotated[float | None, typer.Option(min=0.0, help="Guidance, where the engine has it (Dia).")] = None,
    model: Annotated[
        str | None, typer.Option(help="The engine's weights: a folder or hub id (CSM_MODEL, DIA_MODEL).")
    ] = None,
    speaker: Annotated[int | None, typer.Option(min=0, help="With --voice none: the speaker's number.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="With --voice none: stop after so many.")] = None,
    codes: Annotated[Path | None, typer.Option(help="With --voice none: a .npy file for the codes (K, T).")] = None,
    reference_noise: Annotated[
        bool, typer.Option(help="With --voice none: draw as torch.multinomial does after torch.manual_seed.")
    ] = False,
) -> None:
    """Speak a text into a file.

    `--voice none` shows the bare model, for comparing it with other implementations: the prompt is exactly
    `[speaker]text` (CSM) or the text's bytes (Dia), in one piece, and nothing guards or trims what comes out.
    """
    chosen = (audio_format or output.suffix.lstrip(".") or "mp3").lower()
    if chosen not in AUDIO_FORMATS:
        _fail(f"{chosen!r} is no audio format here. Formats are: {', '.join(AUDIO_FORMATS)}.")
    said = sys.stdin.read() if text == "-" else text
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, cfg_scale=cfg_scale)
    weights = {"DIA_MODEL" if (engine or _settings().engine) == "dia" else "CSM_MODEL": model}
    if voice == NO_VOICE:
        settings = _settings(TTS_ENGINE=engine, TTS_MAX_ROWS=1, **weights)
        if settings.engine not in BARE:
            _fail(f"--voice none is for the engines {' and '.join(BARE)}.")
        words = Normalizer().normalize(said) if normalize else said
        line = SpokenLine(words, speaker or 0, Voice(NO_VOICE, NO_VOICE, "offline"))
        utterance = Utterance((line,), sampling, seed or 0, 0.0)  # how long is known once the codec's frames are
        most = max_frames or BARE[settings.engine]
        asyncio.run(_say_bare(settings, utterance, most, output, chosen, codes, reference_noise=reference_noise))
        return
    if speaker is not None or max_frames or codes or reference_noise:
        _fail("--speaker, --max-frames, --codes and --reference-noise go with --voice none.")
    settings = _settings(TTS_ENGINE=engine, **weights)
    request = SpeechRequest(
        model="tts-1",
        lines=(Line(said, voice),),
        format=chosen,
        speed=speed,
        sample_rate_hz=sample_rate,
        sampling=sampling,
        seed=seed,
        language=language,
        normalize=normalize,
    )
    extras = {
        "language": language,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "cfg_scale": cfg_scale,
    }
    asyncio.run(_say(settings, request, output, frozenset(name for name, value in extras.items() if value is not None)))


async def _say(settings: Settings, request: SpeechRequest, output: Path, extras: frozenset[str]) -> None:
    services = _services(settings)
    generator, manager = services.generator, services.manager
    async with manager:
        await _wait_for_engine(manager)
        sink = sys.stdout.buffer if str(output) == "-" else None
        partial = output.with_name(output.name + ".part")
        try:
            answer = await generator.answer(request, extras=extras)
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
        except SpeechError as error:
            _fail(error.message)
        except OSError as error:
            _fail(f"{output} can't be written: {error.strerror}.")
        finally:
            with contextlib.suppress(OSError):  # Ctrl+C and a full disk leave no half file either
                partial.unlink(missing_ok=True)


async def _say_bare(
    settings: Settings,
    utterance: Utterance,
    max_frames: int,
    output: Path,
    audio_format: AudioFormat,
    codes: Path | None,
    *,
    reference_noise: bool,
) -> None:
    context = BuildContext(on_progress=lambda _: None, cancelled=lambda: False)
    samples, frames = [], []
    try:
        with err.status("loading the model ..."):
            bare, books = await asyncio.to_thread(_bare_engine, settings, context, reference_noise=reference_noise)
        utterance = replace(utterance, max_seconds=max_frames * bare.info.frame_s)
        async with bare as engine:
            with err.status(f"{settings.engine} speaks ...") as status:
                async for chunk in engine.speak(utterance):
                    samples.append(chunk.samples)
                    if chunk.codes is not None:
                        frames.append(chunk.codes)
                    status.update(f"{settings.engine} speaks ... {sum(part.shape[1] for part in frames)} frames")
            if codes is not None:
                empty = np.zeros((books, 0), np.int16)
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


def _bare_engine(settings: Settings, context: BuildContext, *, reference_noise: bool) -> tuple[BatchedEngine, int]:
    """The engine without text rules and guards, and how many codebooks it speaks in. Blocks while it loads. Raises
    EngineUnavailable."""
    if settings.engine == "dia":
        from app.engines.dia import loading as dia_loading  # noqa: PLC0415 - torch, which only this needs

        dia = dia_loading.load_from(settings, context, guards=None, exact=True, reference_noise=reference_noise)
        return dia_loading.engine_of(dia, settings), dia.config.channels
    from app.engines.csm import loading as csm_loading  # noqa: PLC0415 - as above

    runner = csm_loading.load_from(settings, context, guards=None, reference_noise=reference_noise)
    return csm_loading.engine_of(runner, settings), runner.config.codebooks


async def _wait_for_engine(manager: EngineManager) -> None:
    """Show a download while there is one; tell when another engine answers."""
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
            f"[yellow]{status.running.model_id} speaks instead of {status.requested.model_id}.[/] {status.reason}"
        )


voices = typer.Typer(help="List the voices, or give the standard ones their recordings.", invoke_without_command=True)
app.add_typer(voices, name="voices")


@voices.callback()
def list_voices(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    store = _services(_settings()).voices
    table = Table("id", "name", "kind", "recording", "description", box=None)
    for voice in store.all():
        table.add_row(voice.id, voice.name, voice.kind, "yes" if voice.recorded else "no", voice.description)
    out.print(table)


@voices.command()
def cast(
    voice: Annotated[list[str] | None, typer.Option(help="Which; may be repeated. Default: all without one.")] = None,
    file: Annotated[Path | None, typer.Option(help="Your own recording instead: any sound file up to 30 s.")] = None,
    transcript: Annotated[str | None, typer.Option(help="The exact words of --file.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine that reads (TTS_ENGINE).")] = None,
) -> None:
    """Give standard voices their recordings: read anew by the engine, or from a file. It replaces the present one."""
    settings = _settings(TTS_ENGINE=engine)
    store = _services(settings).voices
    if unknown := [name for name in voice or () if name not in PROFILES]:
        _fail(f"{unknown[0]!r} is no standard voice. They are: {', '.join(PROFILES)}.")
    if file is not None:
        if not transcript or len(voice or ()) != 1:
            _fail("--file needs one --voice and --transcript, the exact words of the recording.")
        _cast_from(store, (voice or [""])[0], file, transcript)
        return
    names = voice or [name for name in PROFILES if store.recording_of(name) is None]
    asyncio.run(_cast(_services(settings), names, wiring.transcriber_of(settings)))


def _cast_from(store: VoiceStore, name: str, file: Path, transcript: str) -> None:
    try:
        decoded = decode(file.read_bytes(), CAST_RATE_HZ, max_seconds=MAX_CAST_S, what=file.name)
        if decoded.truncated:
            _fail(f"{file} is longer than {MAX_CAST_S:g} s.")
        store.set_reference(name, Reference(decoded.samples, CAST_RATE_HZ, transcript), origin="file")
    except SpeechError as error:
        _fail(error.message)
    except OSError as error:
        _fail(f"{file} can't be read: {error.strerror}.")
    err.print(f"{name}: {file}, {len(decoded.samples) / CAST_RATE_HZ:.1f} s", highlight=False)


async def _cast(services: wiring.CoreServices, names: list[str], transcriber: Transcriber) -> None:
    async with services.manager:
        await _wait_for_engine(services.manager)
        engine = services.manager.engine()
        if not engine.info.can_clone:
            _fail(f"The {engine.info.id} engine has voices of its own and can't be cast.")
        examples = await asyncio.to_thread(preset_voices.assign, engine.info, transcriber)
        missing = []
        for name in names:
            before = services.voices.recording_of(name)
            take = 0 if before is None else int(before.quality.get("take", 0)) + 1
            try:
                with err.status(f"casting {name} ..."):
                    chosen = await preset_voices.audition(engine, name, None if take else examples.get(name), take=take)
                    await asyncio.to_thread(preset_voices.keep, services.voices, name, chosen, take=take)
            except (preset_voices.RejectedRecording, SpeechError) as problem:
                err.print(f"{name}: {problem}", style="red", highlight=False)
                missing.append(name)
                continue
            err.print(f"{name}: {preset_voices.describe(chosen)}", highlight=False)
        if missing:
            _fail(f"Not cast: {', '.join(missing)}.")


keys = typer.Typer(help="Make, list and remove the server's keys; it sees a change within a second.")
app.add_typer(keys, name="keys", no_args_is_help=True)


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose it is: letters, digits, `.`, `_`, `-`. Log and metrics say it.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="speak, clone or admin; may be repeated. Default: speak.")
    ] = None,
    per_minute: Annotated[int | None, typer.Option(min=1, help="Requests a minute. Default: no limit.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once. Default: no limit.")] = None,
) -> None:
    """Make a key and print it. It is shown only now: the server keeps its hash.

    The first key closes the server to all who have none.
    """
    if unknown := [each for each in scope or () if each not in SCOPES]:
        _fail(f"{unknown[0]!r} is no scope. They are: {', '.join(SCOPES)}.")
    file = KeyFile(_settings().data_dir)
    scopes = [each for each in SCOPES if each in (scope or ["speak"])]
    try:
        first = file.signature() is None
        given = file.add(name, scopes, per_minute=per_minute, concurrent=concurrent)
    except (BadKeys, OSError) as error:
        _fail(f"{name!r} was not added. {error}")
    print(given)
    err.print(f"{name} may {', '.join(scopes)}. This is shown only now; {file.path} has the hash.", highlight=False)
    if first and not _settings().api_keys:
        err.print("From now on only those with a key may ask for speech.", style="yellow")


@keys.command("list")
def list_keys() -> None:
    """Who has a key, and what each may do."""
    settings = _settings()
    try:
        ring = KeyRing([key.get_secret_value() for key in settings.api_keys], KeyFile(settings.data_dir))
    except (BadKeys, OSError) as error:
        _fail(str(error))
    table = Table("name", "scopes", "per minute", "at once", "made", box=None)
    for key in ring.keys:
        made = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d") if key.created_at else "-"
        table.add_row(key.name, " ".join(key.scopes), str(key.per_minute or "-"), str(key.concurrent or "-"), made)
    out.print(table)
    if not ring.needed:
        err.print("There are no keys: everybody who reaches the server may ask for speech.", style="yellow")


@keys.command()
def remove(name: Annotated[str, typer.Argument(help="As `keys list` shows it.")]) -> None:
    """Take a key away. Answers that it has begun are still finished."""
    file = KeyFile(_settings().data_dir)
    try:
        left = file.remove(name)
    except (BadKeys, OSError) as error:
        _fail(str(error))
    err.print(f"{name} was removed.", highlight=False)
    if not left:
        err.print(f"No key is left. The server stays closed until {file.path} is deleted and it starts anew.")


@app.command()
def models() -> None:
    """List the engines, where their weights come from, and whether they are on disk."""
    settings = _settings()
    table = Table("engine", "model id", "weights", "state", box=None)
    for spec in specs().values():
        sources = _sources(settings, spec.name)
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


@app.command()
def download(
    engine: Annotated[str | None, typer.Argument(help="csm or dia; default: TTS_ENGINE.")] = None,
) -> None:
    """Download an engine's weights into the models folder, or go on with a download that was cut off."""
    settings = _settings()
    name = engine or settings.engine
    sources = _sources(settings, name)
    if not sources:
        _fail(f"The {name} engine needs no weights." if name in specs() else f"{name!r} is no engine.")
    with _bar() as bar:
        for files in sources:
            task = bar.add_task(files.source, total=None)

            def show(progress: hub.Progress, task: object = task) -> None:
                bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)  # type: ignore[arg-type]

            try:
                folder = hub.fetch(files, settings.folder("models"), token=settings.token, on_progress=show)
            except EngineUnavailable as error:
                _fail(f"{error.reason}\n{error.remedy}")
            bar.console.print(f"{files.source} -> {folder}", highlight=False)
            if name == "csm" and files is sources[0] and not hub.has_tensor(folder, "codec_model."):
                sources.append(hub.files_for("mimi", settings.csm_codec))  # this checkpoint brings no codec


@app.command(hidden=True)
def docs() -> None:
    """Write docs/settings.md from the settings themselves."""
    SETTINGS_PAGE.write_text(as_markdown(), encoding="utf-8")
    out.print(f"{SETTINGS_PAGE} written")


def _services(settings: Settings) -> wiring.CoreServices:
    """As the server has it; ends the command with words where that can't be."""
    try:
        return wiring.core_services(settings)
    except ValueError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"TTS_DATA_DIR={settings.data_dir} can't be used: {error.strerror}.")


def _sources(settings: Settings, engine: str) -> list[hub.ModelFiles]:
    if engine == "csm":
        return [hub.files_for("csm", settings.csm_model)]
    if engine == "dia":
        codec = settings.dia_codec
        beside = Path(settings.dia_model).expanduser() / "dac"
        if codec == Settings.model_fields["dia_codec"].default and beside.is_dir():
            codec = str(beside)  # as the engine has it
        return [hub.files_for("dia", settings.dia_model), hub.files_for("dac", codec)]
    return []


def _bar() -> Progress:
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


def _settings(**given: object) -> Settings:
    return server.read_settings(**{name: value for name, value in given.items() if value is not None})


def _fail(message: str) -> NoReturn:
    err.print(message, style="red", highlight=False)
    raise typer.Exit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
