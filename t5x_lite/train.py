"""Defines `run`, one training run from config to report. Only this module connects all the parts."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax

from t5x_lite import atomic, runtime
from t5x_lite import config as configs
from t5x_lite.batch import Batch
from t5x_lite.checkpoints import checkpoint
from t5x_lite.checkpoints.checkpoint import Checkpoints
from t5x_lite.cluster import lock, processes, sharding
from t5x_lite.cluster.guard import Guard
from t5x_lite.costs.profiling import Profile
from t5x_lite.data import pipeline
from t5x_lite.data.pipeline import TrainBatches
from t5x_lite.data.registry import differences
from t5x_lite.errors import RESTART_ME, CheckpointError, ConfigError, cannot_write, of_the_disk
from t5x_lite.reports import results
from t5x_lite.reports.goodput import Clock
from t5x_lite.reports.loggers import Loggers
from t5x_lite.reports.results import read_metrics
from t5x_lite.reports.step_log import StepLog
from t5x_lite.reports.terminal import Terminal
from t5x_lite.runtime import Runtime, Training
from t5x_lite.training import step_metrics
from t5x_lite.training.faults import BeginAt, FaultPolicy
from t5x_lite.training.step import LossFn, TrainState

if TYPE_CHECKING:
    from t5x_lite.checkpoints.mirror import Mirror
    from t5x_lite.experiment import Experiment  # resolving names is not a part of training


class Evaluation(Protocol):
    """The evaluation that a run calls. EvaluationDuringTraining (evaluation/during_training.py) implements it."""

    def is_due(self, step: int) -> bool: ...
    def is_done(self, step: int) -> bool: ...
    def before_training(self, weights: dict[str, Any]) -> None: ...
    def __call__(self, weights: dict[str, Any], step: int) -> None: ...
    def finish(self, step: int) -> Path | None: ...


def run(
    experiment: "Experiment", workdir: Path, evaluation_of: Callable[..., Evaluation], loss_fn: LossFn | None = None
) -> int:
    """Trains up to `train.total_steps`, and evaluates and saves on the way. Returns the exit status.

    If the workdir has checkpoints, the run resumes from the newest intact one, bit for bit. If Ctrl-C or SIGTERM stops
    the run, it saves and returns 75; otherwise it returns 0. Raises a UserError for other problems that users can fix.
    evaluation_of: EvaluationDuringTraining, from evaluation/during_training.py.
    loss_fn: (outputs, batch) -> {head: LossSum}; replaces the config's loss.
    """
    cfg, clock, started_s = experiment.cfg, Clock(), time.monotonic()
    total_steps, main_process = cfg.train.total_steps, jax.process_index() == 0
    with contextlib.ExitStack() as held, contextlib.ExitStack() as closing:
        # ------------------------------------------------------------------------------------- workdir, devices, data
        held.enter_context(of_the_disk(workdir))
        guard = held.enter_context(Guard(cfg.train.hang_s, cfg.train.grace_s))
        processes.on_first(lambda: _open_workdir(workdir, held))
        mirror = _mirror(cfg.checkpoint.mirror)
        begin, notes = _where_to_begin(experiment, workdir, mirror)
        ends = _early_end(cfg, workdir, guard)
        on_devices = runtime.start(experiment)
        training = runtime.make_training(experiment, on_devices, loss_fn)
        taught = _teacher(experiment, on_devices)
        checkpoint.check_space(workdir, training.state, cfg.checkpoint.keep_last + bool(cfg.checkpoint.keep_best))
        shard = sharding.input_shard(on_devices.layout, cfg.data.batch_rows)
        data = experiment.train_batches(prefetch_batches=cfg.data.prefetch_batches, **shard)
        first_data_state = data.get_state()
        closing.callback(data.close)

        # ------------------------------------------------------------------ terminal, checkpoints, logs, evaluation
        terminal = Terminal(total_steps, begin.step, active=main_process)
        closing.callback(terminal.close)
        for line in (*notes, *_descriptions(cfg, on_devices, training)):
            terminal.line(line)
        checkpoints = Checkpoints(workdir, cfg.checkpoint.keep_last, guard.beat, mirror)
        closing.callback(checkpoints.close)  # finishes a save that is under way, whatever ends the run
        config = configs.data(cfg)
        loggers = Loggers(workdir, results.title(config, workdir), config, begin.step, main_process, cfg.loggers)
        closing.callback(loggers.close)
        evaluation = evaluation_of(experiment, on_devices, workdir, loggers, terminal, guard.goes_on)
        profile = Profile(workdir, begin.step, cfg.profile.start_step, cfg.profile.steps)
        closing.callback(profile.close)
        log = _step_log(cfg, data, loggers, terminal, clock, profile)
        faults = FaultPolicy(cfg.train.on_nonfinite, cfg.train.max_nonfinite)

        step, stop, running, span = 0, False, True, "compile"
        while running:  # once, and again after every rollback
            # ----------------------------------- state: from the workdir's checkpoint, from init.checkpoint, or fresh
            state = metrics = pending = None  # on a rollback, this frees the memory of the bad state
            state, data_state = _restore(experiment, begin, training, checkpoints, first_data_state, terminal)
            data.set_state(data_state)
            for _ in range(begin.skip_batches):
                next(data)
            if span == "compile":  # not again after a rollback
                processes.on_first(lambda: _write_config(experiment, workdir))  # only now is the config known to work
            with clock.span("evaluate"):
                if begin.step == 0:
                    evaluation.before_training(training.weights(state))
                elif evaluation.is_due(begin.step) and not evaluation.is_done(begin.step):
                    # The last process died between saving and evaluating.
                    evaluation(training.weights(state), begin.step)
            guard.pause()  # compiling the step may take any time
            if span == "compile" and begin.step < total_steps:
                terminal.compiling()
            clock.steps_begin()
            step, stop, again = begin.step, guard.stops() or bool(ends()), None  # if it stops here: nothing new to save

            # -------------------------------------------------------------------------------------------------- loop
            while step < total_steps and not stop and not again:
                step += 1
                profile.at(step)
                with clock.span("input"):
                    batch = _next_batch(data, loggers, step)
                with clock.span(span):
                    batch = sharding.put_batch(batch, on_devices.layout)
                    profile.count(experiment, batch)
                    state, metrics = training.step(state, taught(batch))
                span = "step"
                due, stop = evaluation.is_due(step), guard.stops()  # a request after this call waits for the next step
                saves = stop or step % cfg.checkpoint.every_steps == 0 or step == total_steps
                # Metrics are fetched one step late, so that the device never waits for the host.
                fetched, pending = [pending, (step, metrics)], None
                if not (due or saves):
                    pending = fetched.pop()
                last = step if stop else total_steps
                again = _settle(filter(None, fetched), last, faults, begin, checkpoints, log, guard, terminal)
                checkpoints.check()
                if saves and not again:
                    with clock.span("checkpoint"):
                        _save(cfg, workdir, checkpoints, state, training, data)
                if due and not stop and not again:
                    with clock.span("evaluate"):
                        checkpoints.wait()
                        evaluation(training.weights(state), step)
                        stop = guard.stops() or bool(ends())
                        if stop:
                            _save(cfg, workdir, checkpoints, state, training, data)
            running = again is not None
            if again:
                begin = again
                loggers.rewind(begin.step)

        # ------------------------------------------------------------------------------------------------------- end
        why = ends() if stop else ""
        if why:
            guard.limit(math.inf)  # the last evaluation may take longer
            if step and not evaluation.is_done(step):
                evaluation(training.weights(state), step)
        closing.close()
        if why and not guard.stops():
            terminal.line(f"ended at step {step} of {total_steps}: {why}")
        elif stop and not (step == total_steps and evaluation.is_done(step)):
            where = f"stopped and saved at step {step}" if step else "stopped before the first step"
            terminal.line(f"{where}; run the same command again to resume")
            return RESTART_ME
        if report := evaluation.finish(step):
            terminal.line(f"done in {time.monotonic() - started_s:.0f} s; see {report}")
        return 0


def _open_workdir(workdir: Path, held: contextlib.ExitStack) -> None:
    """Makes the workdir and locks it for this run.

    Raises ConfigError if Orbax cannot save below this path, and CheckpointError if the workdir cannot be made.
    """
    checkpoint.check_path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the workdir {workdir}: {error.strerror}") from error
    held.enter_context(lock.held(workdir))


def _early_end(cfg: Any, workdir: Path, guard: Guard) -> Callable[[], str]:
    """Returns a function that says why the run ends before its last step; "" if it does not.

    All processes must call it equally often. With train.max_hours, also limits the time of the run.
    """
    if not (cfg.train.patience or cfg.train.max_hours):
        return lambda: ""
    from t5x_lite import early_end

    started_s, left_s = time.monotonic(), processes.on_first(lambda: early_end.seconds_left(cfg, workdir))
    guard.limit(left_s)
    return lambda: processes.on_first(lambda: early_end.reason(cfg, workdir, left_s - (time.monotonic() - started_s)))


def _teacher(experiment: "Experiment", on_devices: Runtime) -> Callable[[Any], Any]:
    """Returns the function that adds the outputs of the run's teacher to a batch on the devices."""
    if not experiment.cfg.distill.teacher:
        return lambda batch: batch
    from t5x_lite import teacher

    return teacher.load(experiment, on_devices)


