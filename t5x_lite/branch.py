"""Begins a new run from a checkpoint of another run: a cooldown, an anneal on other data, or a longer run.

The new workdir gets the checkpoint, the metrics up to it, and `branch.json`, which says where the run comes from. Then
it is a run like any other. If no key changes that decides the steps, it equals the uninterrupted run bit for bit. If
the data or the seed changes, the new run reads its data from the beginning.
"""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite import atomic, lineage
from t5x_lite import config as configs
from t5x_lite.checkpoints import checkpoint, manifest
from t5x_lite.cluster import processes
from t5x_lite.errors import ConfigError, cannot_write
from t5x_lite.keys import REFUSE
from t5x_lite.reports.results import METRICS_FILE

if TYPE_CHECKING:
    from t5x_lite.experiment import Experiment  # resolving names is not a part of training

FIXED = ("model.", "optimizer.", "train.")  # the checkpoint fits only these keys' own values
OF_DATA = ("data.", "seed")


def start(experiment: "Experiment", run: Path, which: str, workdir: Path) -> None:
    """Makes the workdir of the new run, unless it is there already.

    run: the workdir of the other run.  which: its checkpoint: latest or a step.
    Raises ConfigError if the config changes what the checkpoint holds, or if `workdir` holds something else. Raises
    CheckpointError if there is no such checkpoint, or if it is corrupted.
    """
    run, workdir = run.resolve(), workdir.resolve()
    if which != "latest" and not checkpoint.STEP.fullmatch(which):
        raise ConfigError(f"--at={which}: a branch begins at one checkpoint; use latest or a step")
    step = processes.on_first(lambda: _step(experiment, run, which, workdir))
    if step is not None:
        checkpoint.check(run / checkpoint.DIRECTORY / str(step))  # every process reads its share
        processes.on_first(lambda: _copy(experiment, run, step, workdir))


def _step(experiment: "Experiment", run: Path, which: str, workdir: Path) -> int | None:
    """Returns the step to branch from; None if the workdir is this branch already."""
    old, mirror = configs.from_json(run / "config.json"), experiment.cfg.checkpoint.mirror
    changed = configs.changes(old, experiment.cfg)[REFUSE]
    if fixed := [line for line in changed if line.startswith(FIXED)]:
        raise ConfigError(
            f"a branch of {run} cannot change {'; '.join(fixed[:5])}, because its checkpoints do not fit; start a new "
            f"run with --config.init.checkpoint={run}"
        )
    if mirror and mirror == old.checkpoint.mirror:
        raise ConfigError(
            f"checkpoint.mirror={mirror} holds the copies of {run}, which those of the branch would replace; give a "
            "different --config.checkpoint.mirror, or --config.checkpoint.mirror= for none"
        )
    if before := lineage.of(workdir):
        first = before[0]
        if first["run"] != str(run) or which not in ("latest", str(first["step"])):
            raise ConfigError(
                f"{workdir} is a branch of {first['run']} at step {first['step']}, not of {run} at {which}; use a "
                "different directory"
            )
        return None
    step = checkpoint.choose(run, which, None)[-1]
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"{workdir} is not empty and no branch of {run}; use a different directory")
    if workdir.exists() and workdir.samefile(Path.cwd()):  # it will be replaced
        raise ConfigError(f"{workdir} is the working directory; use a different directory")
    return step


def _copy(experiment: "Experiment", run: Path, step: int, workdir: Path) -> None:
    """Makes the workdir of a branch: first beside it, then one rename moves it into place."""
    source, partial = run / checkpoint.DIRECTORY / str(step), workdir.with_name(f".{workdir.name}.partial")
    changed = configs.changes(configs.from_json(run / "config.json"), experiment.cfg)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        target = partial / checkpoint.DIRECTORY / str(step)
        shutil.copytree(source, target, copy_function=_link)
        if any(line.startswith(OF_DATA) for line in changed[REFUSE]):
            _forget_data(target, step)
        if (run / METRICS_FILE).is_file():
            shutil.copy(run / METRICS_FILE, partial)  # the run drops the values of later steps
        atomic.write(partial / "config.json", configs.to_json(experiment.cfg, experiment.code()))
        entry = {"run": str(run), "step": step, "changed": changed}
        atomic.write(partial / lineage.FILE, json.dumps([entry, *lineage.of(run)], indent=1))
        if workdir.exists():
            workdir.rmdir()
        partial.rename(workdir)
    except OSError as error:
        checkpoint.find(source)  # raises CheckpointError if a run beside has dropped the step
        raise cannot_write(workdir, error) from error


def _link(source: str, target: str) -> None:
    """Makes a hard link, or a copy if the file system has none. Nobody changes the files of a checkpoint."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _forget_data(directory: Path, step: int) -> None:
    """Removes the data position from a copied step, so that the run reads its data from the beginning."""
    file = directory / "progress" / "metadata"
    atomic.write(file, json.dumps({"step": step, "data": None}))
    (directory / manifest.NAME).unlink()
    manifest.write(directory, step)
