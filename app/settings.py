"""Defines all settings of the server: environment variables with types, defaults and descriptions.

`main.py` and `cli.py` read the settings once at the start and pass them to other modules. `make docs` writes
docs/settings.md from this module.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIXES = ("TTS_", "CSM_", "DIA_")  # the names of this server's variables begin with one of these
# Variables that have one of these prefixes, but that only other programs of this repository use.
OTHER_VARIABLES = frozenset({"TTS_BACKEND", "TTS_TEST_SPEECH"})
# Folders with recordings, texts, keys, names of keys or the token of the hub. Only the user of the server may read
# these folders.
PRIVATE_FOLDERS = frozenset(
    {
        "cloned_voices",
        "voice_references",
        "audio_cache",
        "books",
        "conversations",
        "hub",
        "jobs",
        "keys",
        "lexicons",
        "logs",
        "usage",
    }
)

MAX_SERVICE_NAME_BYTES = 63  # the limit of DNS for a part of a name

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Settings(BaseSettings):
    """The settings. A value in the environment replaces a value in `.env`; a value in `.env` replaces the default."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=False,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        validate_default=True,
    )

    engine: str = Field(
        "csm",
        alias="TTS_ENGINE",
        description="The speech engine: `csm`, `dia`, `espeak`, or the name of a plug-in engine.",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        alias="TTS_MODELS",
        description="The models that the `model` of a request chooses from, separated by commas, for example "
        "`csm-1b,dia-1.6b,espeak`. The model of `TTS_ENGINE`, or else the first of the list, is loaded at the start; "
        "each other model is loaded when a request names it. Empty = only the model of `TTS_ENGINE`.",
    )
    load_wait_s: float = Field(
        120.0,
        alias="TTS_LOAD_WAIT_S",
        ge=0,
        le=3600,
        description="Seconds that a request waits while its model is loaded. Then it is a 503 with Retry-After, and "
        "the load continues.",
    )
    idle_unload_s: float = Field(
        0.0,
        alias="TTS_IDLE_UNLOAD_S",
        ge=0,
        description="Unload a model that no request has used for so many seconds, and free its memory. The next "
        "request loads it again. `0` = never.",
    )
    fallback_engine: str = Field(
        "espeak",
        alias="TTS_FALLBACK_ENGINE",
        description="The engine that runs instead if the weights of `TTS_ENGINE` are missing and can't be downloaded. "
        "Empty = none: then speech requests get a 503 with the reason.",
    )
    csm_model: str = Field(
        "sesame/csm-1b",
        alias="CSM_MODEL",
        description="The CSM weights, or a LoRA adapter for them: a Hugging Face id (`org/name`, `org/name@revision`, "
        "`org/name/checkpoint-500`) or a local folder.",
    )
    csm_base: str = Field(
        "",
        alias="CSM_BASE",
        description="If `CSM_MODEL` is a LoRA adapter: the model on which it was trained, a Hugging Face id or a local "
        "folder. Empty = the model that adapter_config.json names, or the weights in the same folder.",
    )
    csm_tokenizer: str = Field(
        "",
        alias="CSM_TOKENIZER",
        description="The tokenizer of CSM: a Hugging Face id or a local folder with tokenizer.json. Empty = the "
        "tokenizer beside the weights, or else the tokenizer of the base model.",
    )
    adapters: Annotated[tuple[tuple[str, str], ...], NoDecode] = Field(
        (),
        alias="TTS_ADAPTERS",
        description="LoRA adapters that CSM or Dia loads beside its weights, comma-separated `name=source`. A source "
        "is a Hugging Face id (`org/name`, `org/name@revision`, `org/name/checkpoint-500`) or a local folder. Each "
        "adapter is the model `csm-1b:name` and the voice `name`. If the server has several models with adapters: "
        "`dia-1.6b:name=source`; without a model it is an adapter of the first one.",
    )
    adapter_slots: int = Field(
        0,
        alias="TTS_ADAPTER_SLOTS",
        ge=0,
        le=128,
        description="With CUDA graphs, the number of adapters that fit at the same time. 0 = as many as there are at "
        "the start. Their memory is reserved at the start.",
    )
    adapter_rank: int = Field(
        32, alias="TTS_ADAPTER_RANK", ge=1, le=256, description="With CUDA graphs, the largest rank of an adapter."
    )
    csm_speakers: Annotated[tuple[Annotated[int, Field(ge=0, le=999)], ...], NoDecode] = Field(
        (0, 1),
        alias="CSM_SPEAKERS",
        min_length=1,
        description="The speaker numbers with which the CSM weights were trained, comma-separated, best first. Voices "
        "get these numbers, and preset voices are created with the first one. If there is only one, the default "
        "voice is this speaker.",
    )
    csm_codec: str = Field(
        "kyutai/mimi",
        alias="CSM_CODEC",
        description="The Mimi codec weights, for CSM checkpoints without a codec: a Hugging Face id or a local folder.",
    )
    dia_model: str = Field(
        "nari-labs/Dia-1.6B-0626",
        alias="DIA_MODEL",
        description="The Dia weights, or a LoRA adapter for them: a Hugging Face id (`org/name`, `org/name@revision`, "
        "`org/name/checkpoint-500`) or a local folder.",
    )
    dia_base: str = Field(
        "",
        alias="DIA_BASE",
        description="If `DIA_MODEL` is a LoRA adapter: the model on which it was trained. See `CSM_BASE`.",
    )
    dia_codec: str = Field(
        "descript/dac_44khz",
        alias="DIA_CODEC",
        description="The DAC codec weights: a Hugging Face id or a local folder.",
    )
    hf_token: SecretStr | None = Field(
        None,
        alias="HF_TOKEN",
        description="A Hugging Face token, for models with restricted access. It is used for downloads only. Unset = "
        "the token that a request has saved (`POST /v1/models/{id}/weights`), or else the token that `hf auth login` "
        "has stored for this user.",
    )

    device: str = Field(
        "auto",
        alias="TTS_DEVICE",
        description="The device of the model: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` = the first CUDA device, or "
        "the CPU if there is no CUDA device.",
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        alias="TTS_DEVICES",
        description="Comma-separated devices, for example `cuda:0,cuda:1`, or `auto` = all GPUs. Each device runs its "
        "own copy of the model, and a request goes to the device with the least load. With `CSM_DEVICE_MAP` the "
        "devices share one model instead. Replaces `TTS_DEVICE`. Empty = only `TTS_DEVICE`.",
    )
    csm_device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        None,
        alias="CSM_DEVICE_MAP",
        description="Splits one CSM model over `TTS_DEVICES`, or over all GPUs if neither `TTS_DEVICES` nor "
        "`TTS_DEVICE` is set: `balanced` = equal bytes on each device; `sequential` = "
        "fill one device before the next; `auto` = only the first device if the model fits there, otherwise "
        "`balanced`. Unset = the model is not split. The first device also holds everything that is not a layer.",
    )
    csm_context_lines: int = Field(
        2,
        alias="CSM_CONTEXT_LINES",
        ge=0,
        le=100,
        description="The number of previous sentences that CSM gets as context for the next sentence. With more "
        "context, sentences fit together better, but the voice changes in long texts.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        alias="TTS_DTYPE",
        description="The number format of the model. `auto` = bfloat16 if the device supports it; otherwise float16 "
        "on a GPU and float32 on a CPU. If activations are too large for float16, `auto` = float32.",
    )
    quantize: Literal["none", "int8", "int4", "fp8"] = Field(
        "none",
        alias="TTS_QUANTIZE",
        description="Quantize the weights. On a CPU: `int8` = 8-bit weights and activations, which is faster and "
        "slightly less exact; `int4` = 4-bit weights, which is faster again, much less exact, and not judged by ear. "
        "On a GPU of compute capability 8.9 or higher: `fp8` = 8-bit weights of CSM's depth decoder, less exact than "
        "int8 and not judged by ear; Dia's weights stay as they are.",
    )
    cuda_graphs: bool = Field(
        True,
        alias="TTS_CUDA_GRAPHS",
        description="Capture each model step as a CUDA graph and replay it. `0` = no CUDA graphs: the server starts "
        "faster and generates speech more slowly.",
    )
    kernels: Literal["auto", "torch", "triton", "persistent"] = Field(
        "auto",
        alias="TTS_KERNELS",
        description="The kernels in a CUDA graph: PyTorch's, or this project's Triton kernels. "
        "`auto` = check both against each other at the start and use the faster ones. `persistent` = Triton's, and one "
        "kernel for all steps of CSM's depth decoder with up to 16 rows.",
    )
    compile: bool = Field(
        False,
        alias="TTS_COMPILE",
        description="Generate the kernels of `TTS_KERNELS` with torch.compile. The start then takes minutes.",
    )
    tf32: bool = Field(
        False,
        alias="TTS_TF32",
        description="Use TensorFloat-32 for float32 matrix products on a GPU: in the codecs, and in the model with "
        "TTS_DTYPE=float32. TensorFloat-32 is faster and less exact (a mantissa of 10 bits).",
    )
    codec_dtype: Literal["auto", "float32"] = Field(
        "auto",
        alias="TTS_CODEC_DTYPE",
        description="The number format of the matrix products of Dia's codec on a GPU. `auto` = float16 if its "
        "spectral error with the loaded weights is below -50 dB, otherwise float32. `float32` = always float32.",
    )
    gpu_memory_fraction: float = Field(
        0.9,
        alias="TTS_GPU_MEMORY_FRACTION",
        gt=0.0,
        le=1.0,
        description="The fraction of a GPU's free memory that the server may use. With TTS_MAX_ROWS=`auto` it "
        "determines the number of rows.",
    )
    steps_per_check: int = Field(
        8,
        alias="TTS_STEPS_PER_CHECK",
        ge=1,
        le=32,
        description="The number of Dia steps (11.6 ms of speech each) that run on a GPU before the server reads their "
        "results. A higher number has less overhead and detects the end of speech later.",
    )

    host: str = Field("0.0.0.0", alias="HOST", description="The address to listen on.")  # noqa: S104 - a server for a LAN # nosec B104
    port: int = Field(8000, alias="PORT", ge=0, le=65535, description="The port to listen on; 0 = any free port.")
    tls_cert: Path | None = Field(
        None,
        alias="TTS_TLS_CERT",
        description="A PEM file with the TLS certificate of this server and its chain. With `TTS_TLS_KEY`, the server "
        "speaks https and wss instead of http and ws. Changed files are used from the next connection on, without a "
        "restart. Unset = no TLS. See docs/proxies.md.",
    )
    tls_key: Path | None = Field(
        None,
        alias="TTS_TLS_KEY",
        description="A PEM file with the private key of `TTS_TLS_CERT`, without a passphrase. Set both or neither.",
    )
    data_dir: Path = Field(
        Path("data"),
        alias="TTS_DATA_DIR",
        description="The folder of all stored data: `models`, `cloned_voices`, `voice_references`, `audio_cache`, "
        "`jobs`, `keys`, `lexicons`, `logs`.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        alias="TTS_API_KEYS",
        description="Comma-separated API keys with all scopes; each has at least 16 characters. `python -m app.cli "
        "keys add` creates keys with names, scopes and limits. Without any key the server is open to all. With keys, "
        "speech, cloning and /debug need one (`Authorization: Bearer`, or `api-key`). The lists of voices and models, "
        "/health and /metrics need no key.",
    )
    wyoming: str = Field(
        "",
        alias="TTS_WYOMING",
        description="The address of the Wyoming server for Home Assistant, such as `tcp://0.0.0.0:10200`. The protocol "
        "has no keys: all who reach this port can speak, also with cloned voices, so use it in a trusted network only. "
        "Empty = no Wyoming server. See docs/live.md.",
    )
    wyoming_zeroconf: str = Field(
        "",
        alias="TTS_WYOMING_ZEROCONF",
        description="The name under which the Wyoming server is announced in the local network (mDNS), so that Home "
        "Assistant finds it. A container needs the network of its host for this. Empty = it is not announced.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        alias="TTS_CORS_ORIGINS",
        description="Comma-separated origins of web pages that may call the server, such as `https://studio.example`; "
        "`*` = all. Empty = only the server's own pages.",
    )

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        alias="TTS_ALLOWED_HOSTS",
        description="Comma-separated public names of this server, such as `tts.example.com` or `*.example.com`; `*` = "
        "all. A request of a web page to another name is a 403 (protection from DNS rebinding). Addresses, names "
        "without a dot, names that end with `.local`, `.lan`, `.internal` or `.svc`, and `HOST` are always allowed. A "
        "server with API keys allows all names if this is empty.",
    )
    studio_llm_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        alias="TTS_STUDIO_LLM_ORIGINS",
        description="Comma-separated origins of servers with OpenAI's chat API that the studio's Live page may contact "
        "from the browser, such as `http://localhost:11434`. Empty = none: the Content-Security-Policy of the pages "
        "then allows this server only.",
    )
    root_path: str = Field(
        "",
        alias="TTS_ROOT_PATH",
        description="The path prefix under which a proxy serves this server, such as `/tts`. Empty = none, or the "
        "header `X-Forwarded-Prefix` of a proxy in `FORWARDED_ALLOW_IPS`. See docs/proxies.md.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1", "::1"),
        alias="FORWARDED_ALLOW_IPS",
        description="Comma-separated addresses or networks of proxies whose headers `X-Forwarded-For`, "
        "`X-Forwarded-Proto` and `X-Forwarded-Prefix` are trusted, such as `10.0.0.0/8`; `*` = all.",
    )
    voice_lists: Literal["open", "keyed"] = Field(
        "open",
        alias="TTS_VOICE_LISTS",
        description="Which lists name cloned voices, on a server with API keys: `open` = all lists, also "
        "without a key; `keyed` = only responses to requests with a valid key.",
    )

    max_input_chars: int = Field(
        1_000_000,
        alias="TTS_MAX_INPUT_CHARS",
        ge=1,
        description="The maximum length of `input`, in characters. A longer text is a 400.",
    )
    max_body_bytes: int = Field(
        16 << 20,
        alias="TTS_MAX_BODY_BYTES",
        ge=1024,
        description="The maximum size of a JSON request body, in bytes. A larger body is a 413. A character of `input` "
        "takes up to 12 bytes (as `\\ud83d\\ude00`).",
    )
    max_upload_bytes: int = Field(
        64 << 20,
        alias="TTS_MAX_UPLOAD_BYTES",
        ge=1024,
        description="The maximum body size, in bytes, of a request with recordings (conversations, cloning, consents, "
        "imports). A larger body is a 413.",
    )
    max_adapter_bytes: int = Field(
        512 << 20,
        alias="TTS_MAX_ADAPTER_BYTES",
        ge=1024,
        description="The maximum size, in bytes, of the files of one LoRA adapter, uploaded or downloaded.",
    )
    read_timeout_s: float = Field(
        30.0,
        alias="TTS_READ_TIMEOUT_S",
        gt=0,
        le=3600,
        description="Seconds in which the headers of a request must arrive. The body has the same time, plus 1 s for "
        "each kB received. A slower request is a 408.",
    )
    keep_alive_s: int = Field(
        75,
        alias="TTS_KEEP_ALIVE_S",
        ge=1,
        description="Seconds that an idle connection stays open between two requests. Choose more than the idle time "
        "of the clients' connection pools; otherwise they see connection errors.",
    )
    max_rows: Literal["auto"] | int = Field(
        "auto",
        alias="TTS_MAX_ROWS",
        description="The number of utterances that are spoken at the same time. `auto` = the engine chooses a number "
        "that its device can process.",
    )
    max_queue: int = Field(
        64,
        alias="TTS_MAX_QUEUE",
        ge=0,
        description="The number of requests that may wait for a row, on all devices together. Further requests are a "
        "429 with Retry-After.",
    )
    casting: Literal["auto", "off"] = Field(
        "auto",
        alias="TTS_CASTING",
        description="Preset voice creation. `auto` = an engine that can clone creates a recording for each preset "
        "voice, once, while no request waits for speech. `off` = preset voices without a recording use a fixed seed.",
    )
    casting_wait_s: float = Field(
        5.0,
        alias="TTS_CASTING_WAIT_S",
        ge=0,
        le=600,
        description="The maximum number of seconds that a request waits for the creation of its preset voice. After "
        "that, the request is spoken with a fixed seed (`X-Voice-State: uncast`).",
    )
    memory_tokens: int = Field(
        600,
        alias="TTS_MEMORY_TOKENS",
        ge=0,
        le=100_000,
        description="How much of a conversation (`conversation_id`) the model gets as context, in tokens. With CSM, a "
        "second of speech is 12.5 tokens and 4 letters of text are about 1 token.",
    )
    memory_ttl_s: float = Field(
        3_600.0,
        alias="TTS_MEMORY_TTL_S",
        gt=0,
        description="The server forgets a conversation this many seconds after its last request.",
    )
    memory_keep: bool = Field(
        False,
        alias="TTS_MEMORY_KEEP",
        description="Store conversations on disk (`TTS_DATA_DIR/conversations`), so that they survive a restart.",
    )
    audio_queue_s: float = Field(
        10.0,
        alias="TTS_OUTBOX_S",
        gt=0.1,
        description="The size of each answer's audio queue, in seconds of audio. When the queue is full because the "
        "client reads slowly, generation for this answer pauses.",
    )
    reader_timeout_s: float = Field(
        60.0,
        alias="TTS_READER_TIMEOUT_S",
        ge=0.1,
        le=86_400,
        description="Seconds after which the server disconnects a client that reads nothing of its answer. This frees "
        "the row of the answer. A WebSocket whose client has vanished is closed within the same time.",
    )
    cache_bytes: int = Field(
        1 << 30,
        alias="TTS_CACHE_BYTES",
        ge=0,
        description="The maximum size of the answer cache on disk, in bytes. A second of audio takes 44 kB (the "
        "offline voice), 48 kB (CSM) or 88 kB (Dia). The least recently used answers are removed first. In addition, "
        "32 MiB of encoded answers stay in memory. 0 = no cache, and equal requests at the same time are generated "
        "separately.",
    )
    jobs_max_chars: int = Field(
        20_000_000,
        alias="TTS_JOBS_MAX_CHARS",
        ge=0,
        description="The maximum number of characters of a job (`/v1/audio/jobs`). A longer text is a 400. `0` = this "
        "server has no jobs. See docs/books.md.",
    )
    jobs_keep_days: float = Field(
        0.0,
        alias="TTS_JOBS_KEEP_DAYS",
        ge=0,
        description="Delete jobs that have ended, with their speech and their results, so many days after their last "
        "change. `0` = never.",
    )
    shutdown_grace_s: int = Field(
        120,
        alias="TTS_SHUTDOWN_GRACE_S",
        ge=0,
        description="Seconds that running answers have to finish after SIGTERM (graceful shutdown).",
    )

    replicas: str = Field(
        "1",
        alias="TTS_REPLICAS",
        description="With `--ray` only: the number of replicas of the server, for example `2`; or a range such as "
        "`1-8`, in which the number changes with the load.",
    )
    enhance: bool = Field(
        True,
        alias="TTS_ENHANCE",
        description="Give all speech the same loudness (-20 LUFS, peaks below -1 dBTP). The request field `enhance` "
        "overrides this setting.",
    )
    watermark: Literal["off", "cloned", "model", "all"] = Field(
        "model",
        alias="TTS_WATERMARK",
        description="Which speech gets an inaudible watermark that identifies it as generated: `model` = all speech of "
        "a trained model, so not the offline voice; `cloned` = only speech with cloned voices; `all`; or `off`. See "
        "docs/provenance.md. It needs the `watermark` extra. Without the extra, `model` and `cloned` add no watermark, "
        "and /health and the log say so; with `all` the server does not start.",
    )
    c2pa_cert: Path | None = Field(
        None,
        alias="TTS_C2PA_CERT",
        description="A PEM file with the certificate, and its chain, that signs files to keep (wav, mp3, m4a, m4b) "
        "with C2PA. It is checked at the start. Unset = no signatures. It needs the `c2pa` extra. See "
        "docs/provenance.md.",
    )
    c2pa_key: Path | None = Field(
        None,
        alias="TTS_C2PA_KEY",
        description="A PEM file with the private key of `TTS_C2PA_CERT`, without a passphrase. Set both or neither.",
    )
    verify: Literal["off", "auto", "all"] = Field(
        "auto",
        alias="TTS_VERIFY",
        description="Which generated speech is checked against its text, see docs/listening.md: `auto` = utterances of "
        "a model of which nothing was sent yet (the files of `say`, and later utterances while the listener has enough "
        "audio); `all` = also utterances that were sent, and the offline voice; `off` = none. The request fields "
        "`verify` and `best_of` override this setting. The check needs the `words` extra and works for English.",
    )
    youtube: Literal["auto", "off"] = Field(
        "auto",
        alias="TTS_YOUTUBE",
        description="Voice cloning from YouTube videos: `auto` = if the `youtube` extra is installed; `off` = never.",
    )
    asr: Literal["auto", "off"] = Field(
        "auto",
        alias="TTS_ASR",
        description="Recognise the words of a voice recording without a transcript. `auto` = if the `asr` extra is "
        "installed; `off` = never. If the words are not recognised, the voice is stored with the status `needs words`.",
    )
    asr_model: str = Field(
        "openai/whisper-base.en",
        alias="TTS_ASR_MODEL",
        description="The Whisper checkpoint that recognises speech: a Hugging Face id or a local folder.",
    )
    asr_download: bool = Field(
        True,
        alias="TTS_ASR_DOWNLOAD",
        description="Download `TTS_ASR_MODEL` (0.3 GB) when a recording without a transcript first needs it. `false` = "
        "use the checkpoint only if it is already in `models` or in the Hugging Face cache.",
    )

    log_level: LogLevel = Field(
        "INFO", alias="LOG_LEVEL", description="The lowest level that is logged: DEBUG, INFO, WARNING or ERROR."
    )
    log_texts: bool = Field(
        False,
        alias="TTS_LOG_TEXTS",
        description="Log the texts of requests, and the messages of exceptions, which may quote these texts. `false` "
        "= log only the number of characters, and the place of an exception in the code.",
    )
    dev_mode: bool = Field(
        False, alias="DEV_MODE", description="Restart the server when the code changes, and log at level DEBUG."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty_values(cls, data: object) -> object:
        """Remove variables with an empty value, so that these settings have their defaults.

        Compose files and shells set a variable without a value to "". TTS_FALLBACK_ENGINE is an exception, because an
        empty value of this variable means "none".
        """
        if not isinstance(data, dict):
            return data
        kept = {"TTS_FALLBACK_ENGINE", "fallback_engine"}
        return {
            name: value for name, value in data.items() if name in kept or not isinstance(value, str) or value.strip()
        }

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
            raise ValueError("must be a number of at least 1, or a range such as `1-8` with the smaller number first")
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

    @field_validator(
        "api_keys",
        "cors_origins",
        "devices",
        "allowed_hosts",
        "trusted_proxies",
        "csm_speakers",
        "models",
        "studio_llm_origins",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("adapters", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        for name, _, source in pairs:
            if not name.strip() or not source.strip():
                raise ValueError(
                    f"{name.strip()!r} has no source. Write name=source, for example danish=me/csm-danish-lora"
                )
        return tuple((name.strip(), source.strip()) for name, _, source in pairs)

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s*]+", origin):
                raise ValueError(
                    f"{origin!r} is not an origin. Write scheme and host without a path or a slash at the end, for "
                    "example `https://studio.example` or `http://localhost:3000`"
                )
        return value

    @field_validator("studio_llm_origins", mode="after")
    @classmethod
    def _llm_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(origin.lower() for origin in value)
        for origin in origins:
            if not re.fullmatch(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?", origin):
                raise ValueError(
                    f"{origin!r} is not an origin. Write scheme, host and port without a path or a slash at the end, "
                    "for example `http://localhost:11434`"
                )
        return origins

    @field_validator("allowed_hosts", mode="after")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"\*|(?:\*?\.)?[A-Za-z0-9_-][A-Za-z0-9_.-]*(?::\d{1,5})?|\[?[0-9A-Fa-f:]+\]?", host):
                raise ValueError(f"{host!r} is not the name of a host. Write `tts.example.com` or `*.example.com`")
        return value

    @field_validator("root_path", mode="after")
    @classmethod
    def _prefix(cls, value: str) -> str:
        path = value.strip().rstrip("/")
        if path and not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path):
            raise ValueError(f"{value!r} is not a path prefix. Write it with a slash at the start, such as `/tts`")
        return path

    @field_validator("wyoming", mode="after")
    @classmethod
    def _address(cls, value: str) -> str:
        uri = value.strip()
        if uri:
            address_of(uri)
        return uri

    @field_validator("wyoming_zeroconf", mode="after")
    @classmethod
    def _service_name(cls, value: str) -> str:
        name = value.strip()
        if len(name.encode("utf-8", "replace")) > MAX_SERVICE_NAME_BYTES or not name.isprintable():
            raise ValueError(f"must have at most {MAX_SERVICE_NAME_BYTES} bytes and no control characters")
        return name

    @field_validator("api_keys", mode="before")
    @classmethod
    def _not_only_commas(cls, value: object) -> object:
        if isinstance(value, str) and value.strip() and not value.strip(" ,"):
            raise ValueError("has commas but no key. Write at least one key, or leave it empty to run without keys")
        return value

    @model_validator(mode="after")
    def _tls_pair(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            present, missing = ("CERT", "KEY") if self.tls_key is None else ("KEY", "CERT")
            raise ValueError(f"TTS_TLS_{present} is set without TTS_TLS_{missing}. Set both for TLS, or neither")
        return self

    @model_validator(mode="after")
    def _c2pa_pair(self) -> Settings:
        if (self.c2pa_cert is None) != (self.c2pa_key is None):
            present, missing = ("CERT", "KEY") if self.c2pa_key is None else ("KEY", "CERT")
            raise ValueError(f"TTS_C2PA_{present} is set without TTS_C2PA_{missing}. Set both to sign, or neither")
        return self

    @property
    def scheme(self) -> Literal["http", "https"]:
        """The scheme of the server's own URLs."""
        return "https" if self.tls_cert else "http"

    def rows(self, auto: int) -> int:
        """Return the number of rows that TTS_MAX_ROWS sets. If it is not set to a number, return `auto`.

        auto: the number of rows that the engine has chosen.
        """
        return auto if self.max_rows == "auto" else self.max_rows

    @property
    def replica_range(self) -> tuple[int, int]:
        """The smallest and the largest number of replicas in TTS_REPLICAS."""
        least, _, most = self.replicas.partition("-")
        return int(least), int(most or least)

    @property
    def token(self) -> str:
        """The Hugging Face token in plain text; "" if none is set."""
        return self.hf_token.get_secret_value() if self.hf_token else ""

    def folder(self, name: str) -> Path:
        """Return the path of a subfolder of TTS_DATA_DIR. If the subfolder does not exist, create it. Raises OSError.

        A new folder of PRIVATE_FOLDERS can be opened only by the server's user.
        """
        path = self.data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700 if name in PRIVATE_FOLDERS else 0o777, exist_ok=True)
        return path

    def close_to_others(self) -> None:
        """Remove all rights of other users from the existing folders of PRIVATE_FOLDERS.

        The group of a folder keeps its rights, because several servers may share the folder through the group. Folders
        that belong to another user do not change.
        """
        for name in PRIVATE_FOLDERS:
            path = self.data_dir / name
            try:
                mode = stat.S_IMODE(path.stat().st_mode)
                if mode & 0o007:
                    path.chmod(mode & ~0o007)
            except OSError:
                continue

    def unwritable_folders(self) -> list[Path]:
        """Return the existing subfolders of TTS_DATA_DIR to which this process can't write."""
        # The folder `keys` is left out, because it may be mounted read-only.
        names = ("models", *sorted(PRIVATE_FOLDERS - {"keys"}))
        paths = (self.data_dir / name for name in names)
        return [path for path in paths if path.is_dir() and not os.access(path, os.W_OK | os.X_OK)]


def address_of(uri: str) -> tuple[str, int]:
    """Return host and port of a URI such as tcp://0.0.0.0:10200. Raises ValueError."""
    parts = urlsplit(uri)
    if parts.scheme != "tcp" or not parts.hostname or parts.port is None or parts.netloc.count("@"):
        raise ValueError(f"{uri!r} is not an address. Write `tcp://0.0.0.0:10200`")
    if parts.path or parts.query or parts.fragment:
        raise ValueError(f"{uri!r} has a path. Write `tcp://0.0.0.0:10200`")
    return parts.hostname, parts.port


def unknown_variables(environment: Iterable[str], env_file: Path = Path(".env")) -> dict[str, str]:
    """Return a mapping: unknown variable with a prefix of this server -> the most similar setting, or "".

    environment: names of variables. env_file: if this file exists, its variables are checked too.
    """
    known = {field.alias or name for name, field in Settings.model_fields.items()}
    try:
        in_file = list(dotenv_values(env_file)) if env_file.is_file() else []
    except (OSError, UnicodeDecodeError):
        in_file = []
    names = dict.fromkeys([*environment, *in_file])
    unknown = [
        name for name in names if name.upper().startswith(PREFIXES) and name.upper() not in known | OTHER_VARIABLES
    ]
    return {name: _nearest(name.upper(), known) for name in sorted(unknown)}


def _nearest(name: str, known: set[str]) -> str:
    """Return the setting that an unknown variable probably means; "" if no setting has a similar name.

    HOST and PORT have no prefix, so TTS_PORT means PORT.
    """
    bare = name.partition("_")[2]
    return bare if bare in known else next(iter(difflib.get_close_matches(name, known, 1, 0.6)), "")


def public_values(settings: Settings) -> dict[str, object]:
    """Return the value of each variable for /debug. For a secret, the value is only "set" or "not set"."""
    values: dict[str, object] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        secret = name in ("hf_token", "api_keys")
        values[field.alias or name] = (
            ("set" if value else "not set") if secret else str(value) if isinstance(value, Path) else value
        )
    return values


def as_markdown() -> str:
    """Return the text of docs/settings.md."""
    rows = [
        "# Settings",
        "",
        "The settings are environment variables. The server also reads them from the file `.env`. `make docs` writes",
        "this page. A variable with an empty value has its default, unless the table gives the empty value a meaning.",
        "The server warns about unknown variables whose names begin with `TTS_`, `CSM_` or `DIA_`.",
        "",
        "The server also uses these variables of the Hugging Face library. The server does not read them from `.env`,",
        "but the compose files pass all variables of `.env` to the container.",
        "",
        "| variable | meaning |",
        "|---|---|",
        "| `HF_ENDPOINT` | The address of a mirror of the Hugging Face hub, from which weights are downloaded. |",
        "| `HF_HUB_OFFLINE` | `1` = download nothing: only weights on the disk are used. |",
        "| `HF_HOME`, `HF_HUB_CACHE` | The user's Hugging Face cache, which is read and never written: "
        "[models.md](models.md#weights-already-on-the-disk). |",
        "",
    ]
    rows += ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, tuple) and default:
            default = ",".join(map(str, default))
        shown = (
            "none" if default in (None, (), "") else str(default).lower() if isinstance(default, bool) else str(default)
        )
        rows.append(f"| `{field.alias or name}` | `{shown}` | {field.description} |")
    return "\n".join(rows) + "\n"