def _step_log(
    cfg: Any, data: TrainBatches, loggers: Loggers, terminal: Terminal, clock: Clock, profile: Profile
) -> StepLog:
    return StepLog(
        loggers,
        terminal,
        clock,
        every_steps=cfg.train.log_every_steps,
        tasks=data.tasks if len(data.tasks) > 1 else (),
        rates=profile.rates,
        counters=data.counters,
        gather=processes.gather,
    )


def _mirror(url: str) -> "Mirror | None":
    if not url:
        return None
    from t5x_lite.checkpoints.mirror import Mirror

    return Mirror(url)


def _where_to_begin(experiment: "Experiment", workdir: Path, mirror: "Mirror | None") -> tuple[BeginAt, list[str]]:
    """Returns the step where the run begins, and notes about it for the user.

    Raises ConfigError if the workdir's run began with a config that makes different training steps.
    """
    cfg, notes = experiment.cfg, []
    if mirror and (fetched := processes.on_first(lambda: checkpoint.fetch(workdir, mirror))):
        notes.append(f"fetched checkpoint {fetched} from {cfg.checkpoint.mirror}")
    first_step = checkpoint.newest_good(workdir, notes.append) or 0
    notes += processes.on_first(lambda: _changes(experiment, workdir, first_step) if first_step else [])
    return BeginAt(first_step), notes


