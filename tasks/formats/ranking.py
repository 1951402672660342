"""Rank classification: an example for each answer that could be given, to be scored by the model."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_lite.tasks.formats import re2

_MODES = ("train", "eval", "fewshot_eval")


def rank_classification(
    record: Mapping[str, Any],
    *,
    inputs_fn: Callable[[Mapping[str, Any]], Sequence[str]],
    targets_fn: Callable[[Mapping[str, Any]], Sequence[str]],
    is_correct_fn: Callable[[Mapping[str, Any]], Sequence[bool]],
    weight_fn: Callable[[Mapping[str, Any]], float] | None = None,
    mode: str = "eval",
    passthrough_feature_keys: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """An example for each possible answer of a record, as the `rank_classification` postprocessor and metric expect.

    Args:
      record: features, with "position" (int): the number of the record in its data set, from 0.
      inputs_fn: the inputs for each answer.
      targets_fn: the answers.
      is_correct_fn: whether each is right.
      weight_fn: the weight of the record.
      mode: "eval" for all answers, "train" for the right ones, "fewshot_eval" for all of them as one example: for
        programs that put the same other records in front of each.
      passthrough_feature_keys: features that each example keeps.

    Returns:
      Examples of "idx" (list of two ints: the position, the number of the answer), "inputs", "targets" (str),
      "is_correct" (bool), "weight" (float, with `weight_fn`) and the features passed through. In "fewshot_eval" one
      example with the lists of all these, in the order of the answers.

    Raises:
      ValueError: the functions give different numbers of answers, the mode is unknown, or a feature passed through
        has the name of another.
    """
    if mode not in _MODES:
        raise ValueError(f"the mode {mode!r} is not one of {', '.join(_MODES)}")
    columns = {
        "inputs": list(inputs_fn(record)),
        "targets": list(targets_fn(record)),
        "is_correct": [*map(bool, is_correct_fn(record))],
    }
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"its answers differ in number: {sizes}")
    kept = {} if weight_fn is None else {"weight": float(weight_fn(record))}
    for key in passthrough_feature_keys:
        if key in ("idx", *columns, *kept):
            raise ValueError(f"{key!r} cannot be passed through: it is the name of a feature of the examples")
        kept[key] = record[key]
    examples = [
        {"idx": [record["position"], number]} | dict(zip(columns, values)) | kept
        for number, values in enumerate(zip(*columns.values()))
    ]
    if mode == "fewshot_eval":
        names = ("idx", *columns, *kept)
        return [{name: [example[name] for example in examples] for name in names}]
    return [example for example in examples if example["is_correct"]] if mode == "train" else examples


def rank_classification_formatter(
    record: Mapping[str, Any],
    *,
    inputs_formats: str | Sequence[str],
    targets_formats: str | Sequence[str],
    mode: str = "eval",
    label_key: str = "label",
    weight_key: str | None = None,
) -> list[dict[str, Any]]:
    """`rank_classification` of texts with the names of features in braces, like "{premise} So {question}?".

    Args:
      record: as there; a nested feature is named with slashes, "{choices/first}".
      inputs_formats: one for each answer, or one for all.
      targets_formats: one for each answer, or one for all; not one for all in both.
      mode: as there.
      label_key: the number of the right answer (int), or of each right one (list of int).
      weight_key: the weight of the record (float).

    Returns:
      As `rank_classification`: "idx" (list of two ints), "inputs", "targets" (str), "is_correct" (bool) and, with
      `weight_key`, "weight" (float); lists of them in the mode "fewshot_eval".

    Raises:
      ValueError: the numbers of formats differ, or a name is not that of a text.
    """
    given = {len(formats) for formats in (inputs_formats, targets_formats) if not isinstance(formats, str)}
    if len(given) != 1:
        raise ValueError("give a list of formats for the inputs, the targets, or both with the same length")
    (answers,) = given
    labels = record[label_key]
    labels = labels if isinstance(labels, list) else [labels]

    def filled(formats: str | Sequence[str]) -> list[str]:
        return [_filled(record, f) for f in ([formats] * answers if isinstance(formats, str) else formats)]

    return rank_classification(
        record,
        inputs_fn=lambda _: filled(inputs_formats),
        targets_fn=lambda _: filled(targets_formats),
        is_correct_fn=lambda _: [number in labels for number in range(answers)],
        weight_fn=None if weight_key is None else lambda _: record[weight_key],
        mode=mode,
    )


def _filled(record: Mapping[str, Any], text: str) -> str:
    for key in dict.fromkeys(re.findall(r"{(\S+)}", text)):
        value = record
        for part in key.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, str):
            raise ValueError(f"it has no text {key!r}")
        text = re2.replace(text, f"{{{key}}}", value)
    return text
