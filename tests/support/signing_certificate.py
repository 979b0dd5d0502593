"""Makes a certificate authority and a certificate that signs files with C2PA, with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

_LEAF = """basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=emailProtection
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


class SigningPair(NamedTuple):
    """The paths of a chain and of its key."""

    cert: Path
    key: Path

    @property
    def variables(self) -> dict[str, str]:
        """Return the settings that make a server use this pair."""
        return {"TTS_C2PA_CERT": str(self.cert), "TTS_C2PA_KEY": str(self.key)}


def create_pair(folder: Path, name: str = "signer", *, algorithm: tuple[str, ...] = ("EC", "P-256")) -> SigningPair:
    """Create a chain in `{name}.pem` and its key in `{name}.key`. algorithm: EC and its curve, or ED25519."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)

    kind, *curve = algorithm
    options = [option for each in curve for option in ("-pkeyopt", f"ec_paramgen_curve:{each}")]
    authority, leaf = folder / f"{name}-ca.pem", folder / f"{name}-leaf.pem"
    pair = SigningPair(folder / f"{name}.pem", folder / f"{name}.key")
    openssl("genpkey", "-algorithm", kind, *options, "-out", f"{name}-ca.key")
    subject = ("-subj", "/O=Test/CN=Test authority")
    usage = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", "-new", "-key", f"{name}-ca.key", *subject, *usage, "-days", "2", "-out", authority)
    openssl("genpkey", "-algorithm", kind, *options, "-out", pair.key)
    openssl("req", "-new", "-key", pair.key, "-subj", "/O=Test operator/CN=Test signer", "-out", f"{name}.csr")
    (folder / f"{name}.ext").write_text(_LEAF)
    issuer = ("-CA", authority, "-CAkey", f"{name}-ca.key", "-CAcreateserial")
    openssl("x509", "-req", "-in", f"{name}.csr", *issuer, "-days", "2", "-extfile", f"{name}.ext", "-out", leaf)
    pair.cert.write_bytes(leaf.read_bytes() + authority.read_bytes())
    return pair
