"""Sign files of synthetic speech with C2PA (Content Credentials), and read such signatures.

The manifest says that this server has created the file, and names IPTC's source type, such as
`trainedAlgorithmicMedia`. The operator's certificate signs the manifest. The extra `c2pa` installs the library for
this. Files of any origin are read in a child process (`signing_reader.py`). This module does not depend on HTTP.
"""

from __future__ import annotations

import importlib.util
import io
import json
import secrets
import struct
import subprocess  # nosec B404
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app import __version__
from app.audio.formats import wav_header
from app.audio.helper_process import child_environment, root
from app.audio.provenance import Provenance, now_s, time_text
from app.errors import NotStored, SpeechError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Formats that can be signed. Ogg and ADTS AAC have no place for a manifest. In FLAC, the manifest would be in an ID3
# tag before the marker of FLAC, and some players refuse such a file.
SIGNED_FORMATS: Mapping[str, str] = {"wav": "audio/wav", "mp3": "audio/mpeg", "m4a": "audio/mp4", "m4b": "audio/mp4"}
HOW_TO_INSTALL = "Install it with: pip install 'c2pa-python==0.38.1' (MIT or Apache licence)."
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_READ_S = 10.0  # the longest time for reading a manifest
# The library makes no request to the network, and uses no list of trusted issuers.
SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": False}}
_MARKER = b"c2pa"  # these bytes are in every file with a manifest
_CHECK_SAMPLES = 2_400

Found = dict[str, Any]


def missing() -> str | None:
    """Return why nothing can be signed or read; None if the library is installed."""
    if importlib.util.find_spec("c2pa") is None:
        return f"The C2PA library (extra `c2pa`) is not installed. {HOW_TO_INSTALL}"
    return None


