"""White space, letters and rewriting as RE2 and tf.strings have them, written out by hand."""

import string

import pytest

from t5x_lite.tasks.formats import re2


def test_white_space_is_of_two_kinds():
    assert re2.squeeze(" a\t\n b\v\fc\u00a0 d  ") == " a b\v c\u00a0 d "
    assert re2.words(" a\t\n b\v\fc\u00a0 d\x1c ") == ["a", "b", "c\u00a0", "d\x1c"]
    assert re2.strip(" \t\v\f\r\na\u2003 \n") == "a\u2003"  # noqa: B005


def test_letters_are_ascii():
    assert re2.lower("ÀB ẞİ Z") == "Àb ẞİ z"


def test_padding_leaves_a_space_at_the_ends():
    assert re2.pad_punctuation("(a-b) c_d, “e”?!") == " ( a - b ) c _ d , “e” ? ! "
    assert all(re2.pad_punctuation(mark) == f" {mark} " for mark in string.punctuation)


@pytest.mark.parametrize(
    "rewrite, expected",
    [
        ("y", "a y b y"),
        ("<\\0>", "a <X> b <X>"),
        ("\\\\n", "a \\n b \\n"),
        ("\\\\1", "a \\1 b \\1"),
        ("y\\1", "a X b X"),
        ("y\\n z", "a y b y"),
        ("y\\", "a y b y"),
        ("y\\n\\2", "a X b X"),
        ("", "a  b "),
    ],
)
def test_backslashes_in_a_rewrite(rewrite, expected):
    assert re2.replace("a X b X", "X", rewrite) == expected


def test_patterns_of_data_that_are_none_are_said():
    for pattern in ("(", "a)", "*", "(?=)"):
        with pytest.raises(ValueError, match="is read as a regular expression"):
            re2.substitute(pattern, r"\1", "text")
    with pytest.raises(ValueError, match="is read as a regular expression"):
        re2.full_match("[a", "text")
