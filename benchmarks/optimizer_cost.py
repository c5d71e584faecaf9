"""Measures what each optimizer costs: the time of a training step beside AdamW's, and the bytes of its state.

    python benchmarks/optimizer_cost.py --turns=5

A BERT of 4 layers (d 512, vocabulary 30,522), batches of 8 × 128, float32, without dropout. In each turn, an optimizer
and AdamW make ten steps, one after the other, so that a slow minute of the machine affects both; ten, because SOAP and
Sophia do more in every tenth step. Prints one JSON line per optimizer:

    step                the median over turns of (ten steps of this optimizer / ten steps of AdamW beside them)
    bytes_per_parameter  of the optimizer's state, and of the average if there is one
    first_step_s        compiling, and the first step
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from t5x_lite import batch as batches
from t5x_lite.cluster import sharding
from t5x_lite.models import build, presets
from t5x_lite.recipe_keys import OPTIMIZERS
from t5x_lite.training import optim, schedules
from t5x_lite.training.averages import Averaging
from t5x_lite.training.parameter_groups import Groups
from t5x_lite.training.step import abstract_params, abstract_state, init_state, make_train_step

STEPS = 10
# {name: (optimizer, its hyper-parameters, average)}
CASES = {name: (name, {}, None) for name in OPTIMIZERS}
CASES |= {
    "adamw, first moments in bfloat16": ("adamw", {"momentum_dtype": "bfloat16"}, None),
    "adamw, average every step": ("adamw", {}, Averaging(0.999)),
    "adamw, average every 10 steps": ("adamw", {}, Averaging(0.999, 10)),
}


class Trained:
    """A model that one optimizer trains."""

    def __init__(self, case: str):
        name, hyper_parameters, averaging = CASES[case]
        config = presets.bert(
            512, 8, 4, d_ff=2048, head_dim=64, heads=("mlm",), vocab_size=30522, dropout_rate=0.0,
            attention_dropout_rate=0.0,
        )  # fmt: skip
        layout = sharding.Layout(sharding.make_mesh())
        module, arrays = build(config, layout), random_batch(config)
        schedule = schedules.make_schedule("constant", 1e-4)
        axes = sharding.param_axes(abstract_params(module, arrays))
        groups = Groups(weight_decay=0.0 if name == "adam" else 0.01)
        optimizer = optim.make_optimizer(name, schedule, axes, groups=groups, clip_norm=1.0, **hyper_parameters)
        how = {"averages": averaging is not None}
        target = abstract_state(module, optimizer, layout, arrays, **how)
        self._arrays, self._state = arrays, init_state(module, optimizer, layout, arrays, **how)
        self._step = make_train_step(module, optimizer, schedule, layout, target, averaging=averaging)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        kept = jax.tree.leaves((self._state.opt_state, self._state.average))
        self.state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
        self.first_step_s = self.run(1)

    def run(self, steps: int) -> float:
        """Returns the time that `steps` steps take, in seconds."""
        begin_s = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._arrays)
        metrics["loss"].block_until_ready()
        return time.perf_counter() - begin_s


def random_batch(config) -> dict[str, np.ndarray]:
    dims = {"B": 8, "S": 128, "L": 128, "P": 20, "E": 1, "Y": 1}
    arrays, rng = batches.zeros("encoder_only", dims, config.heads), np.random.default_rng(0)
    for name, limit in (("encoder_input_tokens", 30522), ("mlm_targets", 30522), ("mlm_positions", 128)):
        arrays[name] = rng.integers(1, limit, arrays[name].shape).astype(np.int32)
    ones = {"encoder_segment_ids": np.int32, "mlm_weights": np.float32}
    return arrays | {name: np.ones(arrays[name].shape, dtype) for name, dtype in ones.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of ten steps with each optimizer (default 5)")
    parser.add_argument("--only", default="", help="cases, separated by semicolons; default: all")
    arguments = parser.parse_args()
    only = [name.strip() for name in arguments.only.split(";") if name.strip()]
    reference = Trained("adamw")
    for case in CASES:
        if only and case not in only:
            continue
        model = Trained(case)
        ratios = [model.run(STEPS) / reference.run(STEPS) for _ in range(arguments.turns)]
        line = {
            "optimizer": case,
            "step": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
            "bytes_per_parameter": round(model.state_bytes / model.parameters, 2),
            "first_step_s": round(model.first_step_s, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
