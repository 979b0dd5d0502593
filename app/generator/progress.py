"""The progress of an answer: the position in its audio at which each sentence begins."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class UtteranceStart:
    """The start of an utterance in the audio. A `speech.progress` event has fields with these names."""

    text: str  # the normalised text
    start_s: float  # seconds after the start of the answer
    sentence: int  # index of the first sentence of the utterance, from 0
    sentences: int | None  # number of sentences in the answer; None = not known yet
    turn: int  # index of the first line of the utterance, from 0


@dataclass(slots=True)
class Progress:
    """The progress of a generation, or of one of its answers. An answer from the cache has no progress."""

    utterances: list[UtteranceStart] = field(default_factory=list)  # the utterances in the order of the audio
    # For each utterance: the index of the caller's text, and the range of its characters in this text (the end is
    # exclusive).
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    line_of_sentence: list[int] = field(default_factory=list)  # the index of the line of each planned sentence
    all_planned: bool = False  # whether line_of_sentence is complete
    samples: int = 0  # number of samples generated so far, at the engine's sample rate
    sentences: int = 0  # number of sentences that have begun so far

    def follow(self, generation: Progress, until_s: float) -> None:
        """Add the utterances of `generation` that begin in the first `until_s` seconds of its audio and are not in this
        progress yet.
        """
        first = len(self.utterances)
        for start, span in zip(generation.utterances[first:], generation.spans[first:], strict=True):
            if start.start_s >= until_s:
                return
            self.utterances.append(start)
            self.spans.append(span)

    def begin(self, text: str, sentences: int, samples_per_s: float, span: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Record that an utterance begins now.

        sentences: the number of its sentences. samples_per_s: the engine's sample rate multiplied by the speed. span:
        the characters of the utterance in the caller's text, see `spans`.
        """
        self.spans.append(span)
        self.utterances.append(
            UtteranceStart(
                text,
                start_s=self.samples / samples_per_s,
                sentence=self.sentences,
                sentences=len(self.line_of_sentence) if self.all_planned else None,
                turn=self.line_of_sentence[self.sentences],
            )
        )
        self.sentences += sentences
