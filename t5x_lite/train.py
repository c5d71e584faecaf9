"""`run`: one training run from config to report, top to bottom. Everything meets here and nowhere else."""

import contextlib
import dataclasses
import functools
import json
import signal
import time
from pathlib import Path

import jax

from t5x_lite import atomic, evaluate, losses, metrics, optim, predict, report, runtime, sharding
from t5x_lite import config as configs
from t5x_lite.checkpoint import Checkpoints, load_params, saved_steps
from t5x_lite.data import pipeline
from t5x_lite.errors import RESTART_ME, CheckpointError, ConfigError, DivergedError
from t5x_lite.experiment import Experiment
from t5x_lite.step import LossFn, abstract_params, abstract_state, init_state, make_train_step
from t5x_lite.writers import Terminal, Writers, read_metrics

# A run that has a checkpoint goes on with another value of any key but these: they decide what its steps are.
FIXED_ON_RESUME = ("seed", "model.", "data.", "optimizer.name")
FREE_ON_RESUME = ("data.prefetch_batches", "data.max_bad_fraction", "data.cache_dir", "model.remat")


def run(experiment: Experiment, workdir: Path, loss_fn: LossFn | None = None) -> int:
    """Trains to `train.total_steps`, evaluating and saving on the way; returns the exit status.

    A workdir that holds checkpoints is resumed from the newest, bit for bit. Returns 0, or 75 after an
    interruption (Ctrl-C, SIGTERM) that was saved. Raises a UserError for all else that a user can mend.
    loss_fn: (outputs, batch) -> {head: LossSum}, in place of the config's cross entropy.
    """
    with contextlib.ExitStack() as closing:
        return _run(experiment, workdir, loss_fn, closing)


