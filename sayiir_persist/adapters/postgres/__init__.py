"""Workflows in PostgreSQL."""

from sayiir_persist.adapters.postgres.backend import PostgresBackend, from_url
from sayiir_persist.adapters.postgres.schema import ddl, grants

__all__ = ["PostgresBackend", "ddl", "from_url", "grants"]
