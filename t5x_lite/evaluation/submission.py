"""Writes the zip file for GLUE's server. It has the predictions of the test sets, one file per task."""

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_lite import atomic
from t5x_lite.data import registry
from t5x_lite.data.registry import Task
from t5x_lite.errors import ConfigError, DivergedError, writing
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


def check(path: Path) -> None:
    """Raises ConfigError if no submission can be written to `path`. Call it before anything is computed."""
    if not path.parent.is_dir():
        raise ConfigError(f"--submission={path}: there is no directory {path.parent}; make it or use a different one")
    _files(path)


def write(path: Path, rows_of: Mapping[str, Sequence[Mapping]]) -> str:
    """Adds the files of some tasks to the zip file at `path`, and returns a line that names the files it still lacks.

    A task's file replaces an earlier one; all other files are kept. So several runs can write one submission, one after
    the other.

    rows_of: {task: rows of its predictions, as `Evaluator.predict` returns them}. Raises DivergedError if a prediction
    is not finite, and ConfigError if the file at `path` is not a zip file.
    """
    files = _files(path)
    for task, rows in rows_of.items():
        for row in rows:
            if not math.isfinite(row["score"]):
                raise DivergedError(
                    f"task {task!r}: the prediction for test example {row['index']} is not finite "
                    f"(score {row['score']}), so {path} is not written; evaluate an earlier checkpoint "
                    "(--checkpoints=STEP)"
                )
        name, content = glue.submission(task, [row["prediction"] for row in rows])
        files[name] = content.encode()
    with writing(path), atomic.file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(files.items()):
            archive.writestr(name, content)
    missing = [f"{name}.tsv (glue_{task})" for task, name in glue.SUBMISSION.items() if f"{name}.tsv" not in files]
    return f"{path}: " + (f"lacks {', '.join(missing)}" if missing else f"has all {len(glue.SUBMISSION)} files")


def _files(path: Path) -> dict[str, bytes]:
    """Returns {name: content} for the files of the submission at `path`; {} if there is none."""
    if not path.exists():
        return {}
    try:
        with zipfile.ZipFile(path) as old:
            return {name: old.read(name) for name in old.namelist()}
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: it is encrypted
        raise ConfigError(
            f"--submission={path} exists and is not a zip file that can be read ({error}); use another name"
        ) from error
