"""The examples do what they say, on a real store and under fire."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import mini_runtime
import pytest

import sayiir_persist

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTED = str(Path(sayiir_persist.__file__).parents[1])


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": TESTED},  # the package under test, installed or not
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("loop", "url"), [("asyncio", "memory://"), ("trio", "sqlite:///{}/demo.db")]
)
def test_the_mini_runtime_brings_every_run_to_its_end(
    loop: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = anyio.run(mini_runtime.demo, url.format(tmp_path), backend=loop)

    told = capsys.readouterr().out
    assert {run: type(end).__name__ for run, end in ends.items()} == {
        "order-1": "Completed",
        "order-2": "Completed",
        "essay-1": "Cancelled",
        "essay-2": "Completed",
    }
    assert "thanks for 'five stars'" in told
    assert "no review in time" in told
    assert told.count("charge, attempt 3") == told.count("track, hop 3") == 2


def test_killed_workers_lose_nothing_and_record_nothing_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"

    done = run_example("crash_resume.py", "--url", url, "--files", "150", "--kills", "2")

    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"kills +[12]$", done.stdout, re.MULTILINE)
    assert re.search(r"each exactly once$", done.stdout, re.MULTILINE)
    assert re.search(r"equals an uninterrupted run +yes$", done.stdout, re.MULTILINE)


def test_a_store_that_processes_do_not_share_is_refused() -> None:
    done = run_example("crash_resume.py", "--url", "memory://")

    assert done.returncode == 2
    assert "not shared between processes" in done.stderr
