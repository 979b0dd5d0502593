"""Cloning from a URL in test servers, with the real yt-dlp.

The rules of the tests allow this machine instead of YouTube.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from app import wiring
from app.main import main
from app.voices.youtube import FetchLimits, YouTube
from tests.support.live import serving
from tests.unit.test_youtube import TEST_RULES, Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def showing(sound: bytes | None = None) -> Iterator[Site]:
    """Run a fake video site whose `/sound.mp3` is this audio or, by default, a file of tones."""
    site = Site()
    if sound is not None:
        site.sound = sound
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()


def importer() -> YouTube:
    """Return an importer that accepts URLs of this machine."""
    return YouTube(rules=TEST_RULES, limits=FetchLimits(wall_s=20.0))


@contextmanager
def fetching(data_dir: Path) -> Iterator[str]:
    """Run a server that accepts URLs of this machine; yield its base URL.

    Servers that start later do not accept such URLs.
    """
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wiring, "YouTube", importer)
            url = stack.enter_context(serving(data_dir))
        yield url


if __name__ == "__main__":  # runs the server in a separate process, for tests that end it with a signal
    wiring.YouTube = importer  # type: ignore[misc, assignment]
    main()
