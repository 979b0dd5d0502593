"""Tests every field of a speech request on every route that speaks. The field has an effect, or X-TTS-Ignored names it,
or the response is a 400.

Fields and routes are read from the app. A new field or route without a row in the table fails this test.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import httpx
import pytest
from pydantic import BaseModel

from app import wiring
from app.api.requests import PREVIEW_TEXT, SPEAKING_BODIES, SpokenBody
from app.audio.decode import decode
from app.audio.provenance import parse as parse_comment
from app.engines.registry import BUILT_IN, EngineSpec
from tests.support import listening_engine as engine
from tests.support.live import serving
from tests.unit.test_decode import Kind, made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.types import Utterance

pytestmark = pytest.mark.integration

KEYS = ("the-first-key-01", "the-second-key-02")
TEXT = "I have 5 apples. You have none."
SOUND = base64.b64encode(made(Kind("wav", "pcm_s16le", 24_000), 1.0)).decode()

SPEECH, STREAMING, STREAM = "/v1/audio/speech", "/v1/audio/speech/streaming", "/v1/audio/speech/stream"
CONVERSATION, DIALOGUE = "/v1/audio/conversation", "/v1/audio/dialogue"
GENERATE, PREVIEW = "/v1/voice-cloning/generate", "/v1/voice-cloning/voices/{voice_id}/preview"

# For each route, the smallest request body that makes the server speak TEXT.
BODIES: dict[str, dict[str, Any]] = {
    SPEECH: {"input": TEXT},
    STREAMING: {"input": TEXT},
    STREAM: {"input": TEXT},
    CONVERSATION: {"text": TEXT},
    DIALOGUE: {"turns": [{"text": "I have 5 apples."}, {"text": "You have none."}]},
    GENERATE: {"text": TEXT, "voice_id": "nova"},
    PREVIEW: {"text": TEXT},
}
ROUTES = frozenset(BODIES)


@dataclass(frozen=True)
class SpeechResult:
    """One response, and the utterances that the engine got for it."""

    response: httpx.Response
    utterances: tuple[Utterance, ...]

    @property
    def ignored(self) -> list[str]:
        return [name for name in self.response.headers.get("x-tts-ignored", "").split(", ") if name]

    @property
    def seconds(self) -> float:
        """Return the duration of a PCM response at the default rate."""
        return len(self.response.content) / 2 / 24_000

    @property
    def error(self) -> tuple[int, str | None]:
        return self.response.status_code, self.response.json()["error"]["param"]

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = [line.removeprefix("data: ") for line in self.response.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    @property
    def spoken(self) -> str:
        return " ".join(line.text for utterance in self.utterances for line in utterance.lines)

    @property
    def voices(self) -> set[str]:
        return {line.voice.id for utterance in self.utterances for line in utterance.lines}

    @property
    def speakers(self) -> set[int]:
        return {line.speaker for utterance in self.utterances for line in utterance.lines}


@dataclass(frozen=True)
class Server:
    http: httpx.Client

    def ask(self, route: str, *, key: str = KEYS[0], body: dict[str, Any] | None = None, **fields: Any) -> SpeechResult:
        """Send the smallest body of the route with these fields. The cache is off unless a test enables it."""
        engine.spoken.clear()
        whole = {"response_format": "pcm", "cache": False, **(BODIES[route] if body is None else body), **fields}
        answer = self.http.post(route.format(voice_id="nova"), json=whole, headers={"Authorization": f"Bearer {key}"})
        return SpeechResult(answer, tuple(engine.spoken))

    def speak(self, route: str, **fields: Any) -> SpeechResult:
        result = self.ask(route, **fields)
        assert result.response.status_code == 200, result.response.text
        return result


@dataclass(frozen=True)
class Row:
    """The expected effect of a field with an engine that supports it, and with an engine that does not."""

    acts: Callable[[Server, str], None] | None  # checks that the field changes the answers of these routes
    routes: frozenset[str] = ROUTES
    ignored: Any = None  # a value that every other route names in X-TTS-Ignored
    lacking: Literal["refused", "named"] | None = (
        None  # a value for an engine without this parameter is ignored; None = each engine has the parameter
    )
    param: str | None = None  # the name in errors, if it is not the field's name
    value: Any = None  # a value for the engine that lacks the parameter


# ---- how each field acts


def model(server: Server, route: str) -> None:
    assert server.ask(route, model="gpt-5").error == (404, "model")
    assert server.speak(route, model="tts-1").response.headers["x-tts-engine"] == "able"


def voice(server: Server, route: str) -> None:
    assert server.speak(route).voices == {"alloy"}
    assert server.speak(route, voice="echo").voices == {"echo"}
    assert server.ask(route, voice="nobody").error[0] == 400


def voice_by_id(server: Server, route: str) -> None:
    assert server.speak(route, voice={"id": "echo"}).voices == {"echo"}


def response_format(server: Server, route: str) -> None:
    types = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "pcm": "audio/pcm"}
    for name, media_type in types.items():
        assert server.speak(route, response_format=name).response.headers["content-type"].startswith(media_type)
    assert server.speak(route, response_format="wav").response.content.startswith(b"RIFF")


def speed(server: Server, route: str) -> None:
    plain = server.speak(route).seconds
    assert server.speak(route, speed=2.0).seconds == pytest.approx(plain / 2, rel=0.2)


def stream_format(server: Server, route: str) -> None:
    plain = server.speak(route)
    streamed = server.speak(route, stream_format="sse")
    assert streamed.response.headers["content-type"].startswith("text/event-stream")
    sound = b"".join(base64.b64decode(event["audio"]) for event in streamed.events if "audio" in event)
    assert sound == plain.response.content
    assert streamed.events[-1]["type"] == "speech.audio.done"


def progress(server: Server, route: str) -> None:
    def kinds(**fields: Any) -> set[str]:
        result = server.speak(route, stream_format="sse", **fields)
        assert "progress" not in result.ignored
        return {event["type"] for event in result.events}

    assert "speech.progress" in kinds(progress=True)
    assert "speech.progress" not in kinds(progress=False)
    assert server.speak(route, progress=True).ignored == ["progress"]  # without SSE, an answer has no events
    assert server.speak(route, progress=False).ignored == []


def timestamps(server: Server, route: str) -> None:
    plain = server.speak(route)
    timed = server.speak(route, timestamps=True)
    answer = timed.response.json()
    assert timed.response.headers["content-type"] == "application/json"
    assert "timestamps" not in timed.ignored
    assert base64.b64decode(answer["audio"]) == plain.response.content
    assert [sentence["text"] for sentence in answer["sentences"]] == ["I have 5 apples.", "You have none."]
    assert server.speak(route, timestamps=False).response.content == plain.response.content
    streamed = server.speak(route, timestamps=True, stream_format="sse")
    texts = [each["text"] for event in streamed.events for each in event.get("sentences", ())]
    assert texts == ["I have 5 apples.", "You have none."]


def provenance(server: Server, route: str) -> None:
    kept = server.speak(route, provenance=True, response_format="mp3").response.content
    found = parse_comment(decode(kept, 24_000, max_seconds=30).comment)
    assert found is not None
    assert (found.model, found.created_s is not None) == ("able-1", True)
    plain = server.speak(route, response_format="mp3").response.content
    assert plain.startswith(b"\xff")
    assert kept.endswith(plain)


def sampling(name: str, value: float, param: str | None = None) -> Callable[[Server, str], None]:
    def check(server: Server, route: str) -> None:
        for field_value in (None, value):
            result = server.speak(route, **{name: field_value})
            assert {getattr(each.sampling, param or name) for each in result.utterances} == {field_value}

    return check


def seed(server: Server, route: str) -> None:
    plain, again = server.speak(route), server.speak(route)
    assert plain.response.headers["x-tts-seed"] == again.response.headers["x-tts-seed"]
    assert plain.response.content == again.response.content
    result = server.speak(route, seed=7)
    assert result.response.headers["x-tts-seed"] == "7"
    assert result.utterances[0].seed == 7
    drawn = [server.speak(route, seed="random", cache=True) for _ in range(2)]
    assert {each.response.headers["x-cache"] for each in drawn} == {"off"}
    seeds = {each.response.headers["x-tts-seed"] for each in (plain, *drawn)}
    assert len(seeds) == 3
    assert {str(each.utterances[0].seed) for each in drawn} < seeds


def max_audio_length_ms(server: Server, route: str) -> None:
    assert server.speak(route).seconds > 0.5
    assert server.speak(route, max_audio_length_ms=200).seconds == pytest.approx(0.2, abs=0.01)


def sample_rate(server: Server, route: str) -> None:
    plain = len(server.speak(route).response.content)
    assert len(server.speak(route, sample_rate=8000).response.content) == pytest.approx(plain / 3, rel=0.01)
    assert server.ask(route, sample_rate=9000, response_format="mp3").error == (400, "sample_rate")


def language(server: Server, route: str) -> None:
    assert {each.language for each in server.speak(route, language="de").utterances} == {"de"}


def conversation_id(server: Server, route: str) -> None:
    name = f"of {route}"
    first, second = (server.speak(route, conversation_id=name, cache=True) for _ in range(2))
    assert first.utterances[0].context == ()
    assert " ".join(turn.text for turn in second.utterances[0].context) == first.spoken
    assert server.speak(route, conversation_id=name, key=KEYS[1]).utterances[0].context == ()  # another owner's
    assert server.speak(route).utterances[0].context == ()


def cache(server: Server, route: str) -> None:
    seed = 1_000 + sorted(ROUTES).index(route)  # no other test uses this seed, so the answer is not in the cache
    states = [
        server.speak(route, cache=option, seed=seed).response.headers["x-cache"] for option in (None, None, False, True)
    ]
    assert states == ["miss", "hit", "off", "hit"]


def normalize(server: Server, route: str) -> None:
    assert "five" in server.speak(route).spoken
    assert "5" in server.speak(route, normalize=False).spoken


def enhance(server: Server, route: str) -> None:
    plain, off, on = (server.speak(route, enhance=option).response.content for option in (None, False, True))
    assert plain == on != off


def parallel(server: Server, route: str) -> None:
    assert len(server.speak(route).utterances) == 1
    assert len(server.speak(route, parallel=True).utterances) == 2


def verify(server: Server, route: str) -> None:
    plain, checked, unchecked = (server.speak(route, verify=option).response for option in (None, True, False))
    assert plain.headers["x-tts-verified"] == unchecked.headers["x-tts-verified"] == "unchecked"
    assert checked.headers["x-tts-verified"] == ("ok" if checked.headers["x-tts-engine"] == "espeak" else "uncertain")


def best_of(server: Server, route: str) -> None:
    single, several = server.speak(route, best_of=1), server.speak(route, best_of=3)
    assert len(several.utterances) == 3 * len(single.utterances)
    assert len({each.seed for each in several.utterances}) == 3
    assert several.response.headers["x-tts-verified"] == "uncertain"  # the engine generates noise
    for value in (0, 5):
        assert server.ask(route, best_of=value).error == (400, "best_of")


def words(name: str) -> Callable[[Server, str], None]:
    def check(server: Server, route: str) -> None:
        rest = {key: value for key, value in BODIES[route].items() if key not in ("input", "text")}
        assert server.speak(route, body={**rest, name: "Hello there."}).spoken == "Hello there."

    return check


def voice_id(server: Server, route: str) -> None:
    assert server.speak(route, voice_id="echo").voices == {"echo"}
    assert server.ask(route, voice_id="nobody").error == (400, "voice_id")


def speaker_id(server: Server, route: str) -> None:
    assert server.speak(route).speakers == {0}
    assert server.speak(route, speaker_id=7).speakers == {7}


def context_turns(**changes: Any) -> list[dict[str, Any]]:
    return [{"speaker": 1, "text": "How are you?", "audio": SOUND, **changes}]


def context(server: Server, route: str) -> None:
    result = server.speak(route, context=context_turns())
    assert [(turn.speaker, turn.text) for turn in result.utterances[0].context] == [(1, "How are you?")]
    assert result.voices == {"none"}  # the prompt's recordings determine the voice


def context_speaker(server: Server, route: str) -> None:
    assert [turn.speaker for turn in server.speak(route, context=context_turns(speaker=5)).utterances[0].context] == [5]


def context_text(server: Server, route: str) -> None:
    assert [
        turn.text for turn in server.speak(route, context=context_turns(text="And you?")).utterances[0].context
    ] == ["And you?"]


def context_audio(server: Server, route: str) -> None:
    frames = server.speak(route, context=context_turns()).utterances[0].context[0].codes.shape[1]
    assert frames == int(1.0 / engine.ListeningEngine.info.frame_s)
    assert server.ask(route, context=context_turns(audio="AAAA")).error == (400, "context.0.audio")


def turns(server: Server, route: str) -> None:
    result = server.speak(route, turns=[{"text": "One."}, {"text": "Two."}, {"text": "Three."}])
    assert result.spoken == "One. Two. Three."


def turns_text(server: Server, route: str) -> None:
    assert server.speak(route, turns=[{"text": "Well."}]).spoken == "Well."


def turns_voice(server: Server, route: str) -> None:
    dialogue_turns = [{"text": "One.", "voice": "echo"}, {"text": "Two."}, {"text": "Three.", "voice": {"id": "sage"}}]
    assert server.speak(route, turns=dialogue_turns).voices == {"echo", "alloy", "sage"}
    assert server.ask(route, turns=[{"text": "One."}, {"text": "Two.", "voice": "nobody"}]).error == (
        400,
        "turns.1.voice",
    )


def turns_speaker(server: Server, route: str) -> None:
    """Check that a speaker keeps its voice."""
    dialogue_turns = [{"text": "One.", "speaker": "Ann", "voice": "echo"}, {"text": "Two.", "speaker": "Ann"}]
    assert server.speak(route, turns=dialogue_turns).voices == {"echo"}


# ---- the table: a row for every field, `list[].field` inside lists

SAID = frozenset({CONVERSATION})
TURNS = frozenset({DIALOGUE})
ENTRY = {"word": "Apples", "say": "pears"}


def lexicon(**changed: Any) -> Callable[[Server, str], None]:
    """Check that an entry with these fields changes the speech, and that the same entry for the word `nothing` does
    not."""

    def check(server: Server, route: str) -> None:
        assert "pears" in server.speak(route, lexicon=[ENTRY | changed]).spoken
        assert "apples" in server.speak(route, lexicon=[ENTRY | {"word": "nothing"}]).spoken

    return check


def lexicon_case(server: Server, route: str) -> None:
    assert "apples" in server.speak(route, lexicon=[ENTRY | {"case_sensitive": True}]).spoken
    assert "pears" in server.speak(route, lexicon=[ENTRY | {"word": "apples", "case_sensitive": True}]).spoken


def lexicon_ipa(server: Server, route: str) -> None:
    # the engine accepts no IPA
    assert "pears" in server.speak(route, lexicon=[ENTRY | {"ipa": "p\u025b\u0279z"}]).spoken
    only_ipa = [{"word": "nothing", "say": "x"}, {"word": "apples", "ipa": "p\u025b\u0279z"}]
    assert server.ask(route, lexicon=only_ipa).error == (400, "lexicon.1.ipa")


@pytest.mark.parametrize("number", [0, 1, 7, 999])
def test_voice_of_a_numbered_speaker_works_on_every_route(able: Server, number: int) -> None:
    voice = f"speaker:{number}"
    bodies = {
        SPEECH: {"voice": voice}, STREAMING: {"voice": {"id": voice}}, STREAM: {"voice": voice},
        CONVERSATION: {"voice": voice}, DIALOGUE: {"voice": voice}, GENERATE: {"voice_id": voice},
    }  # fmt: skip
    for route, fields in bodies.items():
        result = able.speak(route, **fields)
        assert (result.voices, result.speakers) == ({voice}, {number}), route
        assert not any(line.prompt for utterance in result.utterances for line in utterance.lines)


@pytest.mark.parametrize("voice", ["speaker:", "speaker:-1", "speaker:1000", "speaker:01", "speaker:one", "Speaker 1"])
def test_other_names_are_unknown_voices(able: Server, voice: str) -> None:
    assert able.ask(SPEECH, voice=voice).error == (400, "voice")


def test_engine_without_numbered_speakers_refuses_them(bare: Server) -> None:
    assert bare.ask(SPEECH, voice="speaker:1").error == (400, "voice")


def test_models_show_their_sampling_defaults(able: Server) -> None:
    assert all(isinstance(model["defaults"], dict) for model in able.http.get("/v1/models").json()["data"])


SPEECHES = frozenset({SPEECH, STREAMING, STREAM})
CHOOSING = ROUTES - {GENERATE, PREVIEW}  # the routes whose voice is neither in the path nor in voice_id

ROWS: dict[str, Row] = {
    "model": Row(model),
    "voice": Row(voice, CHOOSING, ignored="echo"),
    "voice.id": Row(voice_by_id, CHOOSING, ignored={"id": "echo"}),
    "instructions": Row(None, frozenset(), ignored="Whisper."),
    "response_format": Row(response_format),
    "speed": Row(speed),
    "stream_format": Row(stream_format),
    "progress": Row(progress),
    "timestamps": Row(timestamps),
    "provenance": Row(provenance),
    "temperature": Row(sampling("temperature", 0.5), lacking="refused", value=0.5),
    "top_k": Row(sampling("top_k", 7), lacking="refused", value=7),
    "topk": Row(sampling("topk", 7, "top_k"), lacking="refused", value=7, param="top_k"),
    "top_p": Row(sampling("top_p", 0.5), lacking="refused", value=0.5),
    "cfg_scale": Row(sampling("cfg_scale", 2.0), lacking="refused", value=2.0),
    "seed": Row(seed),
    "max_audio_length_ms": Row(max_audio_length_ms),
    "sample_rate": Row(sample_rate),
    "language": Row(language),
    "conversation_id": Row(conversation_id, lacking="refused", value="of the test"),
    "cache": Row(cache),
    "normalize": Row(normalize),
    "enhance": Row(enhance),
    "parallel": Row(parallel, lacking="named", value=True),
    "verify": Row(verify),
    "best_of": Row(best_of, lacking="named", value=3),
    "lexicon": Row(lexicon()),
    "lexicon[].word": Row(lexicon(word="apples")),
    "lexicon[].say": Row(lexicon(say="two pears")),
    "lexicon[].case_sensitive": Row(lexicon_case),
    "lexicon[].ipa": Row(lexicon_ipa),
    "input": Row(words("input"), ROUTES - {DIALOGUE}, ignored="Not this."),
    "text": Row(words("text"), ROUTES - {DIALOGUE} - SPEECHES, ignored="Not this."),
    "voice_id": Row(voice_id, frozenset({GENERATE}), ignored="echo"),
    "speaker_id": Row(speaker_id, ROUTES - {DIALOGUE}, ignored=7, lacking="named", value=7),
    "context": Row(context, SAID, ignored=context_turns(), lacking="refused", value=context_turns()),
    "context[].speaker": Row(context_speaker, SAID, ignored=context_turns()),
    "context[].text": Row(context_text, SAID, ignored=context_turns()),
    "context[].audio": Row(context_audio, SAID, ignored=context_turns()),
    "turns": Row(turns, TURNS, ignored=[{"text": "Not this."}]),
    "turns[].text": Row(turns_text, TURNS, ignored=[{"text": "Not this."}]),
    "turns[].speaker": Row(turns_speaker, TURNS, ignored=[{"text": "Not this.", "speaker": 1}]),
    "turns[].voice": Row(turns_voice, TURNS, ignored=[{"text": "Not this.", "voice": "echo"}]),
    "turns[].voice.id": Row(turns_voice, TURNS, ignored=[{"text": "Not this.", "voice": {"id": "echo"}}]),
}

PAIRS = [pytest.param(name, route, id=f"{name}-{route}") for name in ROWS for route in BODIES]


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server whose engine has every parameter."""
    spec = EngineSpec("able", "able-1", "tests.support.listening_engine:build_able")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring.registry, "specs", lambda: {"able": spec, **{spec.name: spec for spec in BUILT_IN}})
        variables = {"TTS_ENGINE": "able", "TTS_FALLBACK_ENGINE": "", "TTS_API_KEYS": ",".join(KEYS)}
        with (
            serving(tmp_path_factory.mktemp("able"), **variables) as url,
            httpx.Client(base_url=url, timeout=120) as http,
        ):
            yield Server(http)