def _changes(experiment: "Experiment", workdir: Path, step: int) -> list[str]:
    """Returns warnings about config keys that changed since the run began.

    If config.json is damaged, reads the copy in the checkpoint of `step`, which does not list the user's own code.
    Raises ConfigError if the changes would have led to different steps.
    """
    file, notes = workdir / "config.json", []
    try:
        old, code = configs.from_json(file), configs.code_in(file)
    except ConfigError as error:
        old = configs.from_json(workdir / checkpoint.DIRECTORY / str(step) / "config" / "metadata")
        code = experiment.code()
        notes.append(f"{error}. The config in checkpoint {step} is used, and config.json is written again")
    changes = configs.changes(old, experiment.cfg)
    for line in differences(code, experiment.code()):
        changes["warn" if line.startswith("metric") else "refuse"].append(line)
    if changes["refuse"]:
        raise ConfigError(
            f"{workdir} holds a run with a different config ({'; '.join(changes['refuse'][:5])}). "
            "Use the old values to resume it, or a different --workdir to start a new run"
        )
    return notes + [f"continuing with a different config: {'; '.join(changes['warn'])}"] * bool(changes["warn"])


def _next_batch(data: TrainBatches, loggers: Loggers, step: int) -> Batch:
    """Returns the next batch. With data.documents_per_step, notes in metrics.jsonl which documents it was made from."""
    batch = next(data)
    if data.documents:
        from t5x_lite.data import document_steps

        documents = document_steps.summed(processes.gather([data.documents]))
        loggers.note(step, {f"documents/{name}": number for name, number in documents.items()})
    return batch


