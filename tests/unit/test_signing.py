"""C2PA: files are signed with the operator's certificate, and C2PA's own reader verifies them."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.audio import signing
from app.audio.decode import decode
from app.audio.encoders import open_encoder
from app.audio.provenance import Provenance, parse
from app.audio.signing import SIGNED_FORMATS, FileSigner, read_manifest
from app.errors import SpeechError
from tests.support.live import create_certificate
from tests.support.signing_certificate import SigningPair, create_pair

pytestmark = pytest.mark.unit
c2pa = pytest.importorskip("c2pa", reason="the extra `c2pa` is not installed")

RATE_HZ = 24_000
SOUND = (0.1 * np.sin(np.arange(RATE_HZ) / 20)).astype(np.float32)
MADE = Provenance("csm-1b", ("alloy",), 1_795_910_400)
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> SigningPair:
    return create_pair(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def signer(pair: SigningPair) -> FileSigner:
    return FileSigner(pair.cert, pair.key)


def written(path: Path, audio_format: str) -> Path:
    encoder = open_encoder(audio_format, RATE_HZ, comment=MADE.comment)
    path.write_bytes(encoder.encode(SOUND) + encoder.flush())
    return path


@pytest.mark.parametrize("audio_format", ["wav", "mp3", "m4a"])
def test_signed_file_is_verified_by_the_reader_of_c2pa(signer: FileSigner, tmp_path: Path, audio_format: str) -> None:
    path = written(tmp_path / f"speech.{audio_format}", audio_format)
    before = decode(path.read_bytes(), RATE_HZ, max_seconds=5)
    signer.sign(path, audio_format, MADE)
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Valid"
        (manifest,) = json.loads(reader.json())["manifests"].values()
    (actions,) = (each["data"]["actions"] for each in manifest["assertions"] if "actions" in each["label"])
    assert (actions[0]["action"], actions[0]["digitalSourceType"]) == ("c2pa.created", IPTC + "trainedAlgorithmicMedia")
    assert actions[0]["when"] == "2026-11-29T00:00:00Z"
    after = decode(path.read_bytes(), RATE_HZ, max_seconds=5)
    assert parse(after.comment) == MADE
    np.testing.assert_array_equal(after.samples, before.samples)
    assert list(tmp_path.iterdir()) == [path]
    found = read_manifest(path.read_bytes())
    assert found == {
        "state": "valid",
        "issuer": "Test operator",
        "signer": "Test signer",
        "generator": "tts-server 0.1.0",
        "synthetic": True,
        "problems": [],
    }


def test_signed_wav_stream_has_real_sizes(signer: FileSigner, tmp_path: Path) -> None:
    path = written(tmp_path / "speech.wav", "wav")
    signer.sign(path, "wav", MADE)
    with wave.open(str(path)) as reader:
        assert reader.getnframes() == len(SOUND)


def test_file_that_is_gone_can_not_be_signed_and_nothing_stays(signer: FileSigner, tmp_path: Path) -> None:
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SpeechError, match="can't be signed"):
        signer.sign(tmp_path / "gone.wav", "wav", MADE)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("audio_format", ["wav", "mp3", "m4a"])
def test_changed_file_is_invalid(signer: FileSigner, tmp_path: Path, audio_format: str) -> None:
    path = written(tmp_path / f"speech.{audio_format}", audio_format)
    signer.sign(path, audio_format, MADE)
    data = bytearray(path.read_bytes())
    data[
        len(data) * 2 // 3 if audio_format == "mp3" else data.index(b"data" if audio_format == "wav" else b"mdat") + 99
    ] ^= 1
    found = read_manifest(bytes(data))
    assert found is not None
    assert found["state"] == "invalid"
    assert "mismatch" in found["problems"][0] or "hash" in found["problems"][0].lower()


def test_files_without_a_manifest_have_none(tmp_path: Path) -> None:
    for audio_format in ("wav", "mp3", "m4a", "flac", "ogg", "pcm"):
        assert read_manifest(written(tmp_path / "x", audio_format).read_bytes()) is None
    assert read_manifest(b"") is None
    assert read_manifest(written(tmp_path / "x", "wav").read_bytes() + b"c2pa") is None


@pytest.mark.parametrize("data", [b"RIFF\x04\0\0\0WAVEc2pa", b"ID3\x04\0\0\x7f\x7f\x7f\x7fc2pa", b"\0\0\0\x1cftypc2pa"])
def test_damaged_files_are_no_crash(data: bytes) -> None:
    found = read_manifest(data)
    assert found is None or found["state"] in ("invalid", "not_checked")


@pytest.mark.parametrize("algorithm", [("EC", "P-384"), ("ED25519",)])
def test_other_algorithms_sign(tmp_path: Path, algorithm: tuple[str, ...]) -> None:
    pair = create_pair(tmp_path, algorithm=algorithm)
    FileSigner(pair.cert, pair.key)  # it verifies a signed file


def test_wrong_certificates_are_refused_with_the_reason(pair: SigningPair, tmp_path: Path) -> None:
    other = create_pair(tmp_path / "other")
    self_signed = create_certificate(tmp_path)
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    locked = tmp_path / "locked.key"
    signing.subprocess.run(
        ["openssl", "pkey", "-in", pair.key, "-aes256", "-passout", "pass:x", "-out", locked], check=True
    )
    cases: list[tuple[Any, Any, str]] = [
        (tmp_path / "none.pem", pair.key, "TTS_C2PA_CERT: .*can't be read"),
        (text, pair.key, "TTS_C2PA_CERT: .*no certificate"),
        (pair.cert, tmp_path / "none.key", "TTS_C2PA_KEY: .*can't be read"),
        (pair.cert, text, "TTS_C2PA_KEY: .*no private key"),
        (pair.cert, locked, "TTS_C2PA_KEY: .*passphrase"),
        (pair.cert, other.key, "does not belong"),
        (self_signed.cert, self_signed.key, "TTS_C2PA_CERT"),
    ]
    for cert, key, reason in cases:
        with pytest.raises(ValueError, match=reason):
            FileSigner(cert, key)


def test_missing_library_is_an_error_that_says_what_to_install(
    pair: SigningPair, signer: FileSigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "speech.wav", "wav")
    signer.sign(path, "wav", MADE)
    monkeypatch.setattr(signing.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install 'c2pa-python"):
        FileSigner(pair.cert, pair.key)
    found = read_manifest(path.read_bytes())
    assert found is not None
    assert (found["state"], found["synthetic"]) == ("not_checked", False)


def test_only_formats_with_a_place_for_a_manifest_are_signed() -> None:
    assert set(SIGNED_FORMATS) == {"wav", "mp3", "m4a", "m4b"}
    supported = c2pa.Builder.get_supported_mime_types()
    assert set(SIGNED_FORMATS.values()) <= set(supported)
    assert "audio/ogg" not in supported
