"""A dirty chunk against a model: a list of bytes over a base."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.types import ChunkRef
from mpifs.vfs.chunk_buffer import ROOM, ChunkBuffer

SIZE = 64
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("truncate"), st.integers(0, SIZE), st.just(b"")),
    ),
    max_size=12,
)


@given(st.binary(max_size=SIZE), OPERATIONS)
def test_written_base_and_zeros(base: bytes, operations: list[tuple[str, int, bytes]]) -> None:
    buffer = ChunkBuffer(0, bytearray(b"\xaa" * (SIZE + ROOM)), 0.0)
    if base:
        buffer.set_base(ChunkRef(1, len(base), bytes(16), (1,)), None, len(base))
    model = bytearray(base)
    for name, where, data in operations:
        if name == "write":
            data = data[: SIZE - where]
            buffer.write(where, memoryview(data))
            if len(model) < where:
                model.extend(bytes(where - len(model)))
            model[where : where + len(data)] = data
        else:
            buffer.truncate(where)
            del model[where:]
    assert buffer.length == len(model)
    buffer.fill(memoryview(base) if buffer.needs_base else None)
    assert bytes(buffer.view(0, buffer.length)) == bytes(model)
    assert not buffer.needs_base
