"""Formats of plain documents: language models, blanks to fill in, sentences that follow each other.

What is random is drawn from a record's "seed": a list of integers, as `seqio.map_over_dataset` gives them with
`num_seeds`. The distributions are T5's, the draws are not.
"""

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.tasks.formats import re2

# Scripts that are written without spaces between words: Burmese; Chinese and Japanese; Javanese, Khmer, Lao, Tai Lue,
# Tai Tham, Thai and Tibetan.
_UNSPACED = re.compile(
    "([\u1000-\u104f\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u2e80-\u2eff\u31c0-\u31ef\u3000-\u303f\u3040-\u309f"
    "\u30a0-\u30ff\ua980-\ua9df\u1780-\u17ff\u19e0-\u19ff\u0e80-\u0eff\u1980-\u19df\u1a20-\u1aaf\u0e00-\u0e7f"
    "\u0f00-\u0fff])"
)


def lm(record: Mapping[str, Any]) -> dict[str, str]:
    """A language model: no inputs, and "text" for targets.

    Returns:
      "inputs" (an empty str) and "targets" (str).
    """
    return {"inputs": "", "targets": record["text"]}


def pad_nonspaced_languages(record: Mapping[str, Any], *, text_key: str = "text") -> dict[str, Any]:
    """Spaces around every character of scripts that are written without them, one for each run of white space.

    Returns:
      The features of the record.
    """
    return {**record, text_key: re2.squeeze(_UNSPACED.sub(r" \1 ", record[text_key]))}


def filter_by_string_length(
    record: Mapping[str, Any], *, text_key: str = "targets", min_length: int = 1, max_length: int = 1_000_000
) -> Mapping[str, Any] | None:
    """Leaves out texts that are too short or too long, in bytes of UTF-8.

    Returns:
      The record, or None.
    """
    return record if min_length <= len(record[text_key].encode("utf-8")) <= max_length else None


def random_split_text(
    record: Mapping[str, Any],
    *,
    text_key: str = "text",
    min_words_per_segment: int = 16,
    max_words_per_segment: int = 512,
    max_words_total: int | None = 8192,
) -> list[dict[str, str]]:
    """Cuts a text in segments with one number of words, log-uniform, and a shorter last one.

    Args:
      record: the text and "seed".
      text_key: the name of the text.
      min_words_per_segment: least number of words.
      max_words_per_segment: bound of the number of words.
      max_words_total: of a longer text, one chunk of that size is taken; 0 or None to take all.

    Returns:
      Examples with the one feature `text_key` (str).
    """
    random = _random(record)
    words = re2.words(record[text_key])
    if max_words_total and words:
        chunk = random.integers(math.ceil(len(words) / max_words_total))
        words = words[chunk * max_words_total :][:max_words_total]
    length = int(math.exp(random.uniform(math.log(min_words_per_segment), math.log(max_words_per_segment))))
    return [{text_key: " ".join(words[start : start + length])} for start in range(0, len(words), length)]


def fill_in_the_blank(
    record: Mapping[str, Any], *, text_key: str = "text", label: str = "fill: "
) -> list[dict[str, str]]:
    """Cuts a text in pieces and shares them out between inputs and targets, an X for each piece of the other.

    Args:
      record: the text and "seed".
      text_key: the name of the text.
      label: starts the inputs.

    Returns:
      Two examples of "inputs" and "targets" (str), one the inverse of the other; none for less than two words.
    """
    words = re2.words(record[text_key])
    if len(words) < 2:
        return []
    random = _random(record)
    # Log-uniform, so that some texts are cut finely and others roughly.
    probability = math.exp(random.uniform(-math.log(len(words) + 2), -math.log(2)))
    cuts = random.random(len(words) - 1) < probability
    if not cuts.any():
        cuts[random.integers(len(words) - 1)] = True
    first, second = _shared_out(words, cuts)
    return [{"inputs": label + second, "targets": first}, {"inputs": label + first, "targets": second}]


