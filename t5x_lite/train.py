"""`run`: one training run from config to report, top to bottom. Everything meets here and nowhere else."""

import contextlib
import dataclasses
import itertools
import json
import time
import traceback
from pathlib import Path

import jax

from t5x_lite import atomic, runtime
from t5x_lite import config as configs
from t5x_lite.checkpoints import checkpoint
from t5x_lite.checkpoints.checkpoint import Checkpoints, load_params
from t5x_lite.checkpoints.mirror import Mirror
from t5x_lite.cluster import lock, processes, sharding
from t5x_lite.cluster.guard import Guard
from t5x_lite.costs.profiling import Profile
from t5x_lite.data import pipeline
from t5x_lite.errors import RESTART_ME, CheckpointError, ConfigError, DivergedError, cannot_write, of_the_disk
from t5x_lite.evaluation import evaluate
from t5x_lite.experiment import Experiment
from t5x_lite.reports import results, run_page
from t5x_lite.reports.goodput import Clock, training_s
from t5x_lite.reports.results import read_metrics
from t5x_lite.reports.terminal import Terminal
from t5x_lite.reports.writers import Writers
from t5x_lite.training import step_metrics, trainable
from t5x_lite.training.step import LossFn, abstract_state, init_state, make_train_step


def run(experiment: Experiment, workdir: Path, loss_fn: LossFn | None = None) -> int:
    """Trains to `train.total_steps`, evaluating and saving on the way; returns the exit status.

    A workdir that holds checkpoints is resumed from the newest, bit for bit. Returns 0, or 75 after an
    interruption (Ctrl-C, SIGTERM) that was saved. Raises a UserError for all else that a user can mend.
    loss_fn: (outputs, batch) -> {head: LossSum}, in place of the config's cross entropy.
    """
    cfg = experiment.cfg
    rollback = _Rollback(to_step=0, batches=0)  # to be gone past the newest checkpoint: none
    with contextlib.ExitStack() as whole:
        whole.enter_context(of_the_disk(workdir))
        guard = whole.enter_context(Guard(cfg.train.hang_s, cfg.train.grace_s))
        processes.on_first(lambda: _open_workdir(workdir, whole))
        for times in itertools.count():
            with contextlib.ExitStack() as closing:
                try:
                    return _run(experiment, workdir, loss_fn, closing, guard, rollback)
                except _Rollback as again:
                    if times == cfg.train.max_nonfinite:
                        raise DivergedError(f"{again}. After {times} rollbacks the run stops") from None
                    rollback = again.with_traceback(None)  # whose frames would keep the old state in memory
                    guard.pause()
    raise AssertionError


