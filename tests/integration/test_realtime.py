"""The Realtime API over a real socket: events in order, the audio of a speech request, keys, and bad input."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import random
import re
import socket
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app.api import realtime
from app.audio import g711
from app.keys import KeyFile
from tests.support import samples
from tests.support.live import LONG, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

TEXT = "Hello there. It costs $3.50 today. How are you?"
Object = dict[str, Any]


class Caller:
    """A client of the Realtime API."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, kind: str, **content: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **content}))

    def receive(self) -> Object:
        event: Object = json.loads(self.socket.recv(timeout=30))
        return event

    def until(self, *kinds: str) -> list[Object]:
        """Return all events up to the first one of these types."""
        events = [self.receive()]
        while events[-1]["type"] not in kinds:
            events.append(self.receive())
        return events

    def create(self, text: str = TEXT, **fields: Any) -> None:
        self.send("response.create", response={"conversation": "none", "input": [message(text)], **fields})

    def speak(self, text: str = TEXT, **fields: Any) -> list[Object]:
        self.create(text, **fields)
        return self.until("response.done", "error")


def message(text: str, role: str = "user") -> Object:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


@contextlib.contextmanager
def calling(url: str, path: str = "/v1/realtime", *, key: str = "any", **options: Any) -> Iterator[Caller]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers |= options.pop("headers", {})
    address = url.replace("http", "ws", 1) + path
    with connect(address, additional_headers=headers, max_size=None, **options) as socket:
        caller = Caller(socket)
        assert caller.receive()["type"] == "session.created"
        assert caller.receive()["type"] == "conversation.created"
        yield caller


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("data"), TTS_OUTBOX_S=0.5) as url:
        yield url


@pytest.fixture
def caller(server: str) -> Iterator[Caller]:
    with calling(server) as found:
        yield found


def audio_of(events: list[Object]) -> bytes:
    deltas = [event["delta"] for event in events if event["type"] == "response.output_audio.delta"]
    return b"".join(base64.b64decode(delta, validate=True) for delta in deltas)


def transcript_of(events: list[Object]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_audio_transcript.delta")


def speech(url: str, text: str = TEXT, **fields: Any) -> bytes:
    body = {"input": text, "response_format": "pcm", "cache": False, **fields}
    return httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).content


def is_free(url: str) -> bool:
    return not httpx.get(f"{url}/health").json()["rows"]["active"]


FRAME = [
    "response.created",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
]


def order(events: list[Object]) -> list[str]:
    """Return the types of the events without repetition, in the order of their first event."""
    return list(dict.fromkeys(event["type"] for event in events))


# ---- what is spoken


@pytest.mark.parametrize(
    "path", ["/v1/realtime", "/api/v1/realtime?model=gpt-realtime-2.1-mini", "/v1/realtime?model=tts-1"]
)
def test_response_has_the_audio_of_a_speech_request_and_all_events_in_order(server: str, path: str) -> None:
    with calling(server, path) as caller:
        events = caller.speak(metadata={"id": "7"})
    assert order(events) == FRAME
    assert audio_of(events) == speech(server)
    assert transcript_of(events) == TEXT
    response = events[0]["response"]
    assert response["status"] == "in_progress"
    assert response["conversation_id"] is None
    assert response["metadata"] == {"id": "7"}
    assert all(event.get("response_id", response["id"]) == response["id"] for event in events)
    done = events[-1]["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": TEXT}]
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert len({event["event_id"] for event in events}) == len(events)


def test_settings_of_the_session_and_of_the_response(server: str, caller: Caller) -> None:
    output = {"voice": {"id": "nova"}, "speed": 1.5, "format": {"type": "audio/pcm", "rate": 24000}}
    session = {"type": "realtime", "instructions": "Whisper all this.", "audio": {"output": output}}
    caller.send("session.update", session=session)
    updated = caller.receive()
    assert updated["type"] == "session.updated"
    assert updated["session"]["audio"]["output"] == output
    assert updated["session"]["audio"]["input"]["turn_detection"] is None
    assert audio_of(caller.speak()) == speech(server, voice="nova", speed=1.5)
    echo = caller.speak(audio={"output": {"voice": "echo"}})
    assert audio_of(echo) == speech(server, voice="echo", speed=1.5)
    caller.send("session.update", session={"type": "realtime", "instructions": "", "tools": []})
    cleared = caller.receive()["session"]
    assert cleared["instructions"] == ""
    assert cleared["audio"]["output"]["voice"] == {"id": "nova"}


@pytest.mark.parametrize(("kind", "law"), [("audio/pcmu", "ulaw"), ("audio/pcma", "alaw")])
def test_telephone_formats(server: str, caller: Caller, kind: str, law: g711.Law) -> None:
    events = caller.speak(audio={"output": {"format": {"type": kind}}})
    assert audio_of(events) == g711.encode(speech(server, sample_rate=8000), law)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"response_text": TEXT, "require_repeat_verbatim": True}),
        " " + json.dumps({"response_text": TEXT}, indent=2),
    ],
)
def test_text_in_a_json_envelope(server: str, caller: Caller, text: str) -> None:
    events = caller.speak(text)
    assert transcript_of(events) == TEXT
    assert audio_of(events) == speech(server)


@pytest.mark.parametrize("text", ['{"other": 1}', "{not json}", '{"response_text": 5} Hello.'])
def test_other_text_in_braces_is_spoken_as_it_is(server: str, caller: Caller, text: str) -> None:
    events = caller.speak(text)
    assert transcript_of(events) == text
    assert audio_of(events) == speech(server, text)


def test_last_message_of_the_user_or_the_assistant_is_spoken(caller: Caller) -> None:
    items = [message("First."), message("Second.", "assistant"), message("Never this.", "system")]
    caller.send("response.create", response={"conversation": "none", "input": items})
    assert transcript_of(caller.until("response.done")) == "Second."


