"""A model that transformers wrote, to be changed or spoilt."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture
def copy(references, tmp_path):
    """A function that copies a stored model, with changes: `config` keys (None: removed) and tensors."""

    def make(version="hf_t5_1_1", config=None, tensors=None, remove=()):
        directory = tmp_path / f"copy_of_{version}"
        shutil.copytree(references / version, directory)
        path = directory / "config.json"
        content = json.loads(path.read_text()) | (config or {})
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        if tensors or remove:
            path = directory / "model.safetensors"
            stored = load_file(path) | (tensors or {})
            save_file({name: array for name, array in stored.items() if name not in remove}, path)
        return directory

    return make
