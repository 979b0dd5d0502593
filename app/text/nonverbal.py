"""Non-verbal sounds: words in brackets, such as "(laughs)", that some engines perform.

`NON_VERBAL_SOUNDS` lists all of these sounds. `TextPacking.sounds` lists the sounds that one engine performs. The API
returns this list for each model. People and language models write the sounds in many ways: "[laughs]", "*sighs
deeply*", "<laugh>". `_SPELLINGS` maps each word to its sound.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.text.spans import SpannedText

# The sounds in the README of the model Dia. Words that are not in this list are performed only
# sometimes, and are otherwise read aloud.
NON_VERBAL_SOUNDS = frozenset(
    {
        "laughs", "clears throat", "sighs", "gasps", "coughs", "singing", "sings", "mumbles", "beep", "groans",
        "sniffs", "claps", "screams", "inhales", "exhales", "applause", "burps", "humming", "sneezes", "chuckle",
        "whistles",
    }
)  # fmt: skip

# Sound -> the words that mean this sound. The words of the key "" are sounds and directions that no engine performs.
# These words are removed from the text.
_WORDS_OF_SOUNDS = {
    "laughs": "laughs laugh laughing laughed laughter giggles giggle giggling giggled cackles cackle cackling haha",
    "chuckle": "chuckle chuckles chuckling chuckled snickers snicker snickering",
    "sighs": "sighs sigh sighing sighed",
    "gasps": "gasps gasp gasping gasped",
    "coughs": "coughs cough coughing coughed",
    "groans": "groans groan groaning groaned moans moan moaning grunts grunt grunting",
    "sniffs": "sniffs sniff sniffing sniffles sniffle sniffling",
    "claps": "claps clap clapping clapped",
    "screams": "screams scream screaming screamed shrieks shriek",
    "inhales": "inhales inhale inhaling inhaled",
    "exhales": "exhales exhale exhaling exhaled",
    "applause": "applause applauds applauding",
    "burps": "burps burp burping belches",
    "humming": "humming hums hum hummed",
    "sneezes": "sneezes sneeze sneezing sneezed achoo",
    "whistles": "whistles whistle whistling whistled",
    "singing": "singing",
    "sings": "sings",
    "mumbles": "mumbles mumble mumbling mutters muttering",
    "beep": "beep beeps beeping",
    "": "yawns yawn yawning cries cry crying sobs sob sobbing snorts snort snorting gulps gulp gulping swallows "
    "hiccups hiccup pants panting wheezes wheezing whispers whispering whisper shouts shouting pause "
    "pauses pausing beat "
    "breath breaths breathes breathing smiles smiling smirks smirking grins grinning nods nodding winks winking shrugs "
    "shrugging frowns frowning blushes blushing bows waves waving noise static inaudible unintelligible indistinct "
    "crosstalk chatter blank_audio no_speech",
}
_PHRASES = {
    "clears throat": "clears throat|clears (?:his|her|their|my|its) throat|clear throat|clearing throat|"
    "throat[ -]clear(?:ing|s)?|clears? the throat",
    "inhales": "takes? a (?:deep )?breath|breathes? in|breathing in|deep breath|draws? a breath",
    "exhales": "breathes? out|breathing out",
    "laughs": "bursts? (?:out laughing|into laughter)|laughs? out loud|lets? out a laugh|starts? laughing",
    "sighs": "lets? out a sigh",
    "": "music|silence|laugh track|(?:long|short|dramatic|brief) pause|a beat|whispers? softly|"
    "(?:[a-z]{1,14} )?music(?: [a-z]{1,14})?|(?:background|ambient|static|white) (?:noise|music|chatter)"
    "|no (?:audio|speech)|blank audio|"
    "(?:speaks?|speaking)(?: in)? (?:a )?(?:foreign|french|german|spanish|italian|russian|chinese"
    "|japanese|korean|arabic|"
    "another|indistinct|native)(?:ly)?(?: language)?|indistinct (?:chatter|conversation|talking|speech|voices)|"
    "(?:crowd|audience|people|he|she|both|all|everyone)(?: (?:is|are))? (?:laugh|chuckl|gasp|cheer"
    "|applaud|clapp|sigh|groan|murmur|sobb|"
    "scream|shout|cough)[a-z]{0,6}|cheer(?:s|ing)(?: and applause)?|(?:[a-z]{1,14} )?(?:door|phone|bell"
    "|dog|clock|engine|alarm|glass|thunder|"
    "siren|gun|telephone|doorbell|car|horn)s? (?:slam|ring|bark|tick|rev|blar|shatter|rumbl|wail|knock"
    "|honk|beep|creak|buzz)[a-z]{0,6}|(?:gun|thunder|foot|knock)(?:shots?|steps?|s| clap|ing)",
}
_SPELLINGS = {word: sound for sound, words in _WORDS_OF_SOUNDS.items() for word in words.split()}
_PHRASE_PATTERNS = tuple((sound, re.compile(pattern)) for sound, pattern in _PHRASES.items())

# Directions for the voice that models of other makers understand. Such directions are removed only in square brackets.
_DIRECTIONS = frozenset(
    "whispers whispering whispered excited excitedly sarcastic sarcastically curious curiously mischievously crying "
    "angry angrily sad sadly happy happily nervous nervously calm calmly cheerful cheerfully playful playfully "
    "surprised thoughtful thoughtfully dramatic dramatically shouting serious seriously softly quietly loudly slowly "
    "quickly warmly tired hesitant hesitantly confident confidently annoyed amused tearful frustrated resigned foreign "
    "flatly deadpan rushed drawn-out stammers interrupting pauses".split()
)
_MODIFIER = (
    r"(?:[a-z]{1,14}ly|soft|nervous|light|deep|small|short|long|heavy|slight|warm|quiet|loud|big|bitter|dry|dark|evil|"
    r"awkward|starts|begins|to|a|an|hard|harder|again|once|twice|thrice|bit|little|with|in|of|relief|frustration|himself|herself|themself|"
    r"themselves|myself|itself|out|loud|at|under|breath|his|her|their)"
)
_INSIDE = r"\s{0,3}([A-Za-z][A-Za-z', _-]{2,40}?)[\s.!…]{0,3}"
_TOGETHER = re.compile(r",? (?:and then|and|then) |, ")
_SOUND_TAG = re.compile(
    rf"\({_INSIDE}\)|\[{_INSIDE}\](?![(\[:])|(?<![\w*_~\\])[*_~]{_INSIDE}[*_~](?![\w*_~])|<{_INSIDE}/?>(?!\w)"
    rf"|(?<![\w{{$\\])\{{{_INSIDE}\}}(?!\}})"
)
_MARK_OF_SOUND = re.compile(r"[(\[*_~<{]\s{0,3}[A-Za-z]")
_EXACT = re.compile(
    r"\(\s{0,3}(" + "|".join(name.replace(" ", r"\s{1,3}") for name in sorted(NON_VERBAL_SOUNDS)) + r")\s{0,3}\)",
    re.IGNORECASE,
)
_MODIFIERS = re.compile(rf"(?:{_MODIFIER}\s+){{0,4}}")
# Between asterisks a single word may be an emphasised word of the sentence: "he *laughs* at me", "I love *singing*".
_PART_OF_SENTENCE = re.compile(
    r"\b(?:I|you|he|she|it|we|they|who|that|which|to|a|an|the|my|your|his|her|its|our|their|of|and|or|not|never|always|"
    r"often|just|really|still|love|like|can|will|would|could|should|must|do|does|did|don't|was|were|is|are)\s$",
    re.IGNORECASE,
)
_EMPHASISED = frozenset(
    "haha beep music silence applause hum whispers beat breath breaths breathes bows noise static inaudible indistinct "
    "unintelligible crosstalk chatter".split()
)
# In round brackets, these words may be a remark and not a sound: "the signal (static) was lost".
_REMARKS = frozenset("noise static bows waves chatter smiles breath breaths".split())


def perform_sounds(text: SpannedText, supported: frozenset[str]) -> SpannedText:
    """Write each non-verbal sound as the tag that the engine performs, such as "(laughs)". Unsupported sounds are
    removed.

    supported: the sounds that the engine performs.
    """

    def tag(match: re.Match[str]) -> str:
        kind = match.lastindex or 1
        parts = _TOGETHER.split(" ".join(match[kind].lower().split()))
        sounds = [_sound_of(part, kind, match) for part in parts]
        if None in sounds:
            return match[0]
        return " ".join(f"({sound})" for sound in sounds if sound in supported) or " "

    return text.sub(_SOUND_TAG, tag) if _MARK_OF_SOUND.search(text.text) else text


def _sound_of(words: str, kind: int, match: re.Match[str]) -> str | None:
    """Return the sound that words in brackets mean; "" for a sound that is removed, None for other text.

    kind: 1 = (...), 2 = [...], 3 = *...*, 4 = <...>, 5 = {...}. match: the match of the brackets and the words.
    """
    if kind == 2 and words.partition(" ")[0] == "pause":  # a pause tag, which script.py reads
        return None
    if kind == 2 and words in _DIRECTIONS:
        return ""
    for sound, pattern in _PHRASE_PATTERNS:
        if pattern.fullmatch(words) and (sound or kind != 3):
            return sound
    first, _, rest = words.partition(" ")
    if first in _SPELLINGS:
        sound = _SPELLINGS[first]
        if rest and _MODIFIERS.fullmatch(f"{rest} ") is None:
            return None
    else:  # for example "softly laughs" or "nervous laughter"
        before, _, last = words.rpartition(" ")
        if last not in _SPELLINGS or _MODIFIERS.fullmatch(f"{before} ") is None:
            return None
        first, sound = last, _SPELLINGS[last]
    if kind == 1 and words in _REMARKS and match.string[max(0, match.start() - 2) : match.start()].strip().isalnum():
        return None
    if kind == 3 and words == first and match[3].lower() == words:
        if first.endswith("ing") or first in _EMPHASISED:
            return None
        if _PART_OF_SENTENCE.search(match.string[max(0, match.start() - 10) : match.start()]):
            return None
    if kind == 4 and not sound:  # the module `markup` removes this tag later
        return None
    return sound


def remove_unsupported_sounds(text: SpannedText, supported: frozenset[str]) -> SpannedText:
    """Remove each sound in the exact spelling "(laughs)" that is not in `supported`. Sounds in other spellings stay."""

    def keep(match: re.Match[str]) -> str:
        return match[0] if " ".join(match[1].lower().split()) in supported else " "

    return text if supported >= NON_VERBAL_SOUNDS else text.sub(_EXACT, keep)


def blank_sounds(text: str) -> str:
    """Return the text with spaces in place of its non-verbal sounds. Its length does not change."""
    return _EXACT.sub(lambda match: " " * len(match[0]), text)


def without_sounds(text: str) -> tuple[str, int]:
    """Return the text without its non-verbal sounds, and the number of these sounds."""
    return _EXACT.subn(" ", text)