def test_several_responses_at_the_same_time(server: str, caller: Caller) -> None:
    texts = {str(number): f"This is the number {number} of them." for number in range(4)}
    for number, text in texts.items():
        caller.create(text, metadata={"number": number})
    events: list[Object] = []
    while sum(event["type"] == "response.done" for event in events) < len(texts):
        events += caller.until("response.done")
    for created in [event["response"] for event in events if event["type"] == "response.created"]:
        own = [event for event in events if event.get("response_id") == created["id"]]
        assert audio_of(own) == speech(server, texts[created["metadata"]["number"]])


# ---- the sequences of known clients


def test_message_sequence_of_open_webui_works(server: str, caller: Caller) -> None:
    caller.send(
        "session.update",
        session={
            "type": "realtime",
            "output_modalities": ["audio"],
            "audio": {
                "input": {"turn_detection": None, "transcription": None},
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "alloy"},
            },
            "tools": [],
            "tool_choice": "none",
            "instructions": "You are a renderer. Read the text.",
        },
    )
    assert caller.receive()["type"] == "session.updated"
    caller.send(
        "response.create",
        response={
            "conversation": "none",
            "output_modalities": ["audio"],
            "tools": [],
            "tool_choice": "none",
            "instructions": "Read exactly.",
            "input": [message(TEXT)],
        },
    )
    events = caller.until("response.done", "error")
    assert events[0]["type"] == "response.created"
    response_id = events[0]["response"]["id"]
    deltas = [event for event in events if event["type"] == "response.output_audio.delta"]
    assert all(event["response_id"] == response_id and event["delta"] for event in deltas)
    assert events[-1]["response"]["status"] == "completed"
    assert audio_of(events) == speech(server)
    assert len(audio_of(events)) % 2 == 0


def test_message_sequence_of_micdrop_works(server: str) -> None:
    """The client does not wait for session.created, sends the next sentence before the answer to the last one, and
    compares the transcript with the text."""
    sentences = ["This is the first sentence.", "And this is the second one."]
    with calling(server) as caller:
        caller.send(
            "session.update",
            event_id="e1",
            session={
                "type": "realtime",
                "model": "gpt-realtime-2.1-mini",
                "reasoning": {"effort": "minimal"},
                "audio": {"input": {"turn_detection": None}, "output": {"speed": 1.1, "voice": "marin"}},
            },
        )
        for number, text in enumerate(sentences):
            wrapped = json.dumps({"response_text": text, "require_repeat_verbatim": True})
            caller.create(wrapped, metadata={"micdrop_id": str(number)})
        assert caller.receive()["type"] == "session.updated"
        events = caller.until("response.done") + caller.until("response.done")
        by_id = {e["response"]["id"]: e["response"]["metadata"] for e in events if e["type"] == "response.created"}
        for event in events:
            if event["type"] == "response.output_audio_transcript.done":
                number = int(by_id[event["response_id"]]["micdrop_id"])
                assert event["transcript"] == sentences[number]
        caller.send("response.cancel", event_id="e9", response_id="resp_gone")
        error = caller.receive()["error"]
        assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "e9")


# ---- the conversation


def test_conversation_items(caller: Caller) -> None:
    caller.send("conversation.item.create", item={**message("First."), "id": "one"})
    assert [event["type"] for event in caller.until("conversation.item.done")] == [
        "conversation.item.added",
        "conversation.item.done",
    ]
    caller.send("conversation.item.create", item={**message("Second."), "id": "two"})
    assert caller.until("conversation.item.done")[-1]["previous_item_id"] == "one"
    caller.send("conversation.item.create", item={**message("Zero."), "id": "zero"}, previous_item_id="root")
    assert caller.until("conversation.item.done")[-1]["previous_item_id"] is None
    caller.send("response.create")
    events = caller.until("response.done")
    assert transcript_of(events) == "Second."
    assert "conversation.item.added" in order(events)
    assert order(events).index("conversation.item.done") < order(events).index("response.output_item.done")
    assert events[0]["response"]["conversation_id"]
    caller.send("response.create", response={"input": [{"type": "item_reference", "id": "zero"}]})
    assert transcript_of(caller.until("response.done")) == "Zero."
    caller.send("conversation.item.delete", item_id="two")
    assert caller.receive() | {"event_id": ""} == {
        "type": "conversation.item.deleted",
        "event_id": "",
        "item_id": "two",
    }
    caller.send("conversation.item.retrieve", item_id="one")
    assert caller.receive()["item"]["content"] == [{"type": "input_text", "text": "First."}]
    caller.send("conversation.item.retrieve", item_id="two")
    assert caller.receive()["error"]["code"] == "not_found"


@pytest.mark.parametrize("in_conversation", [True, False])
def test_cancel_without_an_id_stops_all_that_is_heard(caller: Caller, in_conversation: bool) -> None:
    """First the responses of the conversation, of which several texts in parts can wait. Then the other responses."""
    caller.create(LONG)
    created = [caller.until("response.output_audio.delta")[0]["response"]["id"]]
    if in_conversation:
        for _ in range(2):
            caller.send("input_text_buffer.append", text=LONG)
            caller.send("input_text_buffer.commit")
        first, second = (caller.until("input_text_buffer.committed")[-1]["response_id"] for _ in range(2))
        caller.send("response.cancel")
        done = [caller.until("response.done")[-1]["response"] for _ in range(2)]
        assert {each["id"] for each in done} == {first, second}
        assert {each["status"] for each in done} == {"cancelled"}
    else:
        caller.create(LONG)
        created.append(caller.until("response.created")[-1]["response"]["id"])
    caller.send("response.cancel")
    done = [caller.until("response.done")[-1]["response"] for _ in created]
    assert {each["id"] for each in done} == {*created}
    caller.send("response.cancel")
    assert caller.until("error")[-1]["error"]["code"] == "response_cancel_not_active"


