"""Tasks of one's own, for the verbs that take --module."""

import pytest


@pytest.fixture(scope="module")
def write_module(tmp_path_factory):
    """A function: name, source -> a module in the working directory, which is a new one for each file of tests."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield lambda name, source: (folder / f"{name}.py").write_text(source)
