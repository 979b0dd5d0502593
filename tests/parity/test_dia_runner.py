"""Dia's runner gives the codes and samples of transformers: DiaProcessor, generate, codec."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.dia.loading import load_runner
from app.engines.dia.runner import DiaRunner
from app.types import Reference, Sampling, SpokenLine, Utterance, Voice, VoicePrompt
from tests.support import dia_oracle as oracle
from tests.support.random_dia import fabricate_dia

pytestmark = pytest.mark.unit

FRAMES = 40
CPU = torch.device("cpu")
VOICE = Voice("v", "v", "cloned")
GREEDY = Sampling(temperature=0.0)
TEXT = "[S1] Hello there, how are you? [S2] Fine. (laughs)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("dia"), seed=1)


def make(folder: Path, **options: Any) -> DiaRunner:
    values = {"device": CPU, "dtype": torch.float32, "max_rows": 3, "guards": None, "exact": True} | options
    return load_runner(folder, folder / "dac", **values)


@pytest.fixture(scope="module")
def runner(folder: Path) -> DiaRunner:
    return make(folder)


def load(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class = oracle.transformers().DiaForConditionalGeneration
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import DacFeatureExtractor, DacModel, DiaProcessor, DiaTokenizer

        return DiaProcessor(
            DacFeatureExtractor.from_pretrained(folder / "dac"),
            DiaTokenizer(),
            DacModel.from_pretrained(folder / "dac").eval(),
        )


def speak(runner: DiaRunner, *utterances: Utterance) -> list[tuple[np.ndarray, np.ndarray]]:
    """Speak utterances in one batch, starting one after the other; return codes (T, C) and samples (N,) of each."""
    codes: list[list[np.ndarray]] = [[] for _ in utterances]
    samples: list[list[np.ndarray]] = [[] for _ in utterances]
    waiting, live, iteration = list(range(len(utterances))), [], 0
    while waiting or live:
        if waiting and iteration % 5 == 0:
            row = waiting.pop(0)
            runner.admit(row, utterances[row])
            while not runner.prefill(row):
                pass
            live.append(row)
        iteration += 1
        if not live:
            continue
        result = runner.step(live)
        assert result.silent is not None
        for i, row in enumerate(list(live)):
            if result.ended[i]:
                live.remove(row)
                runner.release(row)
            elif not result.silent[i]:
                codes[row].append(result.codes[i])
                samples[row].append(runner.decode([row], result.codes[i : i + 1])[0])
    return [(np.stack(c), np.concatenate(s)) for c, s in zip(codes, samples, strict=True)]


def speech(runner: DiaRunner, text: str, frames: int = FRAMES, **options: Any) -> Utterance:
    prompt = options.pop("prompt", None)
    values = {"sampling": GREEDY, "seed": 0} | options
    seconds = frames / runner.codec.frame_hz
    return Utterance((SpokenLine(text, 0, VOICE, prompt),), max_seconds=seconds, **values)


def recording(seed: int, samples: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.2 * np.sin(np.cumsum(random.uniform(0.01, 0.2, samples)))).astype(np.float32)


def expected_of(
    reference: Any, processor: Any, text: str, frames: int, audio: np.ndarray | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (T, C) and samples of transformers, with DiaProcessor before and after generate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DiaProcessor's tokenizer warns about its own defaults
        recordings = None if audio is None else [audio]
        inputs = processor(text=[text], audio=recordings, sampling_rate=44_100, return_tensors="pt")
    values = {"guidance_scale": 3.0, "top_k": 45, "do_sample": False} | options
    generated = reference.generate(**inputs, max_new_tokens=frames + 16, **values)
    prompt = None if audio is None else processor.get_audio_prompt_len(inputs["decoder_attention_mask"])
    [samples] = processor.batch_decode(generated, audio_prompt_len=prompt)
    lead = 1 if prompt is None else int(prompt)
    row = generated[0]
    ends = (row[:, 0] == oracle.EOS).nonzero()
    stop = int(ends[0]) if len(ends) else len(row)
    codes = torch.stack([row[lead + d : stop + d, c] for c, d in enumerate(oracle.DELAYS)], dim=1)
    return codes, samples


@pytest.mark.parametrize("text", [TEXT, "Müßig — 早上好 \U0001f600\nnext  line", "[S2]x[S1] [S3]"])
def test_codes_and_samples_are_equal_for_any_text(runner: DiaRunner, reference: Any, processor: Any, text: str) -> None:
    expected, expected_samples = expected_of(reference, processor, text, FRAMES)
    [(codes, samples)] = speak(runner, speech(runner, text))
    assert np.array_equal(codes, expected.numpy())
    assert np.abs(samples - expected_samples.numpy()).max() < 1e-5


@pytest.mark.parametrize("frames", [5, 50])
def test_codes_and_samples_are_equal_after_a_recording(
    runner: DiaRunner, reference: Any, processor: Any, frames: int
) -> None:
    audio = recording(frames, frames * 512)
    expected, expected_samples = expected_of(reference, processor, TEXT, FRAMES, audio)
    if frames * 512 / 44_100 < 0.5:  # the recording is shorter than `encode` allows
        codes = runner._encoder(torch.from_numpy(audio)).numpy().astype(np.int16)
    else:
        codes = runner.encode(Reference(audio, 44_100, ""))
    assert codes.shape == (9, frames)
    prompt = VoicePrompt("digest", "dac", codes, "")
    [(found, samples)] = speak(runner, speech(runner, TEXT, prompt=prompt))
    assert np.array_equal(found, expected.numpy())
    assert np.abs(samples - expected_samples.numpy()).max() < 1e-5


@pytest.mark.parametrize("seed", [3, 2**40])
def test_seeded_codes_are_equal_beside_another_row(folder: Path, reference: Any, seed: int) -> None:
    """With the reference's random numbers, a row draws as after `torch.manual_seed(seed)`, also beside another row."""
    runner = make(folder, reference_noise=True)
    [expected] = oracle.generate(
        reference, [TEXT.replace("[S1]", "\1").replace("[S2]", "\2").encode()], FRAMES, seed=seed
    )
    other = speech(runner, "Another request.", seed=9, sampling=Sampling())
    [_, (codes, _)] = speak(runner, other, speech(runner, TEXT, seed=seed, sampling=Sampling()))
    assert np.array_equal(codes, expected.numpy())


