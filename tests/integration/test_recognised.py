"""A speech recogniser finds the right sentence in every format and voice, in parallel and in long texts."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import numpy as np
import openai
import pytest

from app.audio.formats import AUDIO_FORMATS
from app.voices.presets import PROFILES
from tests.support.ears import SENTENCES, decode

if TYPE_CHECKING:
    from tests.support.ears import Recogniser

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_sentence_is_recognised_in_every_format(
    client: openai.OpenAI, recogniser: Recogniser, audio_format: str
) -> None:
    for sentence in SENTENCES[:6]:
        answer = client.audio.speech.create(
            model="tts-1", voice="alloy", input=f"{sentence.capitalize()}.", response_format=audio_format
        )
        decoded = decode(answer.content, audio_format)
        assert decoded.streams == 1
        assert recogniser.recognise(decoded) == sentence


def test_every_sentence_is_recognised(client: openai.OpenAI, recogniser: Recogniser) -> None:
    recognised = {}
    for sentence in SENTENCES:
        answer = client.audio.speech.create(model="tts-1", voice="alloy", input=sentence, response_format="pcm")
        recognised[sentence] = recogniser.recognise(decode(answer.content, "pcm"))
    assert recognised == {sentence: sentence for sentence in SENTENCES}


@pytest.mark.parametrize("voice", PROFILES)
def test_every_voice_is_intelligible(client: openai.OpenAI, recogniser: Recogniser, voice: str) -> None:
    right = 0
    for sentence in SENTENCES[:8]:
        answer = client.audio.speech.create(model="tts-1", voice=voice, input=sentence, response_format="wav")
        decoded = decode(answer.content, "wav")
        assert -26 < decoded.loudness_dbfs < -14
        right += recogniser.recognise(decoded) == sentence
    assert right >= 6


def test_long_text_keeps_its_sentence_order_without_gaps(client: openai.OpenAI, recogniser: Recogniser) -> None:
    picked = [SENTENCES[index] for index in (5, 0, 9, 3, 12, 7)]
    text = " ".join(f"{sentence.capitalize()}." for sentence in picked)
    answer = client.audio.speech.create(model="tts-1", voice="alloy", input=text, response_format="mp3")
    decoded = decode(answer.content, "mp3")
    assert recogniser.recognise(decoded, several=True) == " ".join(picked)
    assert decoded.longest_silence_s() < 0.6


async def test_sixteen_parallel_requests_get_their_own_sentence(server: str, recogniser: Recogniser) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as client:

        async def speak(index: int) -> tuple[float, bytes]:
            begun_s = time.monotonic()
            first_s = 0.0
            data = b""
            async with client.audio.speech.with_streaming_response.create(
                model="tts-1",
                voice="alloy",
                input=SENTENCES[index % len(SENTENCES)],
                response_format=list(AUDIO_FORMATS)[index % len(AUDIO_FORMATS)],
                extra_body={"cache": False},
            ) as response:
                async for piece in response.iter_bytes():
                    first_s = first_s or time.monotonic() - begun_s
                    data += piece
            return first_s, data

        answers = await asyncio.gather(*(speak(index) for index in range(16)))
    for index, (first_s, data) in enumerate(answers):
        assert first_s > 0
        decoded = decode(data, list(AUDIO_FORMATS)[index % len(AUDIO_FORMATS)])
        assert recogniser.recognise(decoded) == SENTENCES[index], index


@pytest.mark.parametrize("speed", [0.5, 0.75, 1.25, 1.5])
def test_speed_keeps_words_and_pitch(client: openai.OpenAI, recogniser: Recogniser, speed: float) -> None:
    sentence = SENTENCES[0]
    normal = decode(
        client.audio.speech.create(model="tts-1", voice="alloy", input=sentence, response_format="wav").content, "wav"
    )
    answer = client.audio.speech.create(
        model="tts-1", voice="alloy", input=sentence, response_format="wav", speed=speed
    )
    decoded = decode(answer.content, "wav")
    assert decoded.seconds == pytest.approx(normal.seconds / speed, rel=0.03)
    assert pitch_hz(decoded.samples, decoded.rate_hz) == pytest.approx(
        pitch_hz(normal.samples, normal.rate_hz), rel=0.03
    )
    assert recogniser.recognise(decoded) == sentence


def pitch_hz(samples: np.ndarray, rate_hz: int) -> float:
    """Return the median pitch of the voiced parts in Hz, by autocorrelation."""
    size = 2048
    found = []
    for start in range(0, len(samples) - size, size // 2):
        frame = samples[start : start + size] * np.hanning(size)
        power = np.fft.irfft(np.abs(np.fft.rfft(frame, 2 * size)) ** 2)
        low, high = rate_hz // 400, rate_hz // 60
        peak = low + int(np.argmax(power[low:high]))
        if power[0] > 1 and power[peak] > 0.4 * power[0]:
            found.append(rate_hz / peak)
    return float(np.median(found))
