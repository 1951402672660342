"""mC4, the text that mT5 and ByT5 are pretrained on: a task for each language, and their mixtures.

The names are those of the repositories google-research/multilingual-t5 and google-research/byt5. ByT5's tasks cut out
spans of 20 bytes on average; they are meant for VOCABULARY=bytes. Records come from TFDS or from the files that the
Allen Institute publishes, in DATA_DIR. Import registers the tasks; it reads no data.
"""

import seqio

from t5x_lite.tasks import mixing
from t5x_lite.tasks.objectives.named import OBJECTIVES
from t5x_lite.tasks.originals.c4 import LANGUAGES
from t5x_lite.tasks.pretraining import register
from t5x_lite.tasks.records import Records

for _mixture, _objective in (("mc4", "span_corruption"), ("byt5_mc4", "span_corruption_mean_20")):
    _names = []
    for _language in LANGUAGES:
        _splits = {"train": _language, "validation": f"{_language}-validation"}
        _names.append(f"{_mixture}.{_language.replace('-', '_')}")
        register(_names[-1], Records("c4/multilingual:3.0.1", _splits), OBJECTIVES[_objective])
    seqio.MixtureRegistry.add(_mixture, _names, default_rate=mixing.by_language)
