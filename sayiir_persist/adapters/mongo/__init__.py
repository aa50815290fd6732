"""Workflows in MongoDB."""

from sayiir_persist.adapters.mongo.backend import MongoBackend, from_url

__all__ = ["MongoBackend", "from_url"]
