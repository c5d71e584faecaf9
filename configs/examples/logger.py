"""Your own experiment logger: every value as a line of a CSV file.

    t5x-lite train --config=configs/examples/logger.py --workdir=runs/own_logger

The run calls your class with (workdir, run_name, config), on process 0. A logger needs the method `scalars(step,
values)`; `table(step, name, rows)`, for predictions, and `close()` are optional. If a logger raises an exception, it is
switched off with a warning.
"""

from t5x_lite import config


class CsvLogger:
    def __init__(self, workdir, run_name, config):
        self.file = (workdir / "values.csv").open("a", encoding="utf-8")

    def scalars(self, step, values):
        self.file.writelines(f"{step},{name},{value}\n" for name, value in values.items())
        self.file.flush()

    def close(self):
        self.file.close()


def get_config():
    cfg = config.base()
    cfg.model.preset = "gpt2_tiny"
    cfg.data.mixture = "python_docs"
    cfg.data.length = 128
    cfg.loggers = (CsvLogger,)
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 3e-3
    cfg.schedule.warmup_steps = 20
    cfg.train.total_steps = 200
    cfg.eval.every_steps = 0
    return cfg
