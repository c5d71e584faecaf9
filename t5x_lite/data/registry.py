"""Tasks and mixtures. A task is defined once, and every architecture can train on it."""

import dataclasses
import hashlib
import json
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from t5x_lite import own_code
from t5x_lite.data import preprocess
from t5x_lite.data.targets import Classes, Corpus, Tags, Target, Text
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup

Example = Mapping[str, Any]
UNLABELLED = "<unk>"  # the target of a test example without a published label, as in T5
# These entries about targets are in every task's identity. If a key or value changes, existing runs and caches are
# refused.
NO_TARGET = {"labels": [], "multi_label": False, "regression": False, "choices": [], "tags": [], "extractive": ""}
SAMPLED = 10_000  # the most examples in the digest of a source that has no fingerprint of its own


class Source(Protocol):
    """Defines the methods of a source of examples. A source has random access, so shuffling and resuming cost nothing.

    A source may also have two more methods. `fingerprint(split) -> str` changes whenever any example changes.
    `tolerant(max_bad_fraction) -> Source` returns a source that leaves out bad records, up to this share of all
    records. The sequence of a split's examples may have `where(index) -> str`, which returns the file and line of an
    example, for messages.
    """

    def split(self, name: str) -> Sequence[Example]:
        """Returns the examples of a split ("train", "validation", "test"). Raises DataError if the split is missing."""
        ...


@dataclasses.dataclass(frozen=True)
class Feature:
    """Says how one text of a task's examples becomes token ids."""

    vocabulary: Vocabulary | None = None  # None: the run's vocabulary (`config.data.vocabulary`)
    add_eos: bool = True  # whether the ids end with EOS