def test_response_without_new_text_repeats_the_last_message(caller: Caller) -> None:
    caller.send("conversation.item.create", item=message("First."))
    caller.send("response.create")
    assert transcript_of(caller.until("response.done")) == "First."
    caller.send("response.create")
    assert transcript_of(caller.until("response.done")) == "First."
    caller.send("conversation.item.create", item=message("Second."))
    caller.send("response.create")
    assert transcript_of(caller.until("response.done")) == "Second."


def test_only_one_response_writes_to_the_conversation(caller: Caller) -> None:
    caller.send("response.create", response={"input": [message(LONG)]})
    caller.until("response.output_audio.delta")
    caller.send("response.create", response={"input": [message("Hello.")]})
    error = caller.until("error")[-1]["error"]
    assert error["code"] == "conversation_already_has_active_response"
    caller.send("response.cancel")
    assert caller.until("response.done")[-1]["response"]["status"] == "cancelled"


def test_truncated_item_keeps_the_words_that_were_heard(caller: Caller) -> None:
    caller.send("response.create", response={"input": [message(TEXT)]})
    events = caller.until("response.done")
    item = events[-1]["response"]["output"][0]
    length_ms = len(audio_of(events)) // 48
    heard = [TEXT]
    for end_ms in (length_ms - 100, length_ms // 2, length_ms // 4, 0):
        caller.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=end_ms)
        truncated = caller.receive()
        assert truncated["type"] == "conversation.item.truncated"
        assert truncated["audio_end_ms"] == end_ms
        caller.send("conversation.item.retrieve", item_id=item["id"])
        heard.append(caller.receive()["item"]["content"][0]["transcript"])
        assert heard[-2].startswith(heard[-1])
        assert not heard[-1] or TEXT[len(heard[-1])].isspace()
    assert heard[-1] == ""
    assert "Hello there." in heard[2]
    caller.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=length_ms + 1000)
    assert caller.receive()["error"]["param"] == "audio_end_ms"


@pytest.mark.parametrize("cancel", ["before", "after", "never"])
def test_item_that_is_truncated_while_it_is_spoken_keeps_the_heard_words(
    server: str, caller: Caller, cancel: str
) -> None:
    text = "One. Two is a long sentence of many words, which the listener does not hear to its end. " * 3
    heard = words_of(server, text)[4]
    caller.send("response.create", response={"input": [message(text)]})
    events: list[Object] = []
    while len(audio_of(events)) < 48_000 * heard["end"]:
        events += caller.until("response.output_audio.delta")
    item_id = events[-1]["item_id"]
    steps = {"before": ["cancel", "truncate"], "after": ["truncate", "cancel"], "never": ["truncate"]}[cancel]
    for step in steps:
        if step == "cancel":
            caller.send("response.cancel")
        else:
            end_ms = math.ceil(1000 * heard["end"])
            caller.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=end_ms)
    if cancel == "never":
        assert caller.until("conversation.item.truncated")[-1]["audio_end_ms"] == end_ms
        while (events := caller.until("response.done", "response.output_audio.delta"))[-1]["type"] != "response.done":
            pass
    else:
        events = caller.until("response.done", "conversation.item.truncated")
        events += caller.until("response.done", "conversation.item.truncated")
        assert "error" not in order(events)
    done = next(event["response"] for event in events if event["type"] == "response.done")
    assert done["status"] == ("completed" if cancel == "never" else "cancelled")
    caller.send("conversation.item.retrieve", item_id=item_id)
    item = caller.receive()["item"]
    assert item["content"] == [{"type": "output_audio", "transcript": text[: heard["end_char"]]}]
    caller.send("response.create", response={"input": [{"type": "item_reference", "id": item_id}]})
    assert transcript_of(caller.until("response.done")) == text[: heard["end_char"]]


def words_of(url: str, text: str) -> list[Object]:
    body = {"input": text, "response_format": "pcm", "timestamps": True}
    words: list[Object] = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).json()["words"]
    return words


def test_truncated_item_ends_at_the_word_that_was_played(server: str, caller: Caller) -> None:
    text = "One. Two is a long sentence of many words, which the listener does not hear to its end. Three."
    words = words_of(server, text)
    caller.send("response.create", response={"input": [message(text)]})
    item = caller.until("response.done")[-1]["response"]["output"][0]
    for heard, following in pairwise(words):
        for seconds in (heard["end"] + 0.001, following["end"] - 0.05):
            send = {"item_id": item["id"], "content_index": 0, "audio_end_ms": int(1000 * seconds)}
            caller.send("conversation.item.truncate", **send)
            assert caller.receive()["type"] == "conversation.item.truncated"
            caller.send("conversation.item.retrieve", item_id=item["id"])
            transcript = caller.receive()["item"]["content"][0]["transcript"]
            assert transcript == text[: heard["end_char"]]


@pytest.mark.parametrize("in_parts", [True, False])
def test_transcript_comes_word_by_word_with_timestamps(server: str, caller: Caller, in_parts: bool) -> None:
    caller.send("session.update", session={"type": "realtime", "timestamps": True})
    assert caller.until("session.updated", "error")[-1]["session"]["timestamps"] is True
    if in_parts:
        for char in TEXT:
            caller.send("input_text_buffer.append", text=char)
        caller.send("input_text_buffer.commit")
        events = caller.until("response.done")
    else:
        events = caller.speak()
    assert transcript_of(events) == TEXT
    deltas = [event for event in events if event["type"] == "response.output_audio_transcript.delta"]
    expected = words_of(server, TEXT)
    assert [delta["delta"].strip() for delta in deltas] == [word["word"] for word in expected]
    for delta, word in zip(deltas, expected, strict=True):
        assert (delta["start_ms"], delta["end_ms"]) == (round(1000 * word["start"]), round(1000 * word["end"]))
    caller.send("session.update", session={"type": "realtime", "timestamps": "often"})
    assert caller.until("error")[-1]["error"]["param"] == "session.timestamps"