def _run(
    experiment: Experiment,
    workdir: Path,
    loss_fn: LossFn | None,
    closing: contextlib.ExitStack,
    guard: Guard,
    rollback: "_Rollback",
) -> int:
    cfg = experiment.cfg
    main_process = jax.process_index() == 0
    clock = Clock()
    started_s = time.monotonic()

    # ------------------------------------------------------------------------------------ workdir, devices, model
    rejected: list[str] = []
    mirror = Mirror(cfg.checkpoint.mirror) if cfg.checkpoint.mirror else None
    fetched = processes.on_first(lambda: checkpoint.fetch(workdir, mirror)) if mirror else None
    first_step = checkpoint.newest_good(workdir, rejected.append) or 0
    changed = processes.on_first(lambda: _changes(cfg, workdir) if first_step else [])
    on_devices = runtime.start(experiment)
    layout, module = on_devices.layout, on_devices.module
    learns = runtime.which_trained(experiment, on_devices)
    optimizer, schedule = runtime.make_optimizer(experiment, on_devices, learns)

    # -------------------------------------------------------------------------------------------------------- data
    data = pipeline.train_batches(
        cfg.data.mixture,
        experiment.converter,
        experiment.vocabulary,
        batch_rows=cfg.data.batch_rows,
        seed=cfg.seed,
        pack=cfg.data.pack,
        **sharding.input_shard(layout, cfg.data.batch_rows),
        prefetch_batches=cfg.data.prefetch_batches,
        cache_dir=cfg.data.cache_dir,
        task_ids=len(experiment.tasks) > 1,
    )
    closing.callback(data.close)
    told_apart = data.tasks if len(data.tasks) > 1 else ()

    # -------------------------------------------- state: this workdir's newest checkpoint, another's parameters, fresh
    terminal = Terminal(cfg.train.total_steps, first_step, active=main_process)
    closing.callback(terminal.close)
    if fetched:
        terminal.line(f"fetched checkpoint {fetched} from {cfg.checkpoint.mirror}")
    for line in (*rejected, *changed):
        terminal.line(line)
    target = abstract_state(module, optimizer, layout, on_devices.example, learns)
    checkpoint.check_space(workdir, target, cfg.checkpoint.keep_last + bool(cfg.checkpoint.keep_best))
    checkpoints = Checkpoints(workdir, cfg.checkpoint.keep_last, guard.beat, mirror)
    closing.callback(checkpoints.close)  # a save that is under way is finished whatever ends the run
    if first_step:
        state, data_state = checkpoints.restore(first_step, target)
        data.set_state(data_state)
        terminal.line(f"resuming {workdir} at step {first_step}")
    else:
        state = init_state(module, optimizer, layout, on_devices.example, cfg.seed, learns)
        if cfg.init.checkpoint:
            params, loaded = load_params(cfg.init.checkpoint, state.params)
            state = dataclasses.replace(state, params=params)
            terminal.line(f"from {cfg.init.checkpoint}: {loaded}")
    passed_over = rollback.batches if rollback.to_step == first_step else 0
    for _ in range(passed_over):
        next(data)
    processes.on_first(lambda: _write_config(cfg, workdir))  # now that it is known to work
    train_step = make_train_step(
        module,
        optimizer,
        schedule,
        layout,
        state,
        loss_fn=loss_fn or runtime.make_loss(experiment),
        microbatches=cfg.train.microbatches,
        seed=cfg.seed,
        trained=learns,
        spike_sigmas=cfg.train.spike_sigmas,
    )
    evaluator = evaluate.Evaluator(experiment, on_devices, workdir)
    run_name = results.title(cfg.to_dict(), workdir)
    writers = Writers(workdir, run_name, cfg.to_dict(), first_step, active=main_process)
    closing.callback(writers.close)
    size = sum(p.size for p in jax.tree.leaves(state.params))
    learning = sum(p.size for p in jax.tree.leaves(trainable.split(state.params, learns)[0]))
    if learning < size:
        terminal.line(f"{learning:,} parameters are trained, {learning / size:.2%} of all")
    terminal.line(
        f"{cfg.model.preset}: {size:,} parameters on {jax.device_count()} {jax.devices()[0].device_kind} device(s), "
        f"mesh {dict(layout.mesh.shape)}; {cfg.data.mixture} in rows of {cfg.data.length}"
    )

    def save() -> None:
        saved = checkpoints.steps()
        best = processes.on_first(lambda: results.best_step(read_metrics(workdir), cfg.checkpoint.keep_best, saved))
        data_state = pipeline.merge_states(processes.gather([data.get_state()]))
        checkpoints.save(state, data_state, configs.to_json(cfg), keep={best} if best else set())

    def was_evaluated(step: int) -> bool:
        names = [task.name for task in experiment.eval_tasks]
        return processes.on_first(lambda: results.was_evaluated(read_metrics(workdir), step, names))

    def evaluation_is_due(step: int) -> bool:
        every = cfg.eval.every_steps
        return step == cfg.train.total_steps or (every > 0 and step % every == 0)

    def stop_evaluating() -> bool:
        guard.beat(f"a batch of the evaluation at step {step}")
        return guard.stops()

    def evaluate_now(step: int) -> None:
        """Evaluates; the checkpoint of this step, if there is one, is on disk by then. An interruption ends it early:
        the resumed run makes up for it."""
        checkpoints.wait()
        try:
            values, samples = evaluator.evaluate(state.params, step, stop=stop_evaluating)
        except evaluate.Stopped:
            return
        except Exception as error:
            if cfg.eval.on_error == "raise" or isinstance(error, jax.errors.JaxRuntimeError):
                raise
            terminal.line(f"the evaluation at step {step} failed and is left out (eval.on_error=record):")
            terminal.line(traceback.format_exc())
            return
        best_by = cfg.checkpoint.keep_best
        if best_by and f"eval/{best_by}" not in values:
            there_are = ", ".join(sorted(key.removeprefix("eval/") for key in values))
            terminal.line(f"checkpoint.keep_best={best_by!r} is no metric of this run; there are {there_are}")
        writers.scalars(step, values)
        for task, rows in samples.items():
            writers.table(step, f"predictions/{task}", rows)
        if main_process:
            terminal.show(results.results_table(read_metrics(workdir), step))
            if step < cfg.train.total_steps:  # else it is written below, with the time this took in it
                run_page.write(workdir, cfg.eval.predictions_shown)

    # -------------------------------------------------------------------------------------------------------- loop
    total = None  # metrics since the last log line
    pending = None  # the last step's metrics, fetched one step late so that the device never waits for the host
    skipped = 0  # updates in a row that were left out
    profile = Profile(workdir, first_step, cfg.profile.start_step, cfg.profile.steps)
    closing.callback(profile.close)

    def settle(fetched: tuple[int, dict] | None) -> None:
        """Takes in the metrics of a step that has run; if they are not finite, does what the config says."""
        nonlocal total, skipped
        if fetched is None:
            return
        step, values = fetched
        guard.beat(f"step {step}")
        added = step_metrics.add(None, values)
        clock.lap("step")
        is_spike = added["is_finite"] and added.get("is_spike")
        skipped = skipped + 1 if is_spike or not added["is_finite"] else 0
        if skipped:
            problem = _divergence(step, added, checkpoints.steps())
            policy = "skip" if is_spike else cfg.train.on_nonfinite
            if policy == "stop" or skipped > cfg.train.max_nonfinite:
                raise DivergedError(problem)
            terminal.line(f"{problem}. {'Its update is left out' if policy == 'skip' else 'Rolling back'}")
            if policy == "rollback":
                newest = max(checkpoints.steps(), default=0)
                raise _Rollback(newest, step - newest + (passed_over if newest == first_step else 0), problem)
        else:
            total = step_metrics.sum_of(total, added)
        terminal.advance(step)
        if total and (step % cfg.train.log_every_steps == 0 or step == cfg.train.total_steps):
            spent_s = clock.take()
            out = step_metrics.finalise(total, told_apart)
            if profile.flops:
                out["mfu"] = profile.mfu(total["steps"] / training_s(spent_s))
            out["tokens_per_s"] = out.pop("tokens") / training_s(spent_s)
            out |= _waits(spent_s["input"] / training_s(spent_s))
            out |= data.counters()
            terminal.train(step, out["loss"], out["tokens_per_s"], out["padding"])
            times = {f"time/{span}": seconds for span, seconds in spent_s.items()} | {"time/unix": time.time()}
            writers.scalars(step, {f"train/{name}": value for name, value in out.items()} | times)
            total = None

    step = first_step
    clock.lap("start")
    if first_step == 0:
        writers.scalars(0, evaluator.baselines())
        if cfg.eval.untrained:
            terminal.line("evaluating the untrained model")
            evaluate_now(0)
    elif evaluation_is_due(first_step) and not was_evaluated(first_step):
        evaluate_now(first_step)  # the process died between this checkpoint and its evaluation
    clock.lap("evaluate")
    guard.pause()  # the step is compiled now
    stop = guard.stops()  # while evaluating: there is nothing to save
    while step < cfg.train.total_steps and not stop:
        step += 1
        profile.at(step)
        batch = next(data)
        clock.lap("input")
        on_mesh = sharding.put_batch(batch, layout)
        profile.count(train_step, state, on_mesh)
        state, values = train_step(state, on_mesh)
        clock.lap("compile" if step == first_step + 1 else "step")
        settle(pending)
        pending = (step, values)
        due = evaluation_is_due(step)
        stop = guard.stops()  # asked once a step: a later request is the next step's, so none goes unsaved
        saves = stop or step % cfg.checkpoint.every_steps == 0 or step == cfg.train.total_steps
        if due or saves:
            settle(pending)
            pending = None
        clock.lap("step")
        checkpoints.check()
        if saves:
            save()
            clock.lap("checkpoint")
        if due and not stop:
            evaluate_now(step)
            stop = guard.stops()
            if stop:
                save()
            clock.lap("evaluate")

    # --------------------------------------------------------------------------------------------------------- end
    closing.close()
    complete = step == cfg.train.total_steps and was_evaluated(step)
    if stop and not complete:
        where = f"stopped and saved at step {step}" if step else "stopped before the first step"
        terminal.line(f"{where}; the same command goes on from there")
        return RESTART_ME
    if main_process:
        for line in results.sample_lines(workdir, cfg.train.total_steps, cfg.eval.predictions_shown):
            terminal.line(line)
        path = run_page.write(workdir, cfg.eval.predictions_shown)
        terminal.line(f"done in {time.monotonic() - started_s:.0f} s; see {path}")
    return 0


