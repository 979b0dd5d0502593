"""LiteLLM's proxy in front of the server: audio and errors pass through it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from tests.clients.conftest import KEY, driver_environment, full
from tests.support.ears import SENTENCES, Recogniser, decode
from tests.support.live import ROOT, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.clients, pytest.mark.timeout(180)]

SENTENCE = SENTENCES[2]
MASTER = "sk-0123456789-abcdefghijklmnopqrstuvwxyz-only-for-this-test"
CONFIG = """
model_list:
  - model_name: speech
    litellm_params: {{model: openai/gpt-4o-mini-tts, api_base: "{server}/v1", api_key: any}}
  - model_name: denied
    litellm_params: {{model: openai/tts-1, api_base: "{guarded}/v1", api_key: sk-wrong}}
  - model_name: full
    litellm_params: {{model: openai/tts-1, api_base: "{guarded}/v1", api_key: {key}}}
litellm_settings: {{num_retries: 0, telemetry: false}}
general_settings: {{master_key: {master}}}
"""


@pytest.fixture(scope="module")
def proxy(server: str, guarded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("proxy")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(server=server, guarded=guarded, key=KEY, master=MASTER))
    port = free_port()
    command = [str(ROOT / ".clients" / "litellm" / "bin" / "litellm"), "--config", str(config)]
    with (folder / "console.log").open("wb") as console:
        child = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=driver_environment(),
            stdout=console,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: _alive(url), 120)
            with openai.OpenAI(base_url=f"{url}/v1", api_key=MASTER, max_retries=0) as client:
                yield client
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(("audio_format", "media_type"), [("mp3", "audio/mpeg"), ("wav", "audio/wav")])
def test_audio_passes_the_proxy(
    proxy: openai.OpenAI, recogniser: Recogniser, audio_format: str, media_type: str
) -> None:
    answer = proxy.audio.speech.create(
        model="speech", voice="alloy", input=SENTENCE, response_format=audio_format, instructions="Softly."
    )
    assert answer.response.headers["content-type"].split(";")[0] == media_type
    assert recogniser.recognise(decode(answer.content, audio_format)) == SENTENCE


def test_errors_keep_their_class_behind_the_proxy(proxy: openai.OpenAI, guarded: str) -> None:
    with pytest.raises(openai.BadRequestError, match="nobody"):
        proxy.audio.speech.create(model="speech", voice="nobody", input="Hello.")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        proxy.audio.speech.create(model="denied", voice="alloy", input="Hello.")
    with full(guarded), pytest.raises(openai.RateLimitError):
        proxy.audio.speech.create(model="full", voice="alloy", input="Is there room behind the proxy?")
