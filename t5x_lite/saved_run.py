"""Stores in a workdir all that its model needs besides parameters. So the model works on machines without the data.

    WORKDIR/model/model.json   the ModelConfig
    WORKDIR/model/tasks.json   the tasks (targets, segments, templates) and the class of the vocabulary
    WORKDIR/model/vocabulary/  the vocabulary's files
    WORKDIR/model/…            the model's settings, if it was imported
    WORKDIR/model/MANIFEST.json  the hashes of these files, so that a damaged one is noticed

`load`, `infer`, `export` and `attention` read these files, never the training data or files outside the workdir.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5x_lite import atomic, side_files
from t5x_lite import config as configs
from t5x_lite.config import Config
from t5x_lite.data import vocabularies
from t5x_lite.data.registry import Example, Feature, Rated, Task
from t5x_lite.data.targets import Target
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.data.vocabulary import read_file
from t5x_lite.errors import CheckpointError, DataError
from t5x_lite.models import stored

if TYPE_CHECKING:
    from t5x_lite.experiment import Experiment  # resolving names is not a part of training

TASKS = "tasks.json"
VOCABULARY = "vocabulary"
VOCABULARIES = ("ByteVocabulary", "SentencePieceVocabulary", "TokenizerVocabulary", "TranslatorVocabulary")
IMPORTED = (stored.SETTINGS, "generation_config.json")  # settings of a model that was imported
# Keys that decide what a model is and what it reads. If one of them is changed, `resolve` does not use the stored files
# but resolves the names in the config.
OF_DATA = ("mixture", "files", "inputs", "targets", "text", "labels", "vocabulary", "dir")
DECIDES = ("model.", *(f"data.{name}" for name in (*OF_DATA, *configs.READING)))


@dataclasses.dataclass(frozen=True)
class NotHere:
    """Replaces a task's source, which the workdir lacks. templates: pairs (field, template), as in `Filled`."""

    task: str
    templates: tuple[tuple[str, str], ...] = ()

    def split(self, name: str) -> Sequence[Example]:
        raise DataError(f"the data of the task {self.task!r} is not in the workdir, which keeps only its definition")


def write(experiment: "Experiment", workdir: Path) -> None:
    """Writes WORKDIR/model in place of an earlier one.

    Only removes the earlier one if the user's own code defines the class of the model, of a target or of the
    vocabulary.
    Raises OSError if a file cannot be written, and ConfigError if a file of the vocabulary cannot be read.
    """
    from t5x_lite.checkpoints import manifest

    directory, partial = workdir / stored.DIRECTORY, workdir / f".{stored.DIRECTORY}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    vocabulary, tasks = experiment.vocabulary, experiment.mixture
    kinds = {type(vocabulary).__module__} | {type(rated.task.target).__module__ for rated in tasks}
    is_described = experiment.model.module is None and all(kind.startswith("t5x_lite.data.") for kind in kinds)
    if is_described:
        (partial / VOCABULARY).mkdir(parents=True)
        for name, content in _files(experiment):
            (partial / name).write_bytes(content)
        described = {"vocabulary": _of_vocabulary(vocabulary), "tasks": [_of_task(rated) for rated in tasks]}
        atomic.write(partial / TASKS, json.dumps(described, indent=1))
        atomic.write(partial / stored.FILE, json.dumps(dataclasses.asdict(experiment.model), indent=1))
        manifest.write(partial)
    if directory.is_file():
        directory.unlink()
    shutil.rmtree(directory, ignore_errors=True)  # until the rename, `resolve` resolves the run's config
    if is_described:
        partial.rename(directory)


def templates_of(task: Task) -> dict[str, str]:
    """Returns {field: template} if the task only fills templates with the records of its files.

    Returns {} for other tasks, and for tasks whose preprocessors then change the examples.
    """
    from t5x_lite.data.filled import Filled

    is_filled = isinstance(task.source, Filled | NotHere) and not task.preprocessors
    return dict(task.source.templates) if is_filled else {}  # type: ignore[attr-defined]


def directory_of(workdir: Path) -> Path | None:
    """Returns the directory that `write` made in a workdir, or None if it made none.

    Version 0.1 made none. `write` makes none if the user's own code defines the class of the model, of a target or of
    the vocabulary.
    """
    directory = workdir / stored.DIRECTORY
    return directory if side_files.is_there(directory) else None


