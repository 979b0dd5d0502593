"""LoRA adapters of a running server: as models and as voices, added and removed by requests. CSM has random weights."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from typer.testing import CliRunner

from app import cli
from app.keys import SCOPES, KeyFile
from tests.support.fake_hub import FakeHub
from tests.support.live import serving, wait_until
from tests.support.random_adapter import adapter_files, dia_adapter_files, write_adapter
from tests.support.random_csm import fabricate_csm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SHORT = {"max_audio_length_ms": 480, "response_format": "pcm", "temperature": 0, "cache": False}
REPOS = {
    "me/danish": adapter_files(11),
    "me/checkpoints": {f"checkpoint-5/{name}": content for name, content in adapter_files(12).items()},
    "me/pickle": {"adapter_config.json": b"{}", "adapter_model.bin": b"never opened"},
    "me/base": {"config.json": b"{}", "model.safetensors": b"12345678"},
    "me/dora": adapter_files(13, use_dora=True),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub(REPOS) as served:
        yield served


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("data")
    write_adapter(found / "models" / "adapters" / "stored", 1)
    (found / "models" / "adapters" / "stored" / "adapter.json").write_text('{"speaker": 7}')
    write_adapter(found / "models" / "adapters" / "broken", 2)
    (found / "models" / "adapters" / "broken" / "adapter_model.safetensors").write_bytes(b"\x10\0\0")
    return found


@pytest.fixture(scope="module")
def options(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    configured = write_adapter(tmp_path_factory.mktemp("adapter"), 3)
    return {
        "TTS_ENGINE": "csm",
        "CSM_MODEL": str(fabricate_csm(tmp_path_factory.mktemp("csm"), seed=1)),
        "TTS_DTYPE": "float32",
        "TTS_FALLBACK_ENGINE": "",
        "TTS_ADAPTERS": f"Given={configured}, absent=/nowhere/at/all",
    }


@pytest.fixture(scope="module")
def url(hub: FakeHub, data: Path, options: dict[str, Any]) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        with serving(data, **options) as served:
            wait_until(lambda: "loading" not in {each["status"] for each in adapters(served).values()})
            yield served


def adapters(url: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in httpx.get(f"{url}/v1/audio/adapters").json()["data"]}


def speak(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/audio/speech", json={"input": "Hello there.", **SHORT, **body}, timeout=60)


def pcm(url: str, **body: Any) -> bytes:
    answer = speak(url, **body)
    assert answer.status_code == 200, answer.text
    return answer.content


def add(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/audio/adapters", json=body, timeout=60)


def upload(url: str, files: dict[str, bytes], **fields: str) -> httpx.Response:
    parts = {
        part: (name, files[name])
        for part, name in (("adapter", "adapter_model.safetensors"), ("config", "adapter_config.json"))
        if name in files
    }
    return httpx.post(f"{url}/v1/audio/adapters", data=fields, files=parts, timeout=60)


def remove(url: str, name: str) -> httpx.Response:
    return httpx.delete(f"{url}/v1/audio/adapters/{name}")


def order(url: str, model: str, action: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/models/{model}/{action}", timeout=60)


def error(answer: httpx.Response) -> tuple[int, str, str]:
    content = answer.json()["error"]
    return answer.status_code, content["code"], content["param"]


def test_adapters_of_the_start_are_listed_with_their_state(url: str) -> None:
    found = adapters(url)
    assert {name: each["status"] for name, each in found.items()} == {
        "Given": "ready", "absent": "failed", "broken": "failed", "stored": "ready",
    }  # fmt: skip
    stored = found["stored"]
    assert (stored["rank"], stored["speaker"], stored["model"]) == (4, 7, "csm-1b:stored")
    assert stored["bytes"] > 10_000
    assert (stored["base"], stored["error"]) == ("sesame/csm-1b", None)
    assert "truncated" in found["broken"]["error"]
    assert "/" not in found["broken"]["error"].replace("n/a", "")
    assert "does not exist" in found["absent"]["error"]


def test_adapters_are_models_and_voices(url: str) -> None:
    models = {each["id"]: each for each in httpx.get(f"{url}/v1/models").json()["data"]}
    assert models["csm-1b:stored"]["adapter_of"] == "csm-1b"
    assert models["csm-1b"]["adapter_of"] is None
    assert (models["csm-1b:stored"]["status"], models["csm-1b:broken"]["status"]) == ("ready", "failed")
    assert httpx.get(f"{url}/v1/models/csm-1b:Stored").json()["adapter_of"] == "csm-1b"
    assert httpx.get(f"{url}/v1/models/csm-1b:none").status_code == 404
    voices = {each["id"]: each for each in httpx.get(f"{url}/v1/audio/voices").json()["voices"]}
    assert voices["stored"]["type"] == "adapter"
    assert "csm-1b:stored" in {each["id"] for each in httpx.get(f"{url}/v1/audio/models").json()["models"]}


def test_model_and_voice_select_the_adapter(url: str) -> None:
    base = pcm(url, voice="speaker:7")
    by_voice = pcm(url, voice="stored")
    assert by_voice != base
    assert pcm(url, model="csm-1b:stored", voice="speaker:7") == by_voice
    assert pcm(url, model="csm-1b:stored") == by_voice
    assert pcm(url, model="sesame/csm-1b:stored") == by_voice
    assert pcm(url, model="tts-1:STORED") == by_voice
    assert pcm(url, model="csm-1b:stored", voice="Stored") == by_voice
    assert pcm(url, voice="given") not in (by_voice, base)
    assert pcm(url, voice="speaker:7") == base


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "csm-1b:unknown"}, (404, "model_not_found", "model")),
        ({"model": "dia-1.6b:stored"}, (404, "model_not_found", "model")),
        ({"model": "gpt-9:stored"}, (404, "model_not_found", "model")),
        ({"voice": "unknown"}, (400, "voice_not_found", "voice")),
        ({"model": "csm-1b:stored", "voice": "given"}, (400, "invalid_value", "voice")),
        ({"model": "csm-1b:broken"}, (503, "engine_not_ready", "model")),
        ({"voice": "absent"}, (503, "engine_not_ready", "voice")),
    ],
)
def test_wrong_adapter_is_a_clear_error(url: str, body: dict[str, Any], expected: tuple[int, str, str]) -> None:
    assert error(speak(url, **body)) == expected


async def test_each_adapter_gives_the_same_samples_alone_and_beside_others(url: str) -> None:
    voices = ["stored", "given", "speaker:7", "stored", "speaker:0"]
    alone = [pcm(url, voice=voice) for voice in voices]
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def ask(voice: str) -> bytes:
            body = {"input": "Hello there.", **SHORT, "voice": voice}
            return (await http.post("/v1/audio/speech", json=body)).content

        together = await asyncio.gather(*map(ask, voices))
    assert [len(each) for each in together] == [len(each) for each in alone]
    for found, expected in zip(together, alone, strict=True):
        difference = np.frombuffer(found, np.int16).astype(int) - np.frombuffer(expected, np.int16)
        assert np.abs(difference).max() <= 1


def test_dialogue_with_two_adapters_speaks_each_turn_with_its_own(url: str) -> None:
    turns = [{"voice": voice, "text": "Hello there."} for voice in ("stored", "given", "speaker:1")]
    body = {"turns": turns, "response_format": "pcm", "temperature": 0, "max_audio_length_ms": 20_000}
    answer = httpx.post(f"{url}/v1/audio/dialogue", json=body, timeout=120)
    assert answer.status_code == 200, answer.text


def test_cache_keeps_the_answers_of_adapters_apart(url: str) -> None:
    kept = {**SHORT, "cache": True, "input": "To be cached."}
    answers = [speak(url, **kept, voice=voice) for voice in ("stored", "given", "stored", "given")]
    assert [each.headers["x-cache"] for each in answers] == ["miss", "miss", "hit", "hit"]
    assert answers[0].content == answers[2].content != answers[1].content == answers[3].content


def test_uploaded_adapter_speaks_and_is_removed(url: str, data: Path) -> None:
    answer = upload(url, adapter_files(21), name="mine", speaker="3")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["status"], answer.json()["speaker"], answer.json()["rank"]) == ("ready", 3, 4)
    first = pcm(url, voice="mine")
    assert first != pcm(url, voice="speaker:3")
    assert remove(url, "MINE").json() == {"name": "mine", "object": "audio.adapter.deleted", "deleted": True}
    assert error(speak(url, voice="mine")) == (400, "voice_not_found", "voice")
    assert error(remove(url, "mine")) == (404, "not_found", "name")
    assert not (data / "models" / "adapters" / "mine").exists()
    # Another adapter with the same name is another voice, without any data of the first adapter.
    assert upload(url, adapter_files(22), name="mine", speaker="3").status_code == 200
    assert pcm(url, voice="mine") != first
    assert remove(url, "mine").status_code == 200
    assert sorted(path.name for path in (data / "models" / "adapters").iterdir()) == ["broken", "stored"]


def test_new_adapter_does_not_load_the_others_again(url: str, data: Path) -> None:
    weights = data / "models" / "adapters" / "stored" / "adapter_model.safetensors"
    hidden = weights.rename(weights.with_name("hidden"))
    try:
        assert upload(url, adapter_files(24), name="mine").status_code == 200
    finally:
        hidden.rename(weights)
    assert adapters(url)["stored"]["status"] == "ready"
    assert remove(url, "mine").status_code == 200


def test_two_names_of_the_same_files_are_removed_one_by_one(url: str) -> None:
    for name in ("one", "two"):
        assert upload(url, adapter_files(23), name=name).status_code == 200
    assert pcm(url, voice="one") == pcm(url, voice="two")
    expected = pcm(url, voice="two")
    assert remove(url, "one").status_code == 200
    assert pcm(url, voice="two") == expected
    assert remove(url, "two").status_code == 200


def test_adapters_are_loaded_again_with_the_model(url: str) -> None:
    expected = pcm(url, voice="stored")
    for restore in (lambda: None, lambda: order(url, "csm-1b:Stored", "load").raise_for_status()):
        assert order(url, "csm-1b", "unload").status_code == 200
        restore()
        assert pcm(url, voice="stored") == expected
        assert adapters(url)["stored"]["status"] == "ready"


def test_adapter_is_not_unloaded_without_its_model(url: str) -> None:
    for name in ("csm-1b:stored", "sesame/csm-1b:Given", "tts-1:stored"):
        refused = order(url, name, "unload")
        assert error(refused) == (400, "not_supported", "model")
        assert "`csm-1b`" in refused.json()["error"]["message"]
        loaded = order(url, name, "load").json()
        assert (loaded["status"], loaded["adapter_of"]) == ("ready", "csm-1b")
    assert error(order(url, "csm-1b:unknown", "unload")) == (404, "model_not_found", "model")


def test_say_speaks_with_an_adapter(url: str, data: Path, options: dict[str, Any], tmp_path: Path) -> None:
    del url  # the adapters of `data` are the server's

    def say(*arguments: str) -> bytes:
        command = ["say", "Hello.", "-o", str(tmp_path / "out.pcm"), "--temperature", "0", *arguments]
        done = CliRunner().invoke(cli.app, command, env={"TTS_DATA_DIR": str(data), **options})
        assert done.exit_code == 0, done.output
        return (tmp_path / "out.pcm").read_bytes()

    by_model = say("--model", "csm-1b:stored")
    assert by_model == say("--voice", "stored") != say("--voice", "speaker:7")
    unknown = CliRunner().invoke(
        cli.app, ["say", "Hello.", "--model", "csm-1b:x"], env={"TTS_DATA_DIR": str(data)} | options
    )
    assert unknown.exit_code == 1
    assert "does not exist" in unknown.output


@pytest.mark.parametrize("source", ["me/danish", "me/danish@main", "me/checkpoints/checkpoint-5"])
def test_adapter_of_a_repository_is_downloaded(url: str, source: str) -> None:
    answer = add(url, name="from-hub", source=source)
    assert answer.status_code == 200, answer.text
    assert answer.json()["source"] == source
    assert pcm(url, model="csm-1b:from-hub") != pcm(url, voice="speaker:0")
    assert remove(url, "from-hub").status_code == 200


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        ({"name": "x", "source": "me/absent"}, "bad_adapter", "source", "does not exist"),
        ({"name": "x", "source": "me/pickle"}, "bad_adapter", "source", "safe_serialization=True"),
        ({"name": "x", "source": "me/base"}, "bad_adapter", "source", "adapter_config.json"),
        ({"name": "x", "source": "me/dora"}, "bad_adapter", "source", "DoRA"),
        ({"name": "x", "source": "/etc"}, "invalid_value", "source", "Hugging Face id"),
        ({"name": "x", "source": "../models/csm"}, "invalid_value", "source", "Hugging Face id"),
        ({"name": "x", "source": "onlyname"}, "invalid_value", "source", "Hugging Face id"),
        ({"name": "x", "source": ""}, "string_too_short", "source", ""),
        ({"name": "x"}, "missing", "source", ""),
        ({"source": "me/danish"}, "missing", "name", ""),
        ({"name": "a/b", "source": "me/danish"}, "invalid_value", "name", "letters"),
        ({"name": "..", "source": "me/danish"}, "invalid_value", "name", "letters"),
        ({"name": "x" * 65, "source": "me/danish"}, "invalid_value", "name", "letters"),
        ({"name": "Stored", "source": "me/danish"}, "invalid_value", "name", "already"),
        ({"name": "Alloy", "source": "me/danish"}, "invalid_value", "name", "voice"),
        ({"name": "x", "source": "me/danish", "speaker": -1}, "greater_than_equal", "speaker", ""),
        ({"name": "x", "source": "me/danish", "speaker": 1000}, "less_than_equal", "speaker", ""),
        ({"name": "x", "source": "me/danish", "voice": "nova2"}, "invalid_value", "voice", "recording"),
    ],
)
def test_adapter_that_can_not_be_added_is_a_clear_error(
    url: str, body: dict[str, Any], code: str, param: str, words: str
) -> None:
    before, speech = adapters(url), pcm(url, voice="stored")
    answer = add(url, **body)
    assert error(answer) == (400, code, param), answer.text
    assert words in answer.json()["error"]["message"]
    assert adapters(url) == before
    assert pcm(url, voice="stored") == speech


def changed(change: str) -> dict[str, bytes]:
    files = adapter_files(31)
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    match change:
        case "truncated":
            files[weights] = files[weights][:-100]
        case "empty":
            files[weights] = b""
        case "pickle":
            files[weights] = b"PK\x03\x04 a pickle"
        case "no JSON":
            files[config] = b"{"
        case "a list":
            files[config] = b"[]"
        case "nested JSON":
            files[config] = b'{"r": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        case "nested header":
            nested = b"[" * 100_000 + b"]" * 100_000
            files[weights] = len(nested).to_bytes(8, "little") + nested
        case "huge rank":
            files[config] = json.dumps({"r": 10**400, "lora_alpha": 1}).encode()
        case "slow pattern":
            files[config] = json.dumps({"r": 4, "lora_alpha": 1, "rank_pattern": {r"([a-z_.]+)+X": 4}}).encode()
        case "no rank":
            files[config] = b'{"peft_type": "LORA"}'
        case "another method":
            files[config] = b'{"peft_type": "LOHA", "r": 4}'
        case "another rank":
            files[config] = json.dumps({"r": 3, "lora_alpha": 1}).encode()
        case "large config":
            files[config] = b"{" + b" " * (1 << 20) + b"}"
        case "no config":
            del files[config]
        case "no weights":
            del files[weights]
        case "rank 300":
            files = adapter_files(31, rank=300)
        case "DoRA":
            files = adapter_files(31, use_dora=True)
        case "NaN":
            files = adapter_files(31, scale=float("nan"))
        case "of Dia":
            files = dia_adapter_files(31)
        case "another width":
            tensors = load(files[weights])
            files[weights] = save({name: torch.cat([each, each], dim=-1) for name, each in tensors.items()})
    return files


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ("truncated", "adapter", "truncated"),
        ("empty", "adapter", "truncated"),
        ("pickle", "adapter", "not a safetensors file"),
        ("no JSON", "adapter", "can't be read"),
        ("a list", "adapter", "not a JSON object"),
        ("nested JSON", "adapter", "can't be read"),
        ("nested header", "adapter", "can't be read"),
        ("huge rank", "adapter", "can't be read"),
        ("slow pattern", "adapter", "not a simple pattern"),
        ("no rank", "adapter", "no rank"),
        ("another method", "adapter", "LOHA"),
        ("another rank", "adapter", "rank"),
        ("large config", "adapter", "limit"),
        ("no config", "config", "is missing"),
        ("no weights", "adapter", "is missing"),
        ("rank 300", "adapter", "rank 300"),
        ("DoRA", "adapter", "Serve it merged: CSM_MODEL=<its repository or folder>."),
        ("NaN", "adapter", "NaN"),
        ("of Dia", "adapter", "that CSM does not have"),
        ("another width", "adapter", "trained on another base"),
    ],
)
def test_broken_upload_is_a_clear_error(url: str, data: Path, change: str, param: str, words: str) -> None:
    answer = upload(url, changed(change), name="broken-upload")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    message = answer.json()["error"]["message"]
    assert words in message
    assert str(data) not in message
    assert "broken-upload" not in adapters(url)
    assert sorted(path.name for path in (data / "models" / "adapters").iterdir()) == ["broken", "stored"]


def test_adapter_of_the_settings_can_not_be_removed(url: str) -> None:
    assert error(remove(url, "given")) == (400, "not_supported", "name")
    assert adapters(url)["Given"]["status"] == "ready"


def test_adapter_is_added_and_removed_while_others_speak(url: str) -> None:
    """An answer that began before is not interrupted, and has the same samples. Bad adapters change nothing."""
    body = {"input": "A long sentence is spoken here. " * 3, **SHORT, "max_audio_length_ms": 3000}
    expected = speak(url, **body | {"voice": "stored"}).content
    found: list[bytes] = []
    speaking = threading.Thread(target=lambda: found.append(speak(url, **body | {"voice": "stored"}).content))
    speaking.start()
    for change in ("truncated", "pickle", "NaN", "of Dia", "another width"):
        assert upload(url, changed(change), name="bad").status_code == 400
    for bad in ({"name": "bad", "source": "me/absent"}, {"name": "bad", "source": "me/pickle"}):
        assert add(url, **bad).status_code == 400
    assert error(upload(url, adapter_files(40), name="STORED")) == (400, "invalid_value", "name")
    for seed in (41, 42):
        assert upload(url, adapter_files(seed), name="brief").status_code == 200
        assert remove(url, "brief").status_code == 200
    speaking.join(60)
    assert found == [expected]


def test_added_adapter_survives_a_restart(hub: FakeHub, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        with serving(tmp_path, **options | {"TTS_ADAPTERS": ""}) as url:
            assert upload(url, adapter_files(51), name="uploaded", speaker="5").status_code == 200
            assert add(url, name="fetched", source="me/danish").status_code == 200
            before = [pcm(url, voice=name) for name in ("uploaded", "fetched")]
        with serving(tmp_path, **options | {"TTS_ADAPTERS": ""}) as url:
            wait_until(lambda: {each["status"] for each in adapters(url).values()} == {"ready"})
            assert adapters(url)["uploaded"]["speaker"] == 5
            assert [pcm(url, voice=name) for name in ("uploaded", "fetched")] == before


def test_adapters_work_only_with_their_own_model(options: dict[str, Any], tmp_path: Path) -> None:
    write_adapter(tmp_path / "models" / "adapters" / "stored", 1)
    several = {"TTS_ENGINE": "espeak", "TTS_MODELS": "espeak,csm-1b", "TTS_ADAPTERS": "", "TTS_LOAD_WAIT_S": 60}
    with serving(tmp_path, **{**options, **several}) as url:
        assert httpx.get(f"{url}/v1/models/csm-1b:stored").json()["status"] == "unloaded"
        assert error(speak(url, voice="stored", temperature=None)) == (400, "not_supported", "voice")
        assert error(speak(url, model="espeak:stored", temperature=None)) == (404, "model_not_found", "model")
        assert error(speak(url, model="tts-1:stored", temperature=None)) == (404, "model_not_found", "model")
        by_model = pcm(url, model="csm-1b:stored")
        assert by_model == pcm(url, model="csm-1b", voice="stored") != pcm(url, model="csm-1b", voice="speaker:0")


def test_each_model_speaks_with_its_own_adapters(options: dict[str, Any], tmp_path: Path, tiny_dia: Path) -> None:
    both = {"TTS_ENGINE": "dia", "TTS_MODELS": "csm-1b,dia-1.6b", "DIA_MODEL": str(tiny_dia), "TTS_LOAD_WAIT_S": 60}
    given = options["TTS_ADAPTERS"].partition(",")[0]
    with serving(tmp_path, **{**options, **both, "TTS_ADAPTERS": f"CSM:{given}"}) as url:
        # Without `model`, an adapter belongs to the default model.
        for name, fields in (("anna", {}), ("bo", {"model": "nari-labs/Dia-1.6B-0626"})):
            answer = upload(url, dia_adapter_files(len(name)), name=name, **fields)
            assert answer.status_code == 200, answer.text
        assert {name: (each["model"], each["status"]) for name, each in adapters(url).items()} == {
            "Given": ("csm-1b:Given", "loading"), "anna": ("dia-1.6b:anna", "ready"), "bo": ("dia-1.6b:bo", "ready"),
        }  # fmt: skip
        of_anna = pcm(url, voice="anna")
        assert of_anna == pcm(url, model="dia-1.6b:anna") != pcm(url, voice="bo")
        assert pcm(url, model="csm-1b", voice="given") == pcm(url, model="csm-1b:given")
        assert error(speak(url, model="csm-1b", voice="anna")) == (400, "not_supported", "voice")
        assert error(speak(url, model="csm-1b:anna")) == (404, "model_not_found", "model")
        wrong = upload(url, dia_adapter_files(5), name="x", model="csm-1b")
        assert error(wrong) == (400, "bad_adapter", "adapter")
        assert error(upload(url, dia_adapter_files(5), name="x", model="kokoro")) == (400, "invalid_value", "model")
        assert remove(url, "bo").status_code == 200
        assert order(url, "dia-1.6b", "unload").status_code == 200
        assert pcm(url, voice="anna") == of_anna
    with serving(tmp_path, **{**options, "TTS_ADAPTERS": ""}) as url:  # the model of the stored adapter is missing
        assert (adapters(url)["anna"]["status"], adapters(url)["anna"]["model"]) == ("failed", "dia-1.6b:anna")
        assert error(speak(url, voice="anna")) == (400, "not_supported", "voice")


def test_adapters_need_the_admin_scope(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    keys = {scope: file.add(scope, (scope,)) for scope in SCOPES}
    with serving(tmp_path, TTS_ENGINE="espeak") as url:
        for scope, key in keys.items():
            for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/x")):
                answer = httpx.request(
                    method,
                    f"{url}/v1/audio/adapters{path}",
                    headers={"Authorization": f"Bearer {key}"},
                    json={"name": "x", "source": "me/x"} if method == "POST" else None,
                )
                assert (answer.status_code == 403) == (scope != "admin"), answer.text
        assert httpx.get(f"{url}/v1/audio/adapters").status_code == 401
        headers = {"Authorization": f"Bearer {keys['admin']}"}
        answer = httpx.post(f"{url}/v1/audio/adapters", json={"name": "x", "source": "me/x"}, headers=headers)
        assert error(answer)[:2] == (400, "not_supported")  # the offline voice has no adapters
