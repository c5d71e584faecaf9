"""Pre-trains an ELECTRA on the quickstart's documentation (replaced-token detection).

    t5x-lite train --config=configs/quickstart_rtd.py --workdir=runs/rtd
    t5x-lite train --config=configs/quickstart_encoder.py:classify --workdir=runs/rtd_classify \
        --config.init.checkpoint=runs/rtd

The discriminator is the encoder of configs/quickstart_encoder.py. After 2,000 of the 3,000 steps of the first command,
the generator restores 14.3% of the selected tokens. The discriminator is right for 87.0% of all tokens, with a loss of
0.38 nats. That is no better than knowing how many tokens are replaced: so little training does not teach it which.
benchmarks/replaced_tokens.py compares it with masked language models at equal FLOPs.
"""

from t5x_lite import config


def get_config():
    cfg = config.base()
    cfg.model.preset = "bert_tiny"
    cfg.model.pooler_activation = "gelu_erf"  # as in ELECTRA, so that `t5x-lite export` can write one
    cfg.model.dropout_rate = cfg.model.attention_dropout_rate = 0.0  # so few steps memorise nothing
    cfg.data.length = 128
    cfg.data.batch_rows = 16
    cfg.optimizer.name = "adafactor"
    cfg.schedule.name = "linear"
    cfg.loss.z_loss = 0.0
    cfg.train.log_every_steps = 25
    cfg.eval.batch_rows = 64
    cfg.data.mixture = "python_docs"
    cfg.data.objective = "rtd"
    cfg.model.generator_layers = 1
    cfg.model.generator_width = 0.5
    cfg.optimizer.learning_rate = 0.03
    cfg.schedule.warmup_steps = 200
    cfg.train.total_steps = 3000
    cfg.eval.every_steps = 1000
    cfg.checkpoint.every_steps = 500
    return cfg
