"""Lets the processes of a run join at the start, agree on values, and end together.

A launcher starts the same command on every host (launch/). A single process needs no coordinator: it joins nothing, and
guard.py handles its signals. Code that reads the disk or the clock may get different answers on different hosts. Then
the processes would wait for each other forever. So call such code through `on_first`.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_lite.cluster import messages
from t5x_lite.errors import (
    INTERNAL,
    RESTART_ME,
    ConfigError,
    LostProcessError,
    OutOfMemoryError,
    UserError,
    first_line,
)

T = TypeVar("T")

HEARTBEAT_S = 30  # if a process is silent for this long, it counts as dead and the others end
START_S = 300  # time for all processes to connect

# Matches the runtime's messages about lost processes by its status codes, its libraries' names and its words.
OF_OTHERS = re.compile("UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED|Gloo|NCCL|[Cc]onnection|[Hh]eartbeat")

OF_COLLECTIVES = re.compile(r"\b(Gloo|NCCL)\b")  # outside of a compiled step, these libraries raise plain ValueErrors


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the run's processes while the context is open, if the launcher started several (see `expected`).

    If all goes well, the processes leave together. A process that fails leaves at once, so that its peers do not wait
    for it in vain. Raises ConfigError if the environment is incomplete, LostProcessError if a process is missing or
    lost, and OutOfMemoryError if a device is out of memory.
    """
    try:
        if not jax.distributed.is_initialized() and expected():
            _join()
        yield
    except BaseException as error:
        known = named(error)
        if jax.distributed.is_initialized():
            atexit.register(_leave, getattr(known, "exit_code", INTERNAL))  # before jax's handler, which waits for all
        raise known from error.__cause__ if known is error else error
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def expected() -> bool:
    """Returns whether environment variables say that the launcher started several processes.

    Reads the variables of srun, mpirun and TPU slices, and JAX_COORDINATOR_ADDRESS. JAX_COORDINATOR_ADDRESS needs
    JAX_NUM_PROCESSES and JAX_PROCESS_ID beside it, but on TPU slices JAX_COORDINATOR_ADDRESS=auto is enough.
    """
    return (
        "JAX_COORDINATOR_ADDRESS" in os.environ
        or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )


def gather(rows: list) -> list:
    """Joins the lists of all processes, in the order of their numbers, and returns the result on every process.

    Raises ConfigError for a value that messages.py cannot send.
    """
    if jax.process_count() == 1:
        return rows
    message = np.frombuffer(messages.encode(rows), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(message)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(message)] = message
    all_messages = multihost_utils.process_allgather(padded)
    return [row for part, n in zip(all_messages, sizes, strict=True) for row in messages.decode(part[:n].tobytes())]


def largest(number: int) -> int:
    """Returns the largest `number` of all processes, on every process."""
    return max(gather([number]))


def on_first(function: Callable[[], T]) -> T:
    """Calls `function` only on process 0 and returns its result on every process.

    If the function raises, all processes raise the errors that `on_each` describes.
    """
    return gather(on_each(lambda: [function()] if jax.process_index() == 0 else []))[0]


def on_each(function: Callable[[], T]) -> T:
    """Calls `function` on every process and returns this process's result. If any call raises, all processes raise.

    So no process continues and then waits for one that has left. A process whose call failed raises its own error. The
    others raise a UserError with the message and exit code of the first process that failed.
    """
    if jax.process_count() == 1:
        return function()
    value, failed = None, None
    try:
        value = function()
    except Exception as error:
        failed = error
    failures = gather([] if failed is None else [[_message(failed), getattr(failed, "exit_code", INTERNAL)]])
    if failed is not None:
        raise failed
    if failures:
        error = UserError(failures[0][0])
        error.exit_code = failures[0][1]
        raise error
    return value  # pyright: ignore[reportReturnType]  (nothing failed)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error} (on another process)"


def _join() -> None:
    settings: dict = {"initialization_timeout": START_S, "heartbeat_timeout_seconds": HEARTBEAT_S}
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "auto")
    if address == "auto":
        os.environ.pop("JAX_COORDINATOR_ADDRESS", None)
    else:
        for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            if not os.environ.get(name, "").isdigit():
                raise ConfigError(
                    f"JAX_COORDINATOR_ADDRESS={address} needs {name} to be a number; launch/local.sh sets all three"
                )
        settings |= {
            "coordinator_address": address,
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
            "cluster_detection_method": "deactivate",
        }
        from t5x_lite.cluster import rendezvous  # only for several processes

        rendezvous.wait(address, settings["num_processes"], settings["process_id"], START_S)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from guard.py
    ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)
    try:
        jax.distributed.initialize(**settings)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(f"could not join the other processes at {address}: {first_line(error)}") from error


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(number: int) -> None:
    """Ends the process with RESTART_ME when the runtime raises SIGABRT.

    If a peer is silent, the runtime prints some lines from C++ and then raises SIGABRT in a thread of its own. Without
    this handler, the exit status would be that of a bug.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"t5x-lite: lost another process (see above): ending this one; run the command again to resume\n")
    os._exit(RESTART_ME)


def named(error: BaseException) -> BaseException:
    """Returns a UserError if the runtime's error is about memory or a lost process, else the error itself."""
    is_of_collective = isinstance(error, ValueError | RuntimeError) and OF_COLLECTIVES.search(str(error))
    if not isinstance(error, jax.errors.JaxRuntimeError) and not is_of_collective:
        return error
    if "RESOURCE_EXHAUSTED" in str(error):
        return OutOfMemoryError(
            f"out of memory: {first_line(error)}. Raise train.microbatches, set model.remat=full, or split the "
            "parameters with mesh=fsdp=…; `t5x-lite plan` shows the memory that each takes"
        )
    if jax.distributed.is_initialized() and OF_OTHERS.search(str(error)):
        return LostProcessError(f"lost another process: {first_line(error)}")
    return error


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
