"""Index the standard library with workers that are killed again and again, and lose nothing.

Every `.py` file of the Python that runs this is a task: hash it, count its lines and definitions.
The files of a package are the chains of a fork, which both workers take tasks from; its summary is
sent as an event to a last run that waits for all packages and adds them up. Meanwhile workers are
killed with SIGKILL at random moments. In the end the report must equal that of a run which nobody
disturbed, and the store must have recorded each result exactly once.

    python examples/crash_resume.py
    python examples/crash_resume.py --url sqlite:///demo.db --kills 10 --workers 3
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import logging
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from sayiir_persist import (
    AcquiredTask,
    AtFork,
    AtSignal,
    AtTask,
    BackendUnavailableError,
    Change,
    ClaimLostError,
    Completed,
    OutcomeUnknownError,
    Position,
    Status,
    connect,
)
from sayiir_persist.leases import keep_claim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from multiprocessing.context import SpawnProcess

    from sayiir_persist import PersistentBackend

DEFINITION = "stdlib-index-v1"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
REPORT, SUMMARY, TOTAL = "report", "summary", "total"
FILES_PER_RUN, CHAINS_PER_RUN = 128, 4
TTL = timedelta(seconds=2)
COUNTED = ("lines", "functions", "classes")
PATIENCE = 60.0  # seconds without progress until the demo gives up
SPAWN = multiprocessing.get_context("spawn")

# --- What the tasks do: pure functions ------------------------------------------------------


def index_file(path: str) -> bytes:
    """Hash a file, and count its lines and definitions."""
    data = (STDLIB / path).read_bytes()
    facts: dict[str, Any] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "files": 1,
        "lines": data.count(b"\n"),
        "functions": 0,
        "classes": 0,
    }

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return encode(facts)  # the tests of the parser need such files

    for node in ast.walk(tree):
        facts["functions"] += isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        facts["classes"] += isinstance(node, ast.ClassDef)

    return encode(facts)


def add_up(parts: Mapping[str, bytes]) -> bytes:
    """Reduce any facts to facts of the same kind, whatever the order they came in."""
    digest = hashlib.sha256()
    total: dict[str, Any] = {}

    for name in sorted(parts):
        facts = json.loads(parts[name])
        digest.update(f"{name} {facts.pop('sha256')}\n".encode())
        total = {key: total.get(key, 0) + value for key, value in facts.items()}

    return encode({"sha256": digest.hexdigest(), **total})


def encode(facts: Mapping[str, Any]) -> bytes:
    """Facts as bytes: equal facts are equal bytes."""
    return json.dumps(facts, sort_keys=True).encode()


# --- How the files become runs ----------------------------------------------------------------


def find_files(limit: int) -> list[str]:
    """The files of the standard library, by their paths within it; `limit` of them, spread out."""
    paths = sorted(
        path.relative_to(STDLIB).as_posix()
        for path in STDLIB.rglob("*.py")
        if not {"site-packages", "dist-packages"}.intersection(path.parts)
    )
    return paths[:: max(1, len(paths) // limit)][:limit]


def plan(paths: Sequence[str]) -> dict[str, list[str]]:
    """Runs and their files: one run for each package, more for a large one."""
    packages: dict[str, list[str]] = {}

    for path in paths:
        package, slash, _ = path.partition("/")
        packages.setdefault(package if slash else "modules", []).append(path)

    return {
        f"{package}-{start // FILES_PER_RUN + 1}": files[start : start + FILES_PER_RUN]
        for package, files in packages.items()
        for start in range(0, len(files), FILES_PER_RUN)
    }


def run_of(files: Sequence[str]) -> tuple[Position, bytes]:
    """Where a package's run starts, and its input.

    A fork of some chains of files; a chain only ever stands at its next file, so the stored
    position stays small however many files there are.
    """
    chains = [files[first::CHAINS_PER_RUN] for first in range(min(CHAINS_PER_RUN, len(files)))]
    branches = {str(number): AtTask(chain[0]) for number, chain in enumerate(chains)}
    return AtFork("files", branches, next=AtTask(SUMMARY)), json.dumps(chains).encode()


def report_of(runs: Iterable[str]) -> Position:
    """The run that waits for all others: a fork of waits, then the sum of what they brought."""
    return AtFork("runs", {run: AtSignal(run, run) for run in runs}, next=AtTask(TOTAL))


@lru_cache(maxsize=64)
def following(chains: bytes) -> dict[str, str]:
    """The file that follows each, where one does."""
    return {path: after for chain in json.loads(chains) for path, after in pairwise(chain)}


# --- A worker ---------------------------------------------------------------------------------


def worker(worker_id: str, url: str, namespace: str, journal: str) -> None:
    """Run tasks until all runs have ended; the main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    logging.basicConfig(level=logging.ERROR)  # the caveats of the store are said once
    anyio.run(work, worker_id, url, namespace, journal)