# ---- cancelling


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu"])
def test_cancel_ends_the_audio_and_frees_the_row(server: str, caller: Caller, kind: str) -> None:
    caller.create(LONG, audio={"output": {"format": {"type": kind}}})
    bytes_per_ms = 48 if kind == "audio/pcm" else 8
    first: list[Object] = []
    while len(audio_of(first)) < 500 * bytes_per_ms:
        first += caller.until("response.output_audio.delta")
    response_id = first[0]["response"]["id"]
    caller.send("response.cancel", response_id=response_id)
    events = caller.until("response.done")
    done = events[-1]["response"]
    assert (done["status"], done["id"]) == ("cancelled", response_id)
    details = done["status_details"]
    assert (details["type"], details["reason"]) == ("cancelled", "client_cancelled")
    assert abs(details["sent_ms"] - len(audio_of([*first, *events])) / bytes_per_ms) <= 0.51
    assert details["spoken_words"] == len(LONG[: details["spoken_chars"]].split()) > 0
    assert LONG[details["spoken_chars"]].isspace()
    assert order(events)[-5:] == FRAME[-5:]
    wait_until(lambda: is_free(server))  # the engine frees the row after its current step
    transcript = events[-4]["transcript"] if "transcript" in events[-4] else events[-3]["part"]["transcript"]
    assert LONG.startswith(transcript)
    assert transcript != LONG
    assert order(caller.speak("Hello.")) == FRAME  # the cancelled response sends no more events


def test_disconnected_client_frees_its_rows(server: str) -> None:
    with calling(server) as caller:
        for _ in range(3):
            caller.create(LONG)
        caller.until("response.output_audio.delta")
    wait_until(lambda: is_free(server))


def test_client_that_reads_no_data_pauses_only_its_own_response(server: str) -> None:
    with calling(server, max_queue=1) as stuck, calling(server) as other:
        stuck.create(LONG)
        assert order(other.speak()) == FRAME
    wait_until(lambda: is_free(server))


def test_next_response_can_follow_a_cancel_although_the_client_reads_slowly(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "UNREAD_S", 0.05)
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    small.connect(("127.0.0.1", urlsplit(server).port))
    with calling(server, max_queue=1, sock=small) as slow, calling(server) as other:
        slow.send("response.create", response={"input": [message(LONG)]})
        slow.until("response.output_audio.delta")
        other.speak(LONG[:1_000])  # meanwhile, the audio for the slow client fills the buffers of its connection
        slow.send("response.cancel")
        slow.send("response.create", response={"input": [message("Hello.")]})
        other.speak(LONG[1_000:2_000])
        time.sleep(0.5)  # the second response is created, although the client has not read the end of the first
        first = slow.until("response.done", "error")
        assert first[-1]["response"]["status"] == "cancelled"
        assert {e["response_id"] for e in first if "response_id" in e} == {first[-1]["response"]["id"]}
        assert transcript_of(slow.until("response.done", "error")) == "Hello."


def test_cancel_is_no_failed_request_although_the_client_reads_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "UNREAD_S", 0.05)
    keys = KeyFile(tmp_path)
    key, reader = keys.add("slow", ["speak"]), keys.add("reader", ["admin"])
    with serving(tmp_path, TTS_OUTBOX_S=0.5) as url, calling(url, key=key, max_queue=1) as slow:
        slow.create(LONG)
        slow.until("response.output_audio.delta")
        time.sleep(0.5)  # the audio fills the buffers of the connection
        slow.send("response.cancel")
        headers = {"Authorization": f"Bearer {reader}"}
        counts: list[str] = []

        def is_counted() -> bool:
            lines = httpx.get(f"{url}/metrics", headers=headers).text.splitlines()
            counts[:] = [line for line in lines if line.startswith('tts_key_requests_total{key="slow"')]
            return bool(counts)

        wait_until(is_counted)
        assert counts == ['tts_key_requests_total{key="slow",status="200"} 1.0']


def test_text_that_waits_is_cleared_while_another_one_is_spoken(server: str, caller: Caller) -> None:
    for _ in range(2):
        caller.send("input_text_buffer.append", text=LONG)
        caller.send("input_text_buffer.commit")
    first, second = (caller.until("input_text_buffer.committed")[-1]["response_id"] for _ in range(2))
    caller.send("input_text_buffer.append", text=LONG)
    caller.send("input_text_buffer.clear")
    caller.send("response.cancel", response_id=second)
    caller.send("input_audio_buffer.clear")
    events = caller.until("input_text_buffer.cleared") + caller.until("input_audio_buffer.cleared")
    assert "response.done" not in order(events)
    caller.send("response.cancel", response_id=first)
    done = [caller.until("response.done")[-1]["response"] for _ in range(3)]
    assert [each["id"] for each in done[:2]] == [first, second]
    assert {each["status"] for each in done} == {"cancelled"}
    wait_until(lambda: is_free(server))


# ---- text that arrives in parts


def test_text_is_spoken_while_it_is_written(server: str, caller: Caller) -> None:
    caller.send("input_text_buffer.append", text="This is the first one. And")
    events = caller.until("response.output_audio.delta")
    assert transcript_of(events) == "This is the first one."
    caller.send("input_text_buffer.append", text=" then the second.")
    caller.send("input_text_buffer.commit")
    committed = caller.until("input_text_buffer.committed")
    events += committed
    assert committed[-1]["response_id"] == events[0]["response"]["id"]
    events += caller.until("response.done")
    assert transcript_of(events) == "This is the first one. And then the second."
    assert events[-1]["response"]["status"] == "completed"


