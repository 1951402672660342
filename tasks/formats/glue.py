"""GLUE, and the tasks of SuperGLUE that need no more: `benchmark key: text key: text` -> the label in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def glue(
    record: Mapping[str, Any],
    *,
    benchmark_name: str,
    label_names: Sequence[str],
    feature_names: Sequence[str] | None = None,
    id_key: str | None = "idx",
) -> dict[str, Any]:
    """Names each text of a record, in alphabetical order of the names, and says its label in words.

    Args:
      record: str features, an int "label" (-1 where it is not known) and the feature that `id_key` names.
      benchmark_name: starts the inputs.
      label_names: what each label is called.
      feature_names: the texts and their order; by default all features but "label" and "idx", sorted.
      id_key: the feature that becomes "idx"; None for none.

    Returns:
      "inputs" (str), "targets" (str, `<unk>` for an unknown label) and "idx" (int, as in the record).

    Raises:
      ValueError: a label has no name.
    """
    parts = [benchmark_name]
    for key in feature_names or sorted(record.keys() - {"label", "idx"}):
        parts += [f"{key}:", record[key]]
    example = {"inputs": " ".join(parts), "targets": label_name(record["label"], label_names)}
    return example | {"idx": record[id_key]} if id_key else example


def label_name(label: int, names: Sequence[str]) -> str:
    """The name of a label, `<unk>` for -1. Raises ValueError where it has none."""
    if label == -1:
        return "<unk>"
    if not 0 <= label < len(names):
        raise ValueError(f"its label is {label}, and labels are 0 to {len(names) - 1}, or -1 where it is not known")
    return names[label]


def stsb(record: Mapping[str, Any]) -> dict[str, Any]:
    """The similarity of two sentences, rounded to a multiple of 0.2, as text.

    T5 rounds single precision half to even, so 0.1 becomes 0.0 and 0.3 becomes 0.4.

    Args:
      record: "sentence1" and "sentence2" (str), "label" (float) and "idx" (int).

    Returns:
      "inputs" (str), "targets" (str, like "3.8") and "idx" (int).
    """
    five = np.float32(5)
    rounded = np.rint(np.float32(record["label"]) * five) / five
    return {
        "inputs": f"stsb sentence1: {record['sentence1']} sentence2: {record['sentence2']}",
        "targets": f"{rounded:.1f}",
        "idx": record["idx"],
    }
