"""The recordings of people that are published with the model sesame/csm-1b (`prompts/*.wav`), and their words.

The files belong to the weights of the model, not to this project. A file is recognised by its SHA-256 digest, in any
folder. Each recording becomes the recording of one preset voice. From each of the long conversations, only the first 11
or 12 s are used, up to a pause. This length is enough for a voice, and some models accept at most 20 s.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from app.audio.decode import decode
from app.audio.shape import EdgeTrimmer
from app.audio.stages import joined
from app.types import Reference

MAX_BYTES = 4_000_000  # a larger file can't be one of these recordings, so it is not read


@dataclass(frozen=True, slots=True)
class KnownRecording:
    """A published recording, and the part of it that is used."""

    name: str
    voice: str  # the preset voice that uses the recording
    words: str  # the words of the used part
    part_s: float = math.inf  # length of the used part in seconds, from the start of the recording

    def reference(self, data: bytes, rate_hz: int) -> Reference:
        """Decode the used part of the file, without the silence at the ends. Blocks. Raises BadReference."""
        samples = decode(data, rate_hz, max_seconds=min(self.part_s, 60.0), what=self.name).samples
        edges = EdgeTrimmer(rate_hz)
        return Reference(joined([edges.push(samples), edges.flush()]), rate_hz, self.words)


KNOWN: dict[str, KnownRecording] = {
    "356648c1bc6c1da7883004557e9b21a2ef7d01682d8b9d02d6dcb950b348b04f": KnownRecording(
        "conversational_a",
        "alloy",
        "like revising for an exam I'd have to try and like keep up the momentum because I'd start really early I'd be "
        "like okay I'm gonna start revising now and then like you're revising for ages and then I just like start "
        "losing steam",
        12.1,
    ),
    "c247153011385d33aaeed193adfec562c32182e2facd30cc8cd0b3e820e94afb": KnownRecording(
        "conversational_b",
        "cedar",
        "like a super Mario level. Like it's very like high detail. And like, once you get into the park, it just "
        "like, everything looks like a computer game",
        10.75,
    ),
    "59480708f84c77ab2967d14d821c2ccade9d7761685d060575121f49a149005b": KnownRecording(
        "read_speech_a",
        "marin",
        "And Lake turned round upon me, a little abruptly, his odd yellowish eyes, a little like those of the sea "
        "eagle, and the ghost of his smile that flickered on his singularly pale face, with a stern and insidious "
        "look, confronted me.",
    ),
    "f582640265864499cbe6a8c687ea0f9e08e7fa41eeb2caa923d0a3bada55fcef": KnownRecording(
        "read_speech_b",
        "ash",
        "He was such a big boy that he wore high boots and carried a jack knife. He gazed and gazed at the cap, and "
        "could not keep from fingering the blue tassel.",
    ),
    "7da15ab3ee7f8bbc8abfce73ce65936a80a535ae4a86db2d9c4756caba69e9c3": KnownRecording(
        "read_speech_c",
        "verse",
        "All passed so quickly, there was so much going on around him, the Tree quite forgot to look to himself.",
    ),
    "09cad0494f9d0038b0f0eb039f47d752c45e56d92679f96587e20f67b2c1b7d8": KnownRecording(
        "read_speech_d",
        "nova",
        "Suddenly I was back in the old days Before you felt we ought to drift apart. It was some trick-the way your "
        "eyebrows raise.",
    ),
}


def known(data: bytes) -> KnownRecording | None:
    """Return the published recording that has this file content; None if the file is no published recording."""
    return KNOWN.get(hashlib.sha256(data).hexdigest())
