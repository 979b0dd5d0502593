"""Encoded answers in memory: the budgets, and which answers are kept."""

from __future__ import annotations

import pytest

from app.generator import encoded_answers as module
from app.generator.encoded_answers import BUDGET_BYTES, COLLECTED_BYTES, MAX_ANSWER_BYTES, EncodedAnswers, EncodedKey

pytestmark = pytest.mark.unit


def key(name: str, checksum: int = 1, audio_format: str = "mp3", rate_hz: int = 24_000) -> EncodedKey:
    return name, checksum, audio_format, rate_hz


def put(answers: EncodedAnswers, name: str, *parts: bytes) -> None:
    collector = answers.collect(keep=True)
    assert b"".join(collector.add(part) for part in parts) == b"".join(parts)
    answers.put(key(name), collector.size, collector.body)
    collector.close()


@pytest.mark.parametrize("parts", [(), (b"",), (b"one",), (b"one", b"two"), (b"x" * MAX_ANSWER_BYTES,)])
def test_complete_answer_is_returned(parts):
    answers = EncodedAnswers()
    put(answers, "a", *parts)
    assert answers.find(key("a")) == b"".join(parts)
    assert answers.size_of(key("a")) == sum(map(len, parts))


@pytest.mark.parametrize("other", [key("b"), key("a", 2), key("a", 1, "opus"), key("a", 1, "mp3", 48_000)])
def test_each_part_of_the_key_is_compared(other):
    answers = EncodedAnswers()
    put(answers, "a", b"audio")
    assert answers.find(other) is None
    assert answers.size_of(other) is None


@pytest.mark.parametrize("parts", [[MAX_ANSWER_BYTES + 1], [MAX_ANSWER_BYTES, 1], [1, MAX_ANSWER_BYTES, 1]])
def test_only_the_size_of_a_long_answer_is_remembered(parts):
    answers = EncodedAnswers()
    put(answers, "a", *(bytes(size) for size in parts))
    assert answers.find(key("a")) is None
    assert answers.size_of(key("a")) == sum(parts)
    assert answers.reserve(COLLECTED_BYTES)  # no bytes are reserved any more, so all are free


def test_answers_stay_within_the_budget_and_the_least_recently_used_are_evicted():
    answers = EncodedAnswers()
    count = BUDGET_BYTES // MAX_ANSWER_BYTES
    for number in range(count):
        put(answers, str(number), bytes(MAX_ANSWER_BYTES))
    assert answers.find(key("0")) is not None
    put(answers, "new", b"1")
    assert answers.find(key("1")) is None
    assert [answers.find(key(str(number))) is not None for number in (0, *range(2, count))] == [True] * (count - 1)
    assert answers.size_of(key("1")) == MAX_ANSWER_BYTES


def test_answers_that_are_being_encoded_have_a_common_limit(monkeypatch):
    monkeypatch.setattr(module, "COLLECTED_BYTES", 100)
    answers = EncodedAnswers()
    first, second, third = (answers.collect(keep=True) for _ in range(3))
    first.add(bytes(60))
    second.add(bytes(40))
    third.add(b"1")
    assert (first.body, second.body, third.body) == (bytes(60), bytes(40), None)
    first.close()  # the listener of the answer has disconnected
    first.close()
    fourth = answers.collect(keep=True)
    fourth.add(bytes(60))
    assert fourth.body == bytes(60)
    assert third.size == 1
    for collector in (second, third, fourth):
        collector.close()
    assert answers.reserve(100)


def test_collector_that_keeps_nothing_counts_the_size():
    answers = EncodedAnswers()
    collector = answers.collect(keep=False)
    collector.add(b"12345")
    assert (collector.size, collector.body) == (5, None)
    assert answers.reserve(COLLECTED_BYTES)
