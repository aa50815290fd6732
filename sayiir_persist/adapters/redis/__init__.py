"""The Redis store: a server or a cluster, Redis 6.2 or Valkey, every operation one script."""

from sayiir_persist.adapters.redis.backend import RedisBackend, from_url

__all__ = ["RedisBackend", "from_url"]