def _run(experiment: Experiment, workdir: Path, loss_fn: LossFn | None, closing: contextlib.ExitStack) -> int:
    cfg = experiment.cfg
    main_process = jax.process_index() == 0
    started_s = time.monotonic()

    # ------------------------------------------------------------------------------------ workdir, devices, model
    _check_workdir(cfg, workdir)
    on_devices = runtime.start(experiment)
    layout, module = on_devices.layout, on_devices.module
    schedule = optim.make_schedule(
        cfg.schedule.name,
        cfg.optimizer.learning_rate,
        cfg.schedule.warmup_steps,
        cfg.train.total_steps,
        cfg.schedule.final_fraction,
    )
    optimizer = optim.make_optimizer(
        cfg.optimizer.name,
        schedule,
        sharding.param_axes(abstract_params(module, on_devices.example)),
        weight_decay=cfg.optimizer.weight_decay,
        clip_norm=cfg.optimizer.clip_norm,
        b1=cfg.optimizer.b1,
        b2=cfg.optimizer.b2,
        epsilon=cfg.optimizer.epsilon,
    )

    # -------------------------------------------------------------------------------------------------------- data
    data = pipeline.train_batches(
        cfg.data.mixture,
        experiment.converter,
        experiment.vocabulary,
        batch_rows=cfg.data.batch_rows,
        seed=cfg.seed,
        pack=cfg.data.pack,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        prefetch_batches=cfg.data.prefetch_batches,
        cache_dir=cfg.data.cache_dir,
        task_ids=len(experiment.tasks) > 1,
    )
    closing.callback(data.close)
    told_apart = data.tasks if len(data.tasks) > 1 else ()

    # -------------------------------------------- state: this workdir's newest checkpoint, another's parameters, fresh
    checkpoints = Checkpoints(workdir, cfg.checkpoint.keep_last)
    closing.callback(checkpoints.close)  # a save that is under way is finished whatever ends the run
    first_step = max(checkpoints.steps(), default=0)
    terminal = Terminal(cfg.train.total_steps, first_step, active=main_process)
    closing.callback(terminal.close)
    if first_step:
        target = abstract_state(module, optimizer, layout, on_devices.example)
        state, data_state = checkpoints.restore(first_step, target)
        data.set_state(data_state)
        terminal.line(f"resuming {workdir} at step {first_step}")
    else:
        state = init_state(module, optimizer, layout, on_devices.example, cfg.seed)
        if cfg.init.checkpoint:
            params, loaded = load_params(cfg.init.checkpoint, state.params)
            state = dataclasses.replace(state, params=params)
            terminal.line(f"from {cfg.init.checkpoint}: {loaded}")
    if main_process:
        _write_config(cfg, workdir)  # now that it is known to work
    train_step = make_train_step(
        module,
        optimizer,
        schedule,
        layout,
        state,
        loss_fn=loss_fn
        or functools.partial(
            losses.loss_sums,
            z_loss=cfg.loss.z_loss,
            label_smoothing=cfg.loss.label_smoothing,
            tasks=len(told_apart),
        ),
        microbatches=cfg.train.microbatches,
        seed=cfg.seed,
    )
    evaluator = evaluate.Evaluator(experiment, on_devices, workdir)
    run_name = report.title(cfg.to_dict(), workdir)
    writers = Writers(workdir, run_name, cfg.to_dict(), first_step, active=main_process)
    closing.callback(writers.close)
    size = sum(p.size for p in jax.tree.leaves(state.params))
    terminal.line(
        f"{cfg.model.preset}: {size:,} parameters on {jax.device_count()} {jax.devices()[0].device_kind} device(s), "
        f"mesh {dict(layout.mesh.shape)}; {cfg.data.mixture} in rows of {cfg.data.length}"
    )

    def save(step: int) -> None:
        best = evaluate.best_step(read_metrics(workdir), cfg.checkpoint.keep_best, checkpoints.steps())
        data_state = pipeline.merge_states(predict.gather([data.get_state()]))
        checkpoints.save(state, data_state, configs.to_json(cfg), keep={best} if best else set())

    def evaluation_is_due(step: int) -> bool:
        every = cfg.eval.every_steps
        return step == cfg.train.total_steps or (every > 0 and step % every == 0)

    def evaluate_now(step: int) -> None:
        """Evaluates; the checkpoint of this step, if there is one, is on disk by then. An interruption ends it early:
        the resumed run makes up for it."""
        checkpoints.wait()
        try:
            values, samples = evaluator.evaluate(state.params, step, stop=lambda: interruption.requested)
        except evaluate.Stopped:
            return
        best_by = cfg.checkpoint.keep_best
        if best_by and f"eval/{best_by}" not in values:
            there_are = ", ".join(sorted(key.removeprefix("eval/") for key in values))
            terminal.line(f"checkpoint.keep_best={best_by!r} is no metric of this run; there are {there_are}")
        writers.scalars(step, values)
        for task, rows in samples.items():
            writers.table(step, f"predictions/{task}", rows)
        if main_process:
            terminal.show(evaluate.results_table(read_metrics(workdir), step))
            report.write(workdir, cfg.eval.predictions_shown)

    # -------------------------------------------------------------------------------------------------------- loop
    total = None  # metrics since the last log line
    pending = None  # the last step's metrics, fetched one step late so that the device never waits for the host
    logged_s = time.monotonic()
    waited_s = 0.0  # for data, since the last log line

    def settle(fetched: tuple[int, dict] | None) -> None:
        """Takes in the metrics of a step that has run; stops the run if they are not finite."""
        nonlocal total, logged_s, waited_s
        if fetched is None:
            return
        step, values = fetched
        total = metrics.add(total, values)
        if total["is_finite"] < total["steps"]:
            raise DivergedError(_divergence(step, jax.device_get(values), checkpoints.steps()))
        terminal.advance(step)
        if step % cfg.train.log_every_steps == 0 or step == cfg.train.total_steps:
            now_s = time.monotonic()
            out = metrics.finalise(total, told_apart)
            out["tokens_per_s"] = out.pop("tokens") / (now_s - logged_s)
            out["data_wait"] = waited_s / (now_s - logged_s)  # share of the time; 0: the devices never wait for data
            out |= data.counters()
            terminal.train(step, out["loss"], out["tokens_per_s"], out["padding"])
            writers.scalars(step, {f"train/{name}": value for name, value in out.items()})
            total, logged_s, waited_s = None, now_s, 0.0

    with _Interruption() as interruption:
        if first_step == 0:
            writers.scalars(0, evaluator.baselines())
            if cfg.eval.untrained:
                terminal.line("evaluating the untrained model")
                evaluate_now(0)
        elif evaluation_is_due(first_step) and not evaluate.was_evaluated(
            read_metrics(workdir), first_step, experiment.eval_tasks
        ):
            evaluate_now(first_step)  # the process died between this checkpoint and its evaluation
        logged_s = time.monotonic()
        stop = interruption.requested  # while evaluating: there is nothing to save
        for step in range(first_step + 1, cfg.train.total_steps + 1):
            if stop:
                break
            asked_s = time.monotonic()
            batch = next(data)
            waited_s += time.monotonic() - asked_s
            state, values = train_step(state, sharding.put_batch(batch, layout))
            settle(pending)
            pending = (step, values)
            due = evaluation_is_due(step)
            stop = interruption.requested  # asked once a step: a later request is the next step's, so none goes unsaved
            saves = stop or step % cfg.checkpoint.every_steps == 0 or step == cfg.train.total_steps
            if due or saves:
                settle(pending)
                pending = None
            if saves:
                save(step)
            if due and not stop:
                pause_s = time.monotonic()
                evaluate_now(step)
                logged_s += time.monotonic() - pause_s
                stop = interruption.requested
                if stop:
                    save(step)

    # --------------------------------------------------------------------------------------------------------- end
    reached = int(state.step)
    closing.close()
    complete = reached == cfg.train.total_steps and evaluate.was_evaluated(
        read_metrics(workdir), reached, experiment.eval_tasks
    )
    if interruption.requested and not complete:
        where = f"stopped and saved at step {reached}" if reached else "stopped before the first step"
        terminal.line(f"{where}; the same command goes on from there")
        return RESTART_ME
    if main_process:
        for line in evaluate.sample_lines(workdir, cfg.train.total_steps, cfg.eval.predictions_shown):
            terminal.line(line)
        path = report.write(workdir, cfg.eval.predictions_shown)
        terminal.line(f"done in {time.monotonic() - started_s:.0f} s; see {path}")
    return 0


