"""`POST /v1/audio/normalize` and `python -m app.cli normalize` show the text that would be spoken."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.commands import run_command
from tests.support.live import environment

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.integration


def normalized(http: httpx.Client, prefix: str = "/v1", **body: Any) -> dict[str, Any]:
    answer = http.post(f"{prefix}/audio/normalize", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
def test_sentences_and_words_have_positions_in_the_input(http: httpx.Client, prefix: str) -> None:
    text = "# Menu\n\nTea **costs** $12.50 today. We think that it is worth it!"
    found = normalized(http, prefix, input=text)
    assert found["pieces"] == [
        {"text": "Menu", "spoken": "Menu.", "start_char": 2, "end_char": 6},
        {
            "text": "Tea **costs** $12.50 today.",
            "spoken": "Tea costs twelve dollars and fifty cents today.",
            "start_char": 8,
            "end_char": 35,
        },
        {
            "text": "We think that it is worth it!",
            "spoken": "We think that it is worth it!",
            "start_char": 36,
            "end_char": 65,
        },
    ]
    words = [(word["word"], text[word["start_char"] : word["end_char"]]) for word in found["words"]]
    assert words[:9] == [
        ("Menu.", "Menu"),
        ("Tea", "Tea"),
        ("costs", "costs"),
        *((word, "$12.50") for word in ("twelve", "dollars", "and", "fifty", "cents")),
        ("today.", "today."),
    ]


@pytest.mark.parametrize("text", ["---", "<br>", "(laughs)", "[pause:1s]", "<think>Hm.</think>", "[S2]"])
def test_silent_text_has_no_sentences(http: httpx.Client, text: str) -> None:
    assert normalized(http, input=text) == {"pieces": [], "words": []}


def test_result_depends_on_the_sounds_and_limits_of_the_engine(http: httpx.Client) -> None:
    text = "Well [laughs] okay."
    assert normalized(http, input=text, engine="espeak")["pieces"][0]["spoken"] == "Well okay."
    assert normalized(http, input=text, engine="dia")["pieces"][0]["spoken"] == "Well (laughs) okay."
    assert normalized(http, input=text, engine="Dia-1.6B")["pieces"][0]["spoken"] == "Well (laughs) okay."
    long = "word " * 70
    assert len(normalized(http, input=long)["pieces"]) == 1
    assert len(normalized(http, input=long, engine="dia")["pieces"]) == 2


def test_language_determines_how_numbers_are_read(http: httpx.Client) -> None:
    assert normalized(http, input="**12** Bananen", language="de")["pieces"][0]["spoken"] == "12 Bananen"
    assert normalized(http, input="**12** bananas")["pieces"][0]["spoken"] == "Twelve bananas"


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"input": "Hi.", "engine": "festival"}, 400, "engine", "unsupported_parameter"),
        ({"input": "Hi.", "voice": "nobody-here"}, 400, "voice", None),
        ({"input": " \n"}, 400, "input", "empty_input"),
        ({}, 400, "input", None),
        ({"input": 5}, 400, "input", None),
        ({"input": "a" * 1_000_001}, 400, "input", "string_too_long"),
        ({"input": "Hi. " + "[pause:10s] a " * 100}, 400, "input", "string_too_long"),
    ],
)
def test_invalid_body_is_an_error_with_a_code(
    http: httpx.Client, body: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    answer = http.post("/v1/audio/normalize", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert code is None or error["code"] == code


def test_null_fields_are_defaults(http: httpx.Client) -> None:
    body = {"input": "Hi there, you.", "language": None, "engine": None, "voice": None}
    assert normalized(http, **body)["pieces"][0]["spoken"] == "Hi there, you."


def test_silent_text_is_answered_with_silence(http: httpx.Client) -> None:
    answer = http.post("/v1/audio/speech", json={"input": "---", "response_format": "pcm", "voice": "alloy"})
    assert answer.status_code == 200
    assert len(answer.content) == pytest.approx(2 * 0.25 * 24_000, abs=4)
    assert not any(answer.content)


def command(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
    return run_command(("normalize", *arguments), folder, environment(folder / "data"), stdin=stdin.encode())


@pytest.mark.parametrize(
    ("arguments", "stdin", "output"),
    [
        (("It costs $5. We paid it all.",), "", "It costs five dollars.\nWe paid it all.\n"),
        (("-",), "At 5 p.m. (laughs)\n", "At five PM.\n"),
        (("--engine", "dia", "Well *sighs* okay."), "", "Well (sighs) okay.\n"),
        (("--language", "de", "12 Bananen"), "", "12 Bananen\n"),
        (("---",), "", ""),
        (("",), "", ""),
        (("-",), "", ""),
    ],
)
def test_command_prints_sentences(tmp_path: Path, arguments: tuple[str, ...], stdin: str, output: str) -> None:
    done = command(tmp_path, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout.decode()) == (0, output), done.stderr


def test_command_refuses_an_unknown_engine(tmp_path: Path) -> None:
    done = command(tmp_path, "--engine", "festival", "Hi.")
    assert done.returncode == 1
    assert b"is not an engine" in done.stderr
    assert done.stdout == b""


def test_lexicon_of_the_request_changes_the_result(http: httpx.Client) -> None:
    entry = {"word": "New York", "say": "Noo Yawk"}
    found = normalized(http, input="In new york.", lexicon=[entry])
    assert found["pieces"] == [{"text": "In new york.", "spoken": "In Noo Yawk.", "start_char": 0, "end_char": 12}]
    assert [(word["word"], word["start_char"]) for word in found["words"]] == [("In", 0), ("Noo", 3), ("Yawk.", 3)]
    wrong = http.post("/v1/audio/normalize", json={"input": "x", "lexicon": [entry, {"word": "a", "say": ""}]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "lexicon.1.say")


def test_unknown_fields_are_named(http: httpx.Client) -> None:
    answer = http.post("/v1/audio/normalize", json={"input": "Hello.", "voice": "alloy", "speed": 2, "langauge": "de"})
    assert answer.status_code == 200
    assert answer.headers["X-TTS-Ignored"] == "langauge, speed"
    known = http.post("/v1/audio/normalize", json={"input": "Hello.", "language": "de", "lexicon": None})
    assert "X-TTS-Ignored" not in known.headers