def test_next_text_is_spoken_after_the_first_one(caller: Caller) -> None:
    for text in ("The first text. ", "The second text. "):
        for word in text.split(" "):
            caller.send("input_text_buffer.append", text=f"{word} ")
        caller.send("input_text_buffer.commit")
    events = caller.until("response.done") + caller.until("response.done")
    started = [event["type"] for event in events if event["type"] in ("response.created", "response.done")]
    assert started == ["response.created", "response.done"] * 2
    assert " ".join(transcript_of(events).split()) == "The first text. The second text."


def test_cleared_text_is_cancelled(server: str, caller: Caller) -> None:
    caller.send("input_text_buffer.append", text=LONG)
    caller.until("response.output_audio.delta")
    caller.send("input_text_buffer.clear")
    events = caller.until("response.done")
    assert events[-1]["response"]["status"] == "cancelled"
    wait_until(lambda: is_free(server))  # the engine frees the row after its current step
    caller.send("input_text_buffer.clear")
    caller.until("input_text_buffer.cleared")
    caller.send("input_text_buffer.commit")
    assert caller.until("error")


# ---- bad input


BAD = [
    "{",
    "[]",
    "5",
    "null",
    '"text"',
    "",
    "\x00",
    "[" * 100_000,
    "{}",
    '{"type": null}',
    '{"type": ["session.update"]}',
    '{"type": "nope"}',
    *(
        json.dumps(event)
        for event in (
            {"type": "session.update"},
            {"type": "session.update", "session": []},
            {"type": "session.update", "session": {"type": "transcription"}},
            {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}},
            {"type": "session.update", "session": {"type": "realtime", "tools": [{"type": "function", "name": "f"}]}},
            {"type": "session.update", "session": {"type": "realtime", "tool_choice": "required"}},
            {"type": "session.update", "session": {"type": "realtime", "instructions": 5}},
            {"type": "session.update", "session": {"type": "realtime", "model": "gpt-5"}},
            {"type": "session.update", "session": {"type": "realtime", "temperature": "hot"}},
            {"type": "session.update", "session": {"type": "realtime", "max_output_tokens": 0}},
            {"type": "session.update", "session": {"type": "realtime", "audio": 5}},
            *(
                {"type": "session.update", "session": {"type": "realtime", "audio": {"output": output}}}
                for output in (
                    {"voice": "nobody"},
                    {"voice": 5},
                    {"voice": {"name": "x"}},
                    {"speed": 9},
                    {"speed": True},
                    {"format": {"type": "audio/mp3"}},
                    {"format": {"type": "audio/pcm", "rate": 16_000}},
                    {"format": {"type": ["audio/pcm"]}},
                )
            ),
            {"type": "response.create"},
            {"type": "response.create", "response": 5},
            {"type": "response.create", "response": {"input": "Hello."}},
            {"type": "response.create", "response": {"input": []}},
            {"type": "response.create", "response": {"input": [message("  ")]}},
            {"type": "response.create", "response": {"input": [message("Hi."), 5]}},
            {"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "gone"}]}},
            {"type": "response.create", "response": {"input": [message("Hi.")], "conversation": "both"}},
            {"type": "response.create", "response": {"input": [message("Hi.")], "metadata": {"a": 5}}},
            {"type": "response.create", "response": {"input": [message("Hi.")], "metadata": {"a": "b" * 513}}},
            {"type": "response.create", "response": {"input": [message("Hi.")], "output_modalities": ["text"]}},
            {"type": "response.create", "response": {"input": [message("a" * 2_000_000)]}},
            {"type": "response.cancel"},
            {"type": "response.cancel", "response_id": 5},
            {"type": "conversation.item.create"},
            {"type": "conversation.item.create", "item": {"type": "function_call_output", "output": "x"}},
            {"type": "conversation.item.create", "item": {"type": "message", "role": "tool", "content": []}},
            {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": "Hi."}},
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA"}]},
            },
            {"type": "conversation.item.create", "item": message("Hi."), "previous_item_id": "gone"},
            {"type": "conversation.item.delete", "item_id": "gone"},
            {"type": "conversation.item.truncate", "item_id": "gone", "content_index": 0, "audio_end_ms": 0},
            {"type": "response.create", "response": {"input": [message("Many words. " * 420_000)]}},
            {"type": "conversation.item.create", "item": message("Many words. " * 420_000)},
            {"type": "input_text_buffer.append"},
            {"type": "input_text_buffer.append", "text": 5},
            {"type": "input_audio_buffer.append", "audio": "%%%"},
            {"type": "input_audio_buffer.commit"},
        )
    ),
]


def session(**fields: Any) -> Object:
    return {"type": "session.update", "session": {"type": "realtime", **fields}}


def create(text: str = "Hi.", **fields: Any) -> Object:
    return {"type": "response.create", "response": {"input": [message(text)], **fields}}


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({}, "type"),
        ({"type": 5}, "type"),
        (session(seed="one"), "session.seed"),
        (session(language="tlh"), "session.language"),
        (session(temperature=0.5), "session.temperature"),  # the offline voice has no temperature
        (session(lexicon=[{"word": "a", "say": "b"}, {"word": 5}]), "session.lexicon.1.word"),
        (session(lexicon=[{"word": "a"}]), "session.lexicon.0.say"),
        (session(voice="nobody"), "session.voice"),
        (session(output_audio_format="mp3"), "session.output_audio_format"),
        (session(audio={"output": {"voice": "nobody+echo"}}), "session.audio.output.voice"),
        (session(audio={"output": {"voice": "speaker:5"}}), "session.audio.output.voice"),
        (create(seed="one"), "response.seed"),
        (create(language="tlh"), "response.language"),
        (create(cfg_scale=3), "response.cfg_scale"),
        (create(voice="nobody"), "response.voice"),
        (create(audio={"output": {"voice": "nobody"}}), "response.audio.output.voice"),
        (create(audio={"output": {"speed": "fast"}}), "response.audio.output.speed"),
        (create("a" * 1_100_000), "response.input"),
        ({"type": "response.create"}, None),
        ({"type": "response.cancel", "response_id": 5}, None),
        ({"type": "input_text_buffer.append", "delta": 5}, "delta"),
        ({"type": "input_text_buffer.append", "text": "a" * 1_100_000}, "text"),
        ({"type": "conversation.item.truncate", "item_id": 5}, "item_id"),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_error_names_the_field_of_the_event(caller: Caller, event: Object, param: str | None) -> None:
    caller.socket.send(json.dumps(event))
    error = caller.until("error", "response.done", "session.updated")[-1]["error"]
    assert error["param"] == param
    assert not re.search(r"function|lambda|`input`|Authorization", error["message"])


