"""CSM's rows: a request's codes do not depend on other rows, on prefill chunks or on cancelled requests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engines.csm.limits import Guards
from app.engines.csm.runner import CsmRunner
from app.errors import BadReference, TextTooLong
from app.types import AnswerPart, ContextTurn, Reference, Sampling, SpokenLine, Utterance, VoicePrompt
from tests.support.csm_requests import FRAME_S, VOICE, alone, codes_of, in_parts, make, prompt, speech
from tests.support.driver import Driver
from tests.support.random_csm import fabricate_csm

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def runner(tiny_csm: Path) -> CsmRunner:
    return make(tiny_csm)


def test_codes_do_not_depend_on_the_row(runner: CsmRunner) -> None:
    first = alone(runner, speech("The same words."), row=0)
    assert first.shape == (12, 8)
    assert np.array_equal(alone(runner, speech("The same words."), row=6), first)
    assert not np.array_equal(alone(runner, speech("The same words.", seed=2)), first)


def test_codes_do_not_depend_on_other_rows(runner: CsmRunner) -> None:
    """Eight requests with different sampling start at different times in any row and pause, and one is cancelled."""
    voice = prompt(runner)
    requests = [
        speech("One.", 1, 14),
        speech("Two, with a voice.", 2, 10, prompt=voice),
        speech("Three is greedy.", 3, 12, sampling=Sampling(temperature=0.0)),
        speech("Four is hot.", 4, 9, sampling=Sampling(temperature=1.5, top_k=0)),
        speech("Five is narrow.", 5, 11, sampling=Sampling(top_k=3)),
        speech("Six takes the likely ones.", 6, 8, sampling=Sampling(top_p=0.6)),
        speech("Seven has the same voice as two.", 7, 10, prompt=voice),
        speech("Eight is long. " * 6, 8, 13),
    ]
    expected = [alone(runner, request) for request in requests]
    driver = Driver(runner)
    rows = [5, 2, 7, 0, 3, 1, 6, 4]
    random = np.random.default_rng(0)
    for iteration, (row, request) in enumerate(zip(rows, requests, strict=True)):
        driver.start(row, request)
        driver.iterate(frozenset(random.choice(8, 2).tolist()))
        if iteration == 4:
            driver.stop(5)  # the request is cancelled; another request takes the row
            driver.start(5, requests[0])
    driver.finish()
    for row, codes in zip(rows, expected, strict=True):
        assert np.array_equal(driver.frames(row), codes), row


def test_samples_do_not_depend_on_other_rows(runner: CsmRunner) -> None:
    requests = [speech(text, seed, 35) for seed, text in enumerate(("One.", "Two two.", "Three three three."))]
    driver = Driver(runner)
    lone = []
    for request in requests:
        driver.start(0, request)
        driver.finish()
        lone.append(driver.samples(0))
    for row, request in zip((4, 1, 2), requests, strict=True):
        driver.start(row, request)
        driver.iterate()
    driver.finish()
    for row, samples in zip((4, 1, 2), lone, strict=True):
        assert np.abs(driver.samples(row) - samples).max() < 1e-5


def test_samples_come_in_growing_groups(runner: CsmRunner) -> None:
    driver = Driver(runner)
    driver.start(0, speech("It grows.", frames=42))
    driver.finish()
    parts = [len(samples) // runner.codec.frame_samples for samples in driver.chunks[0] if len(samples)]
    assert parts == [1] * 9 + [2] * 5 + [3] * 3 + [4] * 3 + [2]
    # Speech that is 10 % faster than real time has no gaps while a group fills.
    arrival = 0.9 * np.cumsum(parts)
    assert (arrival[1:] <= arrival[0] + np.cumsum(parts)[:-1]).all()


def test_all_frames_of_an_ended_line_are_decoded(tiny_csm: Path) -> None:
    runner = make(tiny_csm)
    force_eos(runner, {12})  # the end is drawn while the twelfth frame waits for its group of frames to fill
    driver = Driver(runner)
    driver.start(0, Utterance(lines("First line.", "Second line."), Sampling(), 1, 20 * FRAME_S))
    while len(driver.codes[0]) < 12:
        driver.iterate()
    assert len(driver.samples(0)) == 11 * runner.codec.frame_samples
    driver.iterate()
    assert len(driver.samples(0)) == 12 * runner.codec.frame_samples
    driver.finish()
    assert len(driver.samples(0)) == 20 * runner.codec.frame_samples


def test_voice_from_the_prefix_cache_gives_the_same_codes(tiny_csm: Path) -> None:
    runner = make(tiny_csm)
    request = speech(
        "Said with a voice.", prompt=prompt(runner), context=(ContextTurn(1, "Well?", codes_of(runner, 5, 9)),)
    )
    first = alone(runner, request)
    assert len(runner._prefill.prefixes) == 1
    read: list[int] = []
    model_read = runner.model.read
    runner.model.read = lambda x, *rest: (read.append(len(x)), model_read(x, *rest))[1]  # type: ignore[method-assign]
    assert np.array_equal(alone(runner, request, row=3), first)
    assert sum(read) < 60  # the row reads the turn and the text; the voice comes from the prefix cache
    uncached = make(tiny_csm, prefix_bytes=0)
    assert np.array_equal(alone(uncached, request), first)
    other = dataclasses.replace(request, lines=(dataclasses.replace(request.lines[0], prompt=prompt(runner, seed=2)),))
    assert not np.array_equal(alone(runner, other), first)
    assert len(runner._prefill.prefixes) == 2


@pytest.mark.parametrize("chunk", [1, 5, 500])
def test_codes_do_not_depend_on_prefill_chunks(tiny_csm: Path, runner: CsmRunner, chunk: int) -> None:
    request = speech("Read in chunks.", prompt=prompt(runner))
    assert np.array_equal(alone(make(tiny_csm, chunk=chunk), request), alone(runner, request))


def force_eos(runner: CsmRunner, at: set[int], codebooks: int | None = None) -> None:
    """Make the model draw EOS only at these frames, counted over all rows. codebooks: None = in all codebooks."""
    frame = runner.model.frame
    draws = {"n": 0}

    def forced(h: torch.Tensor, cache: object, pick: object, adapters: Sequence[int]) -> torch.Tensor:
        codes = frame(h, cache, pick, adapters)  # type: ignore[arg-type]
        if draws["n"] in at:
            codes[:, :codebooks] = runner.config.eos_code
        draws["n"] += 1
        return codes

    runner.model.frame = forced  # type: ignore[method-assign]


def lines(
    *texts: str, voice: VoicePrompt | None = None, speakers: tuple[int, ...] | None = None
) -> tuple[SpokenLine, ...]:
    speakers = speakers or (0,) * len(texts)
    return tuple(SpokenLine(text, speaker, VOICE, voice) for text, speaker in zip(texts, speakers, strict=True))


def test_next_line_equals_the_first_as_context(tiny_csm: Path) -> None:
    """The second line of an utterance has the same codes as a request with the first line as context."""
    runner = make(tiny_csm)
    force_eos(runner, {10})
    voice = prompt(runner)
    greedy = Sampling(temperature=0.0)
    both = alone(runner, Utterance(lines("First line.", "Second line.", voice=voice), greedy, 1, 20 * FRAME_S))
    assert len(both) == 20  # ten frames each; the EOS frame between them is not audible
    fresh = make(tiny_csm)
    turn = ContextTurn(0, "First line.", both[:10].T)
    second = Utterance(lines("Second line.", voice=voice), greedy, 1, 10 * FRAME_S, context=(turn,))
    assert np.array_equal(alone(fresh, second), both[10:])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_line_is_spoken_after_the_voice_and_the_last_lines(tiny_csm: Path, count: int) -> None:
    """The last of five lines has the same codes as a request with the voice and the last `count` lines as context."""
    runner = make(tiny_csm, context_lines=count)
    force_eos(runner, set(range(6, 100, 7)))  # six frames for each line, and then an EOS frame
    voice = prompt(runner)
    greedy = Sampling(temperature=0.0)
    texts = [f"This is line {i}." for i in range(5)]
    all_lines = alone(runner, Utterance(lines(*texts, voice=voice), greedy, 1, 30 * FRAME_S))
    assert len(all_lines) == 30
    turns = tuple(ContextTurn(0, texts[i], all_lines[6 * i : 6 * i + 6].T) for i in range(4 - count, 4))
    last = Utterance(lines(texts[4], voice=voice), greedy, 1, 6 * FRAME_S, context=turns)
    assert np.array_equal(alone(make(tiny_csm), last), all_lines[24:])


def test_lines_alternate_between_speakers(tiny_csm: Path) -> None:
    runner = make(tiny_csm)
    force_eos(runner, {4, 9, 14})
    voices = [prompt(runner, seed=1), prompt(runner, seed=2)]
    spoken = tuple(SpokenLine(f"Line {i}.", i % 2, VOICE, voices[i % 2]) for i in range(3))
    driver = Driver(runner)
    driver.start(2, Utterance(spoken, Sampling(), 3, 60.0))
    driver.finish()
    assert len(driver.frames(2)) == 12
    assert len(driver.samples(2)) == 12 * runner.codec.frame_samples


def test_prefill_of_one_row_does_not_stop_the_others(tiny_csm: Path) -> None:
    runner = make(tiny_csm, chunk=4)
    force_eos(runner, {3})  # one forced EOS in the step in which both rows run
    driver = Driver(runner)
    driver.start(0, Utterance(lines("a", "b" * 40), Sampling(), 1, 12 * FRAME_S))
    while driver.prefilling:
        driver.iterate()
    before = len(driver.codes[0])
    driver.start(1, speech("x", frames=40))
    driver.finish()
    assert len(driver.codes[0]) > before


def test_full_context_is_reset_to_the_prompt(tmp_path: Path) -> None:
    """Each line fits into the context, but all lines together do not."""
    short = fabricate_csm(tmp_path, changes={"max_position_embeddings": 160})
    runner = make(short, guards=Guards(min_frames=0, frames_per_token=1, slack_frames=20))
    many = Utterance(lines(*[f"Line {i}." for i in range(6)], voice=prompt(runner)), Sampling(), 1, 10_000.0)
    runner.admit(0, many)
    while not runner.prefill(0):
        pass
    state = runner._rows[0]
    positions, audible = [], 0
    while not state.over:
        result = runner.step([0])
        audible += int(not (result.silent[0] or result.ended[0]))
        positions.append(state.position)
    assert state.line == 5
    assert max(positions) <= runner.config.max_positions
    assert min(positions) >= state.base
    assert sum(after < before for before, after in itertools.pairwise(positions)) >= 2
    assert audible == sum(runner._limits.line_limit(state, line) for line in range(6))


@pytest.mark.parametrize("end", ["failed", "silent", "audible"])
def test_later_utterance_goes_on_as_in_one_utterance(tmp_path: Path, end: str) -> None:
    """The codes and samples are equal, also if lines do not fit into the context, and if others used the rows.

    end: how each line ends: at its limit, with a frame of EOS codes, or with EOS codes in all codebooks but the last.
    """
    short = fabricate_csm(tmp_path, changes={"max_position_embeddings": 160})
    guards = Guards(min_frames=0, frames_per_token=1, slack_frames=20)
    texts = [f"Line {i} of all." for i in range(7)]

    def driver(**options: object) -> Driver:
        runner = make(short, guards=guards, **options)
        if end != "failed":
            force_eos(runner, set(range(6, 200, 7)), None if end == "silent" else -1)
        return Driver(runner)

    one, many, without = driver(), driver(), driver(prefix_bytes=0)
    whole = Utterance(lines(*texts, voice=prompt(make(short))), Sampling(), 1, 10_000.0)
    one.start(3, whole)
    one.finish()
    assert len(one.frames(3)) == 7 * {"failed": 33, "silent": 6, "audible": 7}[end]
    codes, samples = in_parts(many, whole, speech("Other.", 9, 7) if end == "failed" else None)
    assert np.array_equal(codes, one.frames(3))
    assert np.array_equal(samples, one.samples(3))
    if end == "silent":  # an answer that has ended keeps nothing, also if its text stopped without a last utterance
        part = AnswerPart("b", 0)
        many.start(0, dataclasses.replace(whole, lines=whole.lines[:1], part=part))
        many.finish()
        assert len(many.runner._prefill.prefixes) == 2  # type: ignore[attr-defined]
        part.over.set()
        many.start(0, dataclasses.replace(whole, lines=whole.lines[:1]))
        many.finish()
        assert len(many.runner._prefill.prefixes) == 1  # type: ignore[attr-defined]
        assert not many.runner._prefill._kept  # type: ignore[attr-defined]
    if end == "audible":  # the check rejects two takes that have ended well, and the second one is heard
        places = ((0, 1, 0, 0), (1, 2, 0, 0), (1, 1, 1, 0), (1, 3, 2, 0), (2, 1, 0, 1))  # index, seed, take, after
        for number, (index, seed, take, after) in enumerate(places):
            part = AnswerPart("c", index, take, after)
            many.start(0, dataclasses.replace(whole, lines=(whole.lines[index],), seed=seed, part=part))
            many.finish()
            assert part.resumed.is_set() == (index > 0)
            if seed == 1:
                assert np.array_equal(many.frames(0), one.frames(3)[7 * index : 7 * index + 7]), number
        assert len(many.runner._prefill._kept) == 2  # type: ignore[attr-defined]
    codes, _ = in_parts(without, whole)  # no state is kept
    lost = AnswerPart("an answer", 1)
    lost.resumed.set()  # by another device that has failed
    without.start(0, dataclasses.replace(whole, lines=whole.lines[1:2], part=lost))
    assert not lost.resumed.is_set()
    assert not np.array_equal(codes, one.frames(3))
    assert not without.runner._prefill._kept  # type: ignore[attr-defined]


def test_speech_ends_at_max_seconds(runner: CsmRunner) -> None:
    assert len(alone(runner, speech("No end.", frames=25))) == 25


class AlwaysEos(torch.nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(h), 64)
        logits[:, 0] = 100.0
        return logits


def test_guards_limit_frames_and_suppress_early_ends(tiny_csm: Path) -> None:
    guards = Guards(min_frames=4, frames_per_token=1, slack_frames=5)
    runner = make(tiny_csm, guards=guards)
    limit = guards.limit(len(runner._text(0, "Never ends.")))
    assert len(alone(runner, speech("Never ends.", frames=999))) == limit
    runner.model.head = AlwaysEos()
    codes = alone(runner, speech("Never ends.", frames=999))
    assert (codes[:4, 0] != 0).all()
    assert (codes[4:, 0] == 0).all()


def test_input_that_exceeds_the_context_is_refused(runner: CsmRunner) -> None:
    with pytest.raises(TextTooLong, match="2048"):
        runner.admit(0, speech("word " * 700, frames=100))
    with pytest.raises(BadReference, match="voice prompt is too long"):
        runner.admit(0, speech("Hi.", frames=100, prompt=prompt(runner, frames=2000)))
    turns = tuple(ContextTurn(0, "Said.", codes_of(runner, 700, i)) for i in range(3))
    with pytest.raises(TextTooLong, match="conversation"):
        runner.admit(0, speech("Hi.", frames=100, context=turns))
    assert len(alone(runner, speech("Hi.", frames=3))) == 3


def test_remembered_turns_are_dropped_if_the_context_is_full(runner: CsmRunner) -> None:
    """Only the oldest remembered turns are dropped, and no more than needed; turns of the request stay."""
    turns = tuple(ContextTurn(0, "Said.", codes_of(runner, 700, i)) for i in range(3))
    kept = alone(runner, speech("Hi.", frames=3, context=turns[1:]))
    assert np.array_equal(alone(runner, speech("Hi.", frames=3, context=turns, optional_turns=2)), kept)
    assert np.array_equal(alone(runner, speech("Hi.", frames=3, context=turns[1:], optional_turns=2)), kept)
    with pytest.raises(TextTooLong, match="conversation"):
        runner.admit(0, speech("Hi.", frames=3, context=(*turns, turns[0]), optional_turns=1))


def test_unusable_voice_prompts_are_refused(runner: CsmRunner) -> None:
    good = prompt(runner)
    for codes, codec in (
        (good.codes[:5], "mimi"),
        (np.full_like(good.codes, runner.config.codebook_size), "mimi"),
        (-good.codes, "mimi"),
        (good.codes, "dac"),
    ):
        with pytest.raises(BadReference):
            runner.admit(0, speech("Hi.", prompt=dataclasses.replace(good, codes=codes, codec=codec)))


def test_recordings_are_encoded_or_refused(runner: CsmRunner) -> None:
    samples = np.zeros(24_000, np.float32)
    codes = runner.encode(Reference(samples, 24_000, "silence"))
    assert codes.shape == (8, 13)  # 12.5 frames, padded
    assert codes.dtype == np.int16
    for bad, rate in ((samples[:100], 24_000), (samples, 16_000), (samples * np.nan, 24_000)):
        with pytest.raises(BadReference):
            runner.encode(Reference(bad, rate, ""))


def test_any_integer_is_a_seed(runner: CsmRunner) -> None:
    for seed in (0, -1, 2**63, 2**64 + 5, 10**30):
        assert len(alone(runner, speech("Hi.", seed=seed, frames=2))) == 2


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_bfloat16_and_quantized_codes_do_not_depend_on_other_rows(tiny_csm: Path, quantize: str) -> None:
    runner = make(tiny_csm, dtype=torch.bfloat16, quantize=quantize)
    requests = [speech(f"Number {i}.", i, 10) for i in range(4)]
    expected = [alone(runner, request) for request in requests]
    driver = Driver(runner)
    for row, request in zip((3, 0, 5, 1), requests, strict=True):
        driver.start(row, request)
        driver.iterate()
    driver.finish()
    for row, codes in zip((3, 0, 5, 1), expected, strict=True):
        assert np.array_equal(driver.frames(row), codes)


def test_bfloat16_codes_do_not_depend_on_the_row(tiny_csm: Path) -> None:
    runner = make(tiny_csm, dtype=torch.bfloat16)
    codes = alone(runner, speech("Half as wide.", prompt=prompt(runner)))
    assert codes.shape == (12, 8)
    assert np.array_equal(alone(runner, speech("Half as wide.", prompt=prompt(runner)), row=5), codes)
