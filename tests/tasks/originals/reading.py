"""Records of original files, as seqio gives them and as plain values."""

import numpy as np

from t5x_lite.tasks import records


def read(folder, name, split, **how):
    """The records of a split as Python values, in order of reading."""
    records.bind(str(folder))
    dataset = records.Records(name, [split]).get_dataset(split, **{"shuffle": False, **how})
    return dataset, [*dataset.as_numpy_iterator()]


def plain(value):
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    return value.decode() if isinstance(value, bytes) else value.item() if isinstance(value, np.generic) else value
