r"""Strings as TensorFlow and its regular expressions (RE2) treat them.

Their classes of characters are ASCII's whatever the text: a no-break space is no white
space and É no letter. RE2's \s leaves out the vertical tab that tf.strings.strip and
tf.strings.split count, so the two kinds of white space differ.
"""

import contextlib
import re
from collections.abc import Iterator

SPACE = "[\t\n\f\r ]"
NOT_SPACE = "[^\t\n\f\r ]"

_SPACES = re.compile(f"{SPACE}+")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_WHITE = " \t\n\v\f\r"
_WORD = re.compile(f"[^{_WHITE}]+")


def lower(text: str) -> str:
    """tf.strings.lower: ASCII letters only."""
    return text.encode("utf-8").lower().decode("utf-8")


def strip(text: str) -> str:
    """tf.strings.strip."""
    return text.strip(_WHITE)


def words(text: str) -> list[str]:
    """tf.strings.split without a separator."""
    return _WORD.findall(text)


def squeeze(text: str) -> str:
    r"""One space for each run of \s; none is taken off the ends."""
    return _SPACES.sub(" ", text)


def pad_punctuation(text: str) -> str:
    """A space on both sides of ASCII punctuation, and one for each run of white space.

    Text that ends (or starts) with punctuation ends (or starts) with a space: T5 was trained on that.
    """
    return squeeze(_PUNCTUATION.sub(r" \1 ", text))


def full_match(pattern: str, text: str) -> bool:
    """Whether all of a text matches a pattern made of data, where T5 escapes nothing.

    In words, and in what common operators make of them, Python and RE2 agree.

    Raises:
      ValueError: it is no regular expression, which stops T5's pipeline too.
    """
    with _from_data(pattern):
        return bool(re.fullmatch(pattern, text, re.ASCII))


def substitute(pattern: str, rewrite: str, text: str, count: int = 0) -> str:
    """A text with a pattern made of data rewritten, `count` times or everywhere. As `full_match`."""
    with _from_data(pattern):
        return re.sub(pattern, rewrite, text, count=count, flags=re.ASCII)


@contextlib.contextmanager
def _from_data(pattern: str) -> Iterator[None]:
    try:
        yield
    except re.error as error:
        raise ValueError(f"{pattern!r} is read as a regular expression, and is none: {error}") from None


def replace(text: str, old: str, rewrite: str) -> str:
    r"""tf.strings.regex_replace of every `old`, a literal, by a rewrite that comes from data.

    In a rewrite \0 stands for `old` and \\ for a backslash. One with \1 to \9 changes nothing, since there is no such
    group, and any other backslash ends it.
    """
    parts = re.findall(r"[^\\]+|\\[\s\S]?", rewrite)
    if any(re.fullmatch(r"\\[1-9]", part) for part in parts):
        return text
    new = ""
    for part in parts:
        if part.startswith("\\") and part not in ("\\0", "\\\\"):
            break
        new += {"\\0": old, "\\\\": "\\"}.get(part, part)
    return text.replace(old, new)
