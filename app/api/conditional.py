"""Conditional requests (RFC 9110): ETag, If-None-Match and If-Match.

With these headers, two people who change the same object do not overwrite each other's change.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from app.errors import PreconditionFailed

if TYPE_CHECKING:
    from pydantic import BaseModel

_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def etag_of(body: BaseModel) -> str:
    """Return the ETag of a JSON body. Equal bodies have equal ETags."""
    return f'"{hashlib.sha256(body.model_dump_json().encode()).hexdigest()[:32]}"'


def not_modified(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client already has the body with this ETag. if_none_match: the header of the request; None =
    not sent.
    """
    return if_none_match is not None and _names(if_none_match, etag, weak=True)


def check_if_match(if_match: str | None, etag: str) -> None:
    """Check that the client knows the current state of an object. Raises PreconditionFailed.

    if_match: the header of the request; None = the header was not sent, so nothing is checked.
    """
    if if_match is not None and not _names(if_match, etag, weak=False):
        raise PreconditionFailed(
            "The object has changed since you read it, so nothing was stored. Get the object again, repeat your "
            "change, and send its new ETag in the header `If-Match`."
        )


def _names(header: str, etag: str, *, weak: bool) -> bool:
    """Return whether a header names this ETag: in a list of ETags, or as `*`, which means every ETag.

    weak: whether a weak ETag in the list, such as W/"1", counts, too.
    """
    if header.strip() == "*":
        return True
    return any(tag == etag and (weak or not prefix) for prefix, tag in _TAG.findall(header))