def _descriptions(cfg: Any, on_devices: Runtime, training: Training) -> list[str]:
    """Returns one or two lines about the model's size and the devices."""
    size, trainable = training.parameter_counts()
    lines = [f"{trainable:,} parameters are trainable, {trainable / size:.2%} of all"] if trainable < size else []
    count, sizes = jax.device_count(), on_devices.layout.mesh.shape
    split = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    devices = f"{count} {jax.devices()[0].device_kind} device{'s' * (count > 1)}" + (f", mesh {split}" if split else "")
    return [
        *lines,
        f"{cfg.model.preset}: {size:,} parameters on {devices}; {cfg.data.mixture} in rows of {cfg.data.length}",
    ]


def _restore(
    experiment: "Experiment",
    begin: BeginAt,
    training: Training,
    checkpoints: Checkpoints,
    first_data_state: dict,
    terminal: Terminal,
) -> tuple[TrainState, dict]:
    """Returns the train state and data state to begin with.

    They come from the checkpoint of `begin.step`. At step 0 they are fresh, except that the parameters come from
    `init.checkpoint` if the config names one.
    """
    cfg = experiment.cfg
    if begin.step:
        terminal.line(f"resuming {checkpoints.directory.parent} at step {begin.step}")
        checkpoints.wait()  # the save of this step may be under way
        state, data_state = checkpoints.restore(begin.step, training.state)
        return state, data_state or first_data_state  # a branch with other data has none
    if cfg.init.checkpoint:
        from t5x_lite import initial_params  # only for runs that start from a different model

        state, report, of_each = initial_params.state(experiment, training)
        file = checkpoints.directory.parent / "initial_params.json"
        processes.on_first(lambda: atomic.write(file, json.dumps(of_each, indent=1)))
        terminal.line(f"from {cfg.init.checkpoint}: {report}")
        return state, first_data_state
    if not cfg.model.preset.endswith("_tiny"):
        terminal.line(f"random weights: model.preset={cfg.model.preset} gives only the sizes of the model")
        terminal.line("to start from trained weights, set init.checkpoint to a directory that `t5x-lite import` made")
    return training.new_state(), first_data_state


def _write_config(experiment: "Experiment", workdir: Path) -> None:
    try:
        from t5x_lite import saved_run  # what other verbs need of a workdir is not a part of training

        saved_run.write(experiment, workdir)
        atomic.write(workdir / "config.json", configs.to_json(experiment.cfg, experiment.code()))
    except OSError as error:
        raise cannot_write(workdir, error) from error


def _settle(
    steps: Iterable[tuple[int, Any]],
    last_step: int,
    faults: FaultPolicy,
    begun: BeginAt,
    checkpoints: Checkpoints,
    log: StepLog,
    guard: Guard,
    terminal: Terminal,
) -> BeginAt | None:
    """Logs the metrics of finished steps. If one of them needs a rollback, returns where to begin again, else None.

    last_step: the step after which the run ends or stops.
    """
    for step, metrics in steps:
        guard.beat(f"step {step}")
        values = step_metrics.fetch(metrics)
        verdict = faults.judge(step, values, begun, checkpoints.steps())
        if verdict.problem:
            terminal.line(verdict.problem)
        else:
            log.add(values)
        if verdict.begin:
            return verdict.begin
        log.reach(step, is_last=step == last_step)
    return None


def _save(
    cfg: Any, workdir: Path, checkpoints: Checkpoints, state: TrainState, training: Training, data: TrainBatches
) -> None:
    """Starts to save a checkpoint in the background. The newest checkpoints and the best one are kept."""
    saved = checkpoints.steps()
    best = processes.on_first(lambda: results.best_step(read_metrics(workdir), cfg.checkpoint.keep_best, saved))
    data_state = pipeline.merge_states(processes.gather([data.get_state()]))
    average = training.average(state) if training.average else None
    checkpoints.save(state, data_state, configs.to_json(cfg), {best} if best else set(), average)
