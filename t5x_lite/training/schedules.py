"""Learning-rate schedules: functions of n, the number of updates made so far.

Each schedule by name is a function that returns the factor of the peak learning rate. Its keyword arguments are its own
parameters. To add a schedule, write a function and its entry of SCHEDULES, and in recipe_keys.py its name and a config
key for each new parameter.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite import own_code
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup, own_parameters
from t5x_lite.recipe_keys import DECAYING

Schedule = Callable[[Any], Any]  # n, the number of updates made so far -> a factor or a learning rate


class Span(NamedTuple):
    """Holds what every schedule by name gets: the lengths of the warm-up and of the run, and its last factor."""

    warmup_steps: int
    total_steps: int
    final_fraction: float

    def ramp(self) -> Schedule:
        """Returns the warm-up, min(1, n / warmup_steps). It is 0 at the first update, as in T5X and Hugging Face."""
        return lambda n: _progress(n, 0, self.warmup_steps)

    def falling(self, begin: int, shape: Schedule) -> Schedule:
        """Returns the schedule that falls from 1 at `begin` to final_fraction at the end of the run.

        shape: share of the way from `begin` to the end -> share of the fall that is left, from 1 to 0.
        """
        fall = 1 - self.final_fraction
        return lambda n: self.final_fraction + fall * shape(_progress(n, begin, self.total_steps))


# How a decay falls: share of its time -> share of its fall that is left. "sqrt" is that of Hägele et al. 2024, §3.
DECAYS: dict[str, Schedule] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + jnp.cos(math.pi * x)),
    "sqrt": lambda x: 1 - jnp.sqrt(x),
}


def constant(span: Span) -> Schedule:
    """Rises from 0 to 1 over the warm-up, then stays 1."""
    return span.ramp()


def linear(span: Span) -> Schedule:
    """Rises from 0 to 1 over the warm-up, then falls linearly to final_fraction at the end of the run."""
    return product(span.ramp(), span.falling(span.warmup_steps, DECAYS["linear"]))


def cosine(span: Span) -> Schedule:
    """As linear, along half a cosine."""
    return product(span.ramp(), span.falling(span.warmup_steps, DECAYS["cosine"]))


def polynomial(span: Span, *, power: float = 2.0) -> Schedule:
    """As linear, but falls as (1 − x)^power, where x is the share of the decay's time."""
    return product(span.ramp(), span.falling(span.warmup_steps, lambda x: (1 - x) ** power))


def rsqrt(span: Span) -> Schedule:
    """Stays 1 for warmup_steps updates, then falls as 1/√n: √(warmup_steps / max(n, warmup_steps)).

    With learning_rate=0.01 and warmup_steps=10_000, this is the schedule of T5's pre-training, 1/√max(n, 10⁴)
    (Raffel et al. 2020, §3.1.2).
    """
    flat = float(max(1, span.warmup_steps))
    return lambda n: jnp.sqrt(flat / jnp.maximum(jnp.asarray(n, jnp.float32), flat))


def inverse_sqrt(span: Span) -> Schedule:
    """Rises from 0 to 1 over the warm-up, then falls as 1/√n (Vaswani et al. 2017, §5.3)."""
    return product(span.ramp(), rsqrt(span))


