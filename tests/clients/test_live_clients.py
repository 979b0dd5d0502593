"""Unchanged clients of the live protocols: elevenlabs-python, pipecat, LiveKit and openai-node, over ws and wss."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.clients.conftest import KEY, Client, decode_result, driver, recognise_result
from tests.support.ears import SENTENCES, Recogniser
from tests.support.live import LONG, TlsPair, trust, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.clients

SENTENCE = SENTENCES[2]
WRITTEN = f"{SENTENCES[2].capitalize()}. {SENTENCES[4].capitalize()}."
TOKENS = re.findall(r"\S+\s*", WRITTEN)
SPOKEN = f"{SENTENCES[2]} {SENTENCES[4]}"


@pytest.fixture(scope="module")
def elevenlabs(tmp_path_factory: pytest.TempPathFactory, tls_pair: TlsPair) -> Iterator[Client]:
    with driver("elevenlabs_sdk", "voice", tmp_path_factory.mktemp("elevenlabs"), tls_pair.cert) as client:
        yield client


@pytest.fixture(scope="module")
def pipecat(tmp_path_factory: pytest.TempPathFactory, tls_pair: TlsPair) -> Iterator[Client]:
    with driver("pipecat_tts", "voice", tmp_path_factory.mktemp("pipecat"), tls_pair.cert) as client:
        yield client


@pytest.fixture(scope="module")
def livekit(tmp_path_factory: pytest.TempPathFactory, tls_pair: TlsPair) -> Iterator[Client]:
    with driver("livekit_tts", "voice", tmp_path_factory.mktemp("livekit"), tls_pair.cert) as client:
        yield client


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tls_pair: TlsPair) -> Iterator[Client]:
    with driver("openai_realtime", "node", tmp_path_factory.mktemp("node"), tls_pair.cert) as client:
        yield client


def rows(url: str, tls_pair: TlsPair) -> int:
    return int(httpx.get(f"{url}/health", verify=trust(tls_pair.cert)).json()["rows"]["active"])


def words_of(url: str) -> list[dict[str, float]]:
    """The words of the whole text with their times."""
    body = {"input": WRITTEN, "response_format": "pcm", "timestamps": True}
    words: list[dict[str, float]] = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).json()["words"]
    return words


# ---- elevenlabs-python


@pytest.mark.parametrize("call", ["convert", "stream"])
@pytest.mark.parametrize("output", ["mp3_44100_128", "mp3_22050_32", "pcm_24000", "opus_48000_64"])
def test_elevenlabs_speaks_a_whole_text(
    elevenlabs: Client, server: str, recogniser: Recogniser, call: str, output: str
) -> None:
    request = {"voice_id": "alloy", "text": WRITTEN, "model_id": "eleven_flash_v2_5", "output_format": output}
    result = elevenlabs.ask(call, server, request=request)
    assert recognise_result(result, recogniser, output.partition("_")[0], several=True) == SPOKEN


@pytest.mark.parametrize("stream", [True, False])
def test_elevenlabs_speaks_a_dialogue(elevenlabs: Client, server: str, recogniser: Recogniser, stream: bool) -> None:
    inputs = [
        {"text": f"{SENTENCES[number].capitalize()}.", "voice_id": voice}
        for number, voice in ((2, "nova"), (4, "onyx"))
    ]
    result = elevenlabs.ask("dialogue", server, stream=stream, request={"inputs": inputs, "model_id": "eleven_v3"})
    assert recognise_result(result, recogniser, "mp3", several=True) == SPOKEN


@pytest.mark.parametrize("output", ["mp3_44100_128", "pcm_24000"])
def test_elevenlabs_speaks_text_in_parts_over_wss(
    elevenlabs: Client, secure: str, recogniser: Recogniser, output: str
) -> None:
    request = {"voice_id": "alloy", "text": TOKENS, "model_id": "eleven_flash_v2_5", "output_format": output}
    result = elevenlabs.ask("realtime", secure, key=KEY, request=request)
    assert recognise_result(result, recogniser, output.partition("_")[0], several=True) == SPOKEN


def test_elevenlabs_changes_the_speed(elevenlabs: Client, secure: str) -> None:
    request = {"voice_id": "alloy", "text": TOKENS, "output_format": "pcm_24000"}
    usual = decode_result(elevenlabs.ask("realtime", secure, key=KEY, request=request), "pcm").seconds
    request |= {"voice_settings": {"speed": 1.2, "stability": 0.5}}
    fast = decode_result(elevenlabs.ask("realtime", secure, key=KEY, request=request), "pcm").seconds
    assert fast == pytest.approx(usual / 1.2, rel=0.1)


def test_elevenlabs_reads_the_lists(elevenlabs: Client, secure: str) -> None:
    lists = elevenlabs.ask("lists", secure, key=KEY)
    assert "error" not in lists, lists["error"]
    assert {"alloy", "nova"} <= set(lists["voices"])
    assert lists["found"] == sorted(lists["voices"])
    assert lists["models"]


def test_elevenlabs_raises_its_own_errors(elevenlabs: Client, secure: str) -> None:
    request = {"voice_id": "alloy", "text": "Hello."}
    assert elevenlabs.ask("convert", secure, key="wrong", request=request)["error"]["status_code"] == 401
    unknown = elevenlabs.ask("convert", secure, key=KEY, request=request | {"voice_id": "nobody"})["error"]
    assert unknown["status_code"] == 400
    assert "ApiError" in unknown["classes"]
    refused = elevenlabs.ask("realtime", secure, key="wrong", request=request | {"text": ["Hello."]})["error"]
    assert "401" in refused["message"]


# ---- pipecat: ElevenLabsTTSService(url=...)


@pytest.mark.parametrize("protocol", ["ws", "wss"])
def test_pipecat_speaks_the_answer_of_a_language_model(
    pipecat: Client, server: str, secure: str, recogniser: Recogniser, protocol: str
) -> None:
    url = server if protocol == "ws" else secure
    result = pipecat.ask("live", url, key=KEY, answers=[TOKENS], settings={"voice": "alloy"}, pause_s=3)
    assert result["errors"] == []
    assert result["rates"] == [24_000]
    assert result["started"] == 1
    assert recognise_result(result, recogniser, "pcm", several=True) == SPOKEN


def test_pipecat_gets_the_words_and_their_times(pipecat: Client, server: str) -> None:
    """The conversation in pipecat has only the words that were heard, so it needs the time of each one."""
    result = pipecat.ask("live", server, answers=[TOKENS], settings={"voice": "alloy"}, pause_s=4)
    assert result["errors"] == []
    assert [word for word, _ in result["words"]] == WRITTEN.split()
    times_s = [(pts - result["words"][0][1]) / 1e9 for _, pts in result["words"]]
    starts = [word["start"] for word in words_of(server)]
    # The last word has no space after it, so pipecat gives it the time of the word before.
    assert times_s[:-1] == pytest.approx([start - starts[0] for start in starts[:-1]], abs=0.02)


def test_pipecat_speaks_several_answers_over_one_connection(
    pipecat: Client, server: str, recogniser: Recogniser
) -> None:
    answers = [[f"{sentence.capitalize()}."] for sentence in SENTENCES[:3]]
    result = pipecat.ask("live", server, answers=answers, settings={"voice": "alloy", "speed": 1.0}, pause_s=2.5)
    assert result["errors"] == []
    assert recognise_result(result, recogniser, "pcm", several=True) == " ".join(SENTENCES[:3])


def test_pipecat_interruption_frees_the_row(
    pipecat: Client, secure: str, tls_pair: TlsPair, recogniser: Recogniser
) -> None:
    result = pipecat.ask(
        "live", secure, key=KEY, answers=[[LONG]], settings={"voice": "alloy"}, pause_s=3, interrupt=True
    )
    assert result["errors"] == []
    assert decode_result(result, "pcm").seconds > 0.5
    wait_until(lambda: rows(secure, tls_pair) == 0)


def test_pipecat_gets_errors(pipecat: Client, secure: str) -> None:
    result = pipecat.ask("live", secure, key="wrong", answers=[["Hello."]], settings={"voice": "alloy"}, pause_s=1)
    assert any("401" in error for error in result["errors"])


# ---- LiveKit: elevenlabs.TTS(base_url=...)


@pytest.mark.parametrize("encoding", ["mp3_22050_32", "mp3_44100_128", "pcm_24000", "opus_48000_64"])
def test_livekit_speaks_text_in_parts(livekit: Client, secure: str, recogniser: Recogniser, encoding: str) -> None:
    options = {"voice_id": "alloy", "encoding": encoding}
    result = livekit.ask("live", secure, key=KEY, answers=[TOKENS], options=options)
    assert "error" not in result, result["error"]
    assert result["rate_hz"] == int(encoding.split("_")[1])
    assert result["warned"] == []
    assert recognise_result(result, recogniser, "wav", several=True) == SPOKEN


def test_livekit_gets_the_words_and_their_times(livekit: Client, server: str) -> None:
    options = {"voice_id": "alloy", "encoding": "pcm_24000"}
    result = livekit.ask("live", server, answers=[TOKENS], options=options)
    assert "error" not in result, result["error"]
    timed = [(word.strip(), start, end) for word, start, end in result["words"] if word.strip()]
    assert " ".join(word for word, _, _ in timed) == WRITTEN
    expected = words_of(server)
    assert [start for _, start, _ in timed] == pytest.approx([word["start"] for word in expected], abs=0.1)


def test_livekit_speaks_several_answers_over_one_connection(
    livekit: Client, server: str, recogniser: Recogniser
) -> None:
    answers = [[f"{sentence.capitalize()}. "] for sentence in SENTENCES[:7]]
    options = {"voice_id": "alloy", "encoding": "pcm_24000"}
    result = livekit.ask("live", server, answers=answers, options=options)
    assert "error" not in result, result["error"]
    assert result["warned"] == []
    assert recognise_result(result, recogniser, "wav", several=True) == " ".join(SENTENCES[:7])


def test_livekit_interruption_frees_the_row(livekit: Client, secure: str, tls_pair: TlsPair) -> None:
    options = {"voice_id": "alloy", "encoding": "pcm_24000"}
    result = livekit.ask("live", secure, key=KEY, answers=[[LONG]], options=options, interrupt=True)
    assert "error" not in result, result["error"]
    wait_until(lambda: rows(secure, tls_pair) == 0)


def test_livekit_speaks_a_whole_text(livekit: Client, server: str, recogniser: Recogniser) -> None:
    options = {"voice_id": "alloy", "encoding": "mp3_22050_32"}
    result = livekit.ask("whole", server, text=WRITTEN, options=options)
    assert "error" not in result, result["error"]
    assert "alloy" in result["voices"]
    assert recognise_result(result, recogniser, "wav", several=True) == SPOKEN


def test_livekit_raises_its_own_errors(livekit: Client, secure: str) -> None:
    refused = livekit.ask("live", secure, key="wrong", answers=[["Hello."]], options={"voice_id": "alloy"})["error"]
    assert "APIStatusError" in refused["classes"]
    assert refused["status_code"] == 401
    unknown = livekit.ask("whole", secure, key=KEY, text="Hello.", options={"voice_id": "nobody"})["error"]
    assert unknown["status_code"] == 400


# ---- openai-node, which connects only over wss


@pytest.mark.parametrize("browser", [False, True])
@pytest.mark.parametrize("model", ["gpt-realtime", "gpt-realtime-mini"])
def test_node_speaks_over_wss(node: Client, secure: str, recogniser: Recogniser, model: str, browser: bool) -> None:
    session = {"output_modalities": ["audio"], "audio": {"output": {"voice": "alloy"}}}
    result = node.ask("speak", secure, key=KEY, model=model, browser=browser, session=session, text=SENTENCE)
    assert "error" not in result, result["error"]
    assert result["status"] == "completed"
    assert result["metadata"] == {"number": "7"}
    assert result["types"][0] == "session.created"
    assert recognise_result(result, recogniser, "pcm") == SENTENCE


def test_node_cancels_a_response(node: Client, secure: str, tls_pair: TlsPair) -> None:
    result = node.ask("cancel", secure, key=KEY, model="gpt-realtime", browser=False, text=LONG)
    assert "error" not in result, result["error"]
    assert result["status"] == "cancelled"
    assert result["details"]["reason"] == "client_cancelled"
    wait_until(lambda: rows(secure, tls_pair) == 0)


def test_node_gets_errors(node: Client, secure: str) -> None:
    for model, browser in (("gpt-realtime", False), ("gpt-realtime", True)):
        wrong = node.ask("speak", secure, key="wrong", model=model, browser=browser, session={}, text="Hello.")
        assert "401" in wrong["error"]["message"]
