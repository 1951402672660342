"""Lines of fields: tab-separated values, as text or filled in a format."""

import re
from collections.abc import Sequence


def parse_tsv(
    line: str,
    *,
    field_names: Sequence[str] = ("inputs", "targets"),
    field_delim: str = "\t",
    field_columns: Sequence[int] | None = None,
) -> dict[str, str]:
    """The fields of a line by name. Quotes are characters like others.

    Args:
      line: without its line end.
      field_names: the names of the fields.
      field_delim: what separates them, one character.
      field_columns: the column of each, ascending; by default the first ones. Others are not looked at.

    Returns:
      A str for each name.

    Raises:
      ValueError: the line has too few fields.
    """
    fields = _fields(line, field_delim)
    columns = range(len(field_names)) if field_columns is None else field_columns
    if len(fields) <= max(columns):
        raise ValueError(f"the line {line!r} has {len(fields)} fields, not {max(columns) + 1}")
    return {name: fields[column] for name, column in zip(field_names, columns)}


def preprocess_tsv(
    line: str,
    *,
    field_delim: str = "\t",
    num_fields: int = 2,
    inputs_format: str = "{0}",
    targets_format: str = "{1}",
    field_names: Sequence[str] | None = None,
) -> dict[str, str]:
    """The fields of a line, filled in two formats. Quotes are characters like others.

    Args:
      line: without its line end.
      field_delim: what separates the fields, one character.
      num_fields: their number, without `field_names`.
      inputs_format: numbers of fields (from 0) or names of them in braces; other braces are text.
      targets_format: likewise.
      field_names: names for all fields.

    Returns:
      "inputs" and "targets" (str).

    Raises:
      ValueError: the line has another number of fields, or a format has a number that no field has.
    """
    names = [*map(str, range(num_fields))] if field_names is None else list(field_names)
    fields = _fields(line, field_delim)
    if len(fields) != len(names):
        raise ValueError(f"the line {line!r} has {len(fields)} fields, not {len(names)}")
    known = "[0-9]+" if field_names is None else "|".join(map(re.escape, names))

    def value(found: re.Match) -> str:
        name = found[1] if field_names else str(int(found[1]))
        if name not in names:
            raise ValueError(f"there is no field {name} in the line {line!r}")
        return fields[names.index(name)]

    inputs, targets = (re.sub(f"{{({known})}}", value, text) for text in (inputs_format, targets_format))
    return {"inputs": inputs, "targets": targets}


def _fields(line: str, delimiter: str) -> list[str]:
    return line.split(delimiter) if line else []