async def work(worker_id: str, url: str, namespace: str, journal: str) -> None:
    """Take tasks until all runs have ended, or nobody is there any more who wants them."""
    log = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    parent = multiprocessing.parent_process()

    async with connect(url, namespace=namespace) as backend:
        while parent is None or parent.is_alive():
            try:
                task = await next_task(backend, worker_id)

                while task is not None:
                    os.write(log, f"{worker_id} {task.instance_id} {task.task_id}\n".encode())
                    task = await run_task(backend, task)

                if await all_ended(backend):
                    break
            except (BackendUnavailableError, OutcomeUnknownError):
                await anyio.sleep(0.2)  # what was in doubt is offered again when its claim ends

    os.close(log)


async def all_ended(backend: PersistentBackend) -> bool:
    """Whether no run is in progress any more."""
    return not await backend.list_snapshots(status=Status.IN_PROGRESS, limit=1)


async def next_task(backend: PersistentBackend, worker_id: str) -> AcquiredTask | None:
    """Any task that is ready; waits a moment if there is none."""
    if acquired := await backend.acquire_tasks(worker_id=worker_id, ttl=TTL):
        return acquired[0]

    await anyio.sleep(0.05)
    return None


async def run_task(backend: PersistentBackend, task: AcquiredTask) -> AcquiredTask | None:
    """Run one task and commit it; returns the next one of its chain, already claimed."""
    try:
        async with keep_claim(backend, task.claim, ttl=TTL):
            change = await do(backend, task)

        commit = await backend.commit_task(task.claim, change, base=task.snapshot, claim_next=TTL)
    except ClaimLostError:
        return None  # this worker was too slow, another one has the task by now

    return commit.next


async def do(backend: PersistentBackend, task: AcquiredTask) -> Change:
    """What a task does, and the change that records it."""
    if task.task_id == TOTAL:
        runs = (await backend.load_snapshot(REPORT)).results
        total = add_up(runs)
        return lambda snapshot: snapshot.complete_task(TOTAL, total, next=None)

    if task.task_id == SUMMARY:
        files = (await backend.load_snapshot(task.instance_id)).results
        summary = add_up(files)
        # Killed between this line and the commit, the task runs again and sends the event again;
        # by its id it still counts once.
        await backend.send_event(REPORT, task.instance_id, summary, event_id=task.instance_id)
        return lambda snapshot: snapshot.complete_task(SUMMARY, summary, next=None)

    path = task.task_id
    facts = await anyio.to_thread.run_sync(index_file, path)
    after = following(task.snapshot.input or b"[]").get(path)
    then = None if after is None else AtTask(after)
    return lambda snapshot: snapshot.complete_task(path, facts, next=then)


# --- The one who kills ------------------------------------------------------------------------