class _SignedFile(io.FileIO):
    """A file that stores the error of a failed write in `error`, because the C2PA library does not report it."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            left = memoryview(data)
            while left:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
            raise
        return len(data)


class FileSigner:
    """Signs files with one certificate. Thread-safe."""

    def __init__(self, cert: Path, key: Path) -> None:
        """cert: a PEM file with the certificate and its chain. key: a PEM file with the private key.

        Signs a short file and verifies its signature. So a certificate that C2PA does not accept is found at once.
        Raises ValueError with the reason if the certificate and the key can't sign.
        """
        if (reason := missing()) is not None:
            raise ValueError(f"TTS_C2PA_CERT is set. {reason}")
        chain, private, self._algorithm = _read_pair(cert, key)
        self._chain, self._key = chain, private
        self._check()

    def sign(self, path: Path, audio_format: str, provenance: Provenance) -> None:
        """Sign a complete file. The signed copy replaces the file when the copy is complete. Blocks.

        audio_format: a key of SIGNED_FORMATS. Raises NotStored if the disk is full, and SpeechError if signing fails
        for any other reason.
        """
        import c2pa  # noqa: PLC0415 - an extra

        media_type = SIGNED_FORMATS[audio_format]
        signed = path.with_name(f".signing-{secrets.token_hex(8)}")
        target = None
        try:
            if media_type == "audio/wav":
                _complete_wav_header(path)
            info = c2pa.C2paSignerInfo(self._algorithm, self._chain, self._key, None)
            with (
                path.open("rb") as source,
                _SignedFile(signed, "x+") as target,
                c2pa.Context(c2pa.Settings.from_dict(SETTINGS)) as context,
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder(_manifest(provenance), context=context) as builder,
            ):
                builder.sign(signer, media_type, source, target)
            signed.chmod(path.stat().st_mode & 0o777)
            signed.replace(path)
        except (c2pa.C2paError, OSError) as error:
            if target is not None and target.error is not None:
                raise NotStored(
                    f"The signed file can't be written: {target.error.strerror}. Free some space."
                ) from error
            raise SpeechError(
                f"The file can't be signed ({error}). Check TTS_C2PA_CERT: certificates expire."
            ) from error
        finally:
            signed.unlink(missing_ok=True)

    def _check(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "check.wav"
            path.write_bytes(wav_header(24_000) + bytes(2 * _CHECK_SAMPLES))
            try:
                self.sign(path, "wav", Provenance("check", (), now_s()))
            except SpeechError as error:
                raise ValueError(f"TTS_C2PA_CERT can't sign: {error.message}") from error
            found = read_manifest(path.read_bytes())
        if found is None or found["state"] != "valid":
            problems = "" if found is None else "; ".join(found["problems"])
            raise ValueError(
                f"TTS_C2PA_CERT: C2PA does not accept this certificate ({problems}). It needs a leaf certificate that "
                "is not self-signed, with keyUsage digitalSignature and extendedKeyUsage emailProtection, and its "
                "chain."
            )


def _read_pair(cert: Path, key: Path) -> tuple[bytes, bytes, str]:
    """Return the chain (PEM), the key (PEM, PKCS #8) and the name of the algorithm. Raises ValueError."""
    from cryptography import x509  # noqa: PLC0415 - comes with the extra
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    form = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.Encoding.DER
    try:
        chain = cert.read_bytes()
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except OSError as error:
        raise ValueError(f"TTS_C2PA_CERT: {cert} can't be read ({error.strerror}).") from error
    except ValueError as error:
        raise ValueError(f"TTS_C2PA_CERT: {cert} has no certificate in PEM.") from error
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ValueError(f"TTS_C2PA_KEY: {key} can't be read ({error.strerror}).") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: the key has a passphrase
        raise ValueError(f"TTS_C2PA_KEY: {key} has no private key in PEM without a passphrase.") from error
    own, certified = private.public_key(), leaf.public_key()
    if own.public_bytes(form[1], form[0]) != certified.public_bytes(form[1], form[0]):
        raise ValueError(
            f"TTS_C2PA_KEY: {key} does not belong to the first certificate in {cert}. The first certificate of the "
            "chain must be the certificate of the key."
        )
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise ValueError(
            f"TTS_C2PA_CERT: {cert} is not valid now. It is valid from {leaf.not_valid_before_utc:%Y-%m-%d} to "
            f"{leaf.not_valid_after_utc:%Y-%m-%d}. Use a valid certificate."
        )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return chain, pem, _algorithm_of(private)


def _algorithm_of(key: object) -> str:
    """Return C2PA's name of the signature algorithm of a private key. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    if isinstance(key, ec.EllipticCurvePrivateKey):
        name = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}.get(key.curve.name)
        if name is not None:
            return name
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise ValueError(
        "TTS_C2PA_KEY: C2PA accepts keys of P-256, P-384, P-521, Ed25519, and RSA with at least 2048 bits."
    )


def _manifest(provenance: Provenance) -> Found:
    generator = {"name": "tts-server", "version": __version__}
    action = {
        "action": "c2pa.created",
        "digitalSourceType": _SOURCE_TYPES + provenance.source_type,
        "softwareAgent": generator,
        "when": time_text(now_s() if provenance.created_s is None else provenance.created_s),
        "parameters": {"description": provenance.comment},
    }
    return {
        "claim_generator_info": [generator],
        "title": "Synthetic speech",
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def _complete_wav_header(path: Path) -> None:
    """Write the real sizes into the header of a WAV file whose two size fields contain 0xFFFFFFFF."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        head = file.read(4_096)
        at = head.find(b"data\xff\xff\xff\xff")
        if head[4:8] != b"\xff\xff\xff\xff" or at < 0 or size > 0xFFFFFFFF:
            return
        file.seek(4)
        file.write(struct.pack("<I", size - 8))
        file.seek(at + 4)
        file.write(struct.pack("<I", size - at - 8))


# ---- reading


def read_manifest(data: bytes) -> Found | None:
    """Read and verify the C2PA manifest of a file of any origin; None if it has no manifest. Blocks. Never raises.

    Returns {"state": "valid" | "invalid" | "not_checked", "issuer", "signer", "generator", "synthetic", "problems"}.
    `synthetic`: whether the manifest says that the file was created by an algorithm. "valid" means that the file was
    not changed since it was signed; the signer is not compared with a list of trusted issuers.
    """
    media_type = _media_type_of(data)
    if media_type is None or _MARKER not in data:
        return None
    if (reason := missing()) is not None:
        return _unread(reason)
    command = [sys.executable, "-m", "app.audio.signing_reader", media_type]
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            done = subprocess.run(  # noqa: S603 - starts this package's own module # nosec B603
                command,
                stdin=file,
                capture_output=True,
                timeout=_READ_S,
                check=True,
                cwd=root(),
                env=child_environment(),
            )
        found: Found | None = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return _unread("The C2PA manifest of this file can't be read.")
    return found


def _unread(reason: str) -> Found:
    return {
        "state": "not_checked",
        "issuer": None,
        "signer": None,
        "generator": None,
        "synthetic": False,
        "problems": [reason],
    }


def _media_type_of(data: bytes) -> Literal["audio/wav", "audio/flac", "audio/mp4", "audio/mpeg"] | None:
    """Find the media type of a file from its first bytes. Returns None if such a file can't have a manifest."""
    if data[:4] == b"RIFF":
        return "audio/wav"
    if data[4:8] == b"ftyp":
        return "audio/mp4"
    if data[:3] == b"ID3":
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte & 127
        return "audio/flac" if data[10 + size : 14 + size] == b"fLaC" else "audio/mpeg"
    return "audio/mpeg" if data[:1] == b"\xff" else "audio/flac" if data[:4] == b"fLaC" else None
