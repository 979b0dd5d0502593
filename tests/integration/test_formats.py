"""A new row in the table of audio formats appears in the API, its lists, /openapi.json and the encoders."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from app.audio.formats import AUDIO_FORMATS, wav_header
from tests.support.live import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_one_table_row_adds_an_audio_format_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUDIO_FORMATS, "wave", replace(AUDIO_FORMATS["wav"], media_type="audio/x-wave"))
    with serving(tmp_path) as url, httpx.Client(base_url=url) as http:
        formats = http.get("/v1/audio/speech/response-formats").json()["response_formats"]
        assert {"name": "wave", "content_type": "audio/x-wave"} in formats
        document = http.get("/openapi.json").json()
        content = document["paths"]["/v1/audio/speech"]["post"]["responses"]["200"]["content"]
        assert "audio/x-wave" in content
        field = document["components"]["schemas"]["SpeechBody"]["properties"]["response_format"]
        assert "wave" in field["anyOf"][0]["enum"]
        body = {"input": "Hello.", "cache": False}
        answer = http.post("/v1/audio/speech", json={**body, "response_format": "wave"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "audio/x-wave"
        assert answer.content.startswith(wav_header(24_000))
        assert len(answer.content) > 10_000
        refused = http.post("/v1/audio/speech", json={**body, "response_format": "wma"}).json()["error"]
        assert (refused["param"], refused["code"]) == ("response_format", "literal_error")
        assert "'wave'" in refused["message"]
