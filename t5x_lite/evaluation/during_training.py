"""Evaluates during a training run, logs metrics and predictions, and ends early if the run is interrupted."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from t5x_lite.cluster import processes
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation import evaluate
from t5x_lite.evaluation.baselines import baselines
from t5x_lite.experiment import Experiment
from t5x_lite.reports import results, run_page
from t5x_lite.reports.loggers import Loggers
from t5x_lite.reports.results import read_metrics
from t5x_lite.reports.terminal import Terminal
from t5x_lite.runtime import AVERAGE, Runtime


class EvaluationDuringTraining:
    """Evaluates a training run. Implements the protocol `train.Evaluation`, so `train.run` calls its methods.

    may_go_on: called with a description before each batch; if it returns False, the evaluation ends.
    """

    def __init__(
        self,
        experiment: Experiment,
        on_devices: Runtime,
        workdir: Path,
        loggers: Loggers,
        terminal: Terminal,
        may_go_on: Callable[[str], bool],
    ):
        self._experiment, self._cfg, self._workdir = experiment, experiment.cfg, workdir
        self._tasks = [task.name for task in experiment.eval_tasks]
        self._loggers, self._terminal, self._may_go_on = loggers, terminal, may_go_on
        self._evaluator = evaluate.Evaluator(experiment, on_devices, workdir)

    def is_due(self, step: int) -> bool:
        """Returns whether the config asks for an evaluation after this step."""
        every_steps = self._cfg.eval.every_steps
        return step == self._cfg.train.total_steps or (every_steps > 0 and step % every_steps == 0)

    def is_done(self, step: int) -> bool:
        """Returns whether every task has been evaluated at this step. All processes get the same answer."""
        return processes.on_first(lambda: results.was_evaluated(read_metrics(self._workdir), step, self._tasks))

    def before_training(self, weights: dict[str, Any]) -> None:
        """Computes the baselines. Also evaluates the untrained model if `eval.untrained` is true."""
        self._loggers.scalars(0, baselines(self._experiment))
        if self._cfg.eval.untrained:
            self._terminal.line("evaluating the untrained model")
            self({"": weights[""]}, 0)  # a moving average begins as the weights

    def __call__(self, weights: dict[str, Any], step: int) -> None:
        """Evaluates parameters and logs the result.

        weights: {what the names of metrics begin with: parameters}; only those of "" make predictions that are kept.

        If the run is interrupted, the evaluation ends early, and the resumed run repeats it. If the evaluation fails,
        its error is raised. With eval.on_error=record, the error is only printed, unless it comes from the JAX runtime.
        """

        def stop() -> bool:
            return not self._may_go_on(f"a batch of the evaluation at step {step}")

        try:
            values, samples = self._evaluator.evaluate(weights[""], step, stop)
            for prefix in weights.keys() - {""}:
                values |= self._evaluator.evaluate(weights[prefix], step, stop, prefix)[0]
        except evaluate.Stopped:
            return
        except Exception as error:
            if self._cfg.eval.on_error == "raise" or processes.named(error) is not error:
                raise
            self._terminal.line(f"the evaluation at step {step} failed and was skipped (eval.on_error=record):")
            self._terminal.line(traceback.format_exc())
            return
        keep_best = self._cfg.checkpoint.keep_best
        wanted = f"eval/{keep_best}" if step else f"eval/{keep_best}".replace(f"/{AVERAGE}", "/")
        if keep_best and wanted not in values:
            names = ", ".join(sorted(key.removeprefix("eval/") for key in values))
            problem = f"checkpoint.keep_best={keep_best!r} is not a metric of this run; it has {names}"
            if self._cfg.train.patience:
                raise ConfigError(f"{problem}. train.patience={self._cfg.train.patience} needs it")
            self._terminal.line(problem)
        self._loggers.note(step, self._evaluator.directions())
        self._loggers.scalars(step, values)
        for task, rows in samples.items():
            self._loggers.table(step, f"predictions/{task}", rows)
        if jax.process_index() == 0:
            self._terminal.show(results.results_table(read_metrics(self._workdir), step))
            for hint in self._evaluator.hints(values) if step else ():  # an untrained model writes no label
                self._terminal.line(hint)
            if step < self._cfg.train.total_steps:  # `finish` writes the last report
                run_page.write(self._workdir, self._cfg.eval.predictions_shown)

    def finish(self, step: int) -> Path | None:
        """After the last step: on process 0, prints a few predictions, writes the report and returns its path.

        Elsewhere returns None.
        """
        if jax.process_index():
            return None
        shown = self._cfg.eval.predictions_shown
        for line in results.sample_lines(self._workdir, step, shown):
            self._terminal.line(line)
        return run_page.write(self._workdir, shown)
