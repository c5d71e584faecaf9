"""Tasks and mixtures: what there is to learn, told once for all architectures."""

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
UNLABELLED = "<unk>"  # the target of a test set's example, as in T5
# What identities hold of targets; other keys or values would refuse the runs and caches there are.
NO_TARGET = {"labels": [], "multi_label": False, "regression": False, "choices": [], "tags": [], "extractive": ""}
SAMPLED = 10_000  # examples that stand for a larger source which cannot fingerprint itself


class Source(Protocol):
    """Where examples come from: random access, so that order and resumption cost nothing.

    A source may also have `fingerprint(split) -> str`: another text whenever an example is another; and
    `tolerant(max_bad_fraction) -> Source`: the same, without the records that are bad, which may be so many.
    The examples of a split may have `where(index) -> str`: file and line of one, for messages.
    """

    def split(self, name: str) -> Sequence[Example]:
        """The examples of a split ("train", "validation", "test"); raises DataError when there is none."""
        ...


@dataclasses.dataclass(frozen=True)
class Feature:
    """One output of a task as token ids."""

    vocabulary: Vocabulary | None = None  # None: the run's (`config.data.vocabulary`)
    add_eos: bool = True


@dataclasses.dataclass(frozen=True, init=False)
class Task:
    """One task. Its preprocessors end in either {"text"} (a corpus: the feature converter brings the
    objective) or {"inputs", "targets"} (supervised, as text), so that one definition feeds a
    text-to-text, a decoder-only and an encoder-only model.

    preprocessors: functions `example -> example`; one with a parameter named `rng` also gets a
        `numpy.random.Generator` that depends only on the seed and the example's place in the order.
    target: the kind of its targets (data/targets.py); by default Corpus() where `features` has "text", else Text().
    labels, multi_label: short for target=Classes(labels, several=multi_label).
    segments: the example fields an encoder reads as its one or two segments.
    metrics: functions `(targets, predictions) -> {name: value}` over postprocessed values.
    postprocess: from target or predicted text to what the metrics compare.
    reference: from an example to what the metrics compare predictions with; None: its postprocessed target.
    baseline: "majority" (the commonest training target), "copy" (the first sentence of the inputs) or "".
    max_bad_fraction: share of its records and examples that may be bad (unreadable, a field missing, a wrong label):
        they are skipped and counted. With 0 the first is a DataError.
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
            raise ConfigError(f"task {name!r}: its files are named after it; use letters, digits and _.- (at most 128)")
        features = features or {"inputs": Feature(), "targets": Feature()}
        if labels or multi_label:
            if target is not None and not isinstance(target, Text | Classes):
                raise ConfigError(f"task {name!r} has labels and target={target}; give only one of them")
            target = Classes(tuple(labels), multi_label)
        for metric in metrics:
            own_code.check_call(
                f"task {name!r}: metrics={own_code.name_of(metric)}", metric, ("targets", "predictions")
            )
        if source is not None and not callable(getattr(source, "split", None)):
            raise ConfigError(f"task {name!r}: source={source!r} has no method split(name)")
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
        """The head that an encoder predicts its targets with; "" for none."""
        return self.target.head

    @property
    def labels(self) -> tuple[str, ...]:
        """The texts that its targets may be, if they are few."""
        return self.target.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its head's outputs."""
        return self.target.classes

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        """The fields that an encoder reads."""
        return ("tokens",) if isinstance(self.target, Tags) else (*self.segments, *self.target.fields)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Tasks or mixtures with rates: the share of *examples* (after the objective has cut a corpus into
    training examples) drawn from each. A rate is a number, or a function of the task's training size; what has 0 is
    only evaluated."""

    name: str
    rates: Mapping[str, float | Callable[[int], float]]


REGISTRY: dict[str, Task | Mixture] = {}


def add(entry: Task | Mixture) -> Task | Mixture:
    """Registers a task or mixture under its name and returns it; a second one of that name replaces the first."""
    REGISTRY[entry.name] = entry
    return entry


def tolerate(name: str, max_bad_fraction: float) -> None:
    """Of every task under a task or mixture so many examples may be bad, whatever the tasks themselves say."""
    for task in evaluated(name):
        add(dataclasses.replace(task, max_bad_fraction=max_bad_fraction))


def rates(name: str) -> dict[str, float]:
    """The tasks trained on under a task or mixture with their shares of the examples, which sum to 1. Nested mixtures
    multiply.

    Raises ConfigError for unknown names, mixtures that contain themselves or train on nothing, and rates that are
    negative or no numbers.
    """
    out = {task: rate for task, rate in _rates(name, ()).items() if rate}
    total = sum(out.values())
    return {task: rate / total for task, rate in out.items()}


class Rated(NamedTuple):
    """A task of a mixture, and its share of the examples."""

    task: Task
    rate: float


def mixture(name: str) -> tuple[Rated, ...]:
    """The tasks trained on under a task or mixture with their `rates`, as they are registered now."""
    return tuple(Rated(REGISTRY[task], rate) for task, rate in rates(name).items())  # type: ignore[arg-type]


def tasks(name: str) -> tuple[Task, ...]:
    """The tasks trained on under a task or mixture."""
    return tuple(rated.task for rated in mixture(name))


def evaluated(name: str) -> tuple[Task, ...]:
    """The tasks under a task or mixture, those with a rate of 0 among them."""
    return tuple(REGISTRY[task] for task in _rates(name, ()))  # type: ignore[misc]


def proportional(cap: float = float("inf"), scale: float = 1.0, temperature: float = 1.0) -> Callable[[int], float]:
    """Examples-proportional mixing (Raffel et al. 2020, §3.5.2): min(size · scale, cap) ** (1 / temperature).

    The cap comes before the temperature, as in the code that trained T5. Sizes that are not the task's own (T5 took
    710,000 for its corpus) are a rate: `{"c4": proportional(cap=2**19)(710_000)}`.

    >>> proportional(cap=100)(5000), proportional(cap=100, temperature=2)(5000)
    (100.0, 10.0)
    """
    for name, value in (("cap", cap), ("scale", scale), ("temperature", temperature)):
        if not value > 0:
            raise ConfigError(f"proportional({name}={value!r}); it must be positive (temperature=1 leaves rates alone)")
    return lambda size: float(min(size * scale, cap) ** (1 / temperature))


def label_names(targets: str) -> tuple[str, ...]:
    """The labels that the target of a task with several names, each once, sorted.

    >>> label_names("surprise, joy"), label_names("")
    (('joy', 'surprise'), ())
    """
    return tuple(sorted({name.strip() for name in targets.split(",")} - {""}))


def identity(task: Task, split: str = "train") -> dict[str, Any]:
    """What a split of a task is, as JSON-able data: another value means other examples.

    examples: the source's size; source: its own fingerprint, or a digest of its examples (of many, a sample);
    preprocessors: `preprocess.identity` of each; and what makes targets and segments of them.
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
    """Where two pieces of JSON-able data differ, a line for each place: "tasks.cola.examples 10 → 12".

    >>> list(differences({"seed": 1, "tasks": {"a": {"examples": 2}}}, {"seed": 1, "tasks": {"a": {"examples": 3}}}))
    ['tasks.a.examples 2 → 3']
    """
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            yield from differences(theirs.get(name), ours.get(name), f"{what}.{name}" if what else name)
    elif theirs != ours:
        yield f"{what} {theirs!r} → {ours!r}"


def digest(examples: Sequence[Example]) -> str:
    """16 hex digits of at most SAMPLED examples, the first and the last among them."""
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
        is_evaluated_only = rate == 0 and rate is not False  # written, not the size of what is empty
        if callable(rate):
            trained = [REGISTRY[task] for task, part in below.items() if part]
            rate = rate(sum(len(task.source.split("train")) for task in trained))  # type: ignore[union-attr]
        if not is_evaluated_only and (
            isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 < rate < float("inf")
        ):
            raise ConfigError(
                f"mixture {name!r}: the rate of {member!r} is {rate!r}; it must be a positive number, or 0 where it "
                "is only evaluated"
            )
        share = sum(below.values())
        for task, part in below.items():
            out[task] = out.get(task, 0.0) + rate * part / share
    if not any(out.values()):
        raise ConfigError(f"mixture {name!r} has rates of 0 alone; give a task to train on a positive one")
    return out


def get(name: str) -> Task | Mixture:
    """The task or mixture of that name; ConfigError with "did you mean" when there is none."""
    return lookup("task or mixture", name, REGISTRY)
