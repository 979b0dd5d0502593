"""Every environment variable of the server, typed, with its description. docs/settings.md is made from this file.

Read once, at start, by `main.py` and `cli.py`; every other room is handed what it needs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Settings(BaseSettings):
    """Values come from the environment, then from `.env` in the working directory, then from the defaults here."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=False,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        validate_default=True,
    )

    engine: str = Field(
        "csm", alias="TTS_ENGINE", description="The engine that speaks: `csm`, `dia`, `espeak`, or one from a plug-in."
    )
    fallback_engine: str = Field(
        "espeak",
        alias="TTS_FALLBACK_ENGINE",
        description="The engine that answers where the weights of `TTS_ENGINE` can't be had. Empty = none: speech is "
        "then a 503 that says why.",
    )
    csm_model: str = Field(
        "sesame/csm-1b", alias="CSM_MODEL", description="CSM weights: a Hugging Face id or a local folder."
    )
    csm_codec: str = Field(
        "kyutai/mimi",
        alias="CSM_CODEC",
        description="Mimi codec weights, for CSM checkpoints that hold none: a Hugging Face id or a local folder.",
    )
    dia_model: str = Field(
        "nari-labs/Dia-1.6B-0626", alias="DIA_MODEL", description="Dia weights: a Hugging Face id or a local folder."
    )
    dia_codec: str = Field(
        "descript/dac_44khz", alias="DIA_CODEC", description="DAC codec weights: a Hugging Face id or a local folder."
    )
    hf_token: SecretStr | None = Field(
        None, alias="HF_TOKEN", description="Hugging Face token, for gated models. Used for downloads only."
    )

    device: str = Field(
        "auto",
        alias="TTS_DEVICE",
        description="Where a model runs: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.",
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        alias="TTS_DEVICES",
        description="Comma-separated devices, e.g. `cuda:0,cuda:1`, or `auto` = all GPUs: one engine on each, least "
        "load first. With `CSM_DEVICE_MAP` they share one model instead; the first then holds all but layers too. "
        "Takes the place of `TTS_DEVICE`. Empty = `TTS_DEVICE` alone.",
    )
    csm_device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        None,
        alias="CSM_DEVICE_MAP",
        description="How CSM is laid on `TTS_DEVICES`: `balanced` = equal bytes on each; `sequential` = one device is "
        "filled before the next; `auto` = the first device alone if it has room, else `balanced`. Unset = not split.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        alias="TTS_DTYPE",
        description="A model's number format; `auto` = bfloat16 where the device computes in it, else float16 on a GPU "
        "and float32 on a CPU. Codecs are float32 always.",
    )
    quantize: Literal["none", "int8"] = Field(
        "none", alias="TTS_QUANTIZE", description="`int8`: 8-bit weights and activations on a CPU: faster, less exact."
    )
    cuda_graphs: bool = Field(
        True,
        alias="TTS_CUDA_GRAPHS",
        description="On a CUDA device, record each step once and replay it. `0` = no recording: a quicker start and "
        "slower speech.",
    )
    kernels: Literal["auto", "torch", "triton"] = Field(
        "auto",
        alias="TTS_KERNELS",
        description="Who computes what lies between matrix products in a recorded step: PyTorch, or kernels of our own "
        "in Triton. `auto`: both are timed on the device at the start, and checked against each other.",
    )
    compile: bool = Field(
        False,
        alias="TTS_COMPILE",
        description="Let torch.compile write those kernels instead: a start of minutes.",
    )
    tf32: bool = Field(
        False,
        alias="TTS_TF32",
        description="Float32 products (the codecs', and the model's with TTS_DTYPE=float32) in TensorFloat-32 on a "
        "GPU: faster, with 10 bits of mantissa.",
    )
    gpu_memory_fraction: float = Field(
        0.9,
        alias="TTS_GPU_MEMORY_FRACTION",
        gt=0.0,
        le=1.0,
        description="How much of a GPU's free memory may be used: sets the rows where TTS_MAX_ROWS is `auto`.",
    )
    steps_per_check: int = Field(
        8,
        alias="TTS_STEPS_PER_CHECK",
        ge=1,
        le=32,
        description="Recorded steps of Dia (11.6 ms of speech each) that are sent to a GPU before the host looks at "
        "what they made. More = less overhead, later ends.",
    )

    host: str = Field("0.0.0.0", alias="HOST", description="Address to listen on.")  # noqa: S104 - a server for a LAN # nosec B104
    port: int = Field(8000, alias="PORT", ge=0, le=65535, description="Port to listen on; 0 = any free one.")
    data_dir: Path = Field(
        Path("data"),
        alias="TTS_DATA_DIR",
        description="Folder of all that is kept: `models`, `cloned_voices`, `voice_references`, `audio_cache`, "
        "`keys`, `logs`.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        alias="TTS_API_KEYS",
        description="Comma-separated keys that may do everything, of 16 characters or more. Keys with names, scopes "
        "and limits: `python -m app.cli keys add`. Neither = open to all. With keys, speech, cloning and /debug need "
        "one (`Authorization: Bearer`, or `api-key`); lists, health and metrics stay open.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        alias="TTS_CORS_ORIGINS",
        description="Comma-separated origins whose web pages may call the server, such as `https://studio.example`; "
        "`*` = any. Empty = none.",
    )

    max_input_chars: int = Field(
        20_000, alias="TTS_MAX_INPUT_CHARS", ge=1, description="Longest `input`, in characters; longer is a 400."
    )
    max_body_bytes: int = Field(
        1 << 20,
        alias="TTS_MAX_BODY_BYTES",
        ge=1024,
        description="Largest JSON request body, in bytes; larger is a 413.",
    )
    max_upload_bytes: int = Field(
        64 << 20,
        alias="TTS_MAX_UPLOAD_BYTES",
        ge=1024,
        description="Largest body of a request that brings recordings (conversations, cloning, consents, imports); "
        "larger is a 413.",
    )
    read_timeout_s: float = Field(
        30.0,
        alias="TTS_READ_TIMEOUT_S",
        gt=0,
        le=3600,
        description="Seconds within which the head of a request must be here, and its body's first part; then the body "
        "must come with 1 kB/s or more. Slower is a 408.",
    )
    keep_alive_s: int = Field(
        75,
        alias="TTS_KEEP_ALIVE_S",
        ge=1,
        description="Seconds a connection may idle between two requests; below the idle time of clients' pools it "
        "shows there as connection errors.",
    )
    max_rows: Literal["auto"] | int = Field(
        "auto",
        alias="TTS_MAX_ROWS",
        description="How many utterances are spoken at the same time. `auto`: as the engine and its device bear.",
    )
    max_queue: int = Field(
        64,
        alias="TTS_MAX_QUEUE",
        ge=0,
        description="How many requests may wait for a row, on all devices together; one more is a 429 with "
        "Retry-After.",
    )
    casting: Literal["auto", "off"] = Field(
        "auto",
        alias="TTS_CASTING",
        description="`auto`: an engine that learns voices makes a recording for each standard voice, once, while "
        "no request waits for speech. `off`: standard voices without a recording are spoken with a fixed seed.",
    )
    casting_wait_s: float = Field(
        5.0,
        alias="TTS_CASTING_WAIT_S",
        ge=0,
        le=600,
        description="Seconds a request waits for its standard voice to be cast; then it is spoken with a fixed seed "
        "(`X-Voice-State: uncast`).",
    )
    memory_tokens: int = Field(
        600,
        alias="TTS_MEMORY_TOKENS",
        ge=0,
        le=100_000,
        description="How much of a conversation (`conversation_id`) the model hears again, in positions of its "
        "context: 12.5 for a second of speech with CSM, and about one for 4 letters of its text.",
    )
    memory_ttl_s: float = Field(
        3_600.0, alias="TTS_MEMORY_TTL_S", gt=0, description="Seconds after which a silent conversation is forgotten."
    )
    memory_keep: bool = Field(
        False,
        alias="TTS_MEMORY_KEEP",
        description="Keep conversations on disk (`TTS_DATA_DIR/conversations`), so that they survive a restart.",
    )
    audio_queue_s: float = Field(
        10.0,
        alias="TTS_OUTBOX_S",
        gt=0.1,
        description="Seconds of sound made ahead of a reader; past it, a slow reader's own row pauses.",
    )
    reader_timeout_s: float = Field(
        60.0,
        alias="TTS_READER_TIMEOUT_S",
        ge=0.1,
        le=86_400,
        description="How long a caller may take nothing of an answer, in seconds; then the connection is cut and the "
        "row is free.",
    )
    cache_bytes: int = Field(
        1 << 30,
        alias="TTS_CACHE_BYTES",
        ge=0,
        description="Disk budget of the answer cache, in bytes; the least recently used go first. 0 = no cache.",
    )
    shutdown_grace_s: int = Field(
        120,
        alias="TTS_SHUTDOWN_GRACE_S",
        ge=0,
        description="How long answers that are being spoken may go on after SIGTERM, in seconds.",
    )

    replicas: str = Field(
        "1",
        alias="TTS_REPLICAS",
        description="With `--ray` only: how many copies of the server, e.g. `2`, or `1-8` = as many as the load wants.",
    )
    enhance: bool = Field(
        True,
        alias="TTS_ENHANCE",
        description="Bring every voice, request and sentence to one loudness (-20 LUFS, peaks below -1 dBTP). A "
        "request's `enhance` decides for itself.",
    )
    watermark: Literal["cloned", "all", "off"] = Field(
        "cloned",
        alias="TTS_WATERMARK",
        description="Which speech carries an inaudible watermark that says a machine made it: `cloned` "
        "voices, `all`, or none (`off`). Needs the `watermark` extra: without it `cloned` marks nothing and /health "
        "says so; `all` does not start.",
    )
    youtube: Literal["auto", "off"] = Field(
        "auto",
        alias="TTS_YOUTUBE",
        description="Cloning from YouTube: `auto` = where the `youtube` extra is installed; `off` = not at all.",
    )
    asr: Literal["auto", "off"] = Field(
        "auto",
        alias="TTS_ASR",
        description="Recognise what is said in a voice sample that comes without a transcript, where the extra `asr` "
        "and the weights are there; `off`: a transcript is always asked for.",
    )
    asr_model: str = Field(
        "openai/whisper-base.en",
        alias="TTS_ASR_MODEL",
        description="The speech recogniser, a Whisper checkpoint: a Hugging Face id or a local folder.",
    )
    asr_download: bool = Field(
        False,
        alias="TTS_ASR_DOWNLOAD",
        description="Download `TTS_ASR_MODEL` when it is first needed; `false`: only what is in `models` is used.",
    )

    log_level: LogLevel = Field("INFO", alias="LOG_LEVEL", description="DEBUG, INFO, WARNING or ERROR.")
    log_texts: bool = Field(
        False,
        alias="TTS_LOG_TEXTS",
        description="Write the texts of requests to the log, and the messages of exceptions, which may quote them. "
        "Off, their length is written, and what failed where.",
    )
    dev_mode: bool = Field(
        False, alias="DEV_MODE", description="Restart on code changes; log DEBUG to the console in colour."
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("max_rows", mode="after")
    @classmethod
    def _sane_rows(cls, value: str | int) -> str | int:
        if isinstance(value, int) and not 1 <= value <= 1024:
            raise ValueError("must be `auto` or 1 to 1024")
        return value

    @field_validator("replicas", mode="after")
    @classmethod
    def _sane_replicas(cls, value: str) -> str:
        found = re.fullmatch(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?", value.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2] or found[1]):
            raise ValueError("must be a number from 1, or two like `1-8`, the smaller first")
        return value

    @field_validator("engine", "fallback_engine", mode="after")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.strip().lower()

    @field_validator("hf_token", mode="after")
    @classmethod
    def _none_if_blank(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is not None and value.get_secret_value().strip() else None

    @field_validator("csm_device_map", mode="before")
    @classmethod
    def _lower_or_none(cls, value: object) -> object:
        return value.strip().lower() or None if isinstance(value, str) else value

    @field_validator("api_keys", "cors_origins", "devices", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s*]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin: write scheme and host as browsers send them, "
                    "`https://studio.example` or `http://localhost:3000`, without a path or a slash at the end"
                )
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _not_only_commas(cls, value: object) -> object:
        if isinstance(value, str) and value.strip() and not value.strip(" ,"):
            raise ValueError("has commas but no key; leave it empty to be open to all")
        return value

    def rows(self, auto: int) -> int:
        """TTS_MAX_ROWS, or `auto`, what the engine thinks best."""
        return auto if self.max_rows == "auto" else self.max_rows

    @property
    def replica_range(self) -> tuple[int, int]:
        """The least and the most of TTS_REPLICAS."""
        least, _, most = self.replicas.partition("-")
        return int(least), int(most or least)

    @property
    def token(self) -> str:
        """The hub token in clear, or ""."""
        return self.hf_token.get_secret_value() if self.hf_token else ""

    def folder(self, name: str) -> Path:
        """One of the data folders; made on first need."""
        path = self.data_dir / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def public_values(settings: Settings) -> dict[str, object]:
    """Every variable with its value, secrets told only as set or not: for /debug and the log."""
    values: dict[str, object] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        secret = name in ("hf_token", "api_keys")
        values[field.alias or name] = (
            ("set" if value else "not set") if secret else str(value) if isinstance(value, Path) else value
        )
    return values


def as_markdown() -> str:
    """docs/settings.md, whole."""
    rows = ["# Settings", "", "Environment variables, also read from `.env`. This page is made by `make docs`.", ""]
    rows += ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = (
            "none" if default in (None, (), "") else str(default).lower() if isinstance(default, bool) else str(default)
        )
        rows.append(f"| `{field.alias or name}` | `{shown}` | {field.description} |")
    return "\n".join(rows) + "\n"