class _Rollback(Exception):
    """Begin again at the checkpoint of `to_step` (0: from the start), and go past the next `batches` of the data."""

    def __init__(self, to_step: int, batches: int, problem: str = ""):
        super().__init__(problem)
        self.to_step, self.batches = to_step, batches


def _open_workdir(workdir: Path, held: contextlib.ExitStack) -> None:
    """Makes the workdir and takes it for this run."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the workdir {workdir}: {error.strerror}") from error
    held.enter_context(lock.held(workdir))


def _changes(cfg, workdir: Path) -> list[str]:
    """What to warn of in going on with another config; refuses to where its steps would mean something else."""
    changes = configs.changes(configs.from_json(workdir / "config.json"), cfg)
    if changes["refuse"]:
        raise ConfigError(
            f"{workdir} holds a run with another config ({'; '.join(changes['refuse'][:5])}). "
            "Take the old values to resume it, or another --workdir for a new run"
        )
    return [f"from here with another config: {'; '.join(changes['warn'])}"] if changes["warn"] else []


def _write_config(cfg, workdir: Path) -> None:
    try:
        atomic.write(workdir / "config.json", configs.to_json(cfg))
    except OSError as error:
        raise cannot_write(workdir, error) from error


def _waits(share: float) -> dict[str, float]:
    """The share of the time that the slowest process waited for its data (0: no device ever did), and which it was."""
    waits = processes.gather([share])
    slowest = max(range(len(waits)), key=waits.__getitem__)
    return {"data_wait": waits[slowest]} | ({"slowest_process": float(slowest)} if len(waits) > 1 else {})


def _divergence(step: int, values: dict, saved: list[int]) -> str:
    shown = {k: round(float(v), 6) for k, v in values.items() if k in ("loss", "grad_norm", "learning_rate")}
    newest = f"the newest checkpoint is step {max(saved)}" if saved else "there is no checkpoint yet"
    if values["is_finite"]:
        return f"step {step} is a spike (train.spike_sigmas): {json.dumps(shown)}; {newest}"
    return (
        f"step {step} is not finite: {json.dumps(shown)}. Nothing was saved after it; {newest}. "
        "Lower optimizer.learning_rate, lengthen schedule.warmup_steps, or set optimizer.clip_norm"
    )
