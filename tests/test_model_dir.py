"""A model directory read back: whose vocabulary, and without reading what is not asked for."""

import pytest
from etils import epath

from t5x_lite import config, model_dir
from t5x_lite.errors import UserError


@pytest.fixture
def copy(trained):
    return str(trained / "vocabulary.model")


def vocabulary(trained, tmp_path, text="", *bindings):
    (tmp_path / "more.gin").write_text(f"from __gin__ import dynamic_registration\n{text}\n")
    return model_dir.read_job(epath.Path(trained), [str(tmp_path / "more.gin")], bindings).vocabulary


def test_the_copy_stands_for_the_vocabulary_of_the_configuration(trained, corpus, copy, tmp_path):
    assert model_dir.read_job(epath.Path(trained)).vocabulary == copy
    assert vocabulary(trained, tmp_path, "BATCH_SIZE = 8") == copy
    assert vocabulary(trained, tmp_path, "", f"VOCABULARY={corpus}/vocabulary.model") == copy


def test_an_override_that_names_another_vocabulary_wins(trained, tmp_path):
    assert vocabulary(trained, tmp_path, "VOCABULARY = 'bytes'") == "bytes"
    assert vocabulary(trained, tmp_path, "", "VOCABULARY=bytes") == "bytes"
    assert vocabulary(trained, tmp_path, "", "job.Job.vocabulary='bytes'") == "bytes"


def test_without_a_copy_the_configuration_stands(trained_copy, corpus, tmp_path):
    (trained_copy / "vocabulary.model").unlink()
    assert vocabulary(trained_copy, tmp_path) == f"{corpus}/vocabulary.model"


def test_what_stays_configured_is_what_overrides_say(trained):
    """Functions of a user's own module are called after the job was read, and ask gin only then."""
    model_dir.read_job(epath.Path(trained), (), ["RANDOM_SEED=77"])
    assert "RANDOM_SEED = 77" in config.resolved()


def test_a_job_is_opened_without_its_parameters(trained_copy):
    for path in (trained_copy / "checkpoints").rglob("*"):
        if path.is_file() and "state" in path.parts:
            path.write_bytes(b"")
    directory, step, job = model_dir.open_job(f"{trained_copy}@8", (), ("MIXTURE_OR_TASK_NAME=other",))
    assert (directory, step) == (epath.Path(trained_copy), 8)
    assert job.mixture_or_task_name == "other" and job.partition.mesh == {"data": -1}


def test_a_directory_of_others_runs_no_code_of_theirs(trained_copy, tmp_path):
    ran = tmp_path / "ran"
    with (trained_copy / "config.gin").open("a") as file:
        file.write(f"\nimport os\nMODEL = @os.system()\nos.system.command = 'touch {ran}'\n")
    with pytest.raises(UserError, match=r"config\.gin, line \d+: import os is refused\. The file came with a model di"):
        model_dir.read_job(epath.Path(trained_copy))
    assert not ran.exists()
