"""Lets all processes connect to process 0 before they join JAX. JAX itself would not name missing processes."""

import contextlib
import socket
import time

from t5x_lite.errors import LostProcessError

RETRY_S = 0.2
GO = b"go"


def wait(address: str, number: int, process: int, timeout_s: float) -> None:
    """Waits until all `number` processes have connected to process 0 at `address` ("host:port").

    Then process 0 stops listening there, so that JAX can use the port. Raises LostProcessError if the processes
    do not connect within `timeout_s` seconds; on process 0, the error names the missing ones. Process 0 also raises it
    if the port is in use.
    """
    host, _, port = address.rpartition(":")
    end_s = time.monotonic() + timeout_s
    if process:
        _come(host.strip("[]"), int(port), process, end_s, timeout_s)
    else:
        _receive(int(port), number, end_s, timeout_s)


def _receive(port: int, number: int, end_s: float, timeout_s: float) -> None:
    connections: dict[int, socket.socket] = {}  # {number of the process: its connection}
    with contextlib.ExitStack() as closing:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            server = closing.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=both))
        except OSError as error:
            raise LostProcessError(
                f"process 0 cannot listen on port {port}: {error.strerror}; does another run use it? "
                "Use a different port in JAX_COORDINATOR_ADDRESS"
            ) from error
        while missing := set(range(1, number)) - connections.keys():
            if time.monotonic() >= end_s:
                raise LostProcessError(
                    f"of {number} processes, {', '.join(map(str, sorted(missing)))} did not connect within "
                    f"{timeout_s:.0f} s; read their logs, and start all processes again"
                )
            server.settimeout(RETRY_S)
            with contextlib.suppress(OSError, ValueError):  # a timeout, or a connection that is not from this run
                connection = closing.enter_context(server.accept()[0])
                connection.settimeout(5)
                connections[int(connection.recv(16))] = connection
        for connection in connections.values():
            with contextlib.suppress(OSError):  # that process has ended; JAX reports this when it waits for the process
                connection.sendall(GO)


def _come(host: str, port: int, process: int, end_s: float, timeout_s: float) -> None:
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(str(process).encode())
            connection.settimeout(max(0.1, end_s + 5 - time.monotonic()))  # process 0 gives up first and reports why
            if connection.recv(16) == GO:
                return
        time.sleep(RETRY_S)
    raise LostProcessError(
        f"process {process} did not reach all processes at {host}:{port} within {timeout_s:.0f} s; "
        "is process 0 running there? Its log names the missing processes"
    )
