"""Defines the verbs of the command line: their flags and what they call. Only verbs that compute import jax."""

import argparse
import dataclasses
import logging
import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from t5x_lite import command_configs, console
from t5x_lite.command_configs import Overrides
from t5x_lite.errors import CheckpointError, ConfigError, of_the_disk

WHICH = "latest, best or a step; +average or +mean:K: averaged weights"
DEFINES_TASKS = "the run's config file, if it defines tasks or a model"


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    add_flags: adds the verb's flags to its parser.
    run: runs the verb and returns the exit status; None means 0.
    takes_config: whether the verb accepts the flags --config.KEY=VALUE.
    only_prints: whether the verb only prints. Then it is no error if a pipe closes early (`t5x-lite tasks | head`).
    """

    name: str
    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Overrides], int | None]
    takes_config: bool = True
    only_prints: bool = False


# ---------------------------------------------------------------------------------------- train, evaluate, predict


def _train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py",
        help="the experiment; FILE.py:ARG calls get_config(ARG)",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="directory for checkpoints, metrics and report")


def _train(arguments: argparse.Namespace, overrides: Overrides) -> int:
    cfg, workdir = command_configs.of_file(arguments.config, overrides), _new_workdir(arguments.workdir)
    from t5x_lite import experiment, train
    from t5x_lite.cluster import processes
    from t5x_lite.evaluation.during_training import EvaluationDuringTraining

    with processes.joined():
        return train.run(experiment.resolve(cfg), workdir, EvaluationDuringTraining)


def _new_workdir(text: str) -> Path:
    """Returns the workdir that a flag names. Raises ConfigError if it is a URL."""
    if "://" in text:
        raise ConfigError(
            f"workdir {text}: must be a local or mounted directory. To also keep the checkpoints in the bucket, add "
            f"--config.checkpoint.mirror={text}"
        )
    return Path(os.path.expandvars(text))


def _branch_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="workdir of the run to continue from")
    parser.add_argument("workdir", metavar="NEW", help="workdir of the new run; after a kill, run the command again")
    parser.add_argument("--at", default="latest", metavar="STEP", help="a saved step of RUN; default: the latest")
    parser.add_argument("--config", default="", metavar="FILE.py", help=DEFINES_TASKS)


def _branch(arguments: argparse.Namespace, overrides: Overrides) -> int:
    workdir = _new_workdir(arguments.workdir)
    cfg = command_configs.of_workdir(arguments.run, arguments.config, overrides)
    from t5x_lite import branch, experiment, runtime, train
    from t5x_lite.cluster import processes
    from t5x_lite.evaluation.during_training import EvaluationDuringTraining

    with processes.joined():
        resolved = experiment.resolve(cfg)
        runtime.start(resolved)  # finds a mesh that does not fit before the workdir exists
        branch.start(resolved, Path(arguments.run), arguments.at, workdir)
        return train.run(resolved, workdir, EvaluationDuringTraining)


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--checkpoints", default="latest", metavar="WHICH", help="all or " + WHICH)
    parser.add_argument("--tasks", default="", metavar="A,B", help="tasks to evaluate on; default: the run's")
    parser.add_argument(
        "--submission", default="", metavar="FILE.zip", help="add the test predictions to a file for GLUE's server"
    )
    parser.add_argument("--config", default="", metavar="FILE.py", help=DEFINES_TASKS)


def _eval(arguments: argparse.Namespace, overrides: Overrides) -> None:
    cfg = command_configs.of_workdir(arguments.workdir, arguments.config, overrides)
    from t5x_lite import config, experiment
    from t5x_lite.cluster import processes
    from t5x_lite.data.registry import differences
    from t5x_lite.evaluation import evaluate

    workdir = Path(arguments.workdir)
    own = config.from_json(workdir / "config.json")
    if differing := "; ".join(differences(own.to_dict(), cfg.to_dict())):
        logging.getLogger(__name__).warning(
            "settings differ from the run's: %s. The scores are still stored as the run's own: in metrics.jsonl, the "
            "report and predictions/, and they count when the best step is chosen",
            differing,
        )
    tasks = tuple(t for t in arguments.tasks.split(",") if t)
    if tasks:
        cfg.eval.tasks = tasks
    submission = Path(arguments.submission) if arguments.submission else None
    with processes.joined(), of_the_disk(workdir):
        evaluate.run(experiment.resolve_again(cfg), workdir, arguments.checkpoints, submission)


def _infer_flags(parser: argparse.ArgumentParser) -> None:
    lines = '.jsonl with lines such as {"inputs": "summarize: …"}, .csv, .tsv, or a text file'
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--input", required=True, metavar="FILE", help=lines)
    parser.add_argument("--output", required=True, metavar="FILE.jsonl")
    parser.add_argument("--mode", default="predict", choices=("predict", "score"), help="score also needs targets")
    parser.add_argument("--task", default="", metavar="NAME", help="task whose labels to predict; default: the run's")
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help=WHICH)
    parser.add_argument("--config", default="", metavar="FILE.py", help=DEFINES_TASKS)


def _infer(arguments: argparse.Namespace, overrides: Overrides) -> None:
    cfg = command_configs.of_workdir(arguments.workdir, arguments.config, overrides)
    from t5x_lite import saved_run
    from t5x_lite.cluster import processes
    from t5x_lite.evaluation import infer

    with processes.joined(), of_the_disk(Path(arguments.output)):
        infer.run(
            saved_run.resolve(cfg, Path(arguments.workdir)),
            Path(arguments.workdir),
            Path(arguments.input),
            Path(arguments.output),
            arguments.checkpoint,
            arguments.mode,
            arguments.task,
        )


# ------------------------------------------------------------------------------------- plan, sweep, compare, verify


def _plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.py")
    parser.add_argument("--mesh", default="", metavar="AXIS=N,…", help="same as --config.mesh, e.g. fsdp=64,tensor=4")
    parser.add_argument("--devices", type=int, default=0, metavar="N", help="default: the product of the mesh's sizes")
    parser.add_argument(
        "--device", default="", metavar="NAME", help="accelerator whose memory the step must fit in: v5e, h200, …"
    )
    parser.add_argument(
        "--topology",
        default="",
        metavar="v5e:4x8",
        help="use the compiler of a TPU or GPU (h200:8; needs t5x-lite[tpu] or [gpu]), and predict the step's time",
    )
    parser.add_argument("--all", action="store_true", help="list every array")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def _plan(arguments: argparse.Namespace, overrides: Overrides) -> None:
    if arguments.mesh:
        overrides["mesh"] = arguments.mesh
    cfg = command_configs.of_file(arguments.config, overrides)
    count = arguments.devices or _mesh_devices(cfg.mesh)
    os.environ["JAX_PLATFORMS"] = "cpu"  # opening an accelerator would take it away from a run
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a compiler alone need not wait for a run that holds the TPU
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    if arguments.topology:  # jax can store such a program, but not read it again
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from t5x_lite import experiment
    from t5x_lite.costs import plan

    plan.run(experiment.resolve(cfg), arguments.device, arguments.topology, arguments.all, arguments.json)


def _mesh_devices(mesh: str) -> int:
    """Returns the number of devices of config.mesh. An axis of size -1 (all remaining devices) counts as 1."""
    return math.prod(int(size) for size in re.findall(r"=\s*(\d+)", mesh))


def _find_rate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.py", help="the experiment")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="most steps to train (default 100)")
    parser.add_argument("--lowest", type=float, default=1e-6, metavar="RATE", help="rate to begin with (default 1e-6)")
    parser.add_argument("--highest", type=float, default=1.0, metavar="RATE", help="rate to end with (default 1)")
    parser.add_argument("--output", default="", metavar="FILE.png", help="also draw the curve")


def _find_rate(arguments: argparse.Namespace, overrides: Overrides) -> None:
    cfg = command_configs.of_file(arguments.config, overrides)
    from t5x_lite import experiment, find_rate

    output = Path(arguments.output) if arguments.output else None
    find_rate.run(experiment.resolve(cfg), arguments.steps, arguments.lowest, arguments.highest, output)


def _sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.yaml", help="after a kill, run it again: only missing runs start")
    parser.add_argument("--output", default="", metavar="DIR", help="default: runs/FILE")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs in parallel")
    parser.add_argument("--point", type=int, metavar="I", help="run only point I, from 0 (for a Slurm array)")
    parser.add_argument("--print", action="store_true", help="print the commands for wandb's agents and Slurm")


def _sweep(arguments: argparse.Namespace, overrides: Overrides) -> int:
    from t5x_lite import sweep

    file = Path(arguments.file)
    output = Path(arguments.output or Path("runs") / file.stem)
    return sweep.run(file, output, arguments.jobs, arguments.point, arguments.print)


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdirs", nargs="+", metavar="DIR")
    parser.add_argument("--output", default="", metavar="FILE.html", help="also write a page with the curves")


def _compare(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite.reports import compare

    compare.run([Path(w) for w in arguments.workdirs], Path(arguments.output) if arguments.output else None)


def _verify_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="DIR")


def _verify(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite.checkpoints import checkpoint

    problems = checkpoint.verify(Path(arguments.workdir))
    if not problems:
        raise CheckpointError(f"no checkpoint in {arguments.workdir!r}; give the --workdir of a `t5x-lite train`")
    for step, problem in problems.items():
        console.say(f"{step}: {problem or 'intact'}")
    corrupted = [step for step, problem in problems.items() if problem]
    if corrupted:
        raise CheckpointError(
            f"{len(corrupted)} of {len(problems)} checkpoints of {arguments.workdir} are corrupted; the run resumes "
            "from an intact one"
        )


# -------------------------------------------------------------------------------------------- tasks and vocabularies


def _tasks_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="", metavar="FILE.py", help="also list the tasks that this file defines")


def _tasks(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite import inspect

    if arguments.config:
        command_configs.of_file(arguments.config, overrides)  # running the file registers its tasks
    inspect.print_tasks()


def _inspect_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="a task or mixture; omit with data.files")
    parser.add_argument("--config", default="", metavar="FILE.py", help="sets model, lengths and vocabulary")
    parser.add_argument("--split", default="train")
    parser.add_argument("-n", type=int, default=5, metavar="N", help="rows to print")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def _inspect(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite import experiment, inspect

    if arguments.n < 0:
        raise ConfigError(f"-n={arguments.n}: must be 0 or more")
    resolved = experiment.resolve(command_configs.of_name(arguments, overrides))
    inspect.run(resolved, arguments.n, arguments.split, arguments.json)


def _cache_flags(parser: argparse.ArgumentParser) -> None:
    again = "the cache; after a kill, run the command again: it makes only what is missing"
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="a task or mixture; omit with data.files")
    parser.add_argument("--output", required=True, metavar="DIR", help=again)
    parser.add_argument("--config", default="", metavar="FILE.py", help="sets vocabulary and kind of model")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes; default: one per core")
    parser.add_argument("--runner", default="local", choices=("local", "beam"), help="beam needs t5x-lite[beam]")
    parser.add_argument("--beam", default="", metavar="FLAGS", help="flags for Beam, in quotes (examples: README)")


def _cache(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite import experiment
    from t5x_lite.data import make_cache

    resolved = experiment.resolve(command_configs.of_name(arguments, overrides))
    make_cache.run(
        resolved.tasks,
        resolved.converter,
        resolved.vocabulary,
        Path(arguments.output).absolute(),
        workers=arguments.workers or os.cpu_count() or 1,
        beam_flags=shlex.split(arguments.beam) if arguments.runner == "beam" else None,
    )


def _vocab_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE", help="text files, one sentence per line")
    parser.add_argument("--size", required=True, type=int, metavar="N", help="number of pieces")
    parser.add_argument("--output", required=True, metavar="FILE.model")


def _vocab(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite.data import vocabularies

    vocabulary = vocabularies.train_sentencepiece(
        files=[Path(f) for f in arguments.input], size=arguments.size, output=Path(arguments.output)
    )
    console.say(f"{arguments.output}: {vocabulary.size} ids, fingerprint {vocabulary.fingerprint}")
    console.say(f"use it with --config.data.vocabulary={arguments.output}")


# ----------------------------------------------------------------------------------------------------- models


def _import_flags(parser: argparse.ArgumentParser) -> None:
    source = "with config.json, model.safetensors and tokenizer files; or hf://OWNER/NAME[@COMMIT]; or a T5X checkpoint"
    parser.add_argument("source", metavar="DIR", help=source)
    parser.add_argument("output", metavar="OUT", help="a new directory that runs can start from")
    parser.add_argument(
        "--vocab-size", type=int, default=0, metavar="N", help="rows of the embedding table; default: unchanged"
    )
    parser.add_argument(
        "--allow", default="", metavar="A,B", help="tensors that may be skipped or missing (* matches any)"
    )
    parser.add_argument("--verbose", action="store_true", help="report every tensor")


def _import(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite import atomic
    from t5x_lite.hub import download, interchange

    out = Path(arguments.output)
    is_remote = arguments.source.startswith(download.PREFIX)
    name = download.pinned(arguments.source) if is_remote else arguments.source
    if name != arguments.source:
        console.say(f"{arguments.source} is now at {name.rpartition('@')[2]}; {name} will always be the same model")
    source = download.fetch(name) if is_remote else Path(name)
    allow = tuple(name for name in arguments.allow.split(",") if name)
    report = interchange.import_directory(source, out, allow=allow, vocab_size=arguments.vocab_size)
    if is_remote:
        atomic.write(out / interchange.SOURCE, f"{name}\n")
    console.say("\n".join(report.lines()) if arguments.verbose else report)
    console.say(f"{out}: start from it with --config.model.preset={out} --config.init.checkpoint={out}")


def _export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="workdir of a run, or a directory that `import` made")
    parser.add_argument("output", metavar="OUT", help="a new directory")
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help=WHICH)
    parser.add_argument("--adapter", action="store_true", help="write only LoRA's matrices, in peft's format")
    parser.add_argument("--family", default="", metavar="NAME", help="model_type; default: as it was imported")
    parser.add_argument("--config", default="", metavar="FILE.py", help=DEFINES_TASKS)


def _export(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite.hub import interchange, model

    if arguments.config:
        command_configs.of_file(arguments.config, overrides)  # running the file registers its tasks
    loaded = model.load(arguments.workdir, arguments.checkpoint)
    write = interchange.export_adapter if arguments.adapter else interchange.export_model
    family = write(loaded, Path(arguments.output), family=arguments.family)
    console.say(
        f"{arguments.output}: {family} in {'the format of peft' if arguments.adapter else 'Hugging Face format'}"
    )


def _attention_flags(parser: argparse.ArgumentParser) -> None:
    second = "encoder-only: second text of a pair; text-to-text: the targets (default: the model generates them)"
    parser.add_argument("--workdir", required=True, metavar="DIR", help="workdir, or a directory that `import` made")
    parser.add_argument("--text", required=True, metavar="TEXT", help="text in the form the model was trained on")
    parser.add_argument("--second", default="", metavar="TEXT", help=second)
    parser.add_argument("--output", default="", metavar="FILE.html", help="default: attention.html in DIR")
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help=WHICH)
    parser.add_argument("--config", default="", metavar="FILE.py", help=DEFINES_TASKS)


def _attention(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from t5x_lite import atomic
    from t5x_lite.hub import model
    from t5x_lite.reports import attention_page

    if arguments.config:
        command_configs.of_file(arguments.config, overrides)  # running the file registers its tasks
    maps = model.load(arguments.workdir, arguments.checkpoint).attention(arguments.text, arguments.second)
    output = Path(arguments.output or Path(arguments.workdir) / "attention.html")
    atomic.write_output(output, attention_page.page(maps, f"{arguments.text[:80]} ({arguments.workdir})"))
    console.say(f"see {output}")


VERBS = (
    Verb("train", "train and evaluate; run the same command again to resume", _train_flags, _train),
    Verb("branch", "continue a run from one of its checkpoints as a new run", _branch_flags, _branch),
    Verb("eval", "evaluate checkpoints of a run", _eval_flags, _eval),
    Verb("infer", "predict or score every line of a JSONL, CSV or text file", _infer_flags, _infer),
    Verb(
        "verify",
        "check every file of a run's checkpoints against its hash",
        _verify_flags,
        _verify,
        False,
        only_prints=True,
    ),
    Verb("plan", "predict a run's parameters, FLOPs, memory and step time", _plan_flags, _plan, only_prints=True),
    Verb("find-rate", "train a few steps at rising learning rates, and suggest one", _find_rate_flags, _find_rate),
    Verb("sweep", "train with many settings, from a file in wandb's sweep format", _sweep_flags, _sweep, False),
    Verb("compare", "show what differs between runs: config, results, curves", _compare_flags, _compare, False),
    Verb("tasks", "list tasks and mixtures", _tasks_flags, _tasks, only_prints=True),
    Verb("inspect", "show rows as the model will see them", _inspect_flags, _inspect, only_prints=True),
    Verb("cache", "preprocess and tokenize a task or mixture once, for training", _cache_flags, _cache),
    Verb("import", "convert a directory in Hugging Face format to a checkpoint", _import_flags, _import, False),
    Verb("export", "write a run's model in Hugging Face format", _export_flags, _export),
    Verb("attention", "write a text's attention maps as a page that opens offline", _attention_flags, _attention),
    Verb("vocab", "train a SentencePiece vocabulary", _vocab_flags, _vocab, False),
)
