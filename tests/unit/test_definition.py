from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sayiir_persist.definition import definition_hash
from sayiir_persist.validation import MAX_ID_BYTES, check_id

PARTS = st.lists(st.text(max_size=6) | st.binary(max_size=6), max_size=5)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), "v1:af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"),
        (
            ("checkout", "charge", "ship"),
            "v1:cb7a845b6cf081f58df1c5ef980541363a11f8ebfa07f02cc2ae1c6e74957878",
        ),
        ((b"\x00\xff",), "v1:35f603e2c62e302adce4b5dec7ce74359aad23f1e46178313f8724a4ab3c9c58"),
    ],
    ids=["nothing", "text", "bytes"],
)
def test_hash_stays_the_same_in_every_release(
    parts: tuple[str | bytes, ...], expected: str
) -> None:
    assert definition_hash(*parts) == expected


def test_hash_is_built_from_count_kinds_and_lengths() -> None:
    head = (2).to_bytes(8, "big")
    text = b"s" + (2).to_bytes(8, "big") + "é".encode()
    data = b"b" + (1).to_bytes(8, "big") + b"x"

    digest = sha256(head + text + data).hexdigest()

    assert definition_hash("é", b"x") == f"v1:{digest}"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("a", "b"), ("ab",)),
        (("a", "b"), ("b", "a")),
        (("a;T:b",), ("a", "T:b")),
        (("a",), ("a", "")),
        (("a",), (b"a",)),
        ((), ("",)),
    ],
)
def test_different_parts_never_collide_by_concatenation(
    left: tuple[str | bytes, ...], right: tuple[str | bytes, ...]
) -> None:
    assert definition_hash(*left) != definition_hash(*right)


@given(PARTS, PARTS)
def test_equal_hashes_mean_equal_parts(left: list[str | bytes], right: list[str | bytes]) -> None:
    same_hash = definition_hash(*left) == definition_hash(*right)

    assert same_hash == (left == right)


@given(PARTS)
def test_hash_is_a_valid_definition_hash(parts: list[str | bytes]) -> None:
    made = definition_hash(*parts)

    assert check_id("definition_hash", made) == made
    assert len(made) < MAX_ID_BYTES
