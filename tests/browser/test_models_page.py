"""The studio of a server with several models: which one speaks, and how it is loaded and unloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.live import Process
from tests.support.studio import SHORT, speak, wait_audible, wait_state

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect


def test_model_is_loaded_by_its_first_request_and_unloaded_by_a_button(
    tmp_path: Path, tiny_csm: Path, visit: Callable[..., object]
) -> None:
    variables = {"TTS_MODELS": "espeak,csm-1b", "CSM_MODEL": str(tiny_csm), "TTS_DTYPE": "float32", "TTS_MAX_ROWS": "2"}
    with Process(tmp_path, TTS_ENGINE="espeak", TTS_CASTING="off", **variables) as process:
        process.wait("/ready")
        page = visit(process.url).page  # type: ignore[attr-defined]
        option = page.locator('#model option[value="csm-1b"]')
        expect(option).to_have_text("csm-1b (loads on use)")
        assert option.get_attribute("aria-disabled") is None
        page.get_by_label("Engine", exact=True).select_option("csm-1b")
        speak(page, SHORT)
        wait_audible(page)
        wait_state(page, "done")
        page.get_by_text("Sampling, seed, format").click()
        style = page.get_by_label("Style")
        style.select_option(label="Steady")
        usual = httpx.get(f"{process.url}/v1/models/csm-1b").json()["defaults"]["temperature"]
        temperature = page.get_by_label("Temperature")
        assert float(temperature.input_value()) == pytest.approx(0.75 * usual, abs=0.026)  # in steps of 0.05
        temperature.fill("1.35")
        temperature.press("Tab")
        expect(style.locator("option:checked")).to_have_text("Own temperature")
        with page.expect_request("**/v1/audio/speech") as asking:
            speak(page, SHORT)
        assert asking.value.post_data_json["temperature"] == 1.35
        page.get_by_label("Engine", exact=True).select_option("espeak")
        expect(style).to_be_hidden()  # this engine has no temperature
        page.goto(f"{process.url}/server")
        row = page.locator("tr", has=page.get_by_role("rowheader", name="csm-1b"))
        expect(row.locator(".badge")).to_have_text("ready")
        expect(row).to_contain_text("GB")
        row.get_by_role("button", name="Unload").click()
        expect(row.locator(".badge")).to_have_text("loads on use")
        row.get_by_role("button", name="Load", exact=True).click()
        expect(row.locator(".badge")).to_have_text("ready")
