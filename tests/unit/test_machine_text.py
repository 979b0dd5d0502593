"""Machine-readable text, such as tool calls, is not spoken. This works in any language and in linear time."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.text.machine_text import announce_codes, remove_machine_text
from app.text.normalizer import Normalizer
from app.text.spans import SpannedText
from tests.support.growth import LINEAR, order

pytestmark = pytest.mark.unit

NORMALIZER = Normalizer()
BASE64 = base64.b64encode(b"".join(hashlib.sha256(bytes([each])).digest() for each in range(250))).decode()  # 10 KB
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0."
    "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
)


def removed(text: str) -> str:
    return " ".join(remove_machine_text(SpannedText(text)).text.split())


REASONING = [
    "<think>The user wants a greeting.</think>Hello there!",
    "<think>\n\n</think>\n\nHello there!",
    "<thinking>a\nb</thinking>Hello there!",
    "<THINK>a</THINK>Hello there!",
    "<thought>a</thought>Hello there!",
    "<reasoning>a</reasoning>\nHello there!",
    "<reflection>a</reflection>Hello there!",
    "<scratchpad>a</scratchpad>Hello there!",
    "<inner_monologue>a</inner_monologue>Hello there!",
    "<thinking>a</thinking>Hello there!",
    "<seed:think>a</seed:think>Hello there!",
    '<think effort="low">a</think>Hello there!',
    "<think>a <think>b</think> c</think>Hello there!",
    "The user wants a greeting.</think>\n\nHello there!",
    "They said [S2] so.</thinking>Hello there!",
    "Hello there!<think>And then?",
    "Hello there!\n<think>\nAnd then?",
    "[THINK]a[/THINK]Hello there!",
    "◁think▷a◁/think▷Hello there!",
    "<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>Hello there!<|end_of_solution|>",
    "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>Hello there!<|END_RESPONSE|>",
    "<unused94>thought\nThe user<unused95>Hello there!",
    '<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n> a\n</details>\nHello there!',
    '<details type="reasoning"><details>a</details>b</details>Hello there!',
    "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Hello there!<|return|>",
    "<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|><|start|>assistant<|channel|>final<|message|>'
    "Hello there!",
    "analysisThe user says hi. We greet.assistantfinalHello there!",
]
TOKENS = [
    "Hello there!<|eot_id|>", "<s>Hello there!</s>", "<s>[INST][/INST] Hello there!</s>", "Hello there!<|im_end|>",
    "<|im_start|>assistant\nHello there!<|im_end|>", "<start_of_turn>model\nHello there!<end_of_turn>",
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello there!<|eot_id|>", "Hello there!<｜end▁of▁sentence｜>",
    "<｜Assistant｜>Hello there!", "<bos>Hello there!<eos>", "Hello there!<|endoftext|>", "<pad><pad>Hello there!<pad>",
    "▁Hello▁there!", "[BOS]Hello there![EOS]", "<|assistant|>\nHello there!<|end|>", "Hello there!<end_of_utterance>",
    "<extra_id_0>Hello there!", "Hello there!<|reserved_special_token_12|>", "<|turn>model\nHello there!<turn|>",
    "<<SYS>><</SYS>>Hello there!", "Hello there!<0x0A>", "<|start_of_role|>assistant<|end_of_role|>Hello there!",
]  # fmt: skip
CALLS = [
    '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>Hello there!',
    'Hello there!\n<tool_call>\n{"name": "f"}',
    "<tool_call>Hello there!",
    '<function=f>{"a": 1}</function>Hello there!',
    '<function_calls><invoke name="f"><parameter name="a">b</parameter></invoke></function_calls>Hello there!',
    'Hello there![TOOL_CALLS][{"name": "f"}]',
    "Hello there!<|python_tag|>print(1)<|eom_id|>",
    "<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_end|><|tool_calls_section_end|>Hello there!",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    "Hello there!",
    "<tool_response>42 degrees</tool_response>Hello there!",
    "<tool_code>print(1)</tool_code>Hello there!",
]


@pytest.mark.parametrize("text", [*REASONING, *TOKENS, *CALLS])
def test_only_the_answer_of_a_language_model_stays(text: str) -> None:
    assert removed(text) == "Hello there!"


@pytest.mark.parametrize(
    "text",
    [
        *("Paris【4†source】.", "Paris【4:0†guide.pdf】.", "Paris【turn0search1】."),
        *("Paris \ue200cite\ue202turn0search1\ue201.", "Paris \ue200cite\ue202turn0search1\ue202turn0news2\ue201."),
        *("Paris citeturn0search1turn0news2.", "Paris :contentReference[oaicite:0]{index=0}.", "Paris[citation:3]."),
        *("Paris [Source 2].", "Paris[†1].", "Paris ^1^.", "Paris  ^1^ ^2^."),
        *("Paris [cite: 1, 2].", "[cite_start]Paris[cite: 12].", "Paris[^1^].", "<co: 0>Paris</co: 0>."),
        *("Paris{{citation needed}}.", "Paris<ref>Smith 2004</ref>.", "Paris\ue200filecite\ue202turn1file0\ue201."),
    ],
)  # fmt: skip
def test_citations_are_removed(text: str) -> None:
    assert removed(text) == "Paris."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("**Paris** ^1^.", "**Paris**."),
        ("See [x](https://a.b/) ^1^.", "See [x](https://a.b/)."),
        ('" ^1^.', '" ^1^.'),  # otherwise nothing would be left to speak
        ('" ^1^ ^2^.', '" ^1^.'),
    ],
)
def test_citation_between_carets_is_removed_only_after_a_word(text: str, left: str) -> None:
    assert remove_machine_text(SpannedText(text)).text == left


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('In \ue200entity\ue202["city","New York"]\ue201 now', "In New York now"),
        ("See \ue200url\ue202the page\ue202https://a.b\ue201 now", "See the page now"),
        ('In \ue200entity\ue202["ci\ue201 now', "In now"),
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', ""),
        ('{"name": "Paris", "country": "France"}', '{"name": "Paris", "country": "France"}'),
    ],
)
def test_titles_in_citations_stay_and_a_tool_call_is_removed(text: str, kept: str) -> None:
    assert removed(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "We think that it is worth a thought.",
        "The `<think>` tag opens and the `</think>` tag closes it.",
        "<details><summary>More</summary>Text</details>",
        "An analysis of the assistant's final report.",
        "A list [a, b] and an array x[0] with 5 < 6 > 4.",
        "f <| g |> h",
        "I reason, therefore I am.",
        "【重要】お知らせ",
        "It's your turn. Turn 0 is first.",
    ],
)
def test_ordinary_text_is_not_removed(text: str) -> None:
    assert remove_machine_text(SpannedText(text)).text == text


def test_mention_of_a_tag_hides_no_text() -> None:
    assert removed("Use the <think> tag to hide reasoning.") == "Use the tag to hide reasoning."


@pytest.mark.parametrize("english", [True, False])
def test_machine_text_is_removed_in_every_language(english: bool) -> None:
    for text in (*REASONING, *TOKENS, *CALLS):
        assert NORMALIZER.normalize(text, english=english) == "Hello there!"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        (f"![x](data:image/png;base64,{BASE64}) After.", "x After."),
        (f'<img src="data:image/png;base64,{BASE64}" alt="x"> After.', "After."),
        (f"Look: data:image/png;base64,{BASE64} there.", "Look: a long code there."),
        (f"[report](https://host.example/{'a/b' * 240}) After.", "report After."),
        (f'[report](https://host.example/{"a/b" * 4000} "Title") After.', "report After."),
        (f"See https://host.example/{'a/b' * 240}.", "See host dot EXAMPLE."),
        (f"See (https://host.example/{'a/b' * 240}).", "See (host dot EXAMPLE)."),
        (f"The code {BASE64} is long.", "The code a long code is long."),
        (f"Use {JWT}.", "Use a long code."),
        (f"Sum: {hashlib.sha512(b'').hexdigest()}", "Sum: a long code"),
        (f"Lines:\n{BASE64[:76]}\n{BASE64[76:152]}\n{BASE64[152:160]}==\nEnd.", "Lines: a long code, End."),
        (f"-----BEGIN CERTIFICATE-----\n{BASE64[:640]}\n-----END CERTIFICATE-----\nEnd.", "a long code, End."),
        ("sk-proj-abcDEF1234567890abcDEF1234567890abcDEF1234567890 is a key", "a long code is a key"),
    ],
)
def test_long_codes_and_addresses_are_announced(text: str, spoken: str) -> None:
    assert NORMALIZER.normalize(text) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
        "pneumonoultramicroscopicsilicovolcanoconiosis",
        "a-very-long-word-with-many-hyphens-that-people-do-write-now-and-then",
        "/usr/local/lib/python3.11/site-packages/numpy/core/multiarray.py",
        "app.generator.planning.PlannedUtterance.fits_into_the_passage",
        "550e8400-e29b-41d4-a716-446655440000",
        "https://example.com/wiki/Some_page_(disambiguation)",
        "=" * 80,
        "-" * 80,
    ],
)
def test_long_words_and_paths_are_not_read_as_codes(text: str) -> None:
    assert announce_codes(SpannedText(text), "a long code").text == text


def test_stretched_word_is_shortened() -> None:
    assert announce_codes(SpannedText("N" + "o" * 60 + "!"), "a long code").text == "Nooo!"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("\\piFFFFFFFFFFFFFFFFFFFFFFF.FFFFFFFFFFFFFFFFFFFFFFF", "piFFFF"),
        ("d2hhdCBhIGxvbmcgY29kZSB0aGlzIGlzIGluZGVlZCB5ZXM=", "d2hhdC"),
        ("0123456789abcdef0123456789abcdef0123456789abcdef", "012345"),
        ("-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkq\n-----END PUBLIC KEY-----", "PEM"),
        ("data:image/png;base64," + "iVBORw0KGgo" * 9, "data"),
    ],
    ids=lambda value: ascii(value[:12]),
)
def test_code_is_spoken_in_a_language_without_an_announcement(text: str, spoken: str) -> None:
    assert Normalizer().spoken(SpannedText(text), english=False, language="hu").text.lstrip("\\") == spoken


@pytest.mark.parametrize("language", ["de", "fr", "zh", "ja", "ru", "xx"])
def test_codes_are_announced_in_the_language_of_the_text(language: str) -> None:
    spoken = NORMALIZER.spoken(SpannedText(f"12 {BASE64} 34"), english=False, language=language).text
    assert "a long code" not in spoken
    assert len(spoken) < 30


PIECES = (
    "<think>", "</think>", "[THINK]", "◁think▷", "<details type=\"reasoning\">", "</details>", "<|channel|>", "a",
    "<|message|>", "analysis", "<tool_call>", "</tool_call>", "{", "}", "<｜tool▁calls▁begin｜>", "[TOOL_CALLS]", "【",
    "†", "】", "\ue200", "\ue202", "\ue201", "cite", "turn0search1", "data:a/b,", "https://a.b/", BASE64[:50],
    "\n", " ",
    "`", "\"", "(", ")", "<|", "|>", "-----BEGIN A-----", "▁", "to=", "final", "<s>", "0", "[", "]", "\u0301",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
@example("</think></think>")
@example("<|channel|><|message|><|channel|>analysis<|message|>")
def test_any_mixture_gives_a_part_of_the_text_in_order(text: str) -> None:
    kept = remove_machine_text(SpannedText(text))
    for index, char in enumerate(kept.text):
        start, end = kept.span_of(index, index + 1)
        assert 0 <= start <= end <= len(text)
        assert char == " " or char in text[start:end]


@pytest.mark.parametrize("piece", PIECES, ids=ascii)
def test_time_of_hostile_texts_grows_linearly(piece: str) -> None:
    def read(text: str) -> str:
        return announce_codes(remove_machine_text(SpannedText(text)), "code").text

    small, large = ((piece * (size // len(piece))) + "x" for size in (20_000, 80_000))
    assert order(lambda: read(small), lambda: read(large), 4, LINEAR) <= LINEAR
