"""Traces a few steps for xprof, and measures what share of the devices' peak FLOPs the steps reach."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from t5x_lite.experiment import Experiment


class Profile:
    """Traces steps, and computes the share of the peak FLOPs that they reach.

    first_step: the step at which this process starts.
    start_step: the trace starts this many steps after first_step; 0: no trace.
    steps: how many steps are traced.
    """

    def __init__(self, workdir: Path, first_step: int, start_step: int, steps: int):
        self._directory = workdir / "profile"
        self._begins = first_step + start_step if start_step else None
        self._steps = steps
        self._tracing = False
        self._accelerator = None  # whose peak is known; of no CPU
        if jax.devices()[0].platform != "cpu":
            from t5x_lite.costs import accelerators

            self._accelerator = accelerators.of_kind(jax.devices()[0].device_kind)
        self.flops = 0  # per step, over all devices; 0: not counted, because the devices' peak is unknown

    def at(self, step: int) -> None:
        """Starts or stops the trace if `step` is where the trace begins or ends. Must be called before each step."""
        if step == self._begins:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif self._begins and step == self._begins + self._steps:
            self.close()

    def count(self, experiment: "Experiment", batch: Mapping[str, Any]) -> None:
        """Counts the FLOPs of the step if the devices' peak is known. After the first count, calls do nothing."""
        if self._accelerator and not self.flops:
            from t5x_lite.costs import model_flops

            self.flops = model_flops.of_step(experiment, batch)

    def rates(self, steps_per_s: float) -> dict[str, float]:
        """Returns {"mfu": model FLOP utilisation}, or {} if the devices' peak is unknown.

        The utilisation is the number of FLOPs per second in the matrix products that the model needs (model_flops.py),
        divided by the bfloat16 peak of all devices together. What the backward pass recomputes does not count.
        """
        if not self.flops or self._accelerator is None:
            return {}
        return {"mfu": self.flops * steps_per_s / (self._accelerator.flops * jax.device_count())}

    def close(self) -> None:
        """Stops a running trace."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
