"""A stable hash over what makes up a workflow definition."""

from __future__ import annotations

from hashlib import sha256

_VERSION = "v1"


def definition_hash(*parts: str | bytes) -> str:
    """Hash the parts of a workflow definition into a `definition_hash`.

    Every part is hashed with its kind and length before it, so no two different lists of parts
    collide by concatenation (`"a", "b"` is not `"ab"`). The result names the version of the
    scheme, `"v1:<64 hex digits>"`; it stays the same in every later release.

    Example:
        >>> definition_hash("checkout", "charge", "ship")[:10]
        'v1:cb7a845'
    """
    digest = sha256(len(parts).to_bytes(8, "big"))

    for part in parts:
        kind, data = (b"s", part.encode()) if isinstance(part, str) else (b"b", part)
        digest.update(kind + len(data).to_bytes(8, "big"))
        digest.update(data)

    return f"{_VERSION}:{digest.hexdigest()}"
