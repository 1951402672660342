"""WMT as statmt.org publishes it: two files with a sentence a line, tab-separated columns, or SGML.

What belongs to a year and a language pair is as in TFDS (translate/wmt14.py and its siblings). Instead of the
published corpora a split may be one pair of files, such as train.de-en.de and train.de-en.en. Sentences are kept as
they stand, with the entities of SGML; pairs with an empty side are left out, as in TFDS.
"""

import functools
import re
from collections.abc import Iterator

from t5x_lite.tasks.originals.reading import (
    TEXT,
    DataSet,
    Files,
    Format,
    Record,
    lines,
    side_by_side,
    utf8,
)

Names = tuple[str, ...]

# The folders that the archives unpack to.
_INNER = ("", "/training", "/dev", "/un", "/training-parallel-ep-v8", "/training-parallel-nc-v13")

_SEGMENT = re.compile(rb'<seg id="\d+">(.*)</seg>')


def _pair(unit: tuple[bytes | None, bytes | None], number: int, *, languages: tuple[str, str]) -> list[Record]:
    del number
    if None in unit:
        ended, goes_on = languages if unit[0] is None else languages[::-1]
        # Blank lines at the end of one file are nothing that the other lacks.
        if not (unit[0] or unit[1] or b"").strip():
            return []
        raise ValueError(f"the file of {ended} ends before it and the file of {goes_on} goes on: lines do not pair up")
    if not all(unit):
        return []
    return [{language: _decoded(side, language) for language, side in zip(languages, unit)}]


def _decoded(side: bytes, language: str) -> str:
    try:
        return utf8(side)
    except ValueError as error:
        raise ValueError(f"in the file of {language} {error}") from None


def _segments(left: str, right: str) -> Iterator[tuple[bytes | None, bytes | None]]:
    """The sentences of two SGML files in pairs; they are no XML that a parser would take."""
    sides = [[found[1] for line in lines(path) if (found := _SEGMENT.match(line))] for path in (left, right)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"they have {len(sides[0])} and {len(sides[1])} sentences, which do not pair up")
    yield from zip(*sides)


def _columns(line: bytes, number: int, *, languages: tuple[str, str]) -> list[Record]:
    """A pair in two columns. The published files have some lines of another kind, which TFDS leaves out too."""
    if not line.strip():
        return []
    sides = [side.strip() for side in utf8(line).split("\t")]
    if len(sides) != 2:
        if number == 0:
            raise ValueError(f"it has {len(sides)} columns, not one for each of {' and '.join(languages)}")
        return []
    return [dict(zip(languages, sides))] if all(sides) else []


def _text(left: str, right: str, languages: tuple[str, str]) -> Files:
    return Files((left, right), Format(side_by_side, functools.partial(_pair, languages=languages)))


def _sgml(stem: str, languages: tuple[str, str]) -> Files:
    """A test set, such as newstest2014-deen-src.de.sgm and newstest2014-deen-ref.en.sgm."""
    one, two = languages
    names = (f"{stem}-{one}{two}-src.{one}.sgm", f"{stem}-{one}{two}-ref.{two}.sgm")
    return Files(names, Format(_segments, functools.partial(_pair, languages=languages), unit="sentence"))


def _tsv(name: str, columns: tuple[str, str]) -> Files:
    return Files((name,), Format(lines, functools.partial(_columns, languages=columns)))


def _corpus(name: str, languages: tuple[str, str]) -> Files:
    """The files of a corpus: NAME.de and NAME.en, or NAME where that ends in .tsv and names the order of columns."""
    if name.endswith((".tsv", ".txt")):
        return _tsv(name, re.search(r"\b(\w\w)-(\w\w)\.", name).groups())
    return _text(*(f"{name}.{language}" for language in languages), languages)


def _own(stem: str, languages: tuple[str, str]) -> tuple[tuple[Files, ...], ...]:
    """What a split of one's own may be called."""
    one, two = languages
    pairs = tuple((_corpus(f"{stem}{middle}", languages),) for middle in (f".{one}-{two}", f".{two}-{one}", ""))
    return (*pairs, (_tsv(f"{stem}.{one}-{two}.tsv", (one, two)),), (_tsv(f"{stem}.{two}-{one}.tsv", (two, one)),))


def _test_sets(stems: tuple[str, ...], languages: tuple[str, str]) -> tuple[tuple[Files, ...], ...]:
    """The test sets of a split, in SGML or as text; newstest2013 and earlier ones are published as text only."""
    text = tuple(_corpus(stem, languages) for stem in stems)
    return (text,) if stems == ("newstest2013",) else (tuple(_sgml(stem, languages) for stem in stems), text)


