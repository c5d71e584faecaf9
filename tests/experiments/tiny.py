"""A corpus and a two-class task small enough that a run is compilation and little else."""

import numpy as np

from t5x_lite import config
from t5x_lite.data import registry
from t5x_lite.data.registry import Feature, Mixture, Task
from t5x_lite.data.sources import Function
from t5x_lite.models.presets import PRESETS
from t5x_lite.tasks.metrics import accuracy

COLOURS = ("red", "blue", "old", "new")
WORDS = ("the", "a", *COLOURS, "cat", "dog", "tree", "house", "runs", "sleeps", "sees", "finds", "under", "over", "and")


def _documents(split):
    rng = np.random.default_rng(len(split))
    return [{"text": " ".join(rng.choice(WORDS, 40)) + ". " + " ".join(rng.choice(WORDS, 20)) + "."} for _ in range(60)]


def _questions(split):
    rng = np.random.default_rng(len(split))
    rows = []
    for _ in range(40):
        animal = str(rng.choice(["cat", "dog"]))
        rows.append({"inputs": f"animal: the {rng.choice(COLOURS)} {animal} runs", "targets": animal})
    return rows


registry.add(Task("tiny_corpus", Function(_documents), features={"text": Feature()}))
registry.add(Task("tiny_animal", Function(_questions), labels=("cat", "dog"), metrics=(accuracy,), baseline="majority"))
registry.add(Mixture("tiny", {"tiny_corpus": 0.5, "tiny_animal": 0.5}))


def get_config(preset="t5_tiny"):
    cfg = config.base()
    cfg.model.preset = preset
    if preset in PRESETS:  # else an imported directory
        cfg.model.d_model = 32
        cfg.model.num_heads = 2
        cfg.model.head_dim = 16
        cfg.model.d_ff = 64
        for layers in ("num_encoder_layers", "num_decoder_layers"):
            if getattr(PRESETS[preset], layers):
                cfg.model[layers] = 1
    cfg.data.mixture = "tiny"
    cfg.data.vocabulary = "bytes"
    cfg.data.batch_rows = 8
    cfg.data.length = 64
    cfg.data.targets_length = 32
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 1e-3
    cfg.schedule.warmup_steps = 4
    cfg.train.total_steps = 6
    cfg.train.log_every_steps = 1
    cfg.eval.every_steps = 3
    cfg.eval.max_examples = 10
    cfg.eval.batch_rows = 8
    cfg.eval.max_decode_tokens = 6
    cfg.checkpoint.every_steps = 2
    return cfg
