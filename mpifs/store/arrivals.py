"""Chunks that have arrived in a PUT: cut apart and verified before anything is stored."""

from __future__ import annotations

import errno

from mpifs.core.block_table import add_table, stored_bytes
from mpifs.core.checksum import ChecksumFunction
from mpifs.core.errors import DamageError, PosixError, ProtocolError
from mpifs.core.image import COPY_INODE, IMAGE_HEADER_BYTES, encode_key, split_batch
from mpifs.core.limits import BATCH_COUNT_MAX, INDEX_COPY_PIECE_BYTES
from mpifs.core.messages import Serve
from mpifs.store.chunks import Image
from mpifs.transport.request import Request


def arrived_images(request: Request, served: Serve, sum_of: ChecksumFunction) -> list[Image]:
    """The chunk images of a PUT to the store `served`; they lie in the request's buffer.

    Raises PosixError (EBADMSG: damaged on the way) or ProtocolError (no chunks, too many, or of
    another geometry).
    """
    body = request.body
    if body is None or not 0 < request.header.items <= BATCH_COUNT_MAX:
        raise ProtocolError("PUT without chunks, or with too many")
    try:
        cut = split_batch(body, request.header.items)
    except DamageError as error:
        raise PosixError(errno.EBADMSG, f"damaged on the way: {error}") from error
    images = []
    for header, image in cut:
        most = INDEX_COPY_PIECE_BYTES if header.inode == COPY_INODE else served.chunk_size
        if header.checksum_kind != served.checksum or header.length > most:
            raise ProtocolError(f"{header.key} does not fit this volume's geometry")
        if sum_of(image[IMAGE_HEADER_BYTES:]) != header.checksum:
            raise PosixError(errno.EBADMSG, f"{header.key} was damaged on the way")
        images.append(Image(header, image))
    if len(images) == 1:
        images = [_completed_in_place(images[0], request.buffer)]
    return images


def _completed_in_place(image: Image, buffer: bytearray | None) -> Image:
    """The whole value to store, if the buffer at whose start the image stands has the room."""
    header = image.header
    size = stored_bytes(header.length)
    end = len(image.data)
    if size == end or buffer is None or len(buffer) < size:
        return image
    view = memoryview(buffer)
    view[end:size] = bytes(size - end)
    add_table(view, encode_key(header.key), header.length, header.checksum, header.checksum_kind)
    return Image(header, view[:size])
