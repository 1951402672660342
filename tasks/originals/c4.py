"""mC4 as the Allen Institute publishes it: files of JSON, an object a line, for each of 107 languages and scripts.

The splits are those of TFDS: `de` and `de-validation` for German.
"""

import functools

from t5x_lite.tasks.originals.reading import TEXT, DataSet, Files, Format, lines, texts_of_json

# Of TFDS (text/c4.py).
LANGUAGES = tuple(
    "af am ar az be bg bg-Latn bn ca ceb co cs cy da de el el-Latn en eo es et eu fa fi fil fr fy ga gd gl gu ha haw "
    "hi hi-Latn hmn ht hu hy id ig is it iw ja ja-Latn jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt "
    "my ne nl no ny pa pl ps pt ro ru ru-Latn sd si sk sl sm sn so sq sr st su sv sw ta te tg th tr uk ur uz vi xh yi "
    "yo zh zh-Latn zu".split()
)
_FIELDS = ("text", "timestamp", "url")
_FORMAT = Format(lines, functools.partial(texts_of_json, names=_FIELDS))

DATA_SETS = {
    "c4/multilingual": DataSet(
        features=dict.fromkeys(_FIELDS, TEXT),
        splits={
            f"{language}{part}": ((Files((f"c4-{language}{part}.tfrecord-*.json",), _FORMAT),),)
            for language in LANGUAGES
            for part in ("", "-validation")
        },
        folders=("multilingual", "c4/multilingual", "mc4", "mC4"),
        download="https://huggingface.co/datasets/allenai/c4 (the files of the folder multilingual)",
        shuffled=1 << 10,
    )
}
