"""A server that is our child: it has a directory and a port of its own, and ends with us."""

from __future__ import annotations

import atexit
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Neither these nor, for the bus of Redis Cluster, those 10000 above are ever given to clients.
PORTS = range(12_000, 22_768)
BUS_OFFSET = 10_000

PR_SET_PDEATHSIG = 1

_used_ports: set[int] = set()
_servers: set[ServerProcess] = set()
_owner = os.getpid()

# Linux ties a child to the thread that created it. This one lives as long as the process does.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-spawner")
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ServerError(Exception):
    """A server that is there did not do what it was told; the end of its log says why."""


def free_port() -> int:
    """A port of the loopback interface that is free, as is the one for the cluster bus above it.

    It is never handed out twice, so a server that was killed finds its port free again.
    """
    for port in random.sample(PORTS, len(PORTS)):
        if port not in _used_ports and _is_free(port) and _is_free(port + BUS_OFFSET):
            _used_ports.add(port)
            return port

    raise ServerError(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False

    return True


def accepts(port: int) -> bool:
    """Whether something listens on this port of the loopback interface."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False

    return True


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = 30) -> None:
    """Return as soon as the condition holds.

    Raises:
        ServerError: It did not within the timeout, in seconds.
    """
    deadline = time.monotonic() + timeout

    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"waited {timeout:g} s in vain: {what}")

        time.sleep(0.005)


def unprivileged() -> dict[str, Any]:
    """Arguments of `Popen` for a program that refuses to run as root."""
    if os.geteuid() != 0:
        return {}

    from pwd import getpwnam  # not on Windows, where a server can only be named

    nobody = getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """What a server gets to see of our environment."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def temporary_directory() -> Path:
    """A new directory with a short name: the path of a socket in it has to fit in 107 bytes."""
    base = "/tmp" if os.access("/tmp", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="sayiir-", dir=base))


class ServerProcess(ABC):
    """A server that is started, killed and started again, with its data and on its port.

    It does not outlive this process, however that ends. Only processes that were started here get
    a signal. Leaving the context ends the server and removes its data.
    """

    name: str
    runs_as_nobody = False
    stop_signal = signal.SIGTERM
    discard_signal = signal.SIGKILL

    def __init__(self) -> None:
        self.directory = temporary_directory()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        _servers.add(self)

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments; it must stay in the foreground."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the process that was started, and no other, answers requests."""

    def prepare(self) -> None:
        """Put in the directory what the server expects there the first time."""
        if self.runs_as_nobody and (who := unprivileged()):
            os.chown(self.directory, who["user"], who["group"])

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError(f"{self.name} was not started")

        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has said since it was last started."""
        path = self._log_path
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _log_path(self) -> Path:
        return self.directory / "server.log"

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ServerError: It ended, or gave no answer in time.
        """
        if self.is_running():
            raise ServerError(f"{self.name} runs already")

        if self._process is None:
            self.prepare()

        with self._log_path.open("wb") as log:
            self._process = _spawn(
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                **(unprivileged() if self.runs_as_nobody else {}),
            )

        try:
            wait_until(lambda: not self.is_running() or self.is_ready(), f"{self.name} starts")
        except ServerError as error:
            self.kill()
            raise ServerError(f"{error}\n{self.log[-4000:]}") from None

        if not self.is_running():
            raise ServerError(
                f"{self.name} ended with {self._process.returncode}: {self.command()}\n"
                f"{self.log[-4000:]}"
            )

        return self

    def kill(self) -> None:
        """End the server as a crash does, with all its children, and wait until they are gone."""
        if self._process is None or not self.is_running():
            return

        end_tree(psutil.Process(self._process.pid))
        self._process.wait()

    def stop(self) -> None:
        """End the server in good order; kill it if that takes longer than ten seconds."""
        self._end(self.stop_signal)

    def restart(self) -> Self:
        """Start the server again with its data and on its port; stop it first if it runs."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """End the server and remove its data."""
        self._end(self.discard_signal)
        shutil.rmtree(self.directory, ignore_errors=True)
        _servers.discard(self)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or not self.is_running():
            return

        if number == signal.SIGKILL:
            self.kill()
            return

        self._process.send_signal(number)

        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def end_tree(process: psutil.Process) -> None:
    """Kill a process and all below it, and wait for them.

    The children are found by their parent: those of PostgreSQL leave the process group. A stopped
    parent starts no more of them meanwhile.
    """
    process.suspend()
    tree = [process, *process.children(recursive=True)]

    for each in tree:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue

    wait_until(lambda: all(map(is_over, tree)), f"the end of {[each.pid for each in tree]}")


def is_over(process: psutil.Process) -> bool:
    """Whether a process has ended, be it that nobody has asked yet how."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    def spawn() -> subprocess.Popen[bytes]:
        with warnings.catch_warnings():
            # Python 3.12 and later warn of `preexec_fn` beside threads; this one makes two calls.
            warnings.simplefilter("ignore", DeprecationWarning)
            return subprocess.Popen(command, preexec_fn=_end_with_parent, **options)

    return _spawner.submit(spawn).result()


def _end_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        if os.getppid() != _owner:  # it had ended before we asked
            os._exit(1)


@atexit.register
def _close_all() -> None:
    if os.getpid() == _owner:  # and not in a fork of it
        for server in list(_servers):
            server.close()


def output_of(command: list[str], *, cwd: str | Path = "/", **options: Any) -> str:
    """Run a program to its end; what it printed.

    Raises:
        ServerError: It failed; the message holds its output.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(),
        **options,
    )

    if done.returncode != 0:
        raise ServerError(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")

    return done.stdout


def program(name: str) -> Path | None:
    """A program on PATH, or where Debian keeps those for administrators."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def with_defaults(settings: Mapping[str, str] | None, **defaults: str) -> dict[str, str]:
    """Settings of a server; those that are given win."""
    return {**defaults, **(settings or {})}