@pytest.fixture(scope="module")
def bare(server: str) -> Iterator[Server]:
    """Start a server with the offline voice, which lacks most parameters."""
    with httpx.Client(base_url=server, timeout=120) as http:
        yield Server(http)


@pytest.fixture(scope="module")
def models(able: Server) -> dict[str, type[SpokenBody]]:
    return models_of(able.http.get("/openapi.json").json())


# ---- tests that the table is complete


OTHERS = (
    "/v1/audio/jobs",  # see tests/integration/test_jobs.py
    "/v1/audio/speech/long",
    "/v1/audio/encode",  # speaks no text
)


def models_of(schema: dict[str, Any]) -> dict[str, type[SpokenBody]]:
    """Return path -> body model of each route that accepts one of SPEAKING_BODIES or returns audio."""
    models = {body.__name__: body for body in SPEAKING_BODIES}
    found = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if method == "get" or path.startswith(OTHERS):
                continue
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            kinds = [content.get("schema", {}), *content.get("schema", {}).get("anyOf", [])]
            names = {kind["$ref"].rpartition("/")[2] for kind in kinds if "$ref" in kind}
            if names & models.keys() or "audio/mpeg" in operation["responses"].get("200", {}).get("content", {}):
                (found[path],) = (models[name] for name in names)
    return found


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return every JSON key of a model and its nested models, such as `turns[].voice.id`."""
    for name, info in model.model_fields.items():
        choices = getattr(info.validation_alias, "choices", [info.validation_alias or name])
        for key in choices:
            yield prefix + key
            yield from inner_fields(info.annotation, prefix + key)


def inner_fields(annotation: Any, path: str) -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from fields_of(annotation, f"{path}.")
    for inner in get_args(annotation):
        yield from inner_fields(inner, f"{path}[]" if getattr(annotation, "__origin__", None) is list else path)


def test_table_has_every_speech_route(models: dict[str, type[SpokenBody]]) -> None:
    assert models.keys() == ROUTES
    assert set(models.values()) == set(SPEAKING_BODIES) == set(SpokenBody.__subclasses__())


def test_table_has_every_field() -> None:
    fields = {name for body in SPEAKING_BODIES for name in fields_of(body)}
    assert fields == ROWS.keys()
    for body in SPEAKING_BODIES:
        assert body.model_fields.keys() >= SpokenBody.model_fields.keys()


def test_table_row_covers_every_route() -> None:
    for name, row in ROWS.items():
        assert row.routes <= ROUTES, name
        assert (row.acts is not None) == bool(row.routes), name
        assert (row.ignored is not None) == (row.routes != ROUTES), name
        assert (row.value is not None) == (row.lacking is not None), name


# ---- tests of each field on each route


@pytest.mark.parametrize(("name", "route"), PAIRS)
def test_field_has_an_effect_or_is_in_the_ignored_header(able: Server, name: str, route: str) -> None:
    row = ROWS[name]
    if route in row.routes:
        assert row.acts is not None
        row.acts(able, route)
        return
    top = name.partition(".")[0].removesuffix("[]")
    plain, with_field = able.speak(route), able.speak(route, **{top: row.ignored})
    assert with_field.ignored == [top]
    assert plain.ignored == []
    assert with_field.response.content == plain.response.content
    assert with_field.utterances == plain.utterances
    assert able.speak(route, **{top: None}).ignored == []  # null means that the field is not set


@pytest.mark.parametrize(("name", "route"), [pair for pair in PAIRS if ROWS[str(pair.values[0])].lacking is not None])
def test_unsupported_field_is_rejected_or_in_the_ignored_header(bare: Server, name: str, route: str) -> None:
    row = ROWS[name]
    if row.lacking == "refused" and route in row.routes:
        assert bare.ask(route, **{name: row.value}).error == (400, row.param or name)
        return
    plain, with_field = bare.speak(route, cache=True), bare.speak(route, cache=True, **{name: row.value})
    assert with_field.ignored == [name]
    assert with_field.response.headers["x-tts-seed"] == plain.response.headers["x-tts-seed"]
    assert with_field.response.headers["x-cache"] == "hit"  # the field does not change the cache key
    assert with_field.response.content == plain.response.content


@pytest.mark.parametrize("route", BODIES)
def test_field_of_a_wrong_type_gives_status_400(able: Server, models: dict[str, type[SpokenBody]], route: str) -> None:
    names = [name for name in fields_of(models[route]) if name.isidentifier()]
    assert len(names) > 20
    for name in names:
        texts = ("input", "text") if name in ("input", "text") else ()  # two names of the same field
        rest = {key: value for key, value in BODIES[route].items() if key not in texts}
        status, param = able.ask(route, body={**rest, name: {"no": "such"}}).error
        assert (status, param) in {(400, name), (400, ROWS[name].param)}, name


def test_preview_without_a_body_speaks_the_default_text(able: Server) -> None:
    engine.spoken.clear()
    answer = able.http.post(PREVIEW.format(voice_id="nova"), headers={"Authorization": f"Bearer {KEYS[0]}"})
    assert answer.status_code == 200
    result = SpeechResult(answer, tuple(engine.spoken))
    assert (result.spoken, result.voices, result.ignored) == (PREVIEW_TEXT, {"nova"}, [])