class _Interruption:
    """Ctrl-C or SIGTERM asks the loop to save and stop; a second one ends the process at once."""

    def __enter__(self):
        self.requested = False
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame) -> None:
        self.requested = True
        self._restore()
        print("\nstopping after this step; again to leave at once without saving", flush=True)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self._restore()


def _check_workdir(cfg, workdir: Path) -> None:
    """Refuses to resume a run whose steps would mean something else, and a workdir that cannot be made."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the workdir {workdir}: {error.strerror}") from error
    if not saved_steps(workdir):
        return  # nothing to resume: whatever was tried here before may be mended
    old, new = configs.flat(configs.from_json(workdir / "config.json")), configs.flat(cfg)
    changed = [
        f"{key}: {old[key]!r} → {new[key]!r}"
        for key in new
        if key.startswith(FIXED_ON_RESUME) and not key.startswith(FREE_ON_RESUME) and old[key] != new[key]
    ]
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another config ({'; '.join(changed[:5])}). "
            "Take the old values to resume it, or another --workdir for a new run"
        )


def _write_config(cfg, workdir: Path) -> None:
    try:
        atomic.write(workdir / "config.json", configs.to_json(cfg))
    except OSError as error:
        raise CheckpointError(f"cannot write to the workdir {workdir}: {error.strerror}") from error


def _divergence(step: int, values: dict, saved: list[int]) -> str:
    shown = {k: round(float(v), 6) for k, v in values.items() if k in ("loss", "grad_norm", "learning_rate")}
    newest = f"the newest checkpoint is step {max(saved)}" if saved else "there is no checkpoint yet"
    return (
        f"step {step} is not finite: {json.dumps(shown)}. Nothing was saved after it; {newest}. "
        "Lower optimizer.learning_rate, lengthen schedule.warmup_steps, or set optimizer.clip_norm"
    )
