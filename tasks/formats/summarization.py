"""Summarization: `summarize: article` -> the summary."""

from collections.abc import Mapping
from typing import Any


def summarize(record: Mapping[str, Any], *, article_key: str, summary_key: str) -> dict[str, str]:
    """An article and its summary.

    Args:
      record: two str features.
      article_key: the name of the article, "article" in CNN/Daily Mail.
      summary_key: the name of the summary, "highlights" there.

    Returns:
      "inputs" and "targets" (str).
    """
    return {"inputs": f"summarize: {record[article_key]}", "targets": record[summary_key]}
