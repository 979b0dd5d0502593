"""TLS of the server's own port: reads the certificate and its key, and reads them again when their files change.

`TTS_TLS_CERT` and `TTS_TLS_KEY` name the files. At each TLS handshake, the server compares the state of both files with
the state at the last reading. So a renewed certificate is used from the next connection on, without a restart. Open
connections keep their certificate.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_MISMATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")
_FileState = tuple[int, int, int]


def read_pair(cert: Path, key: Path) -> ssl.SSLContext:
    """Read a certificate with its chain, and its private key. Raises ValueError with the reason and the remedy.

    cert, key: paths of PEM files; the same path if one file contains both.
    """
    for variable, path, content in (("TTS_TLS_CERT", cert, "certificate"), ("TTS_TLS_KEY", key, "private key")):
        try:
            data = path.read_bytes()
        except OSError as error:
            remedy = "Correct the path, or let the user of the server read the file."
            raise ValueError(f"{variable}={path} can't be read: {error.strerror}. {remedy}") from None
        if b"-----BEGIN" not in data or content.upper().encode() + b"-----" not in data:
            raise ValueError(f"{variable}={path} contains no {content} in PEM format. Convert the file with openssl.")
        if content == "private key" and b"ENCRYPTED" in data:
            remedy = f"Remove the passphrase: openssl pkey -in {path} -out new-key.pem"
            raise ValueError(f"{variable}={path} has a passphrase, which the server can't enter. {remedy}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, lambda: b"")
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            reason = f"TTS_TLS_KEY={key} is not the key of the first certificate in TTS_TLS_CERT={cert}."
            raise ValueError(
                f"{reason} Set two files that belong together. The server's own certificate must come first."
            ) from None
        reason = f"TTS_TLS_CERT={cert} and TTS_TLS_KEY={key} can't be used: {error}."
        raise ValueError(f"{reason} Create the pair again, or check it with openssl x509 and openssl pkey.") from None
    except OSError as error:  # a file was removed after it was read above
        raise ValueError(f"TTS_TLS_CERT={cert} and TTS_TLS_KEY={key} can't be read: {error.strerror}.") from None
    return context


def server_context(cert: Path, key: Path, *_: Any) -> ssl.SSLContext:
    """Return the TLS context of the server, which always uses the newest content of both files. Raises ValueError.

    uvicorn calls its `ssl_context_factory` with further arguments, which are not needed here.
    """
    pair = _Pair(cert, key)
    context = pair.newest()

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = pair.newest()

    context.sni_callback = choose  # OpenSSL also calls this function for clients that send no host name
    return context


class _Pair:
    """The certificate and key that new connections use."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._paths = (cert, key)
        self._state = self._read_state()
        self._context = read_pair(cert, key)

    def newest(self) -> ssl.SSLContext:
        """Return a TLS context with the certificate and key in the files.

        If the files have changed and can't be used, log the reason once, and return the old context.
        """
        state = self._read_state()
        if state != self._state:
            self._state = state
            try:
                self._context = read_pair(*self._paths)
            except ValueError as error:
                log.warning("the changed TLS certificate can't be used, so the old one stays in use. %s", error)
            else:
                log.info("new connections use the changed TLS certificate %s", self._paths[0])
        return self._context

    def _read_state(self) -> list[_FileState | None]:
        """Return modification time, size and inode of each file; None = the file can't be read."""
        states: list[_FileState | None] = []
        for path in self._paths:
            try:
                state = path.stat()
            except OSError:
                states.append(None)
            else:
                states.append((state.st_mtime_ns, state.st_size, state.st_ino))
        return states
