"""Blanks and sentences of documents: what is random, by its properties and by undoing it."""

import re
from collections import Counter

import pytest

from t5x_lite.tasks.formats import plain_text

WORDS = [f"w{n}" for n in range(40)]
TEXT = "  " + " \n".join(WORDS) + " "


def records(count=200, **features):
    return [{"text": TEXT, "seed": [seed, -seed]} | features for seed in range(count)]


def test_segments_are_the_text():
    lengths = Counter()
    for record in records():
        made = [e["text"].split() for e in plain_text.random_split_text(record, min_words_per_segment=4)]
        assert sum(made, []) == WORDS
        assert len({len(segment) for segment in made[:-1]} | {len(made[0])}) == 1
        lengths[len(made[0])] += 1
    assert min(lengths) >= 4 and len(lengths) > 10


def test_of_a_long_text_one_chunk_is_taken():
    chunks = {
        " ".join(e["text"] for e in plain_text.random_split_text(record, max_words_total=16)) for record in records(50)
    }
    assert chunks == {" ".join(WORDS[start : start + 16]) for start in (0, 16, 32)}
    assert plain_text.random_split_text({"text": " ", "seed": [0]}) == []


def test_blanks_are_filled_by_the_targets():
    for record in records():
        first, second = plain_text.fill_in_the_blank(record)
        assert first["inputs"].startswith("fill: X ") and first["targets"].startswith("w0")
        assert second == {"inputs": "fill: " + first["targets"], "targets": first["inputs"].removeprefix("fill: ")}
        pieces = [
            [piece.split() for piece in re.split(r"\bX\b", text)]
            for text in (second["inputs"].removeprefix("fill: "), second["targets"])
        ]
        # Pieces alternate; that of the second text before its first X is empty.
        here, there = pieces[0], pieces[1][1:]
        merged = [word for n, piece in enumerate(here) for word in piece + (there[n] if n < len(there) else [])]
        assert merged == WORDS


def test_texts_of_less_than_two_words_have_no_blank():
    for text in ("", " \v", "one"):
        assert plain_text.fill_in_the_blank({"text": text, "seed": [0]}) == []
        assert plain_text.fill_in_the_blank_sized({"text": text, "seed": [0]}) is None
    assert plain_text.fill_in_the_blank({"text": "a b", "seed": [0]}) == [
        {"inputs": "fill: X b", "targets": "a X"},
        {"inputs": "fill: a X", "targets": "X b"},
    ]


def test_pieces_go_to_one_text_and_the_other():
    words = "Old mills turn in the slow wind".split()
    cuts = [False, True, False, False, True, True]
    assert plain_text._shared_out(words, cuts) == ("Old mills X slow X", "X turn in the X wind")


def test_a_sized_blank_says_the_nearest_size():
    seen = set()
    for record in records(400):
        made = plain_text.fill_in_the_blank_sized(record)
        size = int(re.search(r"_(\d+)_", made["inputs"])[1])
        taken = made["targets"].split()
        assert made["inputs"].replace(f"_{size}_", made["targets"]) == "fill: " + " ".join(WORDS)
        assert abs(size - len(taken)) == min(abs(size - len(taken)) for size in (1, 2, 4, 8, 16, 32, 64))
        seen.add(len(taken))
    assert seen <= set(range(1, 40)) and len(seen) > 30


@pytest.mark.parametrize("size, expected", [(1, 1), (3, 2), (5, 4), (6, 4), (7, 8), (12, 8), (40, 16)])
def test_of_two_nearest_sizes_the_smaller(size, expected):
    assert plain_text._nearest([1, 2, 4, 8, 16], size) == expected


def test_the_same_seed_draws_the_same():
    for function in (plain_text.random_split_text, plain_text.fill_in_the_blank, plain_text.fill_in_the_blank_sized):
        assert [function(r) for r in records(5)] == [function(r) for r in records(5)]
        assert len({str(function(r)) for r in records(40)}) > 3


def test_next_sentences_are_left_or_changed_over():
    pairs = {"first": ["a.", "c."], "second": ["b.", "d."]}
    counts = Counter()
    for record in records(400, **pairs):
        made = plain_text.next_sentence_prediction(record, label_sentences=True)
        left = made[0]["targets"] == "next"
        seconds = ["b.", "d."] if left else ["d.", "b."]
        assert made == [
            {"inputs": f"nsp: sentence1: {a} sentence2: {b}", "targets": "next" if left else "not_next"}
            for a, b in zip(("a.", "c."), seconds)
        ]
        counts[left] += 1
    assert 160 < counts[True] < 240
    (plain, _) = plain_text.next_sentence_prediction(records(1, **pairs)[0], p_neighbors=1.0)
    assert plain == {"inputs": "nsp: a. b.", "targets": "next"}
