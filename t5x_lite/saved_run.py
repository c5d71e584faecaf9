"""Keeps in a workdir all that its model needs besides parameters, so that the model works on machines without the data.

    WORKDIR/model/model.json   the ModelConfig
    WORKDIR/model/tasks.json   the tasks (targets, segments, templates) and the class of the vocabulary
    WORKDIR/model/…            the vocabulary's files; if the model was imported, also its settings

`load`, `infer`, `export` and `attention` read these files, never the training data or files outside the workdir.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5x_lite import atomic
from t5x_lite import config as configs
from t5x_lite.config import Config
from t5x_lite.data import registry, targets, vocabularies
from t5x_lite.data.registry import Example, Feature, Rated, Task
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import CheckpointError, DataError
from t5x_lite.models import stored

if TYPE_CHECKING:
    from t5x_lite.experiment import Experiment  # resolving names is not a part of training

DIRECTORY = "model"
TASKS = "tasks.json"
VOCABULARIES = ("ByteVocabulary", "SentencePieceVocabulary", "TokenizerVocabulary")
IMPORTED = ("huggingface.json", "generation_config.json")  # settings of a model that was imported
# Keys that decide how a model is used, not what it is. If any other key changes, the config's names are resolved again.
OF_USE = ("eval.", "data.length", "data.targets_length", "data.batch_rows", "mesh", "rules.", "checkpoint.", "seed")


@dataclasses.dataclass(frozen=True)
class NotHere:
    """Stands for a task's source, which is not in the workdir. templates: pairs (field, template), as in `Filled`."""

    task: str
    templates: tuple[tuple[str, str], ...] = ()

    def split(self, name: str) -> Sequence[Example]:
        raise DataError(f"the data of the task {self.task!r} is not in the workdir, which keeps only its definition")


def write(experiment: "Experiment", workdir: Path) -> None:
    """Writes WORKDIR/model. Does nothing if the class of the model, a target or the vocabulary is the user's own.

    Raises OSError if a file cannot be written, and ConfigError if a file of the vocabulary cannot be read.
    """
    vocabulary, tasks = experiment.vocabulary, experiment.mixture
    is_known = type(vocabulary).__name__ in VOCABULARIES and all(
        type(rated.task.target).__module__ == targets.__name__ for rated in tasks
    )
    if experiment.model.module is not None or not is_known:
        return
    directory = workdir / DIRECTORY
    directory.mkdir(exist_ok=True)
    for path in _files(experiment):
        atomic.write(directory / path.name, path.read_bytes())
    described = {"vocabulary": _of_vocabulary(vocabulary), "tasks": [_of_task(rated) for rated in tasks]}
    atomic.write(directory / TASKS, json.dumps(described, indent=1))
    atomic.write(directory / stored.FILE, json.dumps(dataclasses.asdict(experiment.model), indent=1))


def directory_of(workdir: Path) -> Path | None:
    """Returns the directory that `write` made in a workdir; None if it made none (version 0.1, or own classes)."""
    directory = workdir / DIRECTORY
    return directory if (directory / TASKS).is_file() and (directory / stored.FILE).is_file() else None


def resolve(cfg: Config, workdir: Path) -> "Experiment":
    """Returns the experiment of a workdir, to use its model. The experiment has the tasks' definitions, not their data.

    Resolves the names in `cfg` instead if the workdir has no definitions, or if `cfg` changes what the model is. Raises
    CheckpointError if the definitions cannot be read.
    """
    from t5x_lite import experiment

    directory = directory_of(workdir)
    own = configs.from_json(workdir / "config.json")
    changed = [k for k, v in configs.flat(cfg).items() if v != configs.flat(own)[k] and not k.startswith(OF_USE)]
    if directory is None or changed:
        return experiment.resolve_again(cfg)
    try:
        described = json.loads((directory / TASKS).read_bytes())
        vocabulary = _vocabulary(described["vocabulary"], directory)
        mixture = tuple(_task(entry) for entry in described["tasks"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{directory / TASKS} is damaged ({error}); remove {directory} to resolve the run's config instead"
        ) from None
    return experiment.of_parts(cfg, mixture, vocabulary, stored.read(directory))


def _files(experiment: "Experiment") -> Iterator[Path]:
    path = getattr(experiment.vocabulary, "path", None)
    if path is not None:
        yield Path(path)
        beside = (Path(path).with_name(name) for name in vocabularies.BESIDE_A_TOKENIZER)
        yield from (file for file in beside if file.is_file() and file != Path(path))
    origin = Path(experiment.cfg.model.preset)
    if (origin / stored.FILE).is_file():
        yield from (origin / name for name in IMPORTED if (origin / name).is_file())


def _of_vocabulary(vocabulary: Any) -> dict[str, Any]:
    described = {"class": type(vocabulary).__name__}
    if hasattr(vocabulary, "path"):
        described["file"] = Path(vocabulary.path).name
    return described | ({"extra_ids": vocabulary.extra_ids} if hasattr(vocabulary, "extra_ids") else {})


def _vocabulary(described: Mapping[str, Any], directory: Path) -> Vocabulary:
    made = getattr(vocabularies, {name: name for name in VOCABULARIES}[described["class"]])
    arguments = {name: value for name, value in described.items() if name not in ("class", "file")}
    if "file" in described:
        arguments["path"] = directory / Path(described["file"]).name
    vocabulary = made(**arguments)
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
        "templates": dict(getattr(task.source, "templates", ())),
    }


def _task(described: Mapping[str, Any]) -> Rated:
    target = dict(described["target"])
    kind = {name: value for name, value in vars(targets).items() if isinstance(value, type)}[target.pop("class")]
    target = {name: tuple(value) if isinstance(value, list) else value for name, value in target.items()}
    task = Task(
        described["name"],
        NotHere(described["name"], tuple(described["templates"].items())),
        features={name: Feature(add_eos=add_eos) for name, add_eos in described["add_eos"].items()},
        target=kind(**target),
        segments=described["segments"],
    )
    return registry.Rated(task, described["rate"])
