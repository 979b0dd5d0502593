"""OpenAI's SDKs and libraries on top of them: old openai-python, openai-node, the Vercel AI SDK, LiteLLM."""

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

SENTENCE = SENTENCES[0]
REQUEST = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": SENTENCE}
_numbers = itertools.count(1)
SDKS = {"python": ("openai_sdk", "litellm"), "node": ("openai_sdk", "node")}


@pytest.fixture(scope="module", params=SDKS)
def sdk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The official SDK: openai-python 2, openai-node 6."""
    with driver(*SDKS[request.param], tmp_path_factory.mktemp("sdk")) as client:
        yield client


@pytest.fixture(scope="module")
def ai_sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with driver("ai_sdk", "node", tmp_path_factory.mktemp("ai")) as client:
        yield client


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with driver("litellm_sdk", "litellm", tmp_path_factory.mktemp("litellm")) as client:
        yield client


def new() -> str:
    """A text without a cache entry: a cache hit would pass a full queue."""
    return f"Let me in for the {next(_numbers)}th time."


# ---- openai-python 2 and openai-node


def test_sdk_gets_complete_speech(sdk: Client, server: str, recogniser: Recogniser) -> None:
    result = sdk.ask("speak", server, request=REQUEST)
    assert result["type"] == "audio/mpeg"
    assert recognise_result(result, recogniser) == SENTENCE


@pytest.mark.parametrize("audio_format", ["opus", "aac", "flac", "wav", "pcm"])
def test_an_sdk_streams_each_format(sdk: Client, server: str, recogniser: Recogniser, audio_format: str) -> None:
    request = {**REQUEST, "voice": {"id": "alloy"}, "response_format": audio_format, "speed": 1.0}
    assert recognise_result(sdk.ask("stream", server, request=request), recogniser, audio_format) == SENTENCE


def test_an_sdk_reads_events(sdk: Client, server: str, recogniser: Recogniser) -> None:
    result = sdk.ask("events", server, request=REQUEST)
    assert recognise_result(result, recogniser) == SENTENCE
    assert result["done"]["type"] == "speech.audio.done"
    usage = result["done"]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_an_sdk_lists_models(sdk: Client, server: str) -> None:
    assert {"tts-1", "tts-1-hd", "gpt-4o-mini-tts", "espeak"} <= set(sdk.ask("models", server)["models"])


@pytest.mark.parametrize(
    ("change", "kind", "status", "code"),
    [
        ({"voice": "nobody"}, "BadRequestError", 400, "voice_not_found"),
        ({"model": "gpt-5"}, "NotFoundError", 404, "model_not_found"),
        ({"input": ""}, "BadRequestError", 400, "empty_input"),
        ({"response_format": "wma"}, "BadRequestError", 400, "literal_error"),
    ],
)
def test_sdk_raises_the_matching_error_class(
    sdk: Client, server: str, *, change: dict[str, str], kind: str, status: int, code: str
) -> None:
    error = sdk.ask("speak", server, request=REQUEST | change)["error"]
    assert error["classes"][0] == kind
    assert error["status_code"] == status
    assert error["code"] == code
    assert error["param"] == next(iter(change))
    assert error["request_id"].startswith("req_")


def test_sdk_raises_for_wrong_keys_and_retries_a_429(sdk: Client, guarded: str) -> None:
    assert sdk.ask("speak", guarded, key="sk-wrong", request=REQUEST)["error"]["classes"][0] == "AuthenticationError"
    with full(guarded):
        error = sdk.ask("speak", guarded, key=KEY, request=REQUEST | {"input": new()})["error"]
    assert error["classes"][0] == "RateLimitError"
    assert error["code"] == "rate_limit_exceeded"
    with full(guarded, for_s=0.5):
        assert (
            decode_result(sdk.ask("speak", guarded, key=KEY, request=REQUEST | {"input": new()}, retries=4)).seconds
            > 0.5
        )


def test_a_stream_cancelled_in_node_frees_the_row(guarded: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with driver("openai_sdk", "node", tmp_path_factory.mktemp("cancel")) as node:
        for _ in range(3):
            request = REQUEST | {"input": LONG, "response_format": "pcm"}
            assert node.ask("interrupt", guarded, key=KEY, request=request)["read"] > 0
            wait_until(lambda: not httpx.get(f"{guarded}/health").json()["rows"]["active"])


# ---- Vercel AI SDK: detects the format by the first bytes, and takes unknown formats such as AAC for mp3


@pytest.mark.parametrize(
    ("audio_format", "media_type"),
    [("mp3", "audio/mpeg"), ("wav", "audio/wav"), ("opus", "audio/ogg"), ("flac", "audio/flac"), ("aac", "audio/mp3")],
)
def test_ai_sdk_gets_speech_in_each_format(
    ai_sdk: Client, server: str, recogniser: Recogniser, audio_format: str, media_type: str
) -> None:
    request = {"text": SENTENCE, "voice": "nova", "outputFormat": audio_format, "speed": 1.1}
    result = ai_sdk.ask("speak", server, model="gpt-4o-mini-tts", request=request)
    assert not result["warnings"]
    assert result["media_type"] == media_type
    assert result["request_id"].startswith("req_")
    assert recognise_result(result, recogniser, audio_format) == SENTENCE


def test_ai_sdk_gets_speech_with_defaults(ai_sdk: Client, server: str, recogniser: Recogniser) -> None:
    result = ai_sdk.ask("speak", server, model="tts-1", request={"text": SENTENCE})
    assert recognise_result(result, recogniser) == SENTENCE


def test_ai_sdk_gets_error_messages_and_what_to_retry(ai_sdk: Client, server: str, guarded: str) -> None:
    hello = {"text": "Hello."}
    wrong = ai_sdk.ask("speak", server, model="tts-1", request=hello | {"voice": "nobody"})["error"]
    assert "AI_APICallError" in wrong["message"] or "nobody" in wrong["message"]
    assert wrong["status_code"] == 400
    assert wrong["retryable"] is False
    denied = ai_sdk.ask("speak", guarded, key="sk-wrong", model="tts-1", request=hello)["error"]
    assert denied["status_code"] == 401
    assert "TTS_API_KEYS" in denied["message"]
    with full(guarded):
        busy = ai_sdk.ask("speak", guarded, key=KEY, model="tts-1", request={"text": new()})["error"]
    assert busy["status_code"] == 429
    assert busy["retryable"] is True
    with full(guarded, for_s=0.5):
        result = ai_sdk.ask("speak", guarded, key=KEY, model="tts-1", request={"text": new()}, retries=4)
    assert decode_result(result).seconds > 0.5


# ---- LiteLLM


@pytest.mark.parametrize("do", ["speak", "aspeak"])
@pytest.mark.parametrize("audio_format", ["mp3", "wav"])
def test_litellm_gets_speech(litellm: Client, server: str, recogniser: Recogniser, do: str, audio_format: str) -> None:
    request = {
        "model": "openai/tts-1",
        "voice": "alloy",
        "input": SENTENCE,
        "response_format": audio_format,
        "speed": 1,
        "instructions": "Be kind.",
    }
    assert recognise_result(litellm.ask(do, server, request=request), recogniser, audio_format) == SENTENCE


@pytest.mark.parametrize("do", ["speak", "aspeak"])
def test_litellm_raises_its_own_classes(litellm: Client, server: str, guarded: str, do: str) -> None:
    request = {"model": "openai/tts-1", "voice": "alloy", "input": "Hello."}
    for change, kind in (({"voice": "nobody"}, "BadRequestError"), ({"model": "openai/gpt-5"}, "NotFoundError")):
        error = litellm.ask(do, server, request=request | change)["error"]
        assert error["classes"][0] == kind, error
    assert litellm.ask(do, guarded, key="sk-wrong", request=request)["error"]["classes"][0] == "AuthenticationError"
    with full(guarded):
        busy = litellm.ask(do, guarded, key=KEY, request=request | {"input": new()})["error"]
    assert busy["classes"][0] == "RateLimitError"
    with full(guarded, for_s=0.5):
        assert decode_result(litellm.ask(do, guarded, key=KEY, request=request | {"input": new()}, retries=4)).seconds


def test_litellm_router_uses_another_server_after_a_429(
    litellm: Client, server: str, guarded: str, recogniser: Recogniser
) -> None:
    with full(guarded):
        result = litellm.ask(
            "routed",
            server,
            key=KEY,
            base_urls=[f"{guarded}/v1", f"{server}/v1"],
            request={"voice": "alloy", "input": SENTENCE},
        )
    assert recognise_result(result, recogniser) == SENTENCE
