"""The command line: verbs and their flags. jax is imported by the verb that needs it, so `--help` is instant."""

import argparse
import logging
import math
import os
import re
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import absl.logging

from t5x_lite import console
from t5x_lite.errors import INTERNAL, CheckpointError, ConfigError, UserError, of_the_disk

if TYPE_CHECKING:
    from t5x_lite.config import Config

# Without huge pages XLA's CPU backend spends a fifth of a step in page faults on its fresh output buffers
# (benchmarks/README.md). glibc reads the tunable before main, hence the exec. A heap that is never given back
# (mmap_max=0) would save the rest of the faults, 3 % of a step, but let a GPT-2 grow from 1.8 to 5.2 GB.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# libtpu 0.0.42 compiles GPT-2 more deeply than its fibers' stacks are by default, and dies of it.
LIBTPU_STACKS = f"--fibers_default_thread_stack_size={1 << 20}"  # bytes


def main() -> None:
    """Entry point of `t5x-lite`; exits with the status of `run`."""
    _exec_with_huge_pages(sys.argv)
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Runs one verb and returns its exit status: 0, or an error's own (see errors.py) after its message."""
    # argparse takes an unknown flag with a space in it for a positional argument: it does not get to see ours.
    arguments, rest = _parser().parse_known_args([a for a in argv if not a.startswith("--config.")])
    rest += [a for a in argv if a.startswith("--config.")]
    _speak()
    try:
        overrides = _overrides(rest, allowed=arguments.takes_config)
        return arguments.handler(arguments, overrides) or 0
    except UserError as error:
        _tell(str(error))
        return error.exit_code
    except MemoryError:
        _tell(
            f"no memory left on this machine. Lower data.prefetch_batches or data.batch_rows\n{traceback.format_exc()}"
        )
        return INTERNAL
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except SystemExit:  # which rich makes of a broken pipe
        if arguments.lists:
            return 0
        raise
    except Exception as error:
        if arguments.lists and isinstance(error, BrokenPipeError):  # `t5x-lite tasks | head`
            return 0
        _tell(f"this is a bug of ours; please report it with this traceback\n{traceback.format_exc()}")
        return INTERNAL
    finally:
        with console.optional(sys.stdout):
            pass


def _tell(text: str) -> None:
    with console.optional(sys.stderr):
        print(f"t5x-lite: {text}", file=sys.stderr)


def _speak() -> None:
    """Our own messages go to stderr. Orbax logs a whole traceback before it raises what we turn into one line."""
    logging.basicConfig(stream=sys.stderr, format="t5x-lite: %(message)s")
    logging.getLogger("t5x_lite").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.FATAL)


# -------------------------------------------------------------------------------------------- verbs


