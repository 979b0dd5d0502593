"""Voices of adapters have a group of their own on the Speak page and on the Voices page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.live import Process
from tests.support.random_adapter import write_adapter
from tests.support.studio import SHORT, pick_voice, speak, wait_audible, wait_voices

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect


def test_voice_of_an_adapter_is_listed_and_speaks(tmp_path: Path, tiny_csm: Path, visit: Callable[..., object]) -> None:
    folder = write_adapter(tmp_path / "adapter", 3)
    variables = {"CSM_MODEL": str(tiny_csm), "TTS_DTYPE": "float32", "TTS_ADAPTERS": f"danish={folder}"}
    with Process(
        tmp_path / "data", TTS_ENGINE="csm", TTS_CASTING="off", TTS_FALLBACK_ENGINE="", **variables
    ) as process:
        process.wait("/ready")
        page = visit(process.url).page  # type: ignore[attr-defined]
        wait_voices(page)
        pick_voice(page, "Voice", "danish")
        speak(page, SHORT)
        wait_audible(page)
        page.goto(f"{process.url}/voice-cloning")
        page.get_by_role("heading", name="Voices of adapters").wait_for()
        page.goto(f"{process.url}/server")
        page.get_by_role("rowheader", name="csm-1b:danish").wait_for()
        expect(page.get_by_role("button", name="Unload")).to_have_count(0)  # an adapter is no model of its own