def wsd(span: Span, *, decay_steps: int = 0, decay: str = "linear") -> Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM, §4): stays 1 until the last `decay_steps` updates of the run.

    decay_steps: 0: a tenth of the run.  decay: a key of DECAYS, how it falls to final_fraction.
    """
    length = decay_steps or max(1, span.total_steps // 10)
    if span.warmup_steps + length > span.total_steps:
        raise ConfigError(
            f"schedule.decay_steps={length} and schedule.warmup_steps={span.warmup_steps} are longer than the run of "
            f"train.total_steps={span.total_steps}; shorten them"
        )
    return product(span.ramp(), span.falling(span.total_steps - length, lookup("schedule.decay", decay, DECAYS)))


def step(span: Span, *, drop_every_steps: int = 0, drop_factor: float = 0.1) -> Schedule:
    """After the warm-up, multiplies by drop_factor every `drop_every_steps` updates; 0: every third of the run."""
    every = drop_every_steps or max(1, span.total_steps // 3)
    return product(span.ramp(), lambda n: drop_factor ** jnp.floor(jnp.asarray(n, jnp.float32) / every))


def one_cycle(span: Span, *, initial_fraction: float = 0.04) -> Schedule:
    """Rises along half a cosine from initial_fraction to 1 over the warm-up, then falls so to final_fraction.

    Source: Smith and Topin 2018. In torch's OneCycleLR, the rise takes 30% of the run.
    """

    def rise(n: jax.Array) -> jax.Array:
        return 1 - (1 - initial_fraction) * DECAYS["cosine"](_progress(n, 0, span.warmup_steps))

    return product(rise, span.falling(span.warmup_steps, DECAYS["cosine"]))


def restarts(span: Span, *, cycles: int = 4) -> Schedule:
    """After the warm-up, falls `cycles` times along half a cosine from 1 to final_fraction.

    Source: Loshchilov and Hutter 2017, SGDR, §3.
    """

    def falls(n: jax.Array) -> jax.Array:
        done = cycles * _progress(n, span.warmup_steps, span.total_steps)
        inside = jnp.where(done >= cycles, 1.0, done % 1)
        return span.final_fraction + (1 - span.final_fraction) * DECAYS["cosine"](inside)

    return product(span.ramp(), falls)


def piecewise(span: Span, *, points: Sequence[str] = ()) -> Schedule:
    """Goes linearly from point to point, and stays at the last one. Has no warm-up of its own.

    points: texts "UPDATES:FACTOR" or "SHARE%:FACTOR", such as ("0:0", "1000:1", "80%:1", "80%:0.1", "100%:0").
    """

    def updates(text: str) -> int:
        return round(float(text[:-1]) / 100 * span.total_steps) if text.endswith("%") else int(text)

    try:
        pairs = [(updates(n), float(factor)) for n, factor in (point.split(":") for point in points)]
    except ValueError:
        pairs = []
    numbers, factors_fit = [n for n, _ in pairs], all(0 <= factor < math.inf for _, factor in pairs)
    if len(pairs) < 2 or numbers != sorted(numbers) or min(numbers) < 0 or not factors_fit:
        raise ConfigError(
            f"schedule.points={tuple(points)}: must be two or more 'UPDATES:FACTOR' with ascending updates, such as "
            "0:0,1000:1,9000:0.1"
        )
    if numbers[-1] > span.total_steps:
        raise ConfigError(
            f"schedule.points end at update {numbers[-1]}, after the run of train.total_steps={span.total_steps}"
        )

    def factor(n: jax.Array) -> jax.Array:
        value: Any = jnp.float32(pairs[0][1])
        for (begin, one), (end, other) in itertools.pairwise(pairs):
            value = jnp.where(n >= begin, one + (other - one) * _progress(n, begin, end), value)
        return value

    return factor


def product(*schedules: Schedule) -> Schedule:
    """Returns the product of schedules."""
    return lambda n: math.prod((schedule(n) for schedule in schedules), start=jnp.float32(1))


def _progress(n: Any, begin: int, end: int) -> jax.Array:
    """Returns how far n is on the way from begin to end, as a fraction in [0, 1]; 1 if end <= begin."""
    if end <= begin:
        return jnp.ones_like(n, jnp.float32)
    return jnp.clip((jnp.asarray(n, jnp.float32) - begin) / (end - begin), 0, 1)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    function.__name__: function
    for function in (
        constant, linear, cosine, rsqrt, inverse_sqrt, polynomial, wsd, step, one_cycle, restarts, piecewise
    )
}  # fmt: skip


def make_schedule(
    name: str | Schedule,
    learning_rate: float,
    warmup_steps: int = 0,
    total_steps: int = 0,
    final_fraction: float = 0.0,
    **parameters: Any,
) -> Schedule:
    """Returns the learning rate as a function of n, the number of updates made so far.

    The learning rate is the peak `learning_rate` times a factor: that of the schedule `name`, a key of SCHEDULES, or
    what a user's function of n returns.

    parameters: of this schedule; those that are missing or None have the defaults of its function.
    Raises ConfigError if the name is unknown, the schedule has no such parameter, an argument is negative, or the
    schedule is longer than the run.
    """
    if warmup_steps < 0 or not learning_rate >= 0:
        raise ConfigError(f"learning_rate={learning_rate}, warmup_steps={warmup_steps}: both must be 0 or more")
    if not isinstance(name, str):
        what = f"schedule.name={own_code.name_of(name)}"
        if given := [f"schedule.{key}" for key, value in parameters.items() if value is not None]:
            raise ConfigError(f"{' and '.join(given)} must be unset with {what}: set it in that function")
        return lambda n: learning_rate * own_code.called(what, name, n)
    function = lookup("schedule", name, SCHEDULES)
    if name in DECAYING and total_steps <= warmup_steps:
        raise ConfigError(
            f"schedule {name!r} decays from warmup_steps={warmup_steps} to total_steps={total_steps}; "
            "raise total_steps or lower warmup_steps"
        )
    own = own_parameters("schedule", name, function, parameters)
    shape = function(Span(warmup_steps, total_steps, final_fraction), **own)
    return lambda n: learning_rate * shape(n)
