"""Runs a few training steps of tiny models on any mesh, for the tests of the step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from tiny_models import FAMILIES, OTHERS, random_batch, random_params

from t5x_lite.cluster import sharding
from t5x_lite.cluster.sharding import Layout, make_mesh
from t5x_lite.models import build
from t5x_lite.models.config import ModelConfig
from t5x_lite.training import optim, schedules, step
from t5x_lite.training.averages import Averaging
from t5x_lite.training.parameter_groups import Groups
from t5x_lite.training.step import TrainState
from t5x_lite.training.trainable import Trainable, everything, split

AXES = ("data", "fsdp", "tensor", "sequence")  # of a mesh's sizes here
DROPOUT = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1}


def with_dropout(family: str, **changes: Any) -> ModelConfig:
    return dataclasses.replace((FAMILIES | OTHERS)[family], **DROPOUT, **changes)


def training_batch(config: ModelConfig, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a packed batch with targets. Its rows have very different weights, as real rows do."""
    rng = np.random.default_rng(seed)
    batch = random_batch(config, segments=[(5, 4), (7, 0), (2, 2), (8, 0)] * (rows // 4), seed=seed)

    def weights(shape, of=1.0):
        return (rng.integers(0, 2, shape) * rng.integers(0, 2, (shape[0], 1)) * of).astype(np.float32)

    shape = batch["decoder_segment_ids"].shape
    batch["decoder_target_tokens"] = rng.integers(0, config.vocab_size, shape).astype(np.int32)
    batch["decoder_loss_weights"] = weights(shape, batch["decoder_segment_ids"] > 0)
    for head, classes in (("mlm", config.vocab_size), ("nsp", 2), ("class", max(2, config.num_classes))):
        shape = batch["mlm_positions" if head == "mlm" else "pooled_positions"].shape
        batch[f"{head}_targets"] = rng.integers(0, classes, shape).astype(np.int32)
        batch[f"{head}_weights"] = weights(shape)
        batch[f"{head}_weights"][0] = 1  # at least one
    segments = batch["encoder_segment_ids"]
    batch["token_targets"] = rng.integers(0, max(2, config.num_classes), segments.shape).astype(np.int32)
    batch["token_weights"] = weights(segments.shape, segments > 0)
    batch["rtd_weights"] = weights(segments.shape, segments > 0)
    batch["span_starts"], batch["span_ends"] = (rng.integers(0, 4, (len(segments), 1)).astype(np.int32) for _ in "be")
    batch["span_weights"], batch["choice_weights"] = (weights((len(segments), 1)) for _ in "sc")
    batch["choice_questions"] = np.ones_like(batch["span_starts"])
    wanted = ("encoder", "decoder") if config.architecture == "text_to_text" else (config.architecture.split("_")[0],)
    heads = (
        ("mlm", "nsp", "class", "pooled", "token_", "span", "choice") if config.architecture == "encoder_only" else ()
    )
    heads += ("rtd",) if config.has_generator else ()
    return {name: array for name, array in batch.items() if name.startswith((*wanted, *heads))}


@dataclasses.dataclass
class Run:
    """Holds what a few steps need and return. `state` is the last state."""

    layout: Layout
    module: nn.Module
    optimizer: optax.GradientTransformation
    train_step: Any
    state: TrainState
    batch: dict[str, jax.Array]
    metrics: list[dict[str, float]]

    def advance(self, steps: int) -> "Run":
        for _ in range(steps):
            self.state, metrics = self.train_step(self.state, self.batch)
            self.metrics.append({name: float(value) for name, value in metrics.items()})
        return self


def start(
    config: ModelConfig,
    mesh: tuple[int, ...] = (1, 1, 1),
    *,
    rows: int = 8,
    optimizer: str | optax.GradientTransformation = "adamw",
    hyper_parameters: Mapping[str, Any] | None = None,
    state: TrainState | None = None,
    trainable: Trainable = everything,
    drawn: bool = False,
    averaging: Averaging | None = None,
    **options: Any,
) -> Run:
    """Prepares a run on data × fsdp × tensor (× sequence) devices: fresh, or from a different run's `state`.

    drawn: fresh, with parameters drawn by numpy, so that no initialization is compiled.
    """
    layout = Layout(make_mesh(jax.devices()[: int(np.prod(mesh))], **dict(zip(AXES, mesh, strict=False))))
    module = build(config, layout)
    batch = training_batch(config, rows)
    schedule = schedules.make_schedule("linear", 0.01, total_steps=100)
    if isinstance(optimizer, str):
        axes = sharding.param_axes(step.abstract_params(module, batch))
        # A large epsilon: if a gradient is 0 in theory (keys' biases), Adam would divide noise by its own size.
        defaults = {"min_dim_size_to_factor": 8} if optimizer == "adafactor" else {"epsilon": 1e-3}
        optimizer = optim.make_optimizer(
            optimizer,
            schedule,
            split(axes, trainable)[0],
            groups=Groups(weight_decay=0.0 if optimizer == "adam" else 0.1),
            clip_norm=1.0,
            **(defaults if hyper_parameters is None else hyper_parameters),
        )
    if state is None and not drawn:
        state = step.init_state(module, optimizer, layout, batch, 1, trainable, averaging is not None)
    else:
        shapes = step.abstract_state(module, optimizer, layout, batch, trainable, averaging is not None)
        if state is None:
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
            drawn_params = random_params(config)
            state = zeros.replace(params=drawn_params, average=drawn_params if averaging else None)
        state = jax.device_put(jax.device_get(state), jax.tree.map(lambda leaf: leaf.sharding, shapes))
    train_step = step.make_train_step(
        module, optimizer, schedule, layout, state, seed=2, trainable=trainable, averaging=averaging, **options
    )
    return Run(layout, module, optimizer, train_step, state, sharding.put_batch(batch, layout), [])


def assert_trees_close(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Asserts that every leaf is close; the message names the leaf that differs."""

    def compare(path, a, b) -> None:
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)

    jax.tree_util.tree_map_with_path(compare, ours, theirs)
