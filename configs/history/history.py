"""Pre-trains CBOW, ELMo, GPT, BERT and T5 (oldest first) on one corpus, then trains each to classify.

    configs/history/run.sh runs/history

`:cbow`, `:elmo`, `:gpt`, `:bert` and `:t5` pre-train; `:bert.classify` and so on continue with classification. All
models are 128 wide and two layers deep. They pre-train on 800 batches of 16 rows of 128 tokens of the quickstart's
documentation: CBOW, ELMo and BERT on masked tokens (BERT also on next sentences), GPT on next tokens, T5 on hidden
spans. Then they train on 200 batches of classification: GPT and T5 write the class, the others have a head for it. No
setting was tuned for any model.
"""

from t5x_lite import config

PRESETS = {"cbow": "cbow_tiny", "elmo": "elmo_tiny", "gpt": "gpt2_tiny", "bert": "bert_tiny", "t5": "t5_tiny"}


def get_config(spec: str = "bert"):
    model, _, phase = spec.partition(".")
    if model not in PRESETS or phase not in ("", "classify"):
        raise config.ConfigError(
            f"unknown {spec!r} of history.py; allowed: MODEL or MODEL.classify, MODEL being {', '.join(PRESETS)}"
        )
    cfg = config.base()
    cfg.model.preset = PRESETS[model]
    cfg.data.length = 128
    cfg.data.targets_length = 32
    cfg.data.batch_rows = 16
    cfg.optimizer.name = "adafactor"
    cfg.schedule.name = "linear"
    cfg.loss.z_loss = 0.0
    cfg.train.log_every_steps = 50
    cfg.eval.batch_rows = 64
    cfg.eval.every_steps = 0
    cfg.eval.untrained = False
    if phase == "classify":
        cfg.data.mixture = "python_docs_classify"
        cfg.optimizer.learning_rate = 0.02
        cfg.schedule.warmup_steps = 30
        cfg.train.total_steps = 200
        cfg.eval.answers = ("constrained",)  # GPT and T5 choose among the classes, as the others' heads do
    else:
        cfg.data.mixture = "python_docs"
        if model in ("cbow", "elmo"):
            cfg.model.heads = ("mlm",)
        cfg.optimizer.learning_rate = 0.03
        cfg.schedule.warmup_steps = 100
        cfg.train.total_steps = 800
        cfg.checkpoint.every_steps = 400
    return cfg