def _wmt(name: str, pair: str, train: Names, validation: Names, test: Names, urls: Names) -> DataSet:
    """A year and a language pair: the corpora of its training split and the test sets of the others."""
    languages = tuple(pair.split("-"))
    year = name.removesuffix("_translate")
    splits = {
        "train": (tuple(_corpus(stem, languages) for stem in train), *_own("train", languages)),
        "validation": (
            *_test_sets(validation, languages),
            *(own for stem in ("validation", "valid", "dev") for own in _own(stem, languages)),
        ),
    }
    if test:
        splits["test"] = (*_test_sets(test, languages), *_own("test", languages))
    return DataSet(
        features=dict.fromkeys(languages, TEXT),
        splits=splits,
        folders=tuple(
            f"{parent}{inner}" for parent in (year, f"{year}/{pair}", name, f"{name}/{pair}") for inner in _INNER
        ),
        download=f"{', '.join(urls)} and http://data.statmt.org/wmt19/translation-task/dev.tgz (its test sets), or "
        f"write train.{pair}.{languages[0]} and train.{pair}.{languages[1]} (validation and test likewise)",
    )


_EUROPARL = "http://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz"
_COMMON_CRAWL = "http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz"
_NEWS_9 = "http://www.statmt.org/wmt14/training-parallel-nc-v9.tgz"
_FRENCH = (
    _EUROPARL,
    _COMMON_CRAWL,
    "http://www.statmt.org/wmt13/training-parallel-un.tgz",
    "http://www.statmt.org/wmt10/training-giga-fren.tar",
)

DATA_SETS = {
    "wmt14_translate/de-en": _wmt(
        "wmt14_translate", "de-en",
        ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-v9.de-en"), ("newstest2013",), ("newstest2014",),
        (_EUROPARL, _COMMON_CRAWL, _NEWS_9),
    ),
    "wmt14_translate/fr-en": _wmt(
        "wmt14_translate", "fr-en",
        ("europarl-v7.fr-en", "commoncrawl.fr-en", "undoc.2000.fr-en", "news-commentary-v9.fr-en",
         "giga-fren.release2.fixed"),
        ("newstest2013",), ("newstest2014",), (*_FRENCH, _NEWS_9),
    ),
    "wmt15_translate/fr-en": _wmt(
        "wmt15_translate", "fr-en",
        ("europarl-v7.fr-en", "commoncrawl.fr-en", "undoc.2000.fr-en", "news-commentary-v10.fr-en",
         "giga-fren.release2.fixed"),
        ("newsdiscussdev2015", "newstest2014"), ("newsdiscusstest2015",),
        (*_FRENCH, "http://www.statmt.org/wmt15/training-parallel-nc-v10.tgz"),
    ),
    # The corpus of South-East European Times comes from OPUS as two files too, with the same sentences.
    "wmt16_translate/ro-en": _wmt(
        "wmt16_translate", "ro-en", ("europarl-v8.ro-en", "SETIMES.en-ro"), ("newsdev2016",), ("newstest2016",),
        ("http://data.statmt.org/wmt16/translation-task/training-parallel-ep-v8.tgz",
         "https://object.pouta.csc.fi/OPUS-SETIMES/v2/moses/en-ro.txt.zip"),
    ),
    # ParaCrawl comes as columns too, with the sentences of its TMX file.
    "wmt19_translate/de-en": _wmt(
        "wmt19_translate", "de-en",
        ("europarl-v9.de-en.tsv", "en-de.bicleaner07.txt", "commoncrawl.de-en", "news-commentary-v14.de-en.tsv",
         "wikititles-v1.de-en.tsv", "rapid2019.de-en"),
        ("newstest2018",), (),
        ("http://www.statmt.org/europarl/v9/training/europarl-v9.de-en.tsv.gz",
         "https://s3.amazonaws.com/web-language-models/paracrawl/release3/en-de.bicleaner07.txt.gz",
         _COMMON_CRAWL,
         "http://data.statmt.org/news-commentary/v14/training/news-commentary-v14.de-en.tsv.gz",
         "http://data.statmt.org/wikititles/v1/wikititles-v1.de-en.tsv.gz",
         "https://s3-eu-west-1.amazonaws.com/tilde-model/rapid2019.de-en.zip"),
    ),
    "wmt_t2t_translate/de-en": _wmt(
        "wmt_t2t_translate", "de-en",
        ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-v13.de-en"), ("newstest2013",), ("newstest2014",),
        (_EUROPARL, _COMMON_CRAWL, "http://data.statmt.org/wmt18/translation-task/training-parallel-nc-v13.tgz"),
    ),
}  # fmt: skip