@pytest.mark.parametrize("text", ["Hi. [pause:10s] " * 70, "\x00"])
def test_error_in_the_text_names_the_field_of_the_event(caller: Caller, text: str) -> None:
    caller.create(text)
    error = caller.until("response.done")[-1]["response"]["status_details"]["error"]
    assert error["param"] == "response.input"
    assert "`input`" not in error["message"]


def test_wrong_time_of_a_truncation_is_an_error(caller: Caller) -> None:
    caller.send("response.create", response={"input": [message("Hi.")]})
    item = caller.until("response.done")[-1]["response"]["output"][0]
    for end_ms in (None, "1", 1.5, True, -1):
        caller.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=end_ms)
        assert caller.receive()["error"]["param"] == "audio_end_ms"


def test_invalid_messages_are_errors_and_the_session_continues(server: str, caller: Caller) -> None:
    for bad in BAD:
        caller.socket.send(bad)
        answer = caller.receive()
        assert answer["type"] == "error", bad[:200]
        assert answer["error"]["message"]
        assert answer["error"]["type"] == "invalid_request_error"
    assert audio_of(caller.speak()) == speech(server)


def test_text_of_five_megabytes_is_refused_and_less_is_spoken(server: str, caller: Caller) -> None:
    caller.send("input_text_buffer.append", text="Many words. " * 420_000)
    assert "TTS_MAX_INPUT_CHARS" in caller.until("error")[-1]["error"]["message"]
    caller.send("input_text_buffer.append", text="Hello there.")
    caller.send("input_text_buffer.commit")
    assert audio_of(caller.until("response.done")) == speech(server, "Hello there.")


def test_error_names_the_event(caller: Caller) -> None:
    caller.send("nope", event_id="mine")
    assert caller.receive()["error"]["event_id"] == "mine"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [message("Hi.")] * 100_000}, "response.input"),
        (
            {"input": [{**message("Hi."), "content": [{"type": "input_text", "text": "a"}] * 100_000}]},
            "response.input.0",
        ),
    ],
    ids=["items", "parts"],
)
def test_too_many_parts_are_refused_without_being_checked(caller: Caller, fields: Object, param: str) -> None:
    caller.send("response.create", response=fields)
    error = caller.receive()["error"]
    assert error["param"].startswith(param)
    assert "up to" in error["message"]


@pytest.mark.parametrize(("previous", "forgotten"), [(None, {0, 1}), ("root", {10, 11})])
def test_long_conversation_forgets_its_oldest_items(caller: Caller, previous: str | None, forgotten: set[int]) -> None:
    text = "a" * 400_000
    for number in range(12):
        item = {**message(text), "id": f"item{number}"}
        caller.send("conversation.item.create", item=item, previous_item_id=previous)
        caller.until("conversation.item.done")
    errors = set()
    for number in range(12):
        caller.send("conversation.item.retrieve", item_id=f"item{number}")
        if caller.receive()["type"] == "error":
            errors.add(number)
    assert errors == forgotten  # the others have four times TTS_MAX_INPUT_CHARS


def test_deleted_items_leave_space_for_new_ones(caller: Caller) -> None:
    def create(number: int) -> None:
        item = {**message("a" * 400_000), "id": f"item{number}"}
        caller.send("conversation.item.create", item=item)
        caller.until("conversation.item.done")

    for number in range(10):  # the conversation is full
        create(number)
    for number in range(5, 8):
        caller.send("conversation.item.delete", item_id=f"item{number}")
        caller.until("conversation.item.deleted")
    for number in range(10, 13):
        create(number)
    for number in (*range(5), *range(8, 13)):
        caller.send("conversation.item.retrieve", item_id=f"item{number}")
        assert caller.receive()["type"] == "conversation.item.retrieved"
    create(13)
    caller.send("conversation.item.retrieve", item_id="item0")
    assert caller.receive()["type"] == "error"


def test_audio_input_is_refused_once_and_then_dropped(caller: Caller) -> None:
    for _ in range(5):
        caller.send("input_audio_buffer.append", audio="AAAA")
    caller.send("input_audio_buffer.clear")
    events = caller.until("input_audio_buffer.cleared")
    assert [event["type"] for event in events] == ["error", "input_audio_buffer.cleared"]
    assert "only speaks" in events[0]["error"]["message"]


def test_too_many_responses_are_refused(caller: Caller) -> None:
    for _ in range(12):
        caller.create(LONG)
    assert "8 responses" in caller.until("error")[-1]["error"]["message"]


def test_too_large_message_closes_only_its_connection(server: str) -> None:
    with calling(server) as caller:
        with contextlib.suppress(ConnectionClosed):
            caller.socket.send("a" * (17 << 20))
        with pytest.raises(ConnectionClosed) as closed:
            _until_closed(caller)
    # The server closes while the client still sends. TCP may then reset the connection before the close frame is read.
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    with calling(server) as caller:
        assert order(caller.speak()) == FRAME


