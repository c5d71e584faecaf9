"""Writes the zip file for GLUE's server. It has the predictions of the test sets, one file per task."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_lite import atomic
from t5x_lite.data import registry
from t5x_lite.data.registry import Task
from t5x_lite.errors import ConfigError
from t5x_lite.experiment import Experiment
from t5x_lite.tasks import glue


def tasks_of(experiment: Experiment) -> list[Task]:
    """Returns the run's tasks that GLUE's server scores, plus glue_ax if glue_mnli is one of them.

    Raises ConfigError if there are none, or if data.dir is not set.
    """
    names = {f"glue_{name}" for name in glue.SUBMISSION}
    tasks = [task for task in experiment.eval_tasks if task.name in names]
    if not tasks or not experiment.cfg.data.dir:
        raise ConfigError(
            "--submission is for GLUE's tasks, read from GLUE's own files, because their order is the server's: use "
            f"--config.data.dir=DIR. This run evaluates {', '.join(t.name for t in experiment.eval_tasks)}"
        )
    if "glue_mnli" in {task.name for task in tasks}:
        tasks += registry.tasks("glue_ax")  # only a test set; the model for MNLI predicts it
    return tasks


def members(path: Path) -> dict[str, bytes]:
    """Returns {name: content} for the files of an earlier submission at `path`; {} if there is none.

    Call it before anything is computed, because it raises ConfigError if no submission can be written to `path`.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--submission={path}: there is no directory {path.parent}; make it or use a different one")
    if not path.exists():
        return {}
    try:
        with zipfile.ZipFile(path) as old:
            return {name: old.read(name) for name in old.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--submission={path} exists and is not a zip file ({error}); use another name") from error


def write(path: Path, predictions: Mapping[str, Sequence[str]], earlier: Mapping[str, bytes]) -> None:
    """Writes the zip file. predictions: {task: predictions}. earlier: files to keep, unless a task replaces them."""
    files = dict(earlier)
    for task, texts in predictions.items():
        name, content = glue.submission(task, texts)
        files[name] = content.encode()
    with atomic.file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(files.items()):
            archive.writestr(name, content)
