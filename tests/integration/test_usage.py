"""`GET /v1/usage` counts every answer once, for its key, and keeps the counts over a restart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from app.keys import KeyFile
from tests.support.live import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

TEXT = "Hello there, how are you today?"


def usage(url: str, key: str, **query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{url}/v1/usage", params=query, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def test_every_answer_is_counted_once_for_its_key(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    admin, ann, ben = keys.add("root", ["admin"]), keys.add("ann", ["speak"]), keys.add("ben", ["speak"])

    def speak(url: str, key: str, path: str = "speech", **fields: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"input": TEXT, "response_format": "pcm", **fields}
        return httpx.post(f"{url}/v1/audio/{path}", json=body, headers=headers, timeout=120)

    with serving(tmp_path) as url:
        assert usage(url, admin) == []
        first = speak(url, ann)
        again = speak(url, ann)
        assert [each.headers["x-cache"] for each in (first, again)] == ["miss", "hit"]
        speak(url, ann, stream_format="sse")
        speak(url, ann, path="captions")
        assert speak(url, ann, input=" ").status_code == 400  # no audio, so not counted
        seconds = len(first.content) / 2 / 24_000
        (row,) = usage(url, admin)
        assert (row["key"], row["model"], row["requests"], row["characters"]) == ("ann", "espeak", 4, 4 * len(TEXT))
        assert row["seconds"] == pytest.approx(4 * seconds, abs=0.01)

        address = url.replace("http", "ws", 1) + "/v1/realtime"
        with connect(address, additional_headers={"Authorization": f"Bearer {ben}"}, max_size=None) as socket:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}
            socket.send(json.dumps({"type": "response.create", "response": {"conversation": "none", "input": [item]}}))
            while json.loads(socket.recv(timeout=30))["type"] != "response.done":
                pass
        rows = usage(url, admin)
        assert [(each["key"], each["requests"], each["characters"]) for each in rows] == [
            ("ann", 4, 4 * len(TEXT)),
            ("ben", 1, len(TEXT)),
        ]
        assert rows[1]["seconds"] == pytest.approx(seconds, abs=0.3)
        speak(url, ben)  # is written when the server stops

        shown = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {admin}"}).text
        assert f'tts_key_characters_total{{key="ann",model="espeak"}} {4.0 * len(TEXT)}' in shown
        public = httpx.get(f"{url}/metrics").text
        assert "ann" not in public
        assert f'tts_sent_characters_total{{model="espeak"}} {6.0 * len(TEXT)}' in public

    with serving(tmp_path) as url:
        assert [(each["key"], each["requests"]) for each in usage(url, admin)] == [("ann", 4), ("ben", 2)]
        day = usage(url, admin)[0]["day"]
        assert len(usage(url, admin, **{"from": day, "to": day})) == 2
        assert usage(url, admin, to="2020-01-01") == []
        for query in (
            {"from": "yesterday"},
            {"from": "1700000000"},
            {"from": "2026-02-01", "to": "2026-01-01"},
            {"to": "0000-00-00"},
        ):
            bad = httpx.get(f"{url}/v1/usage", params=query, headers={"Authorization": f"Bearer {admin}"})
            assert bad.status_code == 400
            assert bad.json()["error"]["param"] in ("from", "to")
    assert TEXT.encode() not in (tmp_path / "usage" / "usage.sqlite").read_bytes()


def test_usage_of_a_server_without_keys_has_no_key(tmp_path: Path) -> None:
    with serving(tmp_path) as url, httpx.Client(base_url=url) as http:
        http.post("/v1/audio/speech", json={"input": TEXT})
        (row,) = http.get("/v1/usage").json()["data"]
        assert (row["key"], row["requests"]) == (None, 1)
