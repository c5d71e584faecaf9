"""GPT on the quickstart's tasks: next tokens of the documentation, and the summariser of the textbook.

    t5x-lite train --config=configs/quickstart_decoder.py --workdir=runs/decoder

The same mixture as configs/quickstart.py through the same loop: text and its summary (or label) are one sequence,
and only the summary counts in the loss. Results on 2 CPU cores, 5:26 minutes: classify 50.0% (majority 20.8%),
summarise ROUGE-1/2/Lsum 14.4/2.9/13.9 (copying the name's words: 20.1/2.9/17.6).
"""

from t5x_lite import config


def get_config():
    cfg = config.base()
    cfg.model.preset = "gpt2_tiny"
    cfg.data.mixture = "quickstart"
    cfg.data.batch_rows = 8
    cfg.data.length = 160

    cfg.optimizer.name = "adafactor"
    cfg.optimizer.learning_rate = 0.03
    cfg.schedule.name = "cosine"
    cfg.schedule.warmup_steps = 150
    cfg.train.total_steps = 2000
    cfg.train.log_every_steps = 50

    cfg.eval.every_steps = 1000
    cfg.eval.batch_rows = 64
    cfg.eval.max_examples = 192
    cfg.eval.max_decode_tokens = 32
    cfg.checkpoint.every_steps = 400
    cfg.checkpoint.keep_best = "python_docs_classify/accuracy"
    return cfg
