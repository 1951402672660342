"""The original public files of downstream data sets, read as the records that TFDS gives.

Each family has a table of its data sets: TFDS name -> features, files of each split, where to download them. Files
lie under DATA_DIR as they are unpacked, and may be compressed with gzip. TensorFlow is loaded only for remote paths.
"""

import fnmatch
import os
from collections.abc import Iterator
from typing import NamedTuple

from t5x_lite.errors import UserError, nearest
from t5x_lite.tasks.originals import c4, glue, questions, summarization, superglue, translation, winograd
from t5x_lite.tasks.originals.reading import DataSet, Files, Format, Record, numbered

DATA_SETS: dict[str, DataSet] = {
    **glue.DATA_SETS,
    **superglue.DATA_SETS,
    **winograd.DATA_SETS,
    **questions.DATA_SETS,
    **summarization.DATA_SETS,
    **translation.DATA_SETS,
    **c4.DATA_SETS,
}


# How many other names of missing files a message gives.
_OTHERS = 4


class Part(NamedTuple):
    """Files that are read together, and how."""

    paths: tuple[str, ...]
    format: Format


def look_up(tfds_name: str) -> DataSet:
    """The data set of a TFDS name, with or without a version.

    Raises:
      UserError: it has no row in the tables.
    """
    name = tfds_name.partition(":")[0]
    if name not in DATA_SETS:
        raise UserError(
            f"The original files of {tfds_name} are unknown",
            f"there is no format for them. {nearest(name, DATA_SETS)}",
            "read what TFDS has of it with seqio.TfdsDataSource",
        )
    return DATA_SETS[name]


def find(data: DataSet, split: str, data_dir: str) -> list[Part]:
    """The files of a split, those of the first alternative that is complete; none where no alternative is."""
    listed = _listed(data, data_dir)
    for alternative in data.splits[split]:
        parts = [_parts(files, listed) for files in alternative]
        if all(parts):
            return [part for several in parts for part in several]
    return []


def wanted(data: DataSet, split: str, data_dir: str) -> str:
    """What has to be where for a split to be found, for messages."""
    listed = _listed(data, data_dir)
    best = max(data.splits[split], key=lambda alternative: sum(bool(_parts(files, listed)) for files in alternative))
    there = [files for files in best if _parts(files, listed)]
    missing = [name for files in best if files not in there for name in files.names]
    others = [alternative for alternative in data.splits[split] if alternative is not best][:_OTHERS]
    found = f" (of its files {', '.join(name for files in there for name in files.names)} is there)" if there else ""
    spelt = " or ".join(" with ".join(name for files in other for name in files.names) for other in others)
    instead = f", or in their place {spelt}" if others else ""
    return f"{', '.join(missing)} in {os.path.join(data_dir, data.folders[0])}{found}{instead}"


def records(part: Part) -> Iterator[Record]:
    """The records of files, one after the other.

    Raises:
      ValueError, OSError: what is wrong with the files or one of their records, without its number.
    """
    for number, unit in numbered(part.format, part.paths):
        yield from part.format.parse(unit, number)


def _listed(data: DataSet, data_dir: str) -> dict[str, list[str]]:
    """Folder -> names in it, for the folders of a data set that are there."""
    folders = {folder: os.path.join(data_dir, folder) if folder else data_dir for folder in data.folders}
    return {path: names for path in folders.values() if (names := _names(path))}


def _names(folder: str) -> list[str]:
    if "://" in folder:
        import tensorflow as tf

        return tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    return os.listdir(folder) if os.path.isdir(folder) else []


def _parts(files: Files, listed: dict[str, list[str]]) -> list[Part]:
    """The parts that files are in the first folder that has them all."""
    for folder, names in listed.items():
        columns = [_matches(name, names) for name in files.names]
        if all(columns):
            return [Part(tuple(os.path.join(folder, name) for name in row), files.format) for row in zip(*columns)]
    return []


def _matches(name: str, names: list[str]) -> list[str]:
    return sorted(fnmatch.filter(names, name)) or sorted(fnmatch.filter(names, name + ".gz"))
