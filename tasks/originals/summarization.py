"""CNN/DailyMail and XSum as files of JSON, an object a line, with the field names of TFDS and of Hugging Face."""

import functools

from t5x_lite.tasks.originals.reading import TEXT, DataSet, Files, Format, lines, texts_of_json

_STEMS = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


def _data_set(names: tuple[str, ...], folders: tuple[str, ...], download: str) -> DataSet:
    form = Format(lines, functools.partial(texts_of_json, names=names))
    return DataSet(
        features=dict.fromkeys(names, TEXT),
        splits={
            split: tuple(
                (Files((name,), form),)
                for ending in ("jsonl", "json")
                for stem in stems
                for name in (f"{stem}.{ending}", f"{stem}-*.{ending}")
            )
            for split, stems in _STEMS.items()
        },
        folders=folders,
        download=download,
        shuffled=1 << 12,
    )


DATA_SETS = {
    "cnn_dailymail": _data_set(
        ("article", "highlights"),
        ("cnn_dailymail", "cnn_dm", "cnndm"),
        "https://huggingface.co/datasets/abisee/cnn_dailymail (version 3.0.0, each split written with to_json as "
        'lines of JSON with "article" and "highlights")',
    ),
    "xsum": _data_set(
        ("document", "summary"),
        ("xsum", "XSum"),
        "https://huggingface.co/datasets/EdinburghNLP/xsum (each split written with to_json as lines of "
        'JSON with "document" and "summary")',
    ),
}
