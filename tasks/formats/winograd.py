"""Winograd schemas: `wsc: ... *he* ...` -> what the marked pronoun stands for.

Three data sets become one kind of example: WSC, the Definite Pronoun Resolution data, and WNLI, whose sentences were
made from WSC's. `wsc` is the older format, a classification that no shipped mixture uses.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite.tasks.formats import re2
from t5x_lite.tasks.formats.glue import label_name

_PRONOUNS = frozenset(("he", "she", "they", "it", "her", "his", "their", "them", "him"))
_ENDS = (".", ",", "!", "?")

# Two texts of WSC (by their SHA-256) whose index does not lead to the pronoun, and where it is.
_MISPLACED = {
    "ff12fea0d9c38a35d44cfb4e3cc0ed9236d1117f5ee3dd2c57e5d2368b6eda9a": (' him,"', ' X ,"'),
    "2254040d40a24356fc41d80d3506feb8082d271ca5f2aa474679433aa9293d38": (" it ,", " X ,"),
}


def wsc_simple(
    record: Mapping[str, Any], *, label: str = "wsc:", correct_referent_only: bool = False
) -> dict[str, Any] | None:
    """WSC: the text with its pronoun marked -> the phrase that is asked about, whether the pronoun means it or not.

    A word that is a lone X in the text is marked as the pronoun too, as T5 does.

    Args:
      record: "text", "span1_text" (the phrase), "span2_text" (the pronoun) (str), "span2_index" (int, the place of the
        pronoun among the words between single spaces), "idx" and perhaps "label" (int).
      label: starts the inputs.
      correct_referent_only: whether to leave out phrases that the pronoun does not mean: for training.

    Returns:
      "inputs", "targets" (str), "label" (int, 0 without one) and "idx" (int); None for a record left out.

    Raises:
      ValueError: the pronoun is not at its place, or is the first word.
    """
    if correct_referent_only and not record.get("label"):
        return None
    text, pronoun, place = record["text"], record["span2_text"], record["span2_index"]
    words = text.split(" ")
    if not 0 < place < len(words):
        raise ValueError(f"its span2_index is {place}, and can be 1 to {len(words) - 1}")
    if misplaced := _MISPLACED.get(hashlib.sha256(text.encode("utf-8")).hexdigest()):
        blanked = text.strip().replace(*misplaced)
    elif words[place] == pronoun:
        blanked = f"{' '.join(words[:place])} X {' '.join(words[place + 1 :])}"
    else:
        raise ValueError(f"its word {place} is {words[place]!r}, not its span2_text {pronoun!r}")
    return {
        "inputs": f"{label} {re2.replace(blanked, ' X ', f' *{pronoun}* ')}",
        "targets": record["span1_text"],
        "label": record.get("label", 0),
        "idx": record["idx"],
    }


def definite_pronoun_resolution_simple(record: Mapping[str, Any], *, label: str = "wsc:") -> dict[str, str]:
    """DPR: the sentence with its pronoun marked, where it comes first -> the right one of two candidates.

    Args:
      record: "sentence" and "pronoun" (str), "candidates" (list of str) and "label" (int).
      label: starts the inputs.

    Returns:
      "inputs" and "targets" (str).

    Raises:
      ValueError: no candidate has the label, or the pronoun is no regular expression, as which T5 looks for it.
    """
    candidates = record["candidates"]
    if not -len(candidates) <= record["label"] < len(candidates):
        raise ValueError(f"its label is {record['label']}, and it has {len(candidates)} candidates")
    pattern = rf" ({record['pronoun']})( |\.|,)"
    sentence = re2.substitute(pattern, r" *\1*\2", record["sentence"], count=1)
    return {"inputs": f"{label} {sentence}", "targets": candidates[record["label"]]}


def wnli_simple(record: Mapping[str, Any], *, label: str = "wsc:") -> dict[str, Any]:
    """WNLI: the pronoun that its hypothesis replaces, marked in its premise -> what it is replaced with.

    Of all pronouns, it is the one around which most words of the premise are in the hypothesis. For evaluation only:
    T5 checked the phrases of the validation and test sets by hand, not those of the training set.

    Args:
      record: "sentence1" (the premise) and "sentence2" (the hypothesis) (str), "idx" and perhaps "label" (int).
      label: starts the inputs.

    Returns:
      "inputs", "targets", "premise", "hypothesis" (str), "label" (int, 0 without one) and "idx" (int).

    Raises:
      ValueError: no pronoun, or no phrase in its place, is found.
    """
    premise, hypothesis = record["sentence1"], record["sentence2"]
    said, meant = _bare_words(premise), _bare_words(hypothesis)
    places = [place for place, word in enumerate(said) if word in _PRONOUNS]
    if not places:
        raise ValueError("its sentence1 has no pronoun")
    before, after, place = max(((*_shared(said, meant, p), p) for p in places), key=lambda found: sum(found[:2]))
    phrase = ""
    if before or after:
        phrase = _phrase(said[place - before : place], said[place + 1 : place + 1 + after], " ".join(meant))
    return {
        "inputs": f"{label} {_marked(premise.split(' '), place)}",
        "targets": _as_written(phrase, hypothesis),
        "premise": premise,
        "hypothesis": hypothesis,
        "label": record.get("label", 0),
        "idx": record["idx"],
    }


def _bare_words(text: str) -> list[str]:
    """Words in small letters, each without a punctuation mark at its end."""
    words = (re.sub(r"[.,?!]$", "", word) for word in text.strip().lower().split(" "))
    return [word for word in words if word]


def _shared(said: Sequence[str], meant: Sequence[str], place: int) -> tuple[int, int]:
    """How many words right before `place`, and right after it, are together in the other sentence."""
    return (
        _first_words_in(said[:place][::-1], " ".join(meant[::-1])),
        _first_words_in(said[place + 1 :], " ".join(meant)),
    )


def _first_words_in(words: Sequence[str], text: str) -> int:
    count = 0
    while count < len(words) and " ".join(words[: count + 1]) in text:
        count += 1
    return count


def _phrase(before: list[str], after: list[str], meant: str) -> str:
    """What stands between those words in the hypothesis; at its start or end if not between."""
    for words in ([*before, "(.+)", *after], ["^(.+)", *after], [*before, "(.+)$"]):
        # No flags: this part of T5 is Python as well.
        try:
            found = re.search(" ".join(words), meant)
        except re.error as error:
            raise ValueError(f"{' '.join(words)!r} is read as a regular expression, and is none: {error}") from None
        if found:
            return found[1] or ""
    return ""


def _marked(words: list[str], place: int) -> str:
    """The text with stars around the word; a mark at its end stands apart."""
    word = words[place]
    if not word:
        raise ValueError("its sentence1 has white space where the pronoun should be")
    marked = f"*{word[:-1]}* {word[-1]}" if word.endswith(_ENDS) else f"*{word}*"
    return " ".join([*words[:place], marked, *words[place + 1 :]])


def _as_written(phrase: str, hypothesis: str) -> str:
    """The phrase from its last article on, in the letters of the hypothesis, without possessive endings."""
    words = phrase.split(" ")
    start = max((words.index(article) for article in ("a", "an", "the") if article in words), default=0)
    pattern = " ".join(re.escape(word) + "[.,?!]?" for word in words[start:])
    found = re.search(pattern, hypothesis, re.IGNORECASE)
    if not found:
        raise ValueError(f"its sentence2 does not have {phrase!r} as written")
    written = found[0][:-1] if found[0].endswith(_ENDS) else found[0]
    return written.removesuffix("'") if written.endswith("'") else written.removesuffix("'s")


def wsc(record: Mapping[str, Any]) -> dict[str, Any]:
    """WSC as a classification: `* phrase *` and `# pronoun #` in the text -> whether the one means the other.

    Args:
      record: "text", "span1_text" (the phrase), "span2_text" (the pronoun) (str), "span1_index", "span2_index" (int,
        how many words come before), "label" (int, -1 where it is not known) and "idx" (int).

    Returns:
      "inputs", "targets" (str) and "idx" (int).

    Raises:
      ValueError: a label has no name, or a span is no regular expression, as which T5 looks for it.
    """
    first, second = record["span1_index"], record["span2_index"]
    text = _mark_span(record["text"], record["span1_text"], first, "*")
    # Its marks are words too.
    text = _mark_span(text, record["span2_text"], second + 2 * (first < second), "#")
    return {
        "inputs": f"wsc text: {text}",
        "targets": label_name(record["label"], ("False", "True")),
        "idx": record["idx"],
    }


def _mark_span(text: str, span: str, place: int, mark: str) -> str:
    pattern = re2.replace(f"^((?:{re2.NOT_SPACE}+{re2.SPACE}){{{place}}})(W)", "W", span)
    return re2.substitute(pattern, rf"\1{mark} \2 {mark}", text)
