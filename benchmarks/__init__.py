"""Benchmarks: what the public API costs on each store, beside a floor measured in the same run.

`python -m benchmarks --help` says how to run them; `docs/performance.md` what came out.
"""
