"""Tasks and mixtures: what there is to learn, told once for all architectures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup

Example = Mapping[str, Any]


class Source(Protocol):
    """Where examples come from: random access, so that order and resumption cost nothing."""

    def split(self, name: str) -> Sequence[Example]:
        """The examples of a split ("train", "validation", "test"); raises DataError when there is none."""
        ...


@dataclasses.dataclass(frozen=True)
class Feature:
    """One output of a task as token ids."""

    vocabulary: Vocabulary | None = None  # None: the run's (`config.data.vocabulary`)
    add_eos: bool = True


@dataclasses.dataclass(frozen=True)
class Task:
    """One task. Its preprocessors end in either {"text"} (a corpus: the feature converter brings the
    objective) or {"inputs", "targets"} (supervised, as text), so that one definition feeds a
    text-to-text, a decoder-only and an encoder-only model.

    preprocessors: functions `example -> example`; one with a parameter named `rng` also gets a
        `numpy.random.Generator` that depends only on the seed and the example's place in the order.
    labels: for classification, the class names; `targets` is one of them. Encoder heads use the index.
    regression: `targets` is a number written as text.
    segments: the example fields an encoder reads as its one or two segments.
    metrics: functions `(targets, predictions) -> {name: value}` over postprocessed values.
    postprocess: from target or predicted text to what the metrics compare.
    baseline: "majority" (the commonest training target), "copy" (the first sentence of the inputs) or "".
    """

    name: str
    source: Source
    preprocessors: tuple[Callable[..., Example], ...] = ()
    features: Mapping[str, Feature] = dataclasses.field(
        default_factory=lambda: {"inputs": Feature(), "targets": Feature()}
    )
    labels: tuple[str, ...] = ()
    regression: bool = False
    segments: tuple[str, ...] = ("inputs",)
    metrics: tuple[Callable[[Sequence, Sequence], dict[str, float]], ...] = ()
    postprocess: Callable[[str], Any] = str.strip
    baseline: str = ""

    @property
    def is_corpus(self) -> bool:
        return "text" in self.features


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Tasks or mixtures with rates: the share of *examples* (after the objective has cut a corpus into
    training examples) drawn from each. A rate is a number, or a function of the task's training size."""

    name: str
    rates: Mapping[str, float | Callable[[int], float]]


REGISTRY: dict[str, Task | Mixture] = {}


def add(entry: Task | Mixture) -> Task | Mixture:
    """Registers a task or mixture under its name and returns it; a second one of that name replaces the first."""
    REGISTRY[entry.name] = entry
    return entry


def rates(name: str) -> dict[str, float]:
    """The tasks under a task or mixture with their shares of the examples, which sum to 1. Nested mixtures multiply.

    Raises ConfigError for unknown names, mixtures that contain themselves, and rates that are not positive.
    """
    out = _rates(name, ())
    total = sum(out.values())
    return {task: rate / total for task, rate in out.items()}


def tasks(name: str) -> tuple[Task, ...]:
    """The tasks under a task or mixture."""
    return tuple(REGISTRY[task] for task in rates(name))  # type: ignore[misc]


def proportional(cap: float = float("inf"), scale: float = 1.0, temperature: float = 1.0) -> Callable[[int], float]:
    """Examples-proportional mixing (Raffel et al. 2020, §3.5.2): min(size · scale, cap) ** (1 / temperature).

    >>> proportional(cap=100)(5000)
    100.0
    """
    return lambda size: float(min(size * scale, cap) ** (1 / temperature))


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
        if callable(rate):
            rate = rate(sum(len(REGISTRY[task].source.split("train")) for task in below))  # type: ignore[union-attr]
        if isinstance(rate, str) or not 0 < rate < float("inf"):
            raise ConfigError(f"mixture {name!r}: the rate of {member!r} is {rate!r}; it must be a positive number")
        share = sum(below.values())
        for task, part in below.items():
            out[task] = out.get(task, 0.0) + rate * part / share
    return out


def get(name: str) -> Task | Mixture:
    """The task or mixture of that name; ConfigError with "did you mean" when there is none."""
    return lookup("task or mixture", name, REGISTRY)
