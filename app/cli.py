"""`python -m app.cli`: serve, say, voices, models, download, docs. The same studio as the server, without HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

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

from app import assemble
from app import main as server
from app.engines.registry import specs
from app.errors import EngineUnavailable, SpeechError
from app.models import hub
from app.settings import Settings, as_markdown
from app.types import AUDIO_FORMATS, Line, Sampling, SpeechRequest
from app.voices.presets import DEFAULT_VOICE

if TYPE_CHECKING:
    from app.engines.host import EngineHost
    from app.metrics import Metrics
    from app.studio import Studio
    from app.voices.store import VoiceStore

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Text to speech on your own machine.")
out = Console()
err = Console(stderr=True)

SETTINGS_PAGE = Path("docs/settings.md")


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
    seed: Annotated[int | None, typer.Option(help="Default: derived from the text.")] = None,
    normalize: Annotated[bool, typer.Option(help="Turn numbers, dates, symbols into words.")] = True,
) -> None:
    """Speak a text into a file."""
    chosen = (audio_format or output.suffix.lstrip(".") or "mp3").lower()
    if chosen not in AUDIO_FORMATS:
        _fail(f"{chosen!r} is no audio format here. Formats are: {', '.join(AUDIO_FORMATS)}.")
    settings = _settings(TTS_ENGINE=engine)
    request = SpeechRequest(
        model="tts-1",
        lines=(Line(sys.stdin.read() if text == "-" else text, voice),),
        format=chosen,
        speed=speed,
        sample_rate_hz=sample_rate,
        sampling=Sampling(temperature=temperature, top_k=top_k),
        seed=seed,
        language=language,
        normalize=normalize,
    )
    extras = {"language": language, "temperature": temperature, "top_k": top_k}
    asyncio.run(_say(settings, request, output, frozenset(name for name, value in extras.items() if value is not None)))


async def _say(settings: Settings, request: SpeechRequest, output: Path, extras: frozenset[str]) -> None:
    studio, host, _, _ = _studio(settings)
    async with host:
        await _wait_for_engine(host)
        sink = sys.stdout.buffer if str(output) == "-" else None
        partial = output.with_name(output.name + ".part")
        try:
            answer = await studio.answer(request, extras=extras)
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


async def _wait_for_engine(host: EngineHost) -> None:
    """Show a download while there is one; tell when another engine answers."""
    settled = asyncio.create_task(host.settled())
    with _bar() as bar:
        task = None
        while not settled.done():
            await asyncio.wait([settled], timeout=0.2)
            if (progress := host.status().progress) is not None:
                task = bar.add_task(progress.source) if task is None else task
                bar.update(task, description=progress.source, completed=progress.done_bytes, total=progress.total_bytes)
    status = settled.result()
    if status.running is None:
        _fail(f"{status.reason} {status.remedy}")
    elif status.state == "degraded":
        err.print(
            f"[yellow]{status.running.model_id} speaks instead of {status.requested.model_id}.[/] {status.reason}"
        )


@app.command()
def voices() -> None:
    """List the voices."""
    _, _, store, _ = _studio(_settings())
    table = Table("id", "kind", "language", "description", box=None)
    for voice in store.all():
        table.add_row(voice.id, voice.kind, voice.language, voice.description)
    out.print(table)


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


@app.command(hidden=True)
def docs() -> None:
    """Write docs/settings.md from the settings themselves."""
    SETTINGS_PAGE.write_text(as_markdown(), encoding="utf-8")
    out.print(f"{SETTINGS_PAGE} written")


def _studio(settings: Settings) -> tuple[Studio, EngineHost, VoiceStore, Metrics]:
    """As the server has it; ends the command with words where that can't be."""
    try:
        return assemble.studio_of(settings)
    except ValueError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"TTS_DATA_DIR={settings.data_dir} can't be used: {error.strerror}.")


def _sources(settings: Settings, engine: str) -> list[hub.ModelFiles]:
    if engine == "csm":
        return [hub.files_for("csm", settings.csm_model)]
    if engine == "dia":
        return [hub.files_for("dia", settings.dia_model), hub.files_for("dac", settings.dia_codec)]
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
