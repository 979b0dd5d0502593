"""Dia's rows: a request's codes do not depend on other rows, on prefill chunks or on cancelled requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engines.dia.decoding import CHUNK_FRAMES, FIRST_FRAMES
from app.engines.dia.limits import Guards
from app.engines.dia.loading import engine_of
from app.engines.dia.runner import DiaRunner
from app.errors import BadReference, EmptyText, TextTooLong, TooManySpeakers
from app.nn.kv_cache import CrossKVCache
from app.settings import Settings
from app.types import Reference, Sampling, SpokenLine, Utterance
from tests.support.dia_requests import CPU, FRAME_S, OTHER, VOICE, alone, make, prompt, speech
from tests.support.driver import Driver
from tests.support.random_dia import fabricate_dia

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def runner(tiny_dia: Path) -> DiaRunner:
    return make(tiny_dia)


REQUESTS = [
    speech("One.", 1, 30),
    speech("Two, with a voice.", 2, 22, prompt=prompt()),
    speech("Three is greedy.", 3, 26, sampling=Sampling(temperature=0.0)),
    speech("Four is hot and has no guidance.", 4, 19, sampling=Sampling(temperature=2.0, top_k=0, cfg_scale=0.0)),
    speech("Five is narrow.", 5, 25, sampling=Sampling(top_k=3, top_p=0.5)),
    speech("Six is long. " * 20, 6, 21, prompt=prompt(70, 2)),
]


def test_codes_do_not_depend_on_the_row(runner: DiaRunner) -> None:
    first = alone(runner, REQUESTS[0], row=0)
    assert first.shape == (30, 9)
    assert first.min() >= 0
    assert first.max() < 1024
    assert np.array_equal(alone(runner, REQUESTS[0], row=5), first)
    assert not np.array_equal(alone(runner, speech("One.", 2, 30)), first)


def test_codes_do_not_depend_on_other_rows(runner: DiaRunner) -> None:
    """Requests with different sampling start at different times in any row and pause, and one is cancelled."""
    lone = Driver(runner)
    codes, samples = [], []
    for request in REQUESTS:
        lone.start(0, request)
        lone.finish()
        codes.append(lone.frames(0))
        samples.append(lone.samples(0))
    driver = Driver(runner)
    rows = [5, 2, 0, 3, 1, 4]
    random = np.random.default_rng(0)
    for iteration, (row, request) in enumerate(zip(rows, REQUESTS, strict=True)):
        driver.start(row, request)
        for _ in range(4):
            driver.iterate(frozenset(random.choice(6, 2).tolist()))
        if iteration == 4:
            driver.stop(5)  # the request is cancelled; another request takes the row
            driver.start(5, REQUESTS[0])
    driver.finish()
    for row, expected, expected_samples in zip(rows, codes, samples, strict=True):
        assert np.array_equal(driver.frames(row), expected), row
        assert np.abs(driver.samples(row) - expected_samples).max() < 1e-5


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_codes_do_not_depend_on_prefill_chunks(tiny_dia: Path, runner: DiaRunner, chunk: int) -> None:
    assert np.array_equal(alone(make(tiny_dia, chunk=chunk), REQUESTS[5]), alone(runner, REQUESTS[5]))


def test_long_script_is_read_in_bounded_chunks(tiny_dia: Path) -> None:
    driver = Driver(make(tiny_dia, chunk=16))
    driver.start(0, REQUESTS[5])
    while driver.prefilling:
        driver.iterate()
    assert driver.prefill_calls > 5


def test_samples_come_in_fixed_chunks(runner: DiaRunner) -> None:
    driver = Driver(runner)
    frames = FIRST_FRAMES + 2 * CHUNK_FRAMES + 3
    driver.start(0, speech("A schedule.", frames=frames))
    driver.finish()
    sizes = [len(samples) for samples in driver.chunks[0]]
    assert sum(sizes) == frames * 512
    assert [i + 1 for i, size in enumerate(sizes) if size] == [
        FIRST_FRAMES,
        FIRST_FRAMES + 8,
        FIRST_FRAMES + 16,
        frames,
    ]
    one = Driver(runner)
    one.start(0, speech("Short.", frames=2))
    one.finish()
    assert [len(samples) for samples in one.chunks[0]] == [0, 1024]


def test_recordings_of_two_voices_follow_their_transcripts(runner: DiaRunner) -> None:
    """The recordings come one after the other, in the order of their transcripts."""
    a, b = prompt(10, 1, "I am a."), prompt(7, 2, "I am b.")
    lines = (SpokenLine("First.", 0, VOICE, a), SpokenLine("Second.", 0, OTHER, b), SpokenLine("Third.", 0, VOICE, a))
    runner.admit(0, Utterance(lines, Sampling(), 1, 1.0))
    state = runner._rows[0]
    text = "[S1] I am a. [S2] I am b. [S1] First. [S2] Second. [S1] Third. [S2]"
    assert bytes(state.ids) == text.replace("[S1]", "\1").replace("[S2]", "\2").encode()
    assert np.array_equal(state.prompt.numpy(), np.concatenate([a.codes, b.codes], axis=1).T)
    only_second = (SpokenLine("First.", 0, VOICE), SpokenLine("Second.", 1, OTHER, b))
    runner.admit(1, Utterance(only_second, Sampling(), 1, 1.0))
    assert bytes(runner._rows[1].ids) == b"\1 I am b. \2 First. \1 Second. \2"
    three = (*lines, SpokenLine("Fourth.", 2, VOICE, a))
    with pytest.raises(TooManySpeakers):
        runner.admit(2, Utterance(three, Sampling(), 1, 1.0))


def test_exact_mode_reads_the_bytes_of_the_text_unchanged(tiny_dia: Path) -> None:
    exact = make(tiny_dia, exact=True)
    for text in ("no tag (at all) — <pad>", "[S2] x [S2]", "  "):
        exact.admit(0, speech(text))
        assert bytes(exact._rows[0].ids) == text.replace("[S2]", "\2").encode()
    with pytest.raises(EmptyText):
        exact.admit(0, speech(""))


def force_eos(runner: DiaRunner, at: set[int]) -> None:
    """Make EOS the best candidate of channel 0 at these steps. This works for one row only."""
    advance, steps = runner.model.advance, {"n": 0}

    def forced(*inputs: object) -> tuple[torch.Tensor, torch.Tensor]:
        conditional, unconditional = advance(*inputs)  # type: ignore[arg-type]
        if steps["n"] in at:
            conditional[:, 0, 1024] = unconditional[:, 0, 1024] = 1e4
        steps["n"] += 1
        return conditional, unconditional

    runner.model.advance = forced  # type: ignore[method-assign]


@pytest.mark.parametrize("end", [0, 1, 7, 20])
def test_eos_in_channel_0_completes_the_delayed_channels(tiny_dia: Path, end: int) -> None:
    runner = make(tiny_dia)
    unforced = alone(runner, speech("Ends.", frames=40))
    force_eos(runner, {end})
    driver = Driver(runner)
    driver.start(0, speech("Ends.", frames=40))
    driver.finish()
    found = driver.frames(0)
    assert len(found) == end
    assert found.max(initial=0) < 1024
    # Before the end, channel 0 does not change: it has no delay.
    assert np.array_equal(found[:, 0], unforced[:end, 0])
    assert sum(map(len, driver.chunks[0])) == end * 512


def test_guards_limit_frames_and_suppress_early_ends(tiny_dia: Path) -> None:
    counted: list[str] = []
    runner = make(tiny_dia, guards=Guards(min_s=0.1, pace=1.0, slack_s=0.2), on_guard=counted.append)
    limit = round((0.2 + len(" Never ends.") / 15) / FRAME_S)
    assert len(alone(runner, speech("Never ends.", frames=999))) == limit
    assert counted == ["frame_cap"]
    counted.clear()
    force_eos(runner, set(range(1000)))
    assert len(alone(runner, speech("Never ends.", frames=999))) == round(0.1 / FRAME_S)
    assert counted == ["early_end"] * round(0.1 / FRAME_S) + ["too_short"]


def test_guard_ends_a_model_that_repeats_itself(tiny_dia: Path) -> None:
    counted: list[str] = []
    runner = make(tiny_dia, guards=Guards(slack_s=60.0), on_guard=counted.append)
    runner.model.head = Constant()
    driver = Driver(runner)
    driver.start(0, speech("Stuck.", frames=3000, sampling=Sampling(temperature=0.0)))
    driver.finish()
    assert counted == ["repeat"]
    assert 1.0 <= len(driver.frames(0)) * FRAME_S < 1.1
    assert len(driver.samples(0)) == len(driver.frames(0)) * 512


class Constant(torch.nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(h), 9, 1028)
        logits[:, :, 5] = 1.0
        return logits.flatten(1)


def test_input_that_exceeds_the_context_is_refused(tiny_dia: Path, runner: DiaRunner) -> None:
    with pytest.raises(TextTooLong, match="1024"):
        runner.admit(0, speech("word " * 250))
    guarded = make(tiny_dia, guards=Guards())
    with pytest.raises(TextTooLong, match="35 s at most"):
        guarded.admit(0, speech("word " * 150, frames=9999))
    with pytest.raises(BadReference, match="shorter recordings"):
        guarded.admit(0, speech("word " * 40, frames=9999, prompt=prompt(2700)))
    with pytest.raises(BadReference, match="shorter recordings"):
        runner.admit(0, speech("Hi.", prompt=prompt(3056)))
    runner.admit(0, speech("Hi.", frames=9999, prompt=prompt(3050)))
    assert runner._rows[0].max_frames == 6


def test_largest_passage_that_the_engine_allows_fits(tiny_dia: Path, tmp_path: Path) -> None:
    """Two voices and two lines as long as `EngineInfo` allows, and a dash that becomes three characters."""
    guarded = make(tiny_dia, guards=Guards())
    info = engine_of(guarded, Settings(_env_file=None, TTS_DATA_DIR=tmp_path)).info
    frames = int((info.prompts.max_prompt_s or 0) / info.frame_s) // 2
    text = ("so it is - " * 20)[: info.text.max_passage_chars // 2 - 2] + "\u2014"
    lines = (SpokenLine(text, 0, VOICE, prompt(frames, 1)), SpokenLine(text, 1, OTHER, prompt(frames, 2)))
    guarded.admit(0, Utterance(lines, Sampling(), 1, 250.0))
    assert guarded._rows[0].max_frames > 0


def test_speech_ends_at_the_last_position(runner: DiaRunner) -> None:
    assert alone(runner, speech("Hi.", frames=99, prompt=prompt(3046))).shape == (10, 9)


def test_unusable_voice_prompts_are_refused(runner: DiaRunner) -> None:
    good = prompt()
    for changes in (
        {"codes": good.codes[:5]},
        {"codes": np.full_like(good.codes, 1024)},
        {"codes": -good.codes - 1},
        {"codec": "mimi"},
        {"transcript": " "},
    ):
        with pytest.raises(BadReference):
            runner.admit(0, speech("Hi.", prompt=dataclasses.replace(good, **changes)))


def test_recordings_are_encoded_or_refused(runner: DiaRunner) -> None:
    samples = np.zeros(44_100, np.float32)
    codes = runner.encode(Reference(samples, 44_100, "silence"))
    assert codes.shape == (9, 87)  # 86.1 frames, padded
    assert codes.dtype == np.int16
    for bad, rate in (
        (samples[:100], 44_100),
        (samples, 24_000),
        (samples * np.nan, 44_100),
        (np.tile(samples, 21), 44_100),
    ):
        with pytest.raises(BadReference):
            runner.encode(Reference(bad, rate, ""))


def test_any_integer_is_a_seed(runner: DiaRunner) -> None:
    for seed in (0, -1, 2**63, 2**64 + 5, 10**30):
        assert len(alone(runner, speech("Hi.", seed=seed, frames=2))) == 2


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_bfloat16_and_quantized_codes_do_not_depend_on_other_rows(tiny_dia: Path, quantize: str) -> None:
    runner = make(tiny_dia, dtype=torch.bfloat16, quantize=quantize)
    expected = [alone(runner, request) for request in REQUESTS[:4]]
    driver = Driver(runner)
    for row, request in zip((3, 0, 5, 1), REQUESTS, strict=False):
        driver.start(row, request)
        driver.iterate()
    driver.finish()
    for row, codes in zip((3, 0, 5, 1), expected, strict=True):
        assert np.array_equal(driver.frames(row), codes)


def test_batched_rows_give_the_same_greedy_codes(tiny_dia: Path, runner: DiaRunner) -> None:
    """The test runs the masked products of a GPU on a CPU."""
    other = make(tiny_dia)
    other._one_by_one = False
    other._cache.audio._batched = True
    other._cache.audio.k.zero_()
    other._cache.audio.v.zero_()
    shape = {"positions": 1024, "device": CPU, "dtype": torch.float32}
    text = CrossKVCache(other.config.decoder, rows=6, batched=True, **shape)
    other._cache = dataclasses.replace(other._cache, text=text)
    requests = [dataclasses.replace(r, sampling=Sampling(temperature=0.0)) for r in REQUESTS[:4]]
    expected = [alone(runner, request) for request in requests]
    driver = Driver(other)
    for row, request in enumerate(requests):
        driver.start(row, request)
    driver.finish()
    for row, codes in enumerate(expected):
        assert np.array_equal(driver.frames(row), codes)


def test_v01_has_different_sampling_defaults(tmp_path: Path) -> None:
    runner = make(fabricate_dia(tmp_path, layout_name="nari", release="v0.1"))
    assert runner.config.release == "v0.1"
    runner.admit(0, speech("Hi.", sampling=Sampling(top_p=0.8)))
    guided = runner._rows[0].guided
    assert (guided.params.temperature, guided.params.top_k, guided.params.top_p, guided.cfg_scale) == (
        1.3,
        35,
        0.8,
        3.0,
    )
    assert alone(runner, REQUESTS[1]).shape == (22, 9)