@dataclass
class Workshop:
    """Starts workers, and kills them."""

    url: str
    namespace: str
    journal: Path
    staff: dict[str, SpawnProcess] = field(default_factory=dict[str, "SpawnProcess"])

    def start(self, worker_id: str) -> None:
        """Start a worker, again if it was there before."""
        process = SPAWN.Process(
            target=worker,
            args=(worker_id, self.url, self.namespace, str(self.journal)),
            daemon=True,
        )
        process.start()
        self.staff[worker_id] = process

    def kill(self, worker_id: str) -> int | None:
        """Kill a worker without any warning; its process id."""
        process = self.staff[worker_id]
        process.kill()
        process.join()
        return process.pid

    def dead(self) -> Iterator[str]:
        """Workers that ended by themselves, and not because all was done."""
        for worker_id, process in self.staff.items():
            if process.exitcode:
                yield f"{worker_id} ended with exit code {process.exitcode}"

    def close(self, *, patience: float) -> None:
        """End the workers that do not end by themselves."""
        deadline = time.monotonic() + patience

        for worker_id, process in self.staff.items():
            process.join(timeout=max(0, deadline - time.monotonic()))

            if process.is_alive():
                self.kill(worker_id)

    def executions(self) -> int:
        """How many executions were started, those that were killed included."""
        return self.journal.read_bytes().count(b"\n") if self.journal.exists() else 0


