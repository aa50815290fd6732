"""The benchmarks run; what they measure is not a test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKLOADS = ["commit", "group", "W1", "W2", "W3", "W4", "W5"]
STORES = ["memory", "sqlite"]


def test_a_quick_run_reports_every_workload_of_every_embedded_store(tmp_path: Path) -> None:
    check_quick_run(STORES, tmp_path / "report.json")


@pytest.mark.usefixtures("postgres_binaries")
def test_a_quick_run_reports_every_workload_of_postgresql(tmp_path: Path) -> None:
    check_quick_run(["postgres"], tmp_path / "report.json")


def check_quick_run(names: list[str], report: Path) -> None:
    stores = [f"--store={store}" for store in names]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *stores, f"--json={report}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert named(done.stdout) == dict.fromkeys(names, WORKLOADS)
    assert measured(report) == dict.fromkeys(names, WORKLOADS)


def named(markdown: str) -> dict[str, list[str]]:
    """The workloads in the table of each store."""
    sections = [section.splitlines() for section in markdown.split("\n## ")[1:]]
    return {
        lines[0]: [line.split("**")[1] for line in lines if line.startswith("| **")]
        for lines in sections
    }


def measured(report: Path) -> dict[str, list[str]]:
    stores = json.loads(report.read_bytes())["stores"]
    return {it["store"]: [each["workload"] for each in it["outcomes"]] for it in stores}
