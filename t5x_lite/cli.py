"""Reads a verb and its flags from the command line, runs it, and turns errors into messages and exit statuses.

The verbs are in verbs.py. Only the verbs that need jax import it, so `--help` is instant.
"""

import argparse
import logging
import os
import sys
import traceback
from typing import NoReturn

import absl.logging

from t5x_lite import console
from t5x_lite.errors import INTERNAL, CheckpointError, ConfigError, UserError
from t5x_lite.verbs import VERBS, Verb

# Without huge pages, XLA's CPU backend spends a fifth of a step in page faults on its fresh output buffers
# (benchmarks/README.md). glibc reads the tunable before `main` starts, so the process has to restart itself. With
# mmap_max=0, malloc would never return memory to the system. That would save the remaining faults, 3 % of a step, but
# GPT-2 would take 5.2 GB instead of 1.8.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
COMPUTING = ("train", "branch", "find-rate", "eval", "infer")  # verbs that need them


def main() -> None:
    """Runs the command `t5x-lite` and exits with the status of `run`."""
    _exec_with_huge_pages(sys.argv)
    sys.unraisablehook = show_unraisable
    sys.exit(run(sys.argv[1:]))


def show_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """Shows an error that no code can catch, as Python does, unless it repeats an error that is shown already.

    If one array of a checkpoint cannot be written, Orbax raises the error and closes its event loop. Each write that
    ends later, in a thread of TensorStore, then fails to report to that loop. Closing the checkpointer or waiting for
    it does not help, because neither knows of those writes.
    """
    if not (isinstance(error.exc_value, RuntimeError) and str(error.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(error)


def run(argv: list[str]) -> int:
    """Runs one verb and returns 0. If it fails, prints the error's message and returns its exit status (errors.py).

    Most errors in the user's own code have a message of their own. Any other error is taken for one of the user's code
    if it passed through that code, and for a bug of t5x_lite if it did not.
    """
    # argparse would take --config.KEY=VALUE for a positional argument if VALUE contains a space, so these bypass it.
    arguments, rest = _parser().parse_known_args([a for a in argv if not a.startswith("--config.")])
    rest += [a for a in argv if a.startswith("--config.")]
    verb: Verb = arguments.verb
    _speak()
    try:
        return verb.run(arguments, _overrides(rest, verb)) or 0
    except UserError as error:
        console.tell(str(error))
        return error.exit_code
    except MemoryError:
        console.tell(
            f"this machine ran out of memory; lower data.prefetch_batches or data.batch_rows\n{traceback.format_exc()}"
        )
        return INTERNAL
    except KeyboardInterrupt:
        console.tell("interrupted")
        return 130
    except SystemExit:  # rich exits on a broken pipe
        if verb.only_prints:
            return 0
        raise
    except Exception as error:
        if verb.only_prints and isinstance(error, BrokenPipeError):  # `t5x-lite tasks | head`
            return 0
        from t5x_lite import own_code

        if own_code.own_lines(error):
            console.tell(f"your own code failed {own_code.where(error)}\n{traceback.format_exc()}")
            return ConfigError.exit_code
        if isinstance(error, OSError) and error.filename is not None:
            console.tell(f"{error.filename}: {error.strerror}; check the path and its permissions")
            return CheckpointError.exit_code
        console.tell(f"this is a bug in t5x_lite; please report it with this traceback\n{traceback.format_exc()}")
        return INTERNAL
    finally:
        with console.optional(sys.stdout):
            pass


def _speak() -> None:
    """Logs our messages to stderr, but not Orbax's: Orbax would log a whole traceback for errors that we shorten."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(console.SafeFormatter("t5x-lite: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("t5x_lite").setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.FATAL)


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are safe to show."""

    def error(self, message: str) -> NoReturn:
        super().error(console.safe(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="t5x-lite",
        description="Train and evaluate BERT, GPT and T5 models on JAX in one loop.",
        epilog="Every config key can be set with --config.KEY=VALUE, for example --config.train.total_steps=100.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        flags = verbs.add_parser(verb.name, help=verb.summary, description=verb.summary, allow_abbrev=False)
        flags.set_defaults(verb=verb)
        verb.add_flags(flags)
    return parser


def _overrides(rest: list[str], verb: Verb) -> dict[str, str]:
    """Returns the arguments `--config.KEY=VALUE` as {KEY: VALUE}; raises ConfigError for any other argument."""
    out = {}
    # Arguments without "=" come first, so that the error names them, and not the value that follows them.
    for argument in sorted(rest, key=lambda argument: not (argument.startswith("--config.") and "=" not in argument)):
        name, equals, value = argument.partition("=")
        if not (verb.takes_config and name.startswith("--config.")):
            raise ConfigError(f"unknown argument {argument!r}; {_hint(name, verb)}")
        if not equals:
            raise ConfigError(f"{name} has no value; write {name}=VALUE, with = and without spaces")
        out[name.removeprefix("--config.")] = value
    return out


def _hint(name: str, verb: Verb) -> str:
    """Returns what to do about an argument that `verb` does not know."""
    listed = f"`t5x-lite {verb.name} --help` lists the flags of {verb.name}"
    if not verb.takes_config:
        return listed
    from t5x_lite import config, unknown_keys

    key = unknown_keys.key_for(name.lstrip("-").replace("-", "_"), config.KEYS)
    return f"did you mean --config.{key}=VALUE? {listed}" if key else listed


def _exec_with_huge_pages(argv: list[str]) -> None:
    """Restarts the process with transparent huge pages for malloc; an older glibc ignores this setting."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    computes = len(argv) > 1 and argv[1] in COMPUTING and "--help" not in argv and "-h" not in argv
    if sys.platform == "linux" and computes and "malloc.hugetlb" not in tunables:
        environment = os.environ | {"GLIBC_TUNABLES": f"{tunables}:{HUGE_PAGES}".lstrip(":")}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # keeps Python's flags


if __name__ == "__main__":
    main()
