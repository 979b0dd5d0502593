"""The times at which sentences begin in an answer's audio, for progress events."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class UtteranceStart:
    """An utterance that has begun in the answer's audio. A progress event sends these fields under these names."""

    text: str  # normalised
    start_s: float  # seconds from the start of the answer
    sentence: int  # number of its first sentence, from 0
    sentences: int | None  # of the whole answer; None: not known yet
    turn: int  # number of its first line, from 0


@dataclass(slots=True)
class Progress:
    """The progress of one answer. A cached answer has no progress."""

    utterances: list[UtteranceStart] = field(default_factory=list)  # in order
    line_of_sentence: list[int] = field(default_factory=list)  # the line's number for each sentence planned so far
    all_planned: bool = False  # line_of_sentence is complete
    samples: int = 0  # produced so far, at the engine's rate
    sentences: int = 0  # begun so far

    def begin(self, text: str, sentences: int, samples_per_s: float) -> None:
        """Record that an utterance begins at the present position. sentences: how many it has."""
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