def test_codes_are_equal_in_a_batch_of_different_lengths(runner: DiaRunner, reference: Any) -> None:
    """transformers pads texts and prompts to the longest one. Here each row has its own length and start."""
    texts = [b"\x01 One.", b"\x01 Two is a longer text. \x02 Is it?", b"\x02 Three (sighs)"]
    prompts = [torch.randint(0, 1024, (n, 9), generator=torch.Generator().manual_seed(n)) for n in (4, 25, 12)]
    expected = oracle.generate(reference, texts, FRAMES, prompts=prompts)
    utterances = [
        speech(runner, text.decode(), prompt=VoicePrompt("d", "dac", prompt.T.numpy().astype(np.int16), ""))
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    for (codes, _), expected_codes in zip(speak(runner, *utterances), expected, strict=True):
        assert np.array_equal(codes, expected_codes.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["transformers", "nari"])
def test_speech_ends_as_in_transformers(tmp_path: Path, layout: str) -> None:
    """Each row of a batch ends at the same step as in transformers, in both layouts."""
    folder = fabricate_dia(tmp_path / "a", seed=2, eos=True)
    reference = load(folder)
    texts = [b"\x01 One.", b"\x01 Two is longer. \x02 Is it?", b"\x01 Three."]
    expected = oracle.generate(reference, texts, 120)
    if layout == "nari":
        folder = fabricate_dia(tmp_path / "b", seed=2, eos=True, layout_name="nari")
    runner = make(folder)
    found = speak(runner, *(speech(runner, text.decode(), 120) for text in texts))
    lengths = {len(codes) for codes, _ in found}
    assert len([length for length in lengths if length < 120]) > 1
    for (codes, samples), expected_codes in zip(found, expected, strict=True):
        assert np.array_equal(codes, expected_codes.numpy())
        assert len(samples) == len(codes) * 512