def test_random_events_never_end_the_server(server: str) -> None:
    chosen = random.Random(7)
    kinds = ["session.update", "response.create", "response.cancel", "conversation.item.create"]
    kinds += ["conversation.item.truncate", "input_text_buffer.append", "input_text_buffer.commit", "other"]
    values: list[Any] = [None, 5, "x", [], {}, [5], {"type": "realtime"}, message("Hi."), "Hi. You", -1, True]
    names = ["session", "response", "item", "text", "item_id", "audio_end_ms", "response_id", "previous_item_id"]
    with calling(server) as caller:
        reader = threading.Thread(target=_drain, args=(caller,))
        reader.start()
        for _ in range(300):
            caller.send(chosen.choice(kinds), **{name: chosen.choice(values) for name in chosen.sample(names, 4)})
    reader.join(30)
    assert not reader.is_alive()
    wait_until(lambda: is_free(server))
    with calling(server) as caller:
        assert order(caller.speak()) == FRAME


def _drain(caller: Caller) -> None:
    with contextlib.suppress(ConnectionClosed, TimeoutError):
        while True:
            caller.receive()


# ---- who may connect


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, KeyFile, str]]:
    folder = tmp_path_factory.mktemp("keyed")
    file = KeyFile(folder)
    key = file.add("speaker", ["speak"])
    with serving(folder) as url:
        yield url, file, key


def refused(url: str, path: str = "/v1/realtime", **options: Any) -> httpx.Response:
    with pytest.raises(InvalidStatus) as error, calling(url, path, **options):
        pass
    answer = error.value.response
    return httpx.Response(answer.status_code, content=bytes(answer.body or b""))


def test_key_is_checked_before_the_upgrade(keyed: tuple[str, KeyFile, str]) -> None:
    url, file, key = keyed
    for wrong in ("", "sk-wrong"):
        answer = refused(url, key=wrong)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert refused(url, key=file.add("cloner", ["clone"])).status_code in (401, 403)
    for options in (
        {"key": key},
        {"key": "", "headers": {"api-key": key}},
        {"key": "", "subprotocols": ["realtime", f"openai-insecure-api-key.{key}"]},
    ):
        with calling(url, **options) as caller:
            assert caller.socket.subprotocol == ("realtime" if "subprotocols" in options else None)
            assert order(caller.speak()) == FRAME


