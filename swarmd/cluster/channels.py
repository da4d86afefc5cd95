"""Channels: streams between nodes in the words of the cluster, with its refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.wires import ByteStream, Refused, WireError, Wires
from swarmd.cluster.handle import Channel, ChannelAnswer
from swarmd.domain.errors import BY_CODE, SwarmError, Unavailable

CONNECT_S_MAX = 3.0


class StreamChannel:
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except WireError as error:
            raise refusal_of(error) from None

    async def send_end(self) -> None:
        try:
            await self._stream.send_eof()
        except WireError as error:
            raise refusal_of(error) from None

    async def receive(self) -> bytes:
        try:
            return await self._stream.receive_some()
        except WireError as error:
            raise refusal_of(error) from None


@asynccontextmanager
async def open_channel(wires: Wires, peer: str, name: str, asked: bytes) -> AsyncIterator[Channel]:
    try:
        stream = await wires.open_stream(peer, name, asked, CONNECT_S_MAX)
    except WireError as error:
        raise refusal_of(error) from None
    async with stream:
        yield StreamChannel(stream)


def serve_channel(wires: Wires, name: str, answer: ChannelAnswer) -> None:
    async def handle(peer: str, asked: bytes, stream: ByteStream) -> None:
        try:
            await answer(asked, StreamChannel(stream))
        except SwarmError as refusal:
            raise wire_refusal(refusal) from None

    wires.handle_stream(name, handle)


def wire_refusal(refusal: SwarmError) -> Refused:
    """A refusal on its way to another node; `refusal_of` is what it becomes there."""
    return Refused(refusal.code, refusal.message, **refusal.facts)


def refusal_of(error: WireError) -> SwarmError:
    """What a wire's no means to whoever asked another node for something."""
    if isinstance(error, Refused) and error.code in BY_CODE:
        return BY_CODE[error.code](error.message, **error.facts)
    if isinstance(error, Refused):
        return Unavailable(f"the node refused: {error.message}")
    return Unavailable(f"the node does not answer: {error.message}")
