"""openai-python's Realtime client, which parses each event of the server into its own type."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest
from openai.types.realtime import RealtimeErrorEvent, RealtimeServerEvent, ResponseAudioDeltaEvent, ResponseDoneEvent

from tests.clients.conftest import KEY
from tests.support.ears import SENTENCES, Recogniser, decode

pytestmark = [
    pytest.mark.integration,
    # The client itself uses `websockets` in a way that the library no longer recommends.
    pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning"),
]

SENTENCE = SENTENCES[0]


def message(text: str) -> Any:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def speak(connection: Any, text: str, **fields: Any) -> list[RealtimeServerEvent]:
    connection.response.create(response={"conversation": "none", "input": [message(text)], **fields})
    events = []
    for event in connection:
        events.append(event)
        if event.type in ("response.done", "error"):
            break
    return events


def audio_of(events: list[RealtimeServerEvent]) -> bytes:
    return b"".join(base64.b64decode(event.delta) for event in events if isinstance(event, ResponseAudioDeltaEvent))


@pytest.mark.parametrize("model", ["gpt-realtime", "gpt-realtime-2.1-mini", "gpt-4o-realtime-preview", "tts-1"])
def test_realtime_client_speaks_a_sentence(client: openai.OpenAI, recogniser: Recogniser, model: str) -> None:
    with client.realtime.connect(model=model) as connection:
        assert connection.recv().type == "session.created"
        output: Any = {"voice": "alloy", "format": {"type": "audio/pcm", "rate": 24000}}
        connection.session.update(session={"type": "realtime", "audio": {"output": output}})
        while connection.recv().type != "session.updated":
            pass
        events = speak(connection, SENTENCE, metadata={"number": "1"})
    done = events[-1]
    assert isinstance(done, ResponseDoneEvent)
    assert done.response.status == "completed"
    assert done.response.metadata == {"number": "1"}
    assert recogniser.recognise(decode(audio_of(events), "pcm")) == SENTENCE
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input=SENTENCE, response_format="pcm")
    assert audio_of(events) == speech.content


def test_every_event_has_a_type_of_the_client(client: openai.OpenAI) -> None:
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.conversation.item.create(item=message("Hello there."))
        connection.response.create()
        events = []
        for event in connection:
            events.append(event)
            if isinstance(event, ResponseDoneEvent):
                break
        item = events[-1].response.output[0].id  # type: ignore[union-attr, index]
        connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=100)
        connection.conversation.item.retrieve(item_id=item)
        connection.conversation.item.delete(item_id=item)
        events += [connection.recv() for _ in range(3)]
    assert [event.type for event in events[-3:]] == [
        "conversation.item.truncated",
        "conversation.item.retrieved",
        "conversation.item.deleted",
    ]
    assert all(type(event).__name__ not in ("dict", "BaseModel") for event in events)


def test_error_is_an_event_and_the_session_goes_on(client: openai.OpenAI) -> None:
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.recv()
        connection.recv()
        connection.response.cancel()
        error = connection.recv()
        assert isinstance(error, RealtimeErrorEvent)
        assert error.error.code == "response_cancel_not_active"
        assert isinstance(speak(connection, "Hello.")[-1], ResponseDoneEvent)


def test_wrong_key_is_refused(guarded: str) -> None:
    wrong = openai.OpenAI(base_url=f"{guarded}/v1", api_key="sk-wrong")
    with wrong, pytest.raises(Exception, match="401"), wrong.realtime.connect(model="gpt-realtime"):
        pass


def test_client_secret_of_the_client_opens_a_session(guarded: str) -> None:
    with openai.OpenAI(base_url=f"{guarded}/v1", api_key=KEY) as right:
        secret = right.realtime.client_secrets.create(session={"type": "realtime", "model": "gpt-realtime"})
    assert secret.value.startswith("ek_")
    browser = openai.OpenAI(base_url=f"{guarded}/v1", api_key=secret.value)
    with browser, browser.realtime.connect(model="gpt-realtime") as connection:
        assert connection.recv().type == "session.created"