def resolve(cfg: Config, workdir: Path) -> "Experiment":
    """Returns the experiment for using a workdir's model. It has the tasks' definitions, but not their data.

    Resolves the names in `cfg` instead if the workdir has no definitions, or if `cfg` changes what the model is. Raises
    CheckpointError if the definitions cannot be read.
    """
    from t5x_lite import experiment

    directory = directory_of(workdir)
    own = configs.from_json(workdir / "config.json")
    deciding = [key for key in configs.KEYS if key.startswith(DECIDES)]
    changed = [key for key in deciding if configs.as_data(cfg[key]) != configs.as_data(own[key])]
    if directory is None or changed:
        return experiment.resolve_again(cfg)
    mixture, vocabulary = _read(directory)
    return experiment.of_parts(cfg, mixture, vocabulary, stored.read(directory))


def classes_of(directory: Path) -> tuple[str, ...]:
    """Returns the classes that a run's model tells apart, given its WORKDIR/model; () if it has none."""
    mixture, _ = _read(directory)
    return next((rated.task.classes for rated in mixture if rated.task.classes), ())


def _read(directory: Path) -> tuple[tuple[Rated, ...], Vocabulary]:
    """Reads what `write` wrote. Raises CheckpointError if it is corrupted."""
    from t5x_lite.checkpoints import manifest

    how = f"restore it from a copy, or remove {directory} to resolve the run's config instead"
    if side_files.is_there(directory / manifest.NAME) and (problem := manifest.problem(directory)):
        raise CheckpointError(f"{directory} is corrupted: {problem}; {how}")
    try:
        described = side_files.read_json(directory / TASKS)
        return tuple(_task(entry) for entry in described["tasks"]), _vocabulary(described["vocabulary"], directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{directory / TASKS} is corrupted ({side_files.why(error)}); {how}") from None


def _files(experiment: "Experiment") -> Iterator[tuple[str, bytes]]:
    """Yields (name in WORKDIR/model, content) of the vocabulary's files and of an imported model's settings."""
    if (path := getattr(experiment.vocabulary, "path", None)) is not None:
        # The type of the model decides how some tokenizers read.
        names = (*vocabularies.TOKENIZER_FILES, *vocabularies.MODEL_FILES)
        beside = [Path(path).with_name(name) for name in names]
        for file in {Path(path): None} | {file: None for file in beside if side_files.is_there(file)}:
            yield f"{VOCABULARY}/{file.name}", read_file(file)
    origin = Path(experiment.cfg.model.preset)
    if (origin / stored.FILE).is_file():
        for name in IMPORTED:
            if side_files.is_there(origin / name):
                yield name, read_file(origin / name)


def _of_vocabulary(vocabulary: Any) -> dict[str, Any]:
    described = {"class": type(vocabulary).__name__}
    if hasattr(vocabulary, "path"):
        described["file"] = Path(vocabulary.path).name
    return described | ({"extra_ids": vocabulary.extra_ids} if hasattr(vocabulary, "extra_ids") else {})


def _vocabulary(described: Mapping[str, Any], directory: Path) -> Vocabulary:
    if described["class"] not in VOCABULARIES:
        raise ValueError(f"the vocabulary's class is {described['class']!r}; it must be one of {VOCABULARIES}")
    arguments = {name: value for name, value in described.items() if name not in ("class", "file")}
    if "file" in described:
        arguments["path"] = directory / VOCABULARY / Path(described["file"]).name
    vocabulary = getattr(vocabularies, described["class"])(**arguments)
    _ = vocabulary.size  # reads the file, so that a missing one fails here
    return vocabulary


def _of_task(rated: Rated) -> dict[str, Any]:
    task = rated.task
    return {
        "name": task.name,
        "rate": rated.rate,
        "target": {"class": type(task.target).__name__, **dataclasses.asdict(task.target)},  # type: ignore[arg-type]
        "segments": task.segments,
        "add_eos": {name: feature.add_eos for name, feature in task.features.items()},
        "templates": templates_of(task),
    }


def _task(described: Mapping[str, Any]) -> Rated:
    target = {name: tuple(value) if isinstance(value, list) else value for name, value in described["target"].items()}
    kind = {kind.__name__: kind for kind in Target.__subclasses__()}[str(target.pop("class"))]
    task = Task(
        described["name"],
        NotHere(described["name"], tuple(described["templates"].items())),
        features={name: Feature(add_eos=add_eos) for name, add_eos in described["add_eos"].items()},
        target=kind(**target),
        segments=described["segments"],
    )
    return Rated(task, described["rate"])
