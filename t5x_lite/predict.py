"""Batches in, predicted texts and scores out, for every architecture: what evaluation and inference share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite import decode, sharding
from t5x_lite.batch import Batch
from t5x_lite.data import convert
from t5x_lite.data.registry import Task
from t5x_lite.experiment import Experiment
from t5x_lite.losses import token_losses
from t5x_lite.runtime import Runtime
from t5x_lite.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Prediction:
    """text: generated, or the label; score: natural log-probability (of a regression: the number itself)."""

    text: str
    score: float


class Predictor:
    """Predicts a prompt batch at a time; compiled once per shape."""

    def __init__(self, experiment: Experiment, on_devices: Runtime):
        self.experiment, self.on_devices = experiment, on_devices
        module = on_devices.module
        self._forward = jax.jit(lambda params, batch: module.apply({"params": params}, batch))
        self._score = jax.jit(lambda params, batch: _target_logprobs(module.apply({"params": params}, batch), batch))

    def predict(self, params: Any, batch: Batch, task: Task) -> list[Prediction]:
        """One prediction for each row of this process's `batch` (one example per row)."""
        vocabulary = self.experiment.vocabulary
        on_mesh = sharding.put_batch(batch, self.on_devices.layout)
        if self.experiment.model.architecture == "encoder_only":
            outputs = _local(self._forward(params, on_mesh), self.on_devices.layout)
            if task.regression:
                return [Prediction(str(float(x)), float(x)) for x in outputs["regression"][:, 0]]
            logits_BC = outputs["classification"][:, 0].astype(np.float64)
            logprobs_BC = logits_BC - np.logaddexp.reduce(logits_BC, axis=-1, keepdims=True)
            return [Prediction(task.labels[i], float(row[i])) for row in logprobs_BC for i in [int(row.argmax())]]
        out = _local(
            decode.greedy(
                self.on_devices.module,
                params,
                on_mesh,
                max_tokens=self.experiment.cfg.eval.max_decode_tokens,
                eos_id=vocabulary.eos_id,
                start_id=convert.start(self.experiment.model.decoder_start_id, vocabulary),
            ),
            self.on_devices.layout,
        )
        rows = zip(out["tokens"], out["lengths"], out["logprob"], strict=True)
        return [Prediction(vocabulary.decode(tokens[:length]), float(logprob)) for tokens, length, logprob in rows]

    def score(self, params: Any, batch: Batch) -> list[tuple[float, int]]:
        """(natural log-probability of the targets, number of target tokens) for each row of `batch`."""
        on_mesh = sharding.put_batch(batch, self.on_devices.layout)
        logprobs, tokens = _local(self._score(params, on_mesh), self.on_devices.layout)
        return [(float(lp), int(n)) for lp, n in zip(logprobs, tokens, strict=True)]


def _target_logprobs(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Σ weight · log p(target) and Σ weight of each row, [B] both."""
    losses_BL, _ = token_losses(outputs["lm"], batch["decoder_target_tokens"])
    weights_BL = batch["decoder_loss_weights"]
    return -jnp.sum(losses_BL * weights_BL, axis=1), jnp.sum(weights_BL, axis=1)


def _local(tree: Any, layout: Layout) -> Any:
    """This process's rows of global arrays, as numpy."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    by_rows = jax.jit(lambda tree: tree, out_shardings=layout.batch_sharding)(tree)

    def mine(array: jax.Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}  # each row once
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(mine, by_rows)