def test_removed_key_ends_the_speech_of_its_sessions(
    keyed: tuple[str, KeyFile, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the client sends nothing."""
    monkeypatch.setattr(realtime, "KEY_CHECK_S", 0.05)
    url, file, _ = keyed
    key = file.add("leaving", ["speak"])
    headers = {"Authorization": f"Bearer {key}"}
    wait_until(lambda: httpx.get(f"{url}/v1/models", headers=headers).status_code == 200)
    events: list[Object] = []
    with calling(url, key=key) as caller:
        caller.create(LONG)
        caller.until("response.output_audio.delta")
        file.remove("leaving")
        with pytest.raises(ConnectionClosed) as closed:
            _receive_all(caller, events)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert [event["error"]["code"] for event in events if event["type"] == "error"] == ["invalid_api_key"]
    wait_until(lambda: is_free(url))


def test_client_secret_opens_a_session(keyed: tuple[str, KeyFile, str]) -> None:
    url, file, _ = keyed
    key = file.add("browser", ["speak"])
    headers = {"Authorization": f"Bearer {key}"}
    body = {"session": {"type": "realtime", "audio": {"output": {"voice": "nova"}}}, "expires_after": {"seconds": 60}}
    path = f"{url}/v1/realtime/client_secrets"

    def create() -> httpx.Response:
        return httpx.post(path, json=body, headers=headers)

    wait_until(lambda: create().status_code == 200)
    secret = create().json()
    assert secret["value"].startswith("ek_")
    assert secret["session"]["type"] == "realtime"
    with calling(url, key="", subprotocols=["realtime", f"openai-insecure-api-key.{secret['value']}"]) as caller:
        assert len(audio_of(caller.speak())) > 0
        file.remove("browser")
        wait_until(lambda: create().status_code == 401)
        caller.create()
        with pytest.raises(ConnectionClosed):
            _until_closed(caller)
    assert refused(url, key=secret["value"]).status_code == 401
    for wrong in ({"expires_after": {"seconds": 5}}, {"session": {"type": "transcription"}}, {"session": 5}):
        assert httpx.post(path, json=wrong, headers={"Authorization": f"Bearer {keyed[2]}"}).status_code == 400
    assert httpx.post(path, json={}).status_code == 401


@pytest.mark.parametrize(
    ("settings", "status", "param"),
    [
        ({"audio": {"output": {"voice": "nobody"}}}, 400, "session.audio.output.voice"),
        ({"voice": {"id": "nobody"}}, 400, "session.voice"),
        ({"model": "nothing-1b"}, 404, "session.model"),
        ({"temperature": 9}, 400, "session.temperature"),
        ({"temperature": 1}, 400, "session.temperature"),  # the offline voice has no temperature
        ({"language": 5}, 400, "session.language"),
        ({"language": "tlh"}, 400, "session.language"),
    ],
)
def test_settings_of_a_client_secret_are_checked_when_it_is_created(
    server: str, settings: dict[str, Any], status: int, param: str
) -> None:
    answer = httpx.post(f"{server}/v1/realtime/client_secrets", json={"session": {"type": "realtime", **settings}})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_client_secret_with_a_deleted_voice_is_refused(tmp_path: Path) -> None:
    # The fallback engine runs. A secret for a voice that only the configured engine can speak is valid all the same.
    with serving(tmp_path, TTS_ENGINE="csm", CSM_MODEL=str(tmp_path / "none")) as url:
        form = {"name": "Gone", "transcript": samples.TEXT}
        files = {"audio_file": ("sample.wav", samples.file(samples.speech()))}
        cloned = httpx.post(f"{url}/v1/voice-cloning/clone", data=form, files=files, timeout=60)
        assert cloned.status_code == 200, cloned.text
        voice = cloned.json()["voice"]["id"]
        body = {"session": {"type": "realtime", "audio": {"output": {"voice": voice}}}}
        secret = httpx.post(f"{url}/v1/realtime/client_secrets", json=body).json()["value"]
        with calling(url, key=secret):
            pass
        assert httpx.delete(f"{url}/v1/voice-cloning/voices/{voice}").status_code == 200
        response = refused(url, key=secret)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "session.audio.output.voice"


def _until_closed(caller: Caller) -> None:
    while True:
        caller.receive()


def test_rate_limit_is_an_error_event(keyed: tuple[str, KeyFile, str]) -> None:
    url, file, _ = keyed
    key = file.add("slow", ["speak"], per_minute=2)
    wait_until(lambda: httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200)
    with calling(url, key=key) as caller:
        assert [order(caller.speak())[-1] for _ in range(2)] == ["response.done"] * 2
        error = caller.speak()[-1]["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Origin": "app://obsidian.md"}, 101),
        ({}, 101),
    ],
)
def test_pages_of_other_origins_cannot_connect(server: str, headers: dict[str, str], status: int) -> None:
    if status == 101:
        with calling(server, headers=headers) as caller:
            assert order(caller.speak("Hello.")) == FRAME
    else:
        assert refused(server, headers=headers).status_code == status


def test_unknown_model_is_refused_before_the_upgrade(server: str) -> None:
    answer = refused(server, "/v1/realtime?model=gpt-5")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_connections_are_counted(tmp_path: Path) -> None:
    with serving(tmp_path, LOG_LEVEL="INFO") as url:
        with calling(url, "/v1/realtime?model=tts-1&note=hidden") as caller:
            caller.speak("A very private sentence.")
        counted = 'tts_requests_total{route="/v1/realtime",status="101"} 1.0'
        wait_until(lambda: counted in httpx.get(f"{url}/metrics").text)


def test_session_without_a_key_ends_when_the_server_gets_keys(tmp_path: Path) -> None:
    with serving(tmp_path) as url, calling(url) as caller:
        KeyFile(tmp_path).add("first", ["speak"])
        wait_until(lambda: httpx.post(f"{url}/v1/realtime/client_secrets", json={}).status_code == 401)
        caller.create()
        error = caller.until("error")[-1]["error"]
        assert error["code"] == "invalid_api_key"
        assert "Authorization" not in error["message"]  # this connection can't send another header
        with pytest.raises(ConnectionClosed) as closed:
            _until_closed(caller)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


def test_session_ends_after_its_maximum_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "MAX_SESSION_S", 0.3)
    with calling(server) as caller:
        caller.create(LONG)
        events: list[Object] = []
        with pytest.raises(ConnectionClosed) as closed:
            _receive_all(caller, events)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert closed.value.rcvd.reason == "Your session hit the maximum duration of 60 minutes."
    errors = [event["error"] for event in events if event["type"] == "error"]
    assert [error["code"] for error in errors] == ["session_expired"]
    wait_until(lambda: is_free(server))


def _receive_all(caller: Caller, events: list[Object]) -> None:
    while True:
        events.append(caller.receive())


def test_session_without_events_and_speech_is_closed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "IDLE_S", 0.3)
    with calling(server) as caller, pytest.raises(ConnectionClosed) as closed:
        caller.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


def test_text_that_still_arrives_keeps_the_session_open(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "IDLE_S", 0.1)
    with calling(server) as caller:
        caller.send("input_text_buffer.append", text="Hello there. ")
        caller.until("response.output_audio.delta")
        with contextlib.suppress(TimeoutError):
            while True:
                assert json.loads(caller.socket.recv(timeout=1))["type"] == "response.output_audio.delta"
        caller.send("input_text_buffer.commit")
        assert caller.until("response.done")[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("long", [True, False])
def test_client_secret_is_valid_after_a_restart_and_in_other_processes(tmp_path: Path, long: bool) -> None:
    """A secret with long settings is valid only in its process."""
    session = {"type": "realtime", "audio": {"output": {"voice": "nova"}}}
    if long:
        rng = random.Random(0)
        session |= {"instructions": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=20_000))}
    key = KeyFile(tmp_path).add("browser", ["speak"])
    with serving(tmp_path) as url:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"session": session, "expires_after": {"seconds": 60}}
        secret = httpx.post(f"{url}/v1/realtime/client_secrets", json=body, headers=headers).json()["value"]
        with calling(url, key=secret) as caller:
            assert order(caller.speak("Hello.")) == FRAME
    with serving(tmp_path) as url:
        if long:
            assert refused(url, key=secret).status_code == 401
        else:
            with calling(url, key=secret) as caller:
                caller.send("session.update", session={"type": "realtime"})
                assert caller.receive()["session"]["audio"]["output"]["voice"] == "nova"
            for wrong in (secret[:-1], secret + "A", secret.replace(".", ""), "ek_", "ek_.", "ek_" + secret[5:]):
                assert refused(url, key=wrong).status_code == 401
    assert not [file for file in (tmp_path / "keys").iterdir() if file.stat().st_mode & 0o077]


def test_g711_has_the_values_of_the_standard() -> None:
    samples = np.array([0, 1, -1, 8, -8, 100, -100, 1000, -1000, 8031, -8031, 32767, -32768], "<i2")
    assert g711.encode(samples.tobytes(), "ulaw").hex() == "ffff7efe7ef272ce4ea0208000"
    assert g711.encode(samples.tobytes(), "alaw").hex() == "d5d555d555d353fa7a8a0aaa2a"
