"""Counts the FLOPs that a model's training step needs, however the run computes it: the useful work in MFU."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from t5x_lite import config as configs
from t5x_lite import runtime
from t5x_lite.costs import flops
from t5x_lite.experiment import Experiment

PLAIN = {"mesh": "", "train.microbatches": "1", "loss.chunk_logits": "0", "distill.teacher": ""}


def of_step(experiment: Experiment, batch: Mapping[str, Any]) -> int:
    """Returns the FLOPs of the matrix products in one training step, over all devices.

    The step that is counted computes every product once: without remat, kernels, chunks of logits and microbatches. It
    is traced, not compiled. Attention counts as full squares, even if it is causal (Chowdhery et al. 2022, PaLM,
    appendix B). The products of a teacher do not count.

    batch: arrays [B, …], or their shapes.
    """
    cfg = experiment.cfg.copy_and_resolve_references()
    for key, text in PLAIN.items():
        configs.override(cfg, key, text)
    model = dataclasses.replace(experiment.model, remat="none", attention="reference")
    plain = dataclasses.replace(experiment, cfg=cfg, model=model)
    training = runtime.make_training(plain, runtime.start(plain, jax.local_devices()[:1]))
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}
    return flops.of_step(training.step, training.state, shapes)
