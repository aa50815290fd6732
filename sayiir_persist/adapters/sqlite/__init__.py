"""The SQLite store: one file, the standard library, any number of processes."""

from sayiir_persist.adapters.sqlite.backend import SqliteBackend, from_url

__all__ = ["SqliteBackend", "from_url"]
