"""Every check of the project, the same here and in CI: `nox` runs what has to pass."""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "imports", "tests", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
DOCS_OUTPUT = Path("docs", "_build")


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install the project as its users get it, with the tools of some dependency groups."""
    session.install(f".{extras}", *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Lint the code and check its format."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: pyright and mypy, both strict, and that the public API is fully typed."""
    install(session, "types", extras="[all]")
    session.run("pyright")
    session.run("mypy")
    session.run("pyright", "--verifytypes", "sayiir_persist", "--ignoreexternal")


@nox.session
def imports(session: nox.Session) -> None:
    """Check the direction of imports between layers."""
    install(session, "imports")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; further arguments go to pytest."""
    install(session, "tests", extras="[all]")
    session.run("pytest", *session.posargs)


@nox.session(python=nox.project.python_versions(PYPROJECT))
def matrix(session: nox.Session) -> None:
    """Run the tests on every Python that is supported and found here."""
    tests(session)


@nox.session
def demo(session: nox.Session) -> None:
    """Kill workers and finish their work all the same; further arguments go to the demo."""
    install(session)
    session.run("python", "examples/crash_resume.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure; further arguments go to the benchmarks."""
    install(session, "bench", extras="[all]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation and run the examples in it; every warning is an error."""
    install(session, "docs", extras="[all]")
    shutil.rmtree(DOCS_OUTPUT, ignore_errors=True)
    for builder in ("html", "doctest"):
        output = str(DOCS_OUTPUT / builder)
        session.run("sphinx-build", "-n", "-W", "--keep-going", "-b", builder, "docs", output)