@dataclasses.dataclass(frozen=True, init=False)
class Task:
    """Defines one task, for text-to-text, decoder-only and encoder-only models alike.

    After its preprocessors an example has either {"text"} (a corpus; the feature converter applies the objective) or
    {"inputs", "targets"} (supervised, as text).

    preprocessors: functions `example -> example`. A function with a parameter named `rng` also gets a
        `numpy.random.Generator`, which depends only on the seed and the example's place in the order.
    target: the kind of target (data/targets.py); the default is Corpus() if `features` has "text", else Text().
    labels, multi_label: short for target=Classes(labels, several=multi_label).
    segments: the example fields that an encoder reads as its one or two segments.
    metrics: functions `(targets, predictions) -> {name: value}` over postprocessed values.
    postprocess: turns a target or a predicted text into the value that the metrics compare.
    reference: turns an example into the value that the metrics compare predictions with; None: they compare with the
        postprocessed `targets`.
    baseline: the trivial prediction to compare with: "majority" (the most frequent training target), "copy" (the first
        sentence of the inputs) or "" (none).
    max_bad_fraction: the share of records and examples that may be bad (unreadable, a missing field, a wrong label).
        Bad ones are skipped and counted. With 0, the first bad one raises DataError.

    Raises ConfigError if the name cannot be a file name, if `labels` contradicts `target`, if the source has no
    split(name), or if a metric cannot be called with (targets, predictions).
    """

    name: str
    source: Source
    preprocessors: tuple[Callable[..., Example | None], ...]
    features: Mapping[str, Feature]
    target: Target
    segments: tuple[str, ...]
    metrics: tuple[Callable[[Sequence, Sequence], dict[str, float]], ...]
    postprocess: Callable[[str], Any]
    reference: Callable[[Example], Any] | None
    baseline: str
    max_bad_fraction: float

    def __init__(
        self,
        name: str,
        source: Source,
        preprocessors: Sequence[Callable[..., Example | None]] = (),
        features: Mapping[str, Feature] | None = None,
        target: Target | None = None,
        segments: Sequence[str] = ("inputs",),
        metrics: Sequence[Callable[[Sequence, Sequence], dict[str, float]]] = (),
        postprocess: Callable[[str], Any] = str.strip,
        reference: Callable[[Example], Any] | None = None,
        baseline: str = "",
        max_bad_fraction: float = 0.0,
        *,
        labels: Sequence[str] = (),
        multi_label: bool = False,
    ):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) or set(name) <= {"."}:
            raise ConfigError(
                f"task {name!r}: its files are named after it, so the name may have 1 to 128 letters, digits and _.-"
            )
        features = features or {"inputs": Feature(), "targets": Feature()}
        if labels or multi_label:
            if target is not None and not isinstance(target, Text | Classes):
                raise ConfigError(f"task {name!r} has both labels and target={target}; give only one of them")
            target = Classes(tuple(labels), multi_label)
        for metric in metrics:
            own_code.check_call(
                f"task {name!r}: metrics={own_code.name_of(metric)}", metric, ("targets", "predictions")
            )
        if source is not None and not callable(getattr(source, "split", None)):
            raise ConfigError(
                f"task {name!r}: source={source!r} has no method split(name); add one that returns a split's examples"
            )
        if source is not None:
            own_code.check_call(f"task {name!r}: source={own_code.name_of(source.split)}", source.split, ("name",))
        if max_bad_fraction and (tolerant := getattr(source, "tolerant", None)):
            source = tolerant(max_bad_fraction)
        values = {
            "name": name,
            "source": source,
            "preprocessors": tuple(preprocessors),
            "features": features,
            "target": target or (Corpus() if "text" in features else Text()),
            "segments": tuple(segments),
            "metrics": tuple(metrics),
            "postprocess": postprocess,
            "reference": reference,
            "baseline": baseline,
            "max_bad_fraction": max_bad_fraction,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @property
    def is_corpus(self) -> bool:
        return isinstance(self.target, Corpus)

    @property
    def head(self) -> str:
        """Returns the encoder's head that predicts the task's targets; "" for none."""
        return self.target.head

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the texts that the task's targets may be; () for any text."""
        return self.target.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the names of the head's outputs."""
        return self.target.classes

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        """Returns the fields of an example that an encoder reads."""
        return ("tokens",) if isinstance(self.target, Tags) else (*self.segments, *self.target.fields)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Combines tasks or mixtures by rates. Rates are shares of the training *examples*. In a corpus, a training example
    is not a document, but one of the pieces into which the objective cuts the corpus.

    A rate is a number, or a function of the size of the task or nested mixture: the number of its source examples for
    training. Tasks with rate 0 are evaluated but not trained on.
    """

    name: str
    rates: Mapping[str, float | Callable[[int], float]]


REGISTRY: dict[str, Task | Mixture] = {}


def add(entry: Task | Mixture) -> Task | Mixture:
    """Registers a task or mixture under its name and returns it. An earlier entry of the same name is replaced."""
    REGISTRY[entry.name] = entry
    return entry


def tolerate(name: str, max_bad_fraction: float) -> None:
    """Sets max_bad_fraction of the task `name`, or of every task in the mixture `name`, and registers the changed
    tasks.

    Raises ConfigError as `rates` does.
    """
    for task in evaluated(name):
        add(dataclasses.replace(task, max_bad_fraction=max_bad_fraction))


def rates(name: str) -> dict[str, float]:
    """Returns {task: its share of the training examples} for all tasks that a run on the task or mixture `name` trains
    on. The shares sum to 1; the rates of nested mixtures multiply.

    Raises ConfigError for an unknown name, for a mixture that contains itself or trains on nothing, and for a rate that
    is negative, infinite or not a number.
    """
    out = {task: rate for task, rate in _rates(name, ()).items() if rate}
    total = sum(out.values())
    return {task: rate / total for task, rate in out.items()}


class Rated(NamedTuple):
    """A task of a mixture with its share of the training examples."""

    task: Task
    rate: float


def mixture(name: str) -> tuple[Rated, ...]:
    """Returns the tasks that a run on the task or mixture `name` trains on, each with its rate. They are the tasks as
    currently registered. Raises ConfigError as `rates` does."""
    return tuple(Rated(REGISTRY[task], rate) for task, rate in rates(name).items())  # type: ignore[arg-type]


def tasks(name: str) -> tuple[Task, ...]:
    """Returns the tasks that a run on the task or mixture `name` trains on. Raises ConfigError as `rates` does."""
    return tuple(rated.task for rated in mixture(name))


def evaluated(name: str) -> tuple[Task, ...]:
    """Returns all tasks of the task or mixture `name`, including those with rate 0. Raises ConfigError as `rates`
    does."""
    return tuple(REGISTRY[task] for task in _rates(name, ()))  # type: ignore[misc]


def proportional(cap: float = float("inf"), scale: float = 1.0, temperature: float = 1.0) -> Callable[[int], float]:
    """Returns the rate function of examples-proportional mixing: min(size · scale, cap) ** (1 / temperature).

    Source: Raffel et al. 2020, §3.5.2. The cap applies before the temperature, as in the code that trained T5. To
    replace the task's own size, call the function yourself: `{"c4": proportional(cap=2**19)(710_000)}`. (T5 used the
    size 710,000 for its corpus.) Raises ConfigError if an argument is not positive.

    >>> proportional(cap=100)(5000), proportional(cap=100, temperature=2)(5000)
    (100.0, 10.0)
    """
    for name, value in (("cap", cap), ("scale", scale), ("temperature", temperature)):
        if not value > 0:
            raise ConfigError(f"proportional({name}={value!r}): must be positive (temperature=1 does not change rates)")
    return lambda size: float(min(size * scale, cap) ** (1 / temperature))


def label_names(targets: str) -> tuple[str, ...]:
    """Returns the labels in a target of Classes(several=True), sorted, each only once.

    >>> label_names("surprise, joy"), label_names("")
    (('joy', 'surprise'), ())
    """
    return tuple(sorted({name.strip() for name in targets.split(",")} - {""}))


def identity(task: Task, split: str = "train") -> dict[str, Any]:
    """Returns JSON-able data that changes whenever the examples of a task's split may have changed.

    examples: the number of the split's examples in the source.
    source: the source's own fingerprint, if it has one; else a digest of the examples (of a sample, if there are many).
    preprocessors: `preprocess.identity` of each.
    The other keys say how targets and segments are made from the examples.
    """
    examples = task.source.split(split)
    own = getattr(task.source, "fingerprint", None)
    return {
        "examples": len(examples),
        "source": own(split) if own else digest(examples),
        "preprocessors": [preprocess.identity(function) for function in task.preprocessors],
        "segments": list(task.segments),
        **NO_TARGET,
        **task.target.identity(),
        "add_eos": {name: feature.add_eos for name, feature in task.features.items()},
    }


def differences(theirs: Any, ours: Any, what: str = "") -> Iterator[str]:
    """Yields a line for each place where two pieces of JSON-able data differ: "tasks.cola.examples 10 → 12".

    theirs: the earlier data, shown first. ours: the present data. what: the name of the place, for the lines.

    >>> list(differences({"seed": 1, "tasks": {"a": {"examples": 2}}}, {"seed": 1, "tasks": {"a": {"examples": 3}}}))
    ['tasks.a.examples 2 → 3']
    """
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            yield from differences(theirs.get(name), ours.get(name), f"{what}.{name}" if what else name)
    elif theirs != ours:
        yield f"{what} {theirs!r} → {ours!r}"


def digest(examples: Sequence[Example]) -> str:
    """Returns a digest (16 hex digits) of at most SAMPLED examples, including the first and the last."""
    last = len(examples) - 1
    places = sorted({round(i * last / (SAMPLED - 1)) for i in range(SAMPLED)}) if len(examples) else []
    lines = (json.dumps(examples[i], sort_keys=True, default=repr) for i in places)
    return hashlib.sha256("\n".join(lines).encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def _rates(name: str, above: tuple[str, ...]) -> dict[str, float]:
    if name in above:
        raise ConfigError(f"mixture {name!r} contains itself: {' → '.join([*above, name])}")
    entry = get(name)
    if isinstance(entry, Task):
        return {name: 1.0}
    if not entry.rates:
        raise ConfigError(f"mixture {name!r} has no tasks; give it rates such as {{'task': 1.0}}")
    out: dict[str, float] = {}
    for member, rate in entry.rates.items():
        below = _rates(member, (*above, name))
        is_evaluated_only = rate == 0 and rate is not False  # a rate written as 0, not one computed from an empty task
        if callable(rate):
            trained = [REGISTRY[task] for task, part in below.items() if part]
            rate = rate(sum(len(task.source.split("train")) for task in trained))  # type: ignore[union-attr]
        if not is_evaluated_only and (
            isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 < rate < float("inf")
        ):
            raise ConfigError(
                f"mixture {name!r}: the rate of {member!r} is {rate!r}; it must be a positive number, or 0 to only "
                f"evaluate {member!r}"
            )
        share = sum(below.values())
        for task, part in below.items():
            out[task] = out.get(task, 0.0) + rate * part / share
    if not any(out.values()):
        raise ConfigError(f"mixture {name!r} has only rates of 0; give at least one task a positive rate")
    return out


def get(name: str) -> Task | Mixture:
    """Returns the task or mixture with a name. If there is none, raises ConfigError, which suggests similar names."""
    return lookup("task or mixture", name, REGISTRY)
