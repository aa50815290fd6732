"""The examples of the README and of the tutorial run as they stand."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from sayiir_persist import MemoryBackend

ROOT = Path(__file__).parents[2]


def python_blocks(path: str) -> list[str]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_example_of_the_readme_completes(tmp_path: Path) -> None:
    [program] = python_blocks("README.md")

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.returncode) == ("completed\n", 0), done.stderr


async def test_every_block_of_the_tutorial_runs() -> None:
    namespace: dict[str, object] = {}

    for block in python_blocks("docs/tutorial.md"):
        exec(compile(block, "tutorial.md", "exec"), namespace)  # noqa: S102

    steps = [it for it in namespace.values() if inspect.iscoroutinefunction(it)]
    assert len(steps) == 10

    for step in steps:
        async with MemoryBackend() as backend:
            await (step(backend) if inspect.signature(step).parameters else step())


def test_the_example_of_the_memory_page_runs() -> None:
    [block] = python_blocks("docs/adapters/memory.md")

    exec(compile(block, "memory.md", "exec"), {})  # noqa: S102
