"""Translation: `translate English to German: text` -> the text in German."""

import functools
from collections.abc import Mapping
from typing import Any


def translate(record: Mapping[str, Any], *, source_language: str, target_language: str) -> dict[str, str]:
    """A pair of texts, with the languages named in English.

    Args:
      record: a str for each of the two languages.
      source_language: code of the language to translate from, like "en". Of "zh-cn" and the like, the first two
        letters name the language.
      target_language: code of the language to translate to.

    Returns:
      "inputs" and "targets" (str).
    """
    languages = f"{_english_name(source_language)} to {_english_name(target_language)}"
    return {"inputs": f"translate {languages}: {record[source_language]}", "targets": record[target_language]}


def multi_translate(record: Mapping[str, Any], *, source_language: str, target_language: str) -> dict[str, str] | None:
    """One pair of texts out of a record with several languages, as `translate`.

    Args:
      record: "translations" with the lists "language" and "translation", one beside the other.
      source_language: code of the language to translate from.
      target_language: code of the language to translate to.

    Returns:
      "inputs" and "targets" (str); None where one of the languages is not there.

    Raises:
      ValueError: there are several texts in one of the languages.
    """
    languages, texts = record["translations"]["language"], record["translations"]["translation"]
    pair = {}
    for wanted in (source_language, target_language):
        found = [text for language, text in zip(languages, texts) if language == wanted]
        if len(found) > 1:
            raise ValueError(f"it has {len(found)} texts in the language {wanted!r}")
        if not found:
            return None
        pair[wanted] = found[0]
    return translate(pair, source_language=source_language, target_language=target_language)


@functools.cache
def _english_name(language: str) -> str:
    import babel

    return babel.Locale(language[:2]).english_name
