"""Learning-rate schedules: functions of n, the number of updates made so far."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite import own_code
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import lookup

Schedule = Callable[[Any], Any]  # n, the number of updates made so far -> a factor or a learning rate


def constant() -> Schedule:
    """Returns a schedule that is always 1."""
    return lambda n: jnp.ones_like(n, jnp.float32)


def linear_warmup(warmup_steps: int) -> Schedule:
    """Returns the schedule min(1, n / warmup_steps). It is 0 at the first update, as in T5X and Hugging Face."""
    return lambda n: _progress(n, 0, warmup_steps)


def linear_decay(total_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0) -> Schedule:
    """Returns a schedule that falls linearly from 1 at warmup_steps to final_fraction at total_steps.

    The schedule is constant before warmup_steps and after total_steps.
    """
    return lambda n: 1 - (1 - final_fraction) * _progress(n, warmup_steps, total_steps)


def cosine_decay(total_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0) -> Schedule:
    """Returns a schedule that falls along half a cosine from 1 at warmup_steps to final_fraction at total_steps.

    The schedule is constant before warmup_steps and after total_steps.
    """

    def schedule(n: jax.Array) -> jax.Array:
        falling = 0.5 * (1 + jnp.cos(math.pi * _progress(n, warmup_steps, total_steps)))
        return final_fraction + (1 - final_fraction) * falling

    return schedule


def rsqrt_decay(flat_steps: int) -> Schedule:
    """Returns the schedule √(flat_steps / max(n, flat_steps)): 1 for flat_steps updates, then falling as 1/√n."""
    flat = float(max(1, flat_steps))
    return lambda n: jnp.sqrt(flat / jnp.maximum(jnp.asarray(n, jnp.float32), flat))


def product(*schedules: Schedule) -> Schedule:
    """Returns the product of schedules.

    For example, `product(linear_warmup(w), rsqrt_decay(w))` is T5X's warm-up and 1/√n decay.
    """
    return lambda n: math.prod((schedule(n) for schedule in schedules), start=jnp.float32(1))


def _progress(n: jax.Array, begin: int, end: int) -> jax.Array:
    """Returns how far n is on the way from begin to end, as a fraction in [0, 1]; 1 if end <= begin."""
    if end <= begin:
        return jnp.ones_like(n, jnp.float32)
    return jnp.clip((jnp.asarray(n, jnp.float32) - begin) / (end - begin), 0, 1)


def make_schedule(
    name: str | Schedule,
    learning_rate: float,
    warmup_steps: int = 0,
    total_steps: int = 0,
    final_fraction: float = 0.0,
) -> Schedule:
    """Returns the learning rate as a function of n, the number of updates made so far.

    The learning rate is the peak `learning_rate` times a factor. The factor depends on `name`:

    constant: the factor rises from 0 to 1 over `warmup_steps`, then stays 1.
    linear, cosine: the factor rises from 0 to 1 over `warmup_steps`, then falls to final_fraction at `total_steps`.
    rsqrt: the factor stays 1 for `warmup_steps`, then falls as 1/√n. With learning_rate=0.01 and warmup_steps=10_000,
        this is the schedule of T5's pre-training, 1/√max(n, 10⁴) (Raffel et al. 2020, §3.1.2).
    a user's function, n -> factor: the factor is what the function returns.

    Raises ConfigError if the name is unknown, an argument is negative, or a decay ends before the warm-up.
    """
    if warmup_steps < 0 or not learning_rate >= 0:
        raise ConfigError(f"learning_rate={learning_rate}, warmup_steps={warmup_steps}: both must be 0 or more")
    if not isinstance(name, str):
        what = f"schedule.name={own_code.name_of(name)}"
        return lambda n: learning_rate * own_code.called(what, name, n)
    if name in ("linear", "cosine") and total_steps <= warmup_steps:
        raise ConfigError(
            f"schedule {name!r} decays from warmup_steps={warmup_steps} to total_steps={total_steps}; "
            "raise total_steps or lower warmup_steps"
        )
    ramp = linear_warmup(warmup_steps)
    table: dict[str, Schedule] = {
        "constant": ramp,
        "linear": product(ramp, linear_decay(total_steps, warmup_steps, final_fraction)),
        "cosine": product(ramp, cosine_decay(total_steps, warmup_steps, final_fraction)),
        "rsqrt": rsqrt_decay(warmup_steps),
    }
    shape = lookup("schedule", name, table)
    return lambda n: learning_rate * shape(n)
