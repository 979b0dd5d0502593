"""Weights are downloaded while the server runs: the stand-in speaks until then, and the model speaks after that."""

from __future__ import annotations

import shutil
from collections import namedtuple
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.weights import download
from tests.support.fake_hub import FakeHub
from tests.support.live import serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

ORIGINAL, COPY, OTHER_COPY = "sesame/csm-1b", "unsloth/csm-1b", "eustlb/csm-1b"
WEIGHTS, CANCEL = "/v1/models/csm-1b/weights", "/v1/models/csm-1b/weights/cancel"
TOKEN, WRONG, STRANGER = "hf_goodgoodgood", "hf_wrongwrong", "hf_strangerstranger"
CSM = {"TTS_ENGINE": "csm", "TTS_DTYPE": "float32", "TTS_MAX_ROWS": 2}


@pytest.fixture
def hub(tiny_csm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a gated model and two open copies of it."""
    files = {path.relative_to(tiny_csm).as_posix(): path.read_bytes() for path in tiny_csm.rglob("*") if path.is_file()}
    with FakeHub(dict.fromkeys((ORIGINAL, COPY, OTHER_COPY), files)) as fake:
        fake.gated, fake.tokens, fake.unknown_tokens = {ORIGINAL}, {TOKEN}, {WRONG}
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield fake


def weights(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}{WEIGHTS}").raise_for_status().json()  # type: ignore[no-any-return]


def order(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{WEIGHTS}", json=body)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def engine_of(url: str) -> str:
    """The engine that speaks a request without a model."""
    body = {"input": "Hello there.", "response_format": "pcm", "max_audio_length_ms": 800, "cache": False}
    answer = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(answer.content) > 1000
    return answer.headers["X-TTS-Engine"]


def is_ready(url: str) -> bool:
    found = weights(url)
    assert found["state"] != "failed", found
    return (found["state"], found["status"]) == ("complete", "ready")


def test_open_copy_is_downloaded_and_speaks_without_a_restart(hub: FakeHub, tmp_path: Path) -> None:
    with serving(tmp_path, **CSM, TTS_CASTING="auto", TTS_CASTING_WAIT_S=0) as url:
        before = weights(url)
        assert (before["state"], before["status"], before["model"]) == ("absent", "missing_weights", "csm-1b")
        size = before["files"]["total_bytes"]
        assert size > before["files"]["done_bytes"] == 0
        assert before["free_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
        assert before["sources"] == [
            {
                "repository": source,
                "gated": gated,
                "licence_url": f"https://huggingface.co/{source}",
                "bytes": size,
                "done_bytes": 0,
                "needs_token": gated,
            }
            for source, gated in ((ORIGINAL, True), (COPY, False), (OTHER_COPY, False))
        ]
        assert (before["token"], before["download"], before["hub"]) == ({"present": False, "from": None}, None, None)
        assert f"CSM_MODEL={COPY}" in before["commands"]["env"].splitlines()
        assert f"CSM_MODEL: {COPY}" in before["commands"]["compose"]
        assert f"CSM_MODEL={COPY}" in before["commands"]["shell"]
        assert httpx.get(f"{url}/health").json()["casting"]["state"] == "not needed"

        hub.bytes_per_s = size / 2
        begun = order(url)
        assert begun.status_code == 202
        assert begun.json()["state"] == "downloading"
        assert begun.json()["download"]["repository"] == COPY
        assert engine_of(url) == "espeak"  # the stand-in speaks during the download
        wait_until(lambda: (httpx.get(f"{url}/health").json()["download"] or {}).get("done_bytes"))
        assert error(order(url)) == (409, "download_running")
        running = weights(url)
        assert 0 < running["files"]["done_bytes"] <= running["download"]["total_bytes"] == size
        assert running["download"]["bytes_per_s"] > 0
        hub.bytes_per_s = None
        wait_until(lambda: is_ready(url))
        health = httpx.get(f"{url}/health").json()
        assert (health["status"], health["engine"], health["download"]) == ("ok", "csm", None)
        assert engine_of(url) == "csm"
        assert health["casting"]["state"] in (
            "waiting",
            "casting",
            "done",
        )  # the standard voices are made, as at a start
        listed = {model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]}
        assert "espeak" not in listed
        after = weights(url)
        assert (after["state"], after["sources"], after["files"]["done_bytes"]) == ("complete", [], size)
        assert error(httpx.post(f"{url}{CANCEL}")) == (409, "no_download")
    requests = len(hub.requests)
    with serving(tmp_path, **CSM) as url:  # the next start finds the copy
        assert engine_of(url) == "csm"
    assert len(hub.requests) == requests


def test_token_is_checked_saved_and_never_shown(
    hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with serving(tmp_path, **CSM) as url:
        downloads = len(hub.downloads())
        answers = [order(url, source=ORIGINAL)]
        assert error(answers[-1]) == (400, "hub_token_missing")
        answers.append(order(url, token=WRONG, save_token=True))
        assert error(answers[-1]) == (400, "hub_token_invalid")
        assert "the token of this request" in answers[-1].text
        answers.append(order(url, source=ORIGINAL, token=STRANGER, save_token=True))
        assert error(answers[-1]) == (400, "hub_licence_not_accepted")
        assert f"https://huggingface.co/{ORIGINAL}" in answers[-1].json()["error"]["message"]
        file = tmp_path / "hub" / "token"
        assert not file.exists()
        assert len(hub.downloads()) == downloads

        answers.append(order(url, token=TOKEN, save_token=True))
        assert answers[-1].status_code == 202, answers[-1].text
        wait_until(lambda: is_ready(url))
        assert engine_of(url) == "csm"
        assert {request.path.split("/resolve/")[0] for request in hub.downloads()} == {f"/{ORIGINAL}"}
        assert (file.read_text(), file.stat().st_mode & 0o777) == (TOKEN, 0o600)
        assert file.parent.stat().st_mode & 0o077 == 0
        assert weights(url)["token"] == {"present": True, "from": "file"}
        answers += [httpx.get(f"{url}{path}") for path in (WEIGHTS, "/health", "/debug", "/v1/models", "/metrics")]
        everything = "".join(answer.text for answer in answers)
        answers.append(httpx.delete(f"{url}/v1/hub-token"))
        none = {"present": False, "from": None}
        assert answers[-1].json() == {"object": "hub_token.deleted", "deleted": True, "token": none}
        assert not file.exists()
        assert httpx.delete(f"{url}/v1/hub-token").json()["deleted"] is False
    printed = capfd.readouterr()
    everything += printed.out + printed.err + caplog.text
    assert "weights" in printed.out
    for token in (TOKEN, WRONG, STRANGER):
        assert token not in everything


def test_token_is_saved_only_on_request_and_after_the_hub_has_checked_it(hub: FakeHub, tmp_path: Path) -> None:
    file = tmp_path / "hub" / "token"
    with serving(tmp_path, **CSM) as url:
        assert order(url, source=ORIGINAL, token=TOKEN).status_code == 202
        wait_until(lambda: is_ready(url))
        assert not file.exists()
        requests = len(hub.requests)
        assert order(url, token=WRONG, save_token=True).status_code == 202  # nothing is missing
        assert len(hub.requests) == requests
        assert not file.exists()


def test_saved_token_is_used_after_that_of_the_environment(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text(f"{STRANGER}\n")
    with serving(tmp_path, **CSM) as url:
        assert weights(url)["token"] == {"present": True, "from": "file"}
        assert "the token in TTS_DATA_DIR/hub/token has no access" in httpx.get(f"{url}/health").json()["reason"]
        assert not weights(url)["sources"][0]["needs_token"]
        assert error(order(url)) == (400, "hub_licence_not_accepted")  # a token asks for the first source
    with serving(tmp_path, **CSM, HF_TOKEN=WRONG) as url:
        found = weights(url)
        assert found["token"] == {"present": True, "from": "environment"}
        assert found["hub"]["code"] == "hub_token_invalid"
        assert found["sources"][0]["needs_token"]
        assert found["files"]["total_bytes"]  # the lists of files need no token


def test_refusals_before_a_download(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, **CSM) as url:
        downloads = len(hub.downloads())
        assert error(order(url, source="me/other")) == (400, "invalid_value")
        assert error(order(url, save_token=True)) == (400, "invalid_value")
        assert error(order(url, token="hf_\r\nX: 1")) == (400, "invalid_value")
        assert error(httpx.post(f"{url}/v1/models/gpt-5/weights")) == (404, "model_not_found")
        assert error(httpx.post(f"{url}/v1/models/espeak/weights")) == (400, "not_supported")
        assert httpx.get(f"{url}/v1/models/espeak/weights").json()["state"] == "complete"
        assert httpx.options(f"{url}{CANCEL}").headers["Allow"] == "POST"
        assert httpx.options(f"{url}{WEIGHTS}").headers["Allow"] == "GET, HEAD, POST"

        usage = namedtuple("usage", "total used free")
        with monkeypatch.context() as patch:
            patch.setattr(download.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
            assert weights(url)["free_bytes"] == 1000
            full = order(url)
        assert error(full) == (507, "not_enough_disk_space")
        assert "free" in full.json()["error"]["message"]
        assert len(hub.downloads()) == downloads
        assert weights(url)["state"] == "absent"
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            with monkeypatch.context() as patch:
                patch.setenv(name, "1")
                offline = order(url)
            assert error(offline) == (409, "hub_offline")
            assert name in offline.json()["error"]["message"]
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens on this port
        away = order(url)
        assert error(away) == (503, "hub_unreachable")
        assert int(away.headers["Retry-After"]) >= 1
    with serving(tmp_path / "other", **CSM) as url:
        found = weights(url)
        assert (found["hub"]["code"], found["files"]["total_bytes"]) == ("hub_unreachable", None)
        assert [(each["gated"], each["bytes"]) for each in found["sources"]] == [(True, None), *[(False, None)] * 2]
        assert [each["done_bytes"] for each in found["sources"]] == [0, 0, 0]


def test_cancelled_and_failed_downloads_continue(hub: FakeHub, tmp_path: Path) -> None:
    with serving(tmp_path, **CSM) as url:
        size = weights(url)["files"]["total_bytes"]
        hub.bytes_per_s = size / 4
        assert order(url, source=COPY).status_code == 202
        wait_until(lambda: weights(url)["download"]["file"] == "model.safetensors")
        kept = weights(url)["files"]["done_bytes"]
        stopped = httpx.post(f"{url}{CANCEL}").json()
        assert (stopped["state"], stopped["download"]) == ("partial", None)
        assert size > stopped["files"]["done_bytes"] >= kept > 0
        assert engine_of(url) == "espeak"

        assert order(url, source=COPY).status_code == 202
        hub.tokens.clear()
        hub.private.add(COPY)  # the copy disappears
        hub.cut_after_bytes = [1]
        wait_until(lambda: weights(url)["state"] == "failed")
        failed = weights(url)
        assert failed["download"]["error"]["code"] == "hub_token_missing"
        assert COPY in failed["download"]["error"]["message"]
        assert failed["files"]["done_bytes"] >= stopped["files"]["done_bytes"]
        assert httpx.get(f"{url}/health").json()["download"] is None

        hub.private.clear()
        hub.bytes_per_s = None
        assert order(url, source=COPY).status_code == 202
        wait_until(lambda: is_ready(url))
        assert engine_of(url) == "csm"
    starts = [request.start for request in hub.downloads("model.safetensors") if request.start]
    assert starts
    assert starts[0] >= kept - sum(len(data) for name, data in hub.repos[COPY].items() if name != "model.safetensors")


def test_server_stops_during_a_download(hub: FakeHub, tmp_path: Path) -> None:
    with serving(tmp_path, **CSM) as url:
        hub.bytes_per_s = 10_000
        assert order(url).status_code == 202
        wait_until(lambda: weights(url)["download"]["done_bytes"])
    with serving(tmp_path, **CSM) as url:
        assert weights(url)["state"] == "partial"


def test_model_that_cannot_be_loaded_says_why(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[COPY]["config.json"] = b"{}"
    with serving(tmp_path, **CSM) as url:
        assert order(url).status_code == 202
        wait_until(lambda: weights(url)["state"] == "failed")
        failed = weights(url)
        assert failed["download"]["error"]["code"] == "model_not_loaded"
        assert failed["status"] != "ready"
        assert engine_of(url) == "espeak"


def test_second_model_is_downloaded_beside_the_default(hub: FakeHub, tmp_path: Path) -> None:
    with serving(
        tmp_path, **{**CSM, "TTS_ENGINE": "espeak"}, TTS_MODELS="espeak,csm-1b", TTS_API_KEYS="key-of-the-admin"
    ) as url:
        assert httpx.post(f"{url}{WEIGHTS}").status_code == 401
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer key-of-the-admin"}) as admin:
            assert admin.post(WEIGHTS).status_code == 202
            wait_until(lambda: admin.get(WEIGHTS).json()["status"] == "ready")
            body = {"model": "csm-1b", "input": "Hello.", "response_format": "pcm", "max_audio_length_ms": 800}
            assert admin.post("/v1/audio/speech", json=body).headers["X-TTS-Engine"] == "csm"
            assert admin.get("/health").json()["engine"] == "espeak"
