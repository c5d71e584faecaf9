"""A trace of a few steps for xprof, and the share of the devices' peak that the steps reach."""

from pathlib import Path
from typing import Any

import jax

from t5x_lite.costs import accelerators, flops


class Profile:
    """first_step: of this process, which counts from 0. start_step, steps: of the trace; start_step=0: none."""

    def __init__(self, workdir: Path, first_step: int, start_step: int, steps: int):
        self._directory = workdir / "profile"
        self._begins = first_step + start_step if start_step else None
        self._steps = steps
        self._tracing = False
        self._accelerator = accelerators.of_kind(jax.devices()[0].device_kind)
        self.flops = 0  # of a step, over all devices; 0: not counted, as the devices' peak is not known

    def at(self, step: int) -> None:
        """Begins or ends the trace as it is due before `step`."""
        if step == self._begins:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif self._begins and step == self._begins + self._steps:
            self.close()

    def count(self, train_step: Any, *arguments: Any) -> None:
        """Counts the FLOPs of the step, once, where they can be compared with a peak."""
        if self._accelerator and not self.flops:
            self.flops = flops.of_step(train_step, *arguments)

    def rates(self, steps_per_s: float) -> dict[str, float]:
        """{"mfu": model FLOP utilisation}: the step's matrix products a second, as a share of all devices' bfloat16
        peak; {} where that is not known."""
        if not self.flops or self._accelerator is None:
            return {}
        return {"mfu": self.flops * steps_per_s / (self._accelerator.flops * jax.device_count())}

    def close(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
