"""Make EPUB files for tests: whole books, and broken or hostile ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

XHTML = (
    '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">'
    "<head><title>Page</title></head><body>{}</body></html>"
)
CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
METADATA = "<dc:title>The Lamp Keeper</dc:title><dc:creator>Ada Example</dc:creator><dc:language>en-GB</dc:language>"
OPF = (
    '<package xmlns="http://www.idpf.org/2007/opf" version="{version}">'
    '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:opf="http://www.idpf.org/2007/opf">{metadata}</metadata>'
    "<manifest>{manifest}</manifest><spine>{spine}</spine><guide>{guide}</guide></package>"
)


def page(body: str) -> str:
    """Return an XHTML document."""
    return XHTML.format(body)


def epub(
    documents: Mapping[str, str | bytes],
    *,
    version: str = "3.0",
    metadata: str = METADATA,
    properties: Mapping[str, str] | None = None,
    not_linear: Sequence[str] = (),
    outside_spine: Mapping[str, str | bytes] | None = None,
    guide: str = "",
    opf: str | None = None,
    more: Mapping[str, str | bytes] | None = None,
) -> bytes:
    """Return an EPUB.

    documents: the documents of the spine by name, with their whole content. properties: of documents, for example
    {"nav.xhtml": "nav"}. outside_spine: other entries of the manifest by name. opf: replaces the package document.
    more: further files of the archive by path.
    """
    kinds = {
        "xhtml": "application/xhtml+xml",
        "ncx": "application/x-dtbncx+xml",
        "jpg": "image/jpeg",
        "png": "image/png",
    }
    names = [*documents, *(outside_spine or {})]
    manifest = "".join(
        f'<item id="{name}" href="{name}" media-type="{kinds.get(name.rpartition(".")[2], "text/plain")}" '
        f'properties="{(properties or {}).get(name, "")}"/>'
        for name in names
    )
    linear = {True: "no", False: "yes"}
    spine = "".join(f'<itemref idref="{name}" linear="{linear[name in not_linear]}"/>' for name in documents)
    written = opf or OPF.format(version=version, metadata=metadata, manifest=manifest, spine=spine, guide=guide)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OEBPS/book.opf", written)
        for name, content in {**documents, **(outside_spine or {})}.items():
            archive.writestr(f"OEBPS/{name}", content)
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return data.getvalue()