class Progress:
    """A bar that moves in place; on what is no terminal, a line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.began, self.live = total, time.monotonic(), sys.stdout.isatty()
        self._step = -1

    def show(self, done: int, workshop: Workshop, kills: int) -> None:
        """Draw where things stand."""
        seconds = time.monotonic() - self.began
        share = done / self.total
        text = f"{done:>5}/{self.total} recorded  {kills} kills  {seconds:4.1f} s"

        if self.live:
            width = max(10, min(40, shutil.get_terminal_size().columns - 60))
            bar = ("#" * round(width * share)).ljust(width, ".")
            pids = " ".join(f"{name}:{it.pid}" for name, it in workshop.staff.items())
            print(f"\r\x1b[2K[{bar}] {text}  {pids}", end="", flush=True)
        elif (step := int(share * 10)) > self._step:
            self._step = step
            print(text, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        print(f"\r\x1b[2K{text}" if self.live else text, flush=True)

    def end(self) -> None:
        """Leave the bar as it is."""
        if self.live:
            print(flush=True)


async def recorded(backend: PersistentBackend) -> int:
    """How many results are recorded: each took one version, and so did the creation of a run."""
    done, after = 0, None

    while page := await backend.list_snapshots(after=after):
        done += sum(info.version - 1 for info in page)
        after = page[-1].instance_id

    return done


async def disturbed(
    backend: PersistentBackend, workshop: Workshop, results: int, *, workers: int, kills: int
) -> tuple[bytes, int]:
    """Let workers do everything, killing one now and then: the report, and the number of kills."""
    at = sorted(random.uniform(0.02, 0.9) * results for _ in range(kills))
    progress, killed = Progress(results), 0
    latest, moved_at = 0, time.monotonic()

    for number in range(workers):
        workshop.start(f"w{number + 1}")

    while not await all_ended(backend):
        done = await recorded(backend)
        progress.show(done, workshop, killed)

        if dead := ", ".join(workshop.dead()):
            raise RuntimeError(dead)

        if done > latest:
            latest, moved_at = done, time.monotonic()
        elif time.monotonic() - moved_at > PATIENCE:
            raise TimeoutError(f"nothing was recorded for {PATIENCE:.0f} s")

        while killed < kills and done >= at[killed]:
            worker_id = random.choice(list(workshop.staff))
            await anyio.sleep(random.uniform(0, 0.05))
            pid = workshop.kill(worker_id)
            workshop.start(worker_id)
            killed += 1
            progress.say(f"killed {worker_id} (pid {pid}) at {done} of {results}, started it again")

        await anyio.sleep(0.02)

    progress.show(await recorded(backend), workshop, killed)
    progress.end()
    report = await backend.load_snapshot(REPORT, results=False)

    if not isinstance(report.state, Completed):
        raise RuntimeError(f"the report is {report.state}")  # noqa: TRY004

    return report.state.output, killed


def undisturbed(runs: Mapping[str, Sequence[str]], workers: int) -> bytes:
    """The same report without any store: nothing is ever lost, for nobody is killed."""
    with ProcessPoolExecutor(workers, mp_context=SPAWN) as pool:
        paths = [path for files in runs.values() for path in files]
        facts = dict(zip(paths, pool.map(index_file, paths, chunksize=32), strict=True))

    return add_up({run: add_up({it: facts[it] for it in files}) for run, files in runs.items()})


async def exactly_once(backend: PersistentBackend, runs: Mapping[str, Sequence[str]]) -> None:
    """Make sure that the store holds the result of each task and each event, recorded once."""
    expected = {run: {*files, SUMMARY} for run, files in runs.items()}
    expected[REPORT] = {*runs, TOTAL}

    for run, nodes in expected.items():
        snapshot = await backend.load_snapshot(run)

        if set(snapshot.results) != nodes:
            raise RuntimeError(f"{run} has other results than planned")

        if snapshot.version != 1 + len(nodes):  # its creation, and one write for each result
            raise RuntimeError(f"{run} has {len(nodes)} results in {snapshot.version} writes")


async def demo(url: str, folder: Path, arguments: argparse.Namespace) -> bool:
    """Run everything and print the table; whether it is as it should be."""
    runs = plan(find_files(arguments.files))
    tasks = sum(len(files) + 1 for files in runs.values()) + 1
    workshop = Workshop(url, f"crash-resume-{secrets.token_hex(4)}", folder / "executions.log")

    async with connect(url, namespace=workshop.namespace) as backend:
        store = backend.info.server or backend.info.name
        print(f"{tasks} tasks in {len(runs) + 1} runs on {store}, {arguments.workers} workers")

        for caveat in backend.info.caveats:
            print(f"note: {caveat}")

        began = time.monotonic()

        async with anyio.create_task_group() as group:
            group.start_soon(start, backend, REPORT, report_of(runs), b"[]")

            for run, files in runs.items():
                group.start_soon(start, backend, run, *run_of(files))

        patience = 0.0

        try:
            report, kills = await disturbed(
                backend,
                workshop,
                tasks + len(runs),
                workers=arguments.workers,
                kills=arguments.kills,
            )
            patience = 5.0
        finally:
            workshop.close(patience=patience)

        seconds = time.monotonic() - began
        await exactly_once(backend, runs)
        expected = await anyio.to_thread.run_sync(undisturbed, runs, arguments.workers)

        for run in (*runs, REPORT):
            await backend.delete_snapshot(run)

    total = json.loads(report)
    show_table(
        {
            "tasks": tasks,
            "kills": kills,
            "executions started": workshop.executions(),
            "results recorded": f"{tasks} of tasks, {len(runs)} of events, each exactly once",
            "time": f"{seconds:.1f} s",
            "report": ", ".join(f"{total[it]} {it}" for it in ("files", *COUNTED)),
            "report's digest": total["sha256"],
            "equals an uninterrupted run": "yes" if report == expected else "NO",
        }
    )
    return report == expected


async def start(backend: PersistentBackend, run: str, first: Position, data: bytes) -> None:
    """Start a run."""
    await backend.start_instance(run, DEFINITION, start_at=first, input=data)


def show_table(rows: Mapping[str, object]) -> None:
    """Print what came out."""
    width = max(map(len, rows))
    print()

    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def main() -> int:
    """Read the command line and run the demo; the exit code."""
    parser = argparse.ArgumentParser(description="Index the standard library, under fire.")
    parser.add_argument("--url", help="any store; default: SQLite in a temporary file")
    parser.add_argument("--kills", type=int, default=6, help="how often a worker is killed")
    parser.add_argument("--workers", type=int, default=2, help="how many there are")
    parser.add_argument("--files", type=int, default=sys.maxsize, help="only so many files")
    arguments = parser.parse_args()

    if arguments.kills < 0 or arguments.workers < 1 or arguments.files < 1:
        parser.error("--kills must be at least 0, --workers and --files at least 1")

    logging.basicConfig(level=logging.ERROR)

    if (arguments.url or "").startswith("memory:"):
        parser.error("memory:// is not shared between processes")

    with tempfile.TemporaryDirectory(prefix="crash-resume-") as folder:
        url = arguments.url or f"sqlite:///{Path(folder, 'runs.db')}"

        try:
            return 0 if anyio.run(demo, url, Path(folder), arguments) else 1
        except (RuntimeError, TimeoutError) as error:
            print(f"FAILED: {error}")
            return 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
