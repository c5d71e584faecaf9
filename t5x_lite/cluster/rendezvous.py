"""All processes of a run come to one address before JAX's own meeting, which does not say who is missing."""

import contextlib
import socket
import time

from t5x_lite.errors import LostProcessError

RETRY_S = 0.2
GO = b"go"


def wait(address: str, number: int, process: int, timeout_s: float) -> None:
    """Returns once all `number` processes have come to process 0 at `address` ("host:port"), where nobody listens from
    then on. LostProcessError after `timeout_s`: on process 0 it names those that are missing."""
    host, _, port = address.rpartition(":")
    end_s = time.monotonic() + timeout_s
    if process:
        _come(host.strip("[]"), int(port), process, end_s, timeout_s)
    else:
        _receive(int(port), number, end_s, timeout_s)


def _receive(port: int, number: int, end_s: float, timeout_s: float) -> None:
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as closing:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            server = closing.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=both))
        except OSError as error:
            raise LostProcessError(
                f"process 0 cannot listen on port {port}: {error.strerror}; is another run's coordinator there? "
                "Give this one another port"
            ) from error
        while missing := set(range(1, number)) - came.keys():
            if time.monotonic() >= end_s:
                raise LostProcessError(
                    f"of {number} processes, {', '.join(map(str, sorted(missing)))} did not come within "
                    f"{timeout_s:.0f} s; look at what they say, and start all of them again"
                )
            server.settimeout(RETRY_S)
            with contextlib.suppress(OSError, ValueError):  # nobody for a while, or a stranger
                connection = closing.enter_context(server.accept()[0])
                connection.settimeout(5)
                came[int(connection.recv(16))] = connection
        for connection in came.values():
            with contextlib.suppress(OSError):  # it is gone again; JAX waits for it, and says so
                connection.sendall(GO)


def _come(host: str, port: int, process: int, end_s: float, timeout_s: float) -> None:
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(str(process).encode())
            connection.settimeout(max(0.1, end_s + 5 - time.monotonic()))  # process 0 gives up first, and says why
            if connection.recv(16) == GO:
                return
        time.sleep(RETRY_S)
    raise LostProcessError(
        f"process {process} did not meet the others at {host}:{port} within {timeout_s:.0f} s; "
        "does process 0 run there, and does it say who is missing?"
    )
