"""Finding and downloading model files, against a fake hub on a real socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import huggingface_hub
import pytest

from app.errors import WeightsUnavailable
from app.weights import download, hub
from app.weights.download import Cancelled, Patience, Progress, fetch
from app.weights.hub import ModelFiles, choose_files, files_for, find, has_tensor
from app.weights.hub_token import HubToken
from tests.support.fake_hub import FakeHub

pytestmark = pytest.mark.unit

TOKEN = "hf_veryverysecret"
HURRIED = Patience(answer_s=1.5, stall_s=0.6, retries=2, backoff_s=0.05)
MB = 1_000_000
PROMPT_S = 30  # much less than the time without the tested limits, which is minutes or an hour


def header(*names: str) -> bytes:
    """Return a safetensors header with tensors of these names."""
    text = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    return len(text).to_bytes(8, "little") + text


def shard(seed: int, size: int) -> bytes:
    return (header(f"codec_model.{seed}") + bytes((i * seed) % 251 for i in range(4096)) * (size // 4096 + 1))[:size]


SHARDS = {
    "transformers-00001-of-00002.safetensors": shard(7, 3 * MB),
    "transformers-00002-of-00002.safetensors": shard(11, 2 * MB),
}
INDEX = json.dumps({"weight_map": {"a": "transformers-00001-of-00002.safetensors", "b": list(SHARDS)[1]}}).encode()
SMALL = {
    "config.json": b'{"model_type": "csm"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}' * 50,
    "tokenizer_config.json": b"{}",
    "prompts/conversational_a.wav": b"RIFF" * 100,
}
CSM = {  # the files as published at revision c92a71e1, but smaller
    **SMALL,
    **SHARDS,
    "transformers.safetensors.index.json": INDEX,
    "ckpt.pt": b"p" * 100,
    "model.safetensors": b"m" * 100,
    "README.md": b"# CSM",
    ".gitattributes": b"",
}
EXPECTED_FILES = {*SMALL, *SHARDS, "transformers.safetensors.index.json"}
TOTAL = sum(len(CSM[name]) for name in EXPECTED_FILES)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    with FakeHub({"sesame/csm-1b": CSM}) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake
        huggingface_hub.close_session()


def refusal(files: ModelFiles, folder: Path, **options: object) -> tuple[str, str]:
    """Return (reason, remedy) of a download that must fail."""
    with pytest.raises(WeightsUnavailable) as caught:
        fetch(files, folder, **({"patience": HURRIED} | options))  # type: ignore[arg-type]
    assert caught.value.__cause__ is not caught.value  # some traceback printers never end if an error is its own cause
    assert TOKEN not in repr(caught.value) + str(caught.value) + caught.value.remedy
    return caught.value.reason, caught.value.remedy


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- sources


@pytest.mark.parametrize("relative", [False, True])
def test_local_folder_is_used_unchanged(relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    files = files_for("csm", "models/mine" if relative else str(tmp_path / "models" / "mine"))
    assert find(files, tmp_path).resolve() == tmp_path / "models" / "mine"
    assert fetch(files, tmp_path).samefile(tmp_path / "models" / "mine")


@pytest.mark.parametrize("value", ["/no/such", "./here", "../no-such", "~/nothing-there", "a\\b", "a/b/c", ".hidden"])
def test_missing_local_folder_is_reported(value: str, tmp_path: Path) -> None:
    reason, remedy = refusal(files_for("csm", value), tmp_path)
    assert f"CSM_MODEL={value}" in reason
    assert "does not exist" in reason
    assert "CSM_MODEL" in remedy


@pytest.mark.parametrize("value", ["csm-1b", "org/na me", "org/name@../../x", "org/", "/"])
def test_invalid_source_is_refused(value: str, tmp_path: Path) -> None:
    if value == "/":
        assert find(files_for("csm", value), tmp_path) == Path("/")
    else:
        assert "neither an existing folder nor a hub id" in refusal(files_for("csm", value), tmp_path)[0]


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in refusal(files_for("dia", str(tmp_path / "model.safetensors")), tmp_path)[0]


def test_every_model_has_its_own_setting_and_source() -> None:
    known = {name: files_for(name) for name in ("csm", "mimi", "dia", "dac")}
    assert [files.setting for files in known.values()] == ["CSM_MODEL", "CSM_CODEC", "DIA_MODEL", "DIA_CODEC"]
    assert known["mimi"].source == "kyutai/mimi"
    assert known["csm"].licence_url == "https://huggingface.co/sesame/csm-1b"
    assert files_for("csm", "me/tuned@v2").licence_url == "https://huggingface.co/me/tuned"
    assert files_for("csm", "  ").source == "sesame/csm-1b"
    assert {"model-*-of-*.safetensors", "config.json"} < set(known["dia"].allow_patterns)


# ---- choice of files


def sizes(*names: str) -> dict[str, int]:
    return {name: len(name) for name in names}


def test_csm_repository_gives_one_layout_with_weights_last() -> None:
    chosen = choose_files(files_for("csm"), {name: len(data) for name, data in CSM.items()})
    assert set(chosen) == EXPECTED_FILES
    assert chosen[-2:] == ["transformers-00002-of-00002.safetensors", "transformers-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("model", "names", "weights"),
    [
        ("csm", ["config.json", "tokenizer.json", "model.safetensors", "ckpt.pt"], {"model.safetensors"}),
        ("csm", ["config.json", "tokenizer.json", "ckpt.pt"], {"ckpt.pt"}),
        (
            "dia",
            [
                "config.json",
                "dia-v1.pth",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
            {
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            },
        ),
        ("dia", ["config.json", "dia-v0_1.pth"], {"dia-v0_1.pth"}),
        ("dia", ["config.json", "dia-v0_1_bf16.safetensors", "dia-v0_1.pth"], {"dia-v0_1_bf16.safetensors"}),
        ("dac", ["config.json", "model.safetensors"], {"model.safetensors"}),
    ],
)
def test_weights_are_chosen_in_other_layouts(model: str, names: list[str], weights: set[str]) -> None:
    assert set(choose_files(files_for(model), sizes(*names))) - {"config.json", "tokenizer.json"} == weights


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["config.json", "model.safetensors"], "tokenizer.json"),
        (["tokenizer.json", "model.safetensors"], "config.json"),
        (["config.json", "tokenizer.json"], "weights"),
        (
            ["config.json", "tokenizer.json", "model.safetensors.index.json"],
            "the shards of model.safetensors.index.json",
        ),
        (
            ["config.json", "tokenizer.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            "model-00002-of-00002.safetensors",
        ),
    ],
)
def test_error_names_the_missing_files(names: list[str], missing: str) -> None:
    with pytest.raises(WeightsUnavailable, match=missing):
        choose_files(files_for("csm"), sizes(*names))


def test_embedded_codec_is_detected_by_its_tensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(header("backbone.layers.0.attn.q_proj.weight"))
    assert not has_tensor(tmp_path, "codec_model.")
    (tmp_path / "model.safetensors").write_bytes(header("lm_head.weight", "codec_model.decoder.layers.0.conv.weight"))
    assert has_tensor(tmp_path, "codec_model.")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert not has_tensor(tmp_path, "codec_model.")


# ---- a download


def test_download_is_complete_shared_and_never_repeated(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Progress] = []
    assert find(files_for("csm"), tmp_path) is None
    folder = fetch(files_for("csm"), tmp_path, token=HubToken(TOKEN), on_progress=reports.append, patience=HURRIED)
    assert names_in(folder) == EXPECTED_FILES
    assert all((folder / name).read_bytes() == CSM[name] for name in EXPECTED_FILES)
    assert find(files_for("csm"), tmp_path) == folder
    assert (reports[0].done_bytes, reports[-1].done_bytes) == (0, TOTAL)
    assert {p.total_bytes for p in reports} == {TOTAL}
    assert reports[0].eta_s is None
    # The token goes to the hub and not to the CDN that it redirects to.
    assert {a.token for a in server.requests if "/cdn/" not in a.path} == {TOKEN}
    assert {a.token for a in server.requests if "/cdn/" in a.path} == {""}
    # Other tools find everything in the same folder, with no network and with it (no byte is fetched twice).
    before = len(server.downloads())
    there = huggingface_hub.snapshot_download("sesame/csm-1b", cache_dir=tmp_path / "hub", local_files_only=True)
    assert Path(there) == folder
    again = huggingface_hub.hf_hub_download(
        "sesame/csm-1b", "transformers-00001-of-00002.safetensors", cache_dir=tmp_path / "hub", endpoint=server.url
    )
    assert Path(again).parent == folder
    assert len(server.downloads()) == before
    # This server needs no network any more.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    requests_before = len(server.requests)
    assert fetch(files_for("csm"), tmp_path) == folder
    assert len(server.requests) == requests_before


def test_download_by_huggingface_hub_is_found(server: FakeHub, tmp_path: Path) -> None:
    folder = huggingface_hub.snapshot_download(
        "sesame/csm-1b",
        cache_dir=tmp_path / "hub",
        endpoint=server.url,
        allow_patterns=list(files_for("csm").allow_patterns),
        tqdm_class=None,
    )
    assert find(files_for("csm"), tmp_path) == Path(folder)


def test_incomplete_snapshot_is_not_used(server: FakeHub, tmp_path: Path) -> None:
    folder = fetch(files_for("csm"), tmp_path, patience=HURRIED)
    for name in ("transformers-00002-of-00002.safetensors", "config.json"):
        link = (folder / name).readlink()
        (folder / name).unlink()
        assert find(files_for("csm"), tmp_path) is None, name
        (folder / name).symlink_to(link)
    (folder / "transformers.safetensors.index.json").unlink()
    assert find(files_for("csm"), tmp_path) == folder  # the names of the shards say how many there are
    (folder / "config.json").resolve().unlink()  # leaves a link whose target is missing
    assert find(files_for("csm"), tmp_path) is None
    before = len(server.downloads())
    assert fetch(files_for("csm"), tmp_path, patience=HURRIED) == folder
    assert [request.path.rpartition("/")[2] for request in server.downloads()[before:]] == ["config.json"]


def test_index_that_names_a_missing_file_is_refused(server: FakeHub, tmp_path: Path) -> None:
    server.repos["sesame/csm-1b"]["transformers.safetensors.index.json"] = (
        b'{"weight_map": {"a": "elsewhere.safetensors"}}'
    )
    assert "elsewhere.safetensors" in refusal(files_for("csm"), tmp_path)[0]


def test_revision_can_be_selected(server: FakeHub, tmp_path: Path) -> None:
    commit = server.commit("sesame/csm-1b")
    files = files_for("csm", f"sesame/csm-1b@{commit}")
    assert fetch(files, tmp_path, patience=HURRIED).name == commit
    assert find(files, tmp_path) is not None
    reason, _ = refusal(files_for("csm", "sesame/csm-1b@v9"), tmp_path)
    assert "no revision v9" in reason


@pytest.mark.parametrize("left_out", [{"size", "blobId", "lfs"}, {"blobId", "lfs"}, {"size"}])
def test_mirror_without_sizes_or_digests_works(server: FakeHub, tmp_path: Path, left_out: set[str]) -> None:
    server.left_out = left_out
    folder = fetch(files_for("csm"), tmp_path, patience=HURRIED)
    assert names_in(folder) == EXPECTED_FILES


def test_download_works_without_symlinks(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = fetch(files_for("csm"), tmp_path, patience=HURRIED)
    assert names_in(folder) == EXPECTED_FILES
    (folder / "config.json").unlink()
    before = len(server.downloads())
    assert fetch(files_for("csm"), tmp_path, patience=HURRIED) == folder
    assert len(server.downloads()) == before + 1


def test_file_names_outside_the_folder_are_ignored(server: FakeHub, tmp_path: Path) -> None:
    server.repos["sesame/csm-1b"]["prompts/../../../../evil.wav"] = b"x"
    assert names_in(fetch(files_for("csm"), tmp_path, patience=HURRIED)) == EXPECTED_FILES


# ---- resume


RESUMED = """
import sys
from pathlib import Path
from app.weights.download import fetch
from app.weights.hub import files_for
fetch(files_for("csm"), Path(sys.argv[1]), on_progress=lambda p: print(p.done_bytes, flush=True))
"""


def test_killed_download_is_resumed(server: FakeHub, tmp_path: Path) -> None:
    server.bytes_per_s = 2 * MB
    child = subprocess.Popen([sys.executable, "-c", RESUMED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child, child.stdout as lines:
        for line in lines:
            if int(line) > 2.7 * MB:  # the position is inside the larger shard
                child.send_signal(signal.SIGKILL)
                break
    assert find(files_for("csm"), tmp_path) is None
    (part,) = (tmp_path / "hub").rglob("*.incomplete")
    present = part.stat().st_size
    assert present > 0.5 * MB

    reports: list[Progress] = []
    before = len(server.downloads())
    fetch(files_for("csm"), tmp_path, on_progress=reports.append, patience=HURRIED)
    (request,) = server.downloads()[before:]
    assert request.start == present
    assert reports[0].done_bytes == TOTAL - 3 * MB + present  # bytes that were already there count as done
    assert reports[-1].done_bytes == TOTAL
    assert all(p.rate_bytes_s < 3 * MB for p in reports)  # bytes that were already there do not count in the rate
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


def test_broken_connection_is_resumed(server: FakeHub, tmp_path: Path) -> None:
    server.cut_after_bytes = [1_000_000, 1_000_000, 1_000_000]
    server.repos["sesame/csm-1b"].pop("prompts/conversational_a.wav")
    server.repos["sesame/csm-1b"].pop("tokenizer.json")
    server.repos["sesame/csm-1b"]["tokenizer.json"] = b"t" * 1_500_000
    folder = fetch(files_for("csm"), tmp_path, patience=HURRIED)
    assert (folder / "tokenizer.json").read_bytes() == b"t" * 1_500_000
    assert [request.start for request in server.downloads("tokenizer.json")] == [0, 1_000_000]


def test_download_restarts_if_the_server_ignores_range(server: FakeHub, tmp_path: Path) -> None:
    server.cut_after_bytes = [300, 300]
    server.ignore_range = True
    folder = fetch(files_for("csm"), tmp_path, patience=HURRIED)
    assert all((folder / name).read_bytes() == CSM[name] for name in EXPECTED_FILES)


def test_corrupt_download_is_discarded(server: FakeHub, tmp_path: Path) -> None:
    server.corrupt = 1
    folder = fetch(files_for("csm"), tmp_path, patience=HURRIED)
    assert all((folder / name).read_bytes() == CSM[name] for name in EXPECTED_FILES)
    shutil.rmtree(tmp_path / "hub")
    server.corrupt = 99
    assert "checksum" in refusal(files_for("csm"), tmp_path)[0]


# ---- progress, stalls, cancelling


def test_progress_is_reported_at_a_limited_rate(server: FakeHub, tmp_path: Path) -> None:
    server.bytes_per_s = 2.5 * MB
    reports: list[tuple[float, Progress]] = []
    fetch(files_for("csm"), tmp_path, on_progress=lambda p: reports.append((time.monotonic(), p)), patience=HURRIED)
    times = [at for at, _ in reports]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert sorted(gaps)[-2] < 0.5  # a busy machine may cause one late report
    assert len(reports) <= 5 * (times[-1] - times[0]) + 2
    done = [p.done_bytes for _, p in reports]
    assert done == sorted(done)
    middle = [p for _, p in reports[4:-1]]
    assert middle
    assert all(1 * MB < p.rate_bytes_s < 4 * MB for p in middle)
    assert all(p.eta_s is not None and p.eta_s < 5 for p in middle)
    assert reports[-1][1].eta_s == 0.0
    assert "transformers-00001-of-00002.safetensors" in {p.file for p in middle}


def test_stall_is_retried_and_then_reported(server: FakeHub, tmp_path: Path) -> None:
    server.stall_after_bytes = 0
    started = time.monotonic()
    reason, remedy = refusal(files_for("csm"), tmp_path)
    assert "broke off at prompts/conversational_a.wav" in reason
    assert "kept" in remedy
    assert len(server.downloads("conversational_a.wav")) == 1 + HURRIED.retries
    assert time.monotonic() - started < PROMPT_S
    server.stall_after_bytes = None
    assert names_in(fetch(files_for("csm"), tmp_path, patience=HURRIED)) == EXPECTED_FILES


@pytest.mark.parametrize("when", ["asking", "stalled", "flowing", "before"])
def test_cancelling_returns_promptly(server: FakeHub, tmp_path: Path, when: str) -> None:
    server.hang = when == "asking"
    server.stall_after_bytes = 0 if when == "stalled" else None
    server.bytes_per_s = 0.5 * MB
    over = threading.Event()
    if when == "before":
        over.set()
    timer = threading.Timer(0.5, over.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(files_for("csm"), tmp_path, cancelled=over.is_set, patience=Patience(stall_s=90, answer_s=90))
    assert time.monotonic() - started < PROMPT_S
    timer.cancel()
    if when == "before":
        assert not server.requests


def test_concurrent_downloads_of_one_model_fetch_it_once(server: FakeHub, tmp_path: Path) -> None:
    server.bytes_per_s = 4 * MB
    found: list[Path] = []
    work = [
        threading.Thread(target=lambda: found.append(fetch(files_for("csm"), tmp_path, patience=HURRIED)))
        for _ in range(2)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 2
    assert len(server.downloads("transformers-00001-of-00002.safetensors")) == 1


# ---- refusals


@pytest.mark.parametrize("token", ["", TOKEN])
def test_error_for_a_gated_repository_names_licence_token_and_mirror(
    server: FakeHub, tmp_path: Path, token: str
) -> None:
    server.gated.add("sesame/csm-1b")
    reason, remedy = refusal(files_for("csm"), tmp_path, token=HubToken(token))
    assert "sesame/csm-1b is gated" in reason
    assert ("HF_TOKEN has no access" if token else "HF_TOKEN is not set") in reason
    assert "https://huggingface.co/sesame/csm-1b" in remedy
    assert "HF_TOKEN" in remedy
    assert "CSM_MODEL=unsloth/csm-1b" in remedy
    server.tokens.add(TOKEN)
    assert fetch(files_for("csm"), tmp_path, token=HubToken(TOKEN), patience=HURRIED)


@pytest.mark.parametrize("token", ["", TOKEN])
def test_private_or_unknown_repository_is_reported(server: FakeHub, tmp_path: Path, token: str) -> None:
    reason, remedy = refusal(files_for("csm", "nobody/nothing"), tmp_path, token=HubToken(token))
    if token:  # the hub has no account with this token
        assert "does not accept HF_TOKEN, so nobody/nothing" in reason
        assert "https://huggingface.co/settings/tokens" in remedy
    else:
        assert "nobody/nothing is private, gated or does not exist, and HF_TOKEN is not set" in reason
        assert "https://huggingface.co/nobody/nothing" in remedy
    assert "CSM_MODEL=unsloth/csm-1b" in remedy


def test_unknown_repository_is_reported_as_missing(server: FakeHub, tmp_path: Path) -> None:
    server.tokens.add(TOKEN)
    reason, _ = refusal(files_for("dia", "nobody/nothing"), tmp_path, token=HubToken(TOKEN))
    assert "nobody/nothing does not exist" in reason


def test_repository_without_model_files_is_refused(server: FakeHub, tmp_path: Path) -> None:
    server.repos["me/empty"] = {"config.json": b"{}", "README.md": b""}
    reason, remedy = refusal(files_for("csm", "me/empty"), tmp_path)
    assert "model.safetensors" in reason
    assert "CSM_MODEL" in remedy
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_sends_no_request(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert "offline mode is set" in refusal(files_for("csm"), tmp_path)[0]
    assert not server.requests


def test_malformed_token_is_refused(server: FakeHub, tmp_path: Path) -> None:
    assert "HF_TOKEN" in refusal(files_for("csm"), tmp_path, token=HubToken(f"{TOKEN}\r\nX-Other: 1"))[0]
    assert fetch(files_for("csm"), tmp_path, token=HubToken(f"{TOKEN}\n"), patience=HURRIED)
    assert {request.token for request in server.requests} == {TOKEN, ""}


def test_token_appears_in_no_repr_and_no_log(server: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    fetch(files_for("csm"), tmp_path, token=HubToken(TOKEN), patience=HURRIED)
    fetching = download._Download(files_for("csm"), hub.Source(), tmp_path, server.url, HubToken(TOKEN), HURRIED)
    assert TOKEN not in repr(fetching)
    assert TOKEN not in caplog.text


# ---- no network


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Yield the URL of a port that never accepts connections: its full backlog drops further SYNs (Linux)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


def test_unresolvable_host_is_reported(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    reason, remedy = refusal(files_for("csm"), tmp_path)
    assert "cannot reach http://hub.example" in reason
    assert "Name or service not known" in reason
    assert "local folder" in remedy


def test_dns_timeout_is_reported(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def slow(*_: object, **__: object) -> None:
        over.wait(120)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    started = time.monotonic()
    try:
        assert "no answer within 1.5 s" in refusal(files_for("csm"), tmp_path)[0]
    finally:
        over.set()
    assert time.monotonic() - started < PROMPT_S


def test_refused_connection_is_reported(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{TOKEN}@{address}")
    started = time.monotonic()
    patient = Patience(answer_s=90, stall_s=90)
    assert f"cannot reach http://{address}" in refusal(files_for("csm"), tmp_path, patience=patient)[0]
    assert time.monotonic() - started < PROMPT_S


def test_unreachable_host_is_reported(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, black_hole: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", black_hole)
    started = time.monotonic()
    assert f"cannot reach {black_hole}" in refusal(files_for("csm"), tmp_path)[0]
    assert time.monotonic() - started < PROMPT_S


@pytest.mark.parametrize("how", ["hang", "500", "login"])
def test_server_that_is_not_a_hub_is_reported(server: FakeHub, tmp_path: Path, how: str) -> None:
    server.hang, server.login_page = how == "hang", how == "login"
    server.status = 500 if how == "500" else None
    started = time.monotonic()
    reason, _ = refusal(files_for("csm"), tmp_path)
    assert f"cannot reach {server.url}" in reason
    assert {"hang": "", "500": "status 500", "login": "not come from a Hugging Face hub"}[how] in reason
    assert time.monotonic() - started < PROMPT_S


def test_answer_timeout_is_below_15_seconds() -> None:
    assert Patience().answer_s < 15


def test_failed_requests_are_retried(server: FakeHub, tmp_path: Path) -> None:
    server.failures = 2
    assert fetch(files_for("csm"), tmp_path, patience=HURRIED)


@pytest.mark.parametrize("endpoint", ["not-a-url", "http://[bad", "ftp://x"])
def test_invalid_endpoint_is_refused(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert "cannot reach" in refusal(files_for("csm"), tmp_path)[0]


# ---- disk


def test_lack_of_disk_space_is_reported_before_the_download(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 * MB, 5 * MB, 5 * MB))
    reason, remedy = refusal(files_for("csm"), tmp_path)
    assert f"{TOTAL * 1.05 / MB:.2f} MB" in reason
    assert "5.00 MB" in reason
    assert str(tmp_path) in reason
    assert "CSM_MODEL" in remedy
    assert not server.downloads()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_full_disk_is_reported(server: FakeHub, tmp_path: Path) -> None:
    from tests.support.fake_hub import etag

    name = "transformers-00002-of-00002.safetensors"
    part = tmp_path / "hub" / "models--sesame--csm-1b" / "blobs" / f"{etag(name, CSM[name])}.incomplete"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    reason, remedy = refusal(files_for("csm"), tmp_path)
    assert "is full" in reason
    assert str(tmp_path) in reason
    assert "kept" in remedy


def test_unwritable_folder_is_reported(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reason, remedy = refusal(files_for("csm"), tmp_path / "file" / "models")
    assert "cannot write to" in reason
    assert "permission to write" in remedy
    if os.geteuid() != 0:  # the user root may write in each folder
        (tmp_path / "locked").mkdir(mode=0o555)
        assert "cannot write to" in refusal(files_for("csm"), tmp_path / "locked")[0]


def test_download_module_imports_neither_huggingface_hub_nor_torch() -> None:
    heavy = ("huggingface_hub", "httpx2", "torch")
    code = f"import sys, app.weights.download; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
