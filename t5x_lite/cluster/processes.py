"""The processes of a run: joining them, knowing the same, leaving together.

A launcher starts the same command on every host (launch/). Alone, a process needs no coordinator: signals are our own
(guard.py), and nothing here does anything. What reads the disk or the clock may answer differently on each host, and
then the processes would wait for each other forever: such questions are asked `on_first`.
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

from t5x_lite.cluster import messages, rendezvous
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

HEARTBEAT_S = 30  # a process that was silent for so long is dead, and the others end
START_S = 300  # for all processes to have come

# In what the runtime says when another process is gone: its status codes, libraries and words for it.
OF_OTHERS = re.compile("UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED|Gloo|NCCL|[Cc]onnection|[Hh]eartbeat")

OF_COLLECTIVES = re.compile("Gloo|NCCL")  # outside of a compiled step their failures are plain ValueErrors


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Among the run's processes, if the launcher started several (see `expected`).

    All leave together; but one that fails leaves at once, as the others would wait for it in vain.
    """
    try:
        if not jax.distributed.is_initialized() and expected():
            _join()
        yield
    except BaseException as error:
        named = _named(error)
        if jax.distributed.is_initialized():
            atexit.register(_leave, getattr(named, "exit_code", INTERNAL))  # before jax's own, which waits for all
        raise named from error.__cause__ if named is error else error
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def expected() -> bool:
    """Whether the environment is that of one process among several: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, srun, mpirun, or a TPU slice (whose launcher sets JAX_COORDINATOR_ADDRESS=auto)."""
    return (
        "JAX_COORDINATOR_ADDRESS" in os.environ
        or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )


def gather(rows: list) -> list:
    """The lists of all processes, joined in process order, on every process; of the types of messages.py."""
    if jax.process_count() == 1:
        return rows
    mine = np.frombuffer(messages.encode(rows), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(mine)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(mine)] = mine
    everyone = multihost_utils.process_allgather(padded)
    return [row for part, n in zip(everyone, sizes, strict=True) for row in messages.decode(part[:n].tobytes())]


def largest(number: int) -> int:
    """The largest of the processes' numbers, on every process."""
    return max(gather([number]))


def on_first(function: Callable[[], T]) -> T:
    """What `function` returns on process 0, which alone calls it, on every process; if it raises, all do."""
    return gather(on_each(lambda: [function()] if jax.process_index() == 0 else []))[0]


def on_each(function: Callable[[], T]) -> T:
    """What `function` returns on this process. If it raises on any, all do: none goes on to wait for one that left."""
    if jax.process_count() == 1:
        return function()
    value, failed = None, None
    try:
        value = function()
    except Exception as error:
        failed = error
    mine = [] if failed is None else [[_said(failed), getattr(failed, "exit_code", INTERNAL)]]
    others = gather(mine)
    if failed is not None:
        raise failed
    if others:
        error = UserError(others[0][0])
        error.exit_code = others[0][1]
        raise error
    return value  # pyright: ignore[reportReturnType]  (nothing failed)


def _said(error: Exception) -> str:
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
                    f"JAX_COORDINATOR_ADDRESS={address} needs {name}, a number; launch/local.sh sets both"
                )
        settings |= {
            "coordinator_address": address,
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
            "cluster_detection_method": "deactivate",
        }
        rendezvous.wait(address, settings["num_processes"], settings["process_id"], START_S)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from guard.py
    ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)
    try:
        jax.distributed.initialize(**settings)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(f"could not join the other processes at {address}: {first_line(error)}") from error


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(number: int) -> None:
    """The runtime's way to end a process whose peer is silent, from a thread of its own: SIGABRT, after some lines of
    C++. Its status would not tell it from a bug."""
    with contextlib.suppress(OSError):
        os.write(2, b"t5x-lite: lost another process (see above): this one ends; the same command goes on\n")
    os._exit(RESTART_ME)


def _named(error: BaseException) -> BaseException:
    """What the runtime says of memory and of lost peers, as something to act on; else the error itself."""
    if not isinstance(error, jax.errors.JaxRuntimeError) and not OF_COLLECTIVES.search(str(error)):
        return error
    if "RESOURCE_EXHAUSTED" in str(error):
        return OutOfMemoryError(
            f"out of memory: {first_line(error)}. Raise train.microbatches, set model.remat=full, or split the "
            "parameters with mesh=fsdp=…; `t5x-lite plan` shows what each would take"
        )
    if jax.distributed.is_initialized() and OF_OTHERS.search(str(error)):
        return LostProcessError(f"lost another process: {first_line(error)}")
    return error


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