def _shared_out(words: Sequence[str], cuts: Sequence[bool]) -> tuple[str, str]:
    """The pieces between cuts, alternately in one text and the other; cuts[i] is behind words[i]."""
    texts, turn = [[words[0]], ["X"]], 0
    for word, cut in zip(words[1:], cuts):
        if cut:
            texts[turn].append("X")
            turn = 1 - turn
        texts[turn].append(word)
    return " ".join(texts[0]), " ".join(texts[1])


def fill_in_the_blank_sized(
    record: Mapping[str, Any],
    *,
    size_bins: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    text_key: str = "text",
    label: str = "fill: ",
) -> dict[str, str] | None:
    """Replaces one run of words with a blank that says about how many: `_4_`.

    Args:
      record: the text and "seed".
      size_bins: the sizes that a blank may say, of which it says the nearest.
      text_key: the name of the text.
      label: starts the inputs.

    Returns:
      "inputs" and "targets" (str); None for less than two words, or not more than the smallest size.
    """
    words, bins = re2.words(record[text_key]), sorted(size_bins)
    largest = min(len(words), bins[-1])
    if len(words) < 2 or largest <= bins[0]:
        return None
    random = _random(record)
    size = int(random.integers(bins[0], largest))
    start = int(random.integers(len(words) - size + 1))
    blank = f"_{_nearest(bins, size)}_"
    return {
        "inputs": re2.strip(label + " ".join([*words[:start], blank, *words[start + size :]])),
        "targets": " ".join(words[start : start + size]),
    }


def _nearest(bins: Sequence[int], size: int) -> int:
    place = bisect.bisect_left(bins, size)
    return min(bins[max(place - 1, 0) : place + 1], key=lambda bin: abs(bin - size))


def neighboring_pairs(
    record: Mapping[str, Any], *, text_key: str = "text", reuse_sentences: bool = True
) -> list[dict[str, str]]:
    """Sentences that follow each other in a line. A sentence ends with a run of full stops, ! and ?.

    Args:
      record: the text.
      text_key: its name.
      reuse_sentences: whether the second of a pair can be the first of the next.

    Returns:
      Examples of "first" and "second" (str).
    """
    pairs = []
    for line in filter(None, map(re2.strip, record[text_key].split("\n"))):
        # The text behind the last mark counts, also where it is empty.
        sentences = [re2.strip(sentence) for sentence in re.split(r"(?<=[.!?])(?![.!?])", line)]
        step = 1 if reuse_sentences else 2
        pairs += zip(sentences[:-1:step], sentences[1::step])
    return [{"first": first, "second": second} for first, second in pairs if first and second]


def next_sentence_prediction(
    record: Mapping[str, Any], *, label_sentences: bool = False, p_neighbors: float = 0.5, label: str = "nsp: "
) -> list[dict[str, str]]:
    """Two pairs of neighbouring sentences: left as they are, or their second sentences changed over.

    Args:
      record: "first" and "second", lists of two sentences each, and "seed". `neighboring_pairs`, shuffled (T5: 50000
        pairs) and batched by two, give it.
      label_sentences: whether the inputs say which sentence is which.
      p_neighbors: how often the pairs are left.
      label: starts the inputs.

    Returns:
      Two examples of "inputs" and "targets" (str, "next" or "not_next").
    """
    seconds, relation = record["second"], "next"
    if _random(record).random() >= p_neighbors:
        seconds, relation = seconds[::-1], "not_next"
    one, two = ("sentence1: ", "sentence2: ") if label_sentences else ("", "")
    return [
        {"inputs": re2.strip(f"{label}{one}{first} {two}{second}"), "targets": relation}
        for first, second in zip(record["first"], seconds)
    ]


def _random(record: Mapping[str, Any]) -> np.random.Generator:
    return np.random.default_rng([number % 2**32 for number in record["seed"]])
