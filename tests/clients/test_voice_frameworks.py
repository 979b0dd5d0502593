"""The voice frameworks' own TTS services for OpenAI's endpoint: pipecat, LiveKit Agents, OpenAI Agents."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.clients.conftest import KEY, Client, decode_result, driver, full, recognise_result
from tests.support.ears import SENTENCES, Recogniser
from tests.support.live import LONG, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.clients

SENTENCE = SENTENCES[1]
_numbers = itertools.count(1)


def new() -> str:
    return f"Is there room for number {next(_numbers)}?"


@pytest.fixture(scope="module")
def pipecat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with driver("pipecat_tts", "voice", tmp_path_factory.mktemp("pipecat")) as client:
        yield client


@pytest.fixture(scope="module")
def livekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with driver("livekit_tts", "voice", tmp_path_factory.mktemp("livekit")) as client:
        yield client


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with driver("agents_voice", "voice", tmp_path_factory.mktemp("agents")) as client:
        yield client


# ---- pipecat: pcm into a pipeline


def test_pipecat_speaks(pipecat: Client, server: str, recogniser: Recogniser) -> None:
    result = pipecat.ask("speak", server, texts=[SENTENCE], settings={"voice": "alloy"})
    assert result["errors"] == []
    assert result["rates"] == [24_000]
    assert result["channels"] == [1]
    assert result["started"] == result["stopped"] == 1
    assert recognise_result(result, recogniser, "pcm") == SENTENCE


def test_pipecat_with_every_setting_and_several_sentences(pipecat: Client, server: str) -> None:
    settings = {"voice": "marin", "model": "tts-1-hd", "instructions": "Whisper.", "speed": 2.0}
    fast = pipecat.ask("speak", server, texts=list(SENTENCES[:3]), settings=settings)
    usual = pipecat.ask("speak", server, texts=list(SENTENCES[:3]), settings=settings | {"speed": 1.0})
    assert fast["errors"] == []
    assert decode_result(fast, "pcm").seconds == pytest.approx(decode_result(usual, "pcm").seconds / 2, rel=0.1)


def test_pipecat_gets_errors_and_retries_a_429(pipecat: Client, server: str, guarded: str) -> None:
    wrong = pipecat.ask("speak", server, texts=["Hello."], settings={"voice": "alloy", "model": "gpt-5"})
    assert any("gpt-5" in error for error in wrong["errors"])
    denied = pipecat.ask("speak", guarded, key="sk-wrong", texts=["Hello."], settings={"voice": "alloy"})
    assert any("Incorrect API key" in error for error in denied["errors"])
    too_fast = pipecat.ask("speak", server, texts=["Hello."], settings={"voice": "alloy", "speed": 9.0})
    assert any("speed" in error for error in too_fast["errors"])
    with full(guarded):
        busy = pipecat.ask("speak", guarded, key=KEY, texts=[new()], settings={"voice": "alloy"})
    assert any("429" in error for error in busy["errors"])
    with full(guarded, for_s=0.3):  # its client repeats by itself
        result = pipecat.ask("speak", guarded, key=KEY, texts=[new()], settings={"voice": "alloy"})
    assert result["errors"] == []
    assert decode_result(result, "pcm").seconds > 0.5


# ---- LiveKit: events for gpt-4o-mini-tts, bytes for tts-1, and a decoder of its own for each format


@pytest.mark.parametrize("model", ["gpt-4o-mini-tts", "tts-1"])
@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_livekit_speaks(livekit: Client, server: str, recogniser: Recogniser, model: str, audio_format: str) -> None:
    options = {"model": model, "voice": "alloy", "response_format": audio_format}
    result = livekit.ask("speak", server, text=SENTENCE, options=options)
    assert result["rates"] == [24_000]
    assert result["channels"] == [1]
    assert result["requests"][0].startswith("req_")
    assert result["warned"] == []
    assert recognise_result(result, recogniser, "pcm") == SENTENCE


def test_livekit_speaks_with_defaults(livekit: Client, server: str, recogniser: Recogniser) -> None:
    """Nothing chosen: voice ash, mp3, events."""
    assert recognise_result(livekit.ask("speak", server, text=SENTENCE, options={}), recogniser, "pcm") == SENTENCE


def test_livekit_raises_its_own_error_classes(livekit: Client, server: str, guarded: str) -> None:
    wrong = livekit.ask("speak", server, text="Hello.", options={"voice": "nobody"})["error"]
    assert "APIStatusError" in wrong["classes"]
    assert wrong["status_code"] == 400
    assert wrong["request_id"].startswith("req_")
    denied = livekit.ask("speak", guarded, key="sk-wrong", text="Hello.", options={})["error"]
    assert denied["status_code"] == 401
    with full(guarded):
        busy = livekit.ask("speak", guarded, key=KEY, text=new(), options={})["error"]
    assert busy["status_code"] == 429
    with full(guarded, for_s=0.5):
        result = livekit.ask("speak", guarded, key=KEY, text=new(), options={}, retries=4)
    assert decode_result(result, "pcm").seconds > 0.5


@pytest.mark.parametrize("model", ["gpt-4o-mini-tts", "tts-1"])
def test_livekit_interruption_frees_the_row(livekit: Client, guarded: str, model: str) -> None:
    for _ in range(3):
        result = livekit.ask("speak", guarded, key=KEY, text=LONG, options={"model": model}, interrupt=True)
        assert decode_result(result, "pcm").seconds > 0
        wait_until(lambda: not httpx.get(f"{guarded}/health").json()["rows"]["active"])


# ---- OpenAI Agents


def test_openai_agents_speak(agents: Client, server: str, recogniser: Recogniser) -> None:
    result = agents.ask("speak", server, text=SENTENCE, settings={"voice": "nova", "speed": 1.0})
    assert result["pieces"] > 10
    assert recognise_result(result, recogniser, "pcm") == SENTENCE


def test_openai_agents_speak_with_defaults(agents: Client, server: str, recogniser: Recogniser) -> None:
    """Voice ash, instructions in the body, no speed."""
    assert recognise_result(agents.ask("speak", server, text=SENTENCE, settings={}), recogniser, "pcm") == SENTENCE
    no_instructions = agents.ask(
        "speak", server, text=SENTENCE, settings={"instructions": None, "voice": {"id": "nova"}}
    )
    assert recognise_result(no_instructions, recogniser, "pcm") == SENTENCE


def test_openai_agents_raise_openai_errors(agents: Client, server: str, guarded: str) -> None:
    wrong = agents.ask("speak", server, text="Hello.", settings={"voice": "nobody"})["error"]
    assert wrong["classes"][0] == "BadRequestError"
    denied = agents.ask("speak", guarded, key="sk-wrong", text="Hello.", settings={})["error"]
    assert denied["classes"][0] == "AuthenticationError"
    with full(guarded):
        busy = agents.ask("speak", guarded, key=KEY, text=new(), settings={})["error"]
    assert busy["classes"][0] == "RateLimitError"