def _train(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    cfg = _config(arguments.config, overrides)
    if "://" in arguments.workdir:
        raise ConfigError(
            f"--workdir={arguments.workdir}: a run works in a directory, local or mounted. Give it one, and "
            f"--config.checkpoint.mirror={arguments.workdir} to keep its checkpoints in the bucket"
        )
    from t5x_lite import experiment, train
    from t5x_lite.cluster import processes

    with processes.joined():
        return train.run(experiment.resolve(cfg), Path(os.path.expandvars(arguments.workdir)))


def _eval(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    cfg = _workdir_config(arguments.workdir, arguments.config, overrides)
    from t5x_lite import config, experiment
    from t5x_lite.cluster import processes
    from t5x_lite.data.registry import differences
    from t5x_lite.evaluation import evaluate

    own = config.from_json(Path(arguments.workdir) / "config.json")
    if differing := "; ".join(differences(own.to_dict(), cfg.to_dict())):
        logging.getLogger(__name__).warning(
            "other settings than the run's: %s. These scores take their places among its own: in metrics.jsonl, the "
            "report, predictions/ and the choice of the best step",
            differing,
        )
    tasks = tuple(t for t in arguments.tasks.split(",") if t)
    if tasks:
        cfg.eval.tasks = tasks
    with processes.joined(), of_the_disk(Path(arguments.workdir)):
        evaluate.run(
            experiment.resolve_again(cfg), Path(arguments.workdir), arguments.checkpoints, _path(arguments.submission)
        )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _infer(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    cfg = _workdir_config(arguments.workdir, arguments.config, overrides)
    from t5x_lite import experiment
    from t5x_lite.cluster import processes
    from t5x_lite.evaluation import infer

    with processes.joined(), of_the_disk(Path(arguments.output)):
        infer.run(
            experiment.resolve_again(cfg),
            Path(arguments.workdir),
            Path(arguments.input),
            Path(arguments.output),
            arguments.checkpoint,
            arguments.mode,
            arguments.task,
        )


def _verify(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite.checkpoints import checkpoint

    found = checkpoint.verify(Path(arguments.workdir))
    if not found:
        raise CheckpointError(f"no checkpoint in {arguments.workdir!r}; give the workdir of a `t5x-lite train`")
    for step, problem in found.items():
        print(f"{step}: {problem or 'whole'}")
    damaged = [step for step, problem in found.items() if problem]
    if damaged:
        raise CheckpointError(f"{len(damaged)} of {len(found)} checkpoints are damaged; a run resumes from the others")


def _plan(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    if arguments.mesh:
        overrides["mesh"] = arguments.mesh
    cfg = _config(arguments.config, overrides)
    count = arguments.devices or _mesh_devices(cfg.mesh)
    os.environ["JAX_PLATFORMS"] = "cpu"  # no accelerator is touched: its runtime would take it from a run
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["LIBTPU_INIT_ARGS"] = f"{LIBTPU_STACKS} {os.environ.get('LIBTPU_INIT_ARGS', '')}".strip()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    from t5x_lite import experiment
    from t5x_lite.costs import plan

    plan.run(experiment.resolve(cfg), arguments.device, arguments.topology, arguments.all, arguments.json)


def _sweep(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    from t5x_lite import sweep

    file = Path(arguments.file)
    output = Path(arguments.output or Path("runs") / file.stem)
    return sweep.run(file, output, arguments.jobs, arguments.point, arguments.print)


def _compare(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite.reports import compare

    compare.run([Path(w) for w in arguments.workdirs], Path(arguments.output) if arguments.output else None)


def _mesh_devices(mesh: str) -> int:
    """How many devices a mesh is made of where it does not leave it open; else 1."""
    return math.prod(int(size) for size in re.findall(r"=\s*(\d+)", mesh))


def _tasks(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite import inspect

    if arguments.config:
        _config(arguments.config, overrides)  # running the file registers its tasks
    inspect.print_tasks()


def _inspect(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite import experiment, inspect

    if arguments.n < 0:
        raise ConfigError(f"-n {arguments.n}: so many rows cannot be printed; give 0 or more")
    resolved = experiment.resolve(_named_config(arguments, overrides))
    inspect.run(resolved, arguments.n, arguments.split, arguments.json)


def _cache(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite import experiment
    from t5x_lite.data import make_cache

    resolved = experiment.resolve(_named_config(arguments, overrides))
    make_cache.run(
        resolved.tasks,
        resolved.converter,
        resolved.vocabulary,
        Path(arguments.output).absolute(),
        workers=arguments.workers or os.cpu_count() or 1,
        beam_flags=shlex.split(arguments.beam) if arguments.runner == "beam" else None,
    )


def _import(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite.hub import download, interchange

    out = Path(arguments.output)
    is_remote = arguments.source.startswith(download.PREFIX)
    source = download.fetch(arguments.source) if is_remote else Path(arguments.source)
    allow = tuple(name for name in arguments.allow.split(",") if name)
    report = interchange.import_directory(source, out, allow=allow, vocab_size=arguments.vocab_size)
    print("\n".join(report.lines()) if arguments.verbose else report)
    print(f"{out}: start from it with --config.model.preset={out} --config.init.checkpoint={out}")


def _export(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite.hub import interchange, model

    if arguments.config:
        _config(arguments.config, overrides)  # running the file registers its tasks
    loaded = model.load(arguments.workdir, arguments.checkpoint)
    write = interchange.export_adapter if arguments.adapter else interchange.export_model
    family = write(loaded, Path(arguments.output), family=arguments.family)
    print(f"{arguments.output}: {family} in {'the format of peft' if arguments.adapter else 'Hugging Face format'}")


def _attention(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite import atomic
    from t5x_lite.hub import model
    from t5x_lite.reports import attention_page

    if arguments.config:
        _config(arguments.config, overrides)  # running the file registers its tasks
    found = model.load(arguments.workdir, arguments.checkpoint).attention(arguments.text, arguments.second)
    output = Path(arguments.output or Path(arguments.workdir) / "attention.html")
    atomic.write(output, attention_page.page(found, f"{arguments.text[:80]} ({arguments.workdir})"))
    print(f"see {output}")


def _vocab(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from t5x_lite.data import vocabularies

    vocabulary = vocabularies.train_sentencepiece(
        files=[Path(f) for f in arguments.input], size=arguments.size, output=Path(arguments.output)
    )
    print(f"{arguments.output}: {vocabulary.size} ids, fingerprint {vocabulary.fingerprint}")
    print(f"use it with --config.data.vocabulary={arguments.output}")


# ---------------------------------------------------------------------------------- arguments, config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="t5x-lite",
        description="Train and evaluate BERT, GPT and T5 models on JAX in one loop.",
        epilog="Every config key can be set with --config.KEY=VALUE, for example --config.train.total_steps=100.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, handler, summary: str, takes_config: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        lists = handler in (_verify, _plan, _tasks, _inspect)  # what it prints is all that it does
        sub.set_defaults(handler=handler, takes_config=takes_config, lists=lists)
        return sub

    train = verb("train", _train, "train and evaluate; run again with the same workdir and it resumes exactly")
    train.add_argument("--config", required=True, metavar="FILE.py", help="the experiment; FILE.py:ARG passes ARG on")
    train.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints, metrics, report go here")

    evaluate = verb("eval", _eval, "evaluate checkpoints of a run")
    evaluate.add_argument("--workdir", required=True, metavar="DIR")
    evaluate.add_argument("--checkpoints", default="latest", metavar="WHICH", help="latest, best, all or a step")
    evaluate.add_argument("--tasks", default="", metavar="A,B", help="default: those of the run")
    evaluate.add_argument("--submission", default="", metavar="FILE.zip", help="add test predictions for GLUE's server")
    evaluate.add_argument("--config", default="", metavar="FILE.py", help="needed when its tasks live in the file")

    infer = verb("infer", _infer, "predict or score every line of a JSONL, CSV or text file")
    infer.add_argument("--workdir", required=True, metavar="DIR")
    infer.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help='.jsonl of {"inputs": "summarize: …"}, .csv, .tsv, or text',
    )
    infer.add_argument("--output", required=True, metavar="FILE.jsonl")
    infer.add_argument("--mode", default="predict", choices=("predict", "score"), help="score reads targets too")
    infer.add_argument(
        "--task", default="", metavar="NAME", help="an encoder's labels come from it; default: the run's"
    )
    infer.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest, best or a step")
    infer.add_argument("--config", default="", metavar="FILE.py", help="needed when its tasks live in the file")

    verify = verb("verify", _verify, "compare every file of a run's checkpoints with its hash", takes_config=False)
    verify.add_argument("workdir", metavar="DIR")

    plan = verb("plan", _plan, "what a run will take: parameters, FLOPs, bytes per device, collectives, time")
    plan.add_argument("--config", required=True, metavar="FILE.py")
    plan.add_argument("--mesh", default="", metavar="AXIS=N,…", help="as --config.mesh: fsdp=64,tensor=4")
    plan.add_argument("--devices", type=int, default=0, metavar="N", help="default: as many as the mesh names")
    plan.add_argument("--device", default="", metavar="NAME", help="to predict time and fit on: v5e, h100, …")
    plan.add_argument("--topology", default="", metavar="v5e:4x8", help="ask the TPU's own compiler (t5x-lite[tpu])")
    plan.add_argument("--all", action="store_true", help="list every array")
    plan.add_argument("--json", action="store_true", help="for programs: the same as one JSON object")

    sweep = verb("sweep", _sweep, "train with many settings, from a file in wandb's sweep format", takes_config=False)
    sweep.add_argument("file", metavar="FILE.yaml", help="run again after a kill: it does what is missing")
    sweep.add_argument("--output", default="", metavar="DIR", help="default: runs/FILE")
    sweep.add_argument("--jobs", type=int, default=1, metavar="N", help="at a time")
    sweep.add_argument("--point", type=int, metavar="I", help="that one alone, from 0: for a Slurm array")
    sweep.add_argument("--print", action="store_true", help="print how to run it with wandb's agents or on Slurm")

    compare = verb("compare", _compare, "what differs between runs: config, results, curves", takes_config=False)
    compare.add_argument("workdirs", nargs="+", metavar="DIR")
    compare.add_argument("--output", default="", metavar="FILE.html", help="a page with the curves, too")

    tasks = verb("tasks", _tasks, "list tasks and mixtures")
    tasks.add_argument("--config", default="", metavar="FILE.py", help="also those the file defines")

    inspect = verb("inspect", _inspect, "print what a run will take of each task, and rows as the model sees them")
    inspect.add_argument("name", metavar="NAME", nargs="?", default="", help="a task or mixture; not for data.files")
    inspect.add_argument("--config", default="", metavar="FILE.py", help="model, lengths and vocabulary")
    inspect.add_argument("--split", default="train")
    inspect.add_argument("-n", type=int, default=5, metavar="N", help="rows to print")
    inspect.add_argument("--json", action="store_true", help="for programs: the same as one JSON object")

    cache = verb("cache", _cache, "preprocess and tokenise a task or mixture once, for training with data.cache_dir")
    cache.add_argument("name", metavar="NAME", nargs="?", default="", help="a task or mixture; not for data.files")
    cache.add_argument(
        "--output", required=True, metavar="DIR", help="run again after a kill: it makes what is missing"
    )
    cache.add_argument("--config", default="", metavar="FILE.py", help="of the run: its vocabulary and kind of model")
    cache.add_argument("--workers", type=int, default=0, metavar="N", help="processes; default: one for each core")
    cache.add_argument("--runner", default="local", choices=("local", "beam"), help="beam: needs t5x-lite[beam]")
    cache.add_argument("--beam", default="", metavar="FLAGS", help="Beam's own, in quotes (the README has some)")

    to_ours = verb("import", _import, "make a checkpoint of a directory in Hugging Face format", takes_config=False)
    to_ours.add_argument(
        "source",
        metavar="DIR",
        help="with config.json, model.safetensors and the tokenizer's files; hf://OWNER/NAME@COMMIT; a T5X checkpoint",
    )
    to_ours.add_argument("output", metavar="OUT", help="a new directory, to start runs from")
    to_ours.add_argument("--vocab-size", type=int, default=0, metavar="N", help="rows of the embedding table")
    to_ours.add_argument(
        "--allow", default="", metavar="A,B", help="tensors that may be left out or missing; * matches"
    )
    to_ours.add_argument("--verbose", action="store_true", help="what became of every tensor")

    to_theirs = verb("export", _export, "write a run's model in Hugging Face format")
    to_theirs.add_argument("workdir", metavar="WORKDIR", help="of a run, or a directory that `import` made")
    to_theirs.add_argument("output", metavar="OUT", help="a new directory")
    to_theirs.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest, best or a step")
    to_theirs.add_argument(
        "--adapter", action="store_true", help="LoRA's matrices alone, as peft has them; else merged"
    )
    to_theirs.add_argument("--family", default="", metavar="NAME", help="model_type; default: the one it came from")
    to_theirs.add_argument("--config", default="", metavar="FILE.py", help="needed when its tasks live in the file")

    look = verb("attention", _attention, "attention maps of a text, as one page that opens offline")
    look.add_argument("--workdir", required=True, metavar="DIR", help="of a run, or a directory that `import` made")
    look.add_argument("--text", required=True, metavar="TEXT", help="in the form the model was trained on")
    look.add_argument(
        "--second",
        default="",
        metavar="TEXT",
        help="an encoder's second; what a decoder reads (default: what it writes)",
    )
    look.add_argument("--output", default="", metavar="FILE.html", help="default: attention.html in DIR")
    look.add_argument("--checkpoint", default="latest", metavar="WHICH", help="latest, best or a step")
    look.add_argument("--config", default="", metavar="FILE.py", help="needed when its tasks live in the file")

    vocab = verb("vocab", _vocab, "train a SentencePiece vocabulary", takes_config=False)
    vocab.add_argument("--input", required=True, nargs="+", metavar="FILE", help="text files, one sentence a line")
    vocab.add_argument("--size", required=True, type=int, metavar="N", help="number of pieces")
    vocab.add_argument("--output", required=True, metavar="FILE.model")
    return parser


def _overrides(rest: list[str], allowed: bool) -> dict[str, str]:
    """`--config.KEY=VALUE` arguments as {KEY: VALUE}; anything else left over is an error."""
    out = {}
    for argument in rest:
        key, equals, value = argument.partition("=")
        if not (allowed and key.startswith("--config.")):
            raise ConfigError(f"unknown argument {argument!r}; `t5x-lite VERB --help` lists the flags")
        if not equals:
            raise ConfigError(f"{argument!r} has no value; write {argument}=VALUE")
        out[key.removeprefix("--config.")] = value
    return out


def _config(spec: str, overrides: dict[str, str]) -> "Config":
    from t5x_lite import config

    cfg = config.load(spec)
    for key, text in overrides.items():
        config.override(cfg, key, text)
    config.validate(cfg)
    return cfg


def _named_config(arguments: argparse.Namespace, overrides: dict[str, str]) -> "Config":
    """The config of a verb that is about the task or mixture NAME, whatever a --config trains on."""
    from t5x_lite import config

    cfg = config.load(arguments.config) if arguments.config else config.base()
    for key, text in overrides.items():
        config.override(cfg, key, text)
    if not cfg.data.files:
        if Path(arguments.name).is_file() or re.search(r"[/*{,=]", arguments.name):
            raise ConfigError(
                f"{arguments.name!r} is no name of a task or mixture; of files say --config.data.files={arguments.name}"
            )
        cfg.data.mixture = arguments.name
    elif arguments.name:
        raise ConfigError(f"NAME {arguments.name!r} and config.data.files={cfg.data.files!r}: give one of them")
    config.validate(cfg)
    return cfg


def _workdir_config(workdir: str, spec: str, overrides: dict[str, str]) -> "Config":
    """The config a run was made with, for the verbs that start from its workdir."""
    from t5x_lite import config

    if not Path(workdir).is_dir():
        raise ConfigError(f"no workdir {workdir!r}; give the --workdir of a `t5x-lite train`")
    if spec:
        config.load(spec)  # registers the tasks it defines
    cfg = config.from_json(Path(workdir) / "config.json")
    for key, text in overrides.items():
        config.override(cfg, key, text)
    config.validate(cfg)
    return cfg


def _exec_with_huge_pages(argv: list[str]) -> None:
    """Starts the process again with transparent huge pages for malloc, where glibc has the tunable."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    computes = len(argv) > 1 and argv[1] in ("train", "eval", "infer") and "--help" not in argv and "-h" not in argv
    if sys.platform == "linux" and computes and "malloc.hugetlb" not in tunables:
        environment = os.environ | {"GLIBC_TUNABLES": f"{tunables}:{HUGE_PAGES}".lstrip(":")}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # with python's own flags


if __name__ == "__main__":
    main()
