"""Asks between nodes: one question, one answer, from node to node, whoever has a replica.

A node answers what somebody on it has offered to answer; what nobody has is Unavailable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from mesh.garbage import GARBAGE
from mesh.wires import Refused, WireError, Wires
from swarmd.cluster.asks import ANSWERS, AnyAsk
from swarmd.cluster.channels import refusal_of, wire_refusal
from swarmd.cluster.handle import Ask, Leader, Leadership, T
from swarmd.domain.errors import NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

ASK = "ask"
NOT_NOW = "the node does not answer this at present: it leads no longer, or not yet"

Answer = Callable[[Any], Awaitable[Any]]


class Asking:
    def __init__(
        self,
        me: NodeId,
        wires: Wires,
        members: Callable[[], Mapping[NodeId, Node]],
        leadership: Callable[[], Leadership],
        ask_s_max: float,
    ) -> None:
        self._me = me
        self._wires = wires
        self._members = members
        self._leadership = leadership
        self._ask_s_max = ask_s_max
        self._answers: dict[type[Any], Answer] = {}

    def serve(self) -> None:
        self._wires.handle_call(ASK, self._answer_ask)

    async def ask(self, target: NodeId | Leader, request: Ask[T]) -> T:
        node_id = self._leadership().leader if isinstance(target, Leader) else target
        if node_id is None:
            raise Unavailable("nobody leads the swarm at present; try again later")
        if node_id == self._me:
            answer = self._answers.get(type(request))
            if answer is None:
                raise Unavailable(NOT_NOW, request=type(request).__name__)
            value: T = await answer(request)
            return value
        if node_id not in self._members():
            raise NotFound("no such node", node_id=node_id)
        try:
            body = await self._wires.call(node_id, ASK, _encode(request), self._ask_s_max)
        except WireError as error:
            raise refusal_of(error) from None
        found: T = msgspec.msgpack.decode(body, type=ANSWERS[type(request)])
        return found

    async def _answer_ask(self, peer: str, body: bytes) -> bytes:
        try:
            request = _decode_ask(body)
        except GARBAGE as error:
            raise Refused("invalid", f"this version knows no such ask: {error}") from None
        answer = self._answers.get(type(request))
        if answer is None:
            raise Refused(Unavailable.code, NOT_NOW)
        try:
            return _encode(await answer(request))
        except SwarmError as refusal:
            raise wire_refusal(refusal) from None

    def answers(self, request: type[Ask[Any]], answer: Answer) -> Callable[[], None]:
        assert request not in self._answers, request
        self._answers[request] = answer

        def stop() -> None:
            if self._answers.get(request) is answer:
                del self._answers[request]

        return stop


_encode = msgspec.msgpack.Encoder().encode
_decode_ask = msgspec.msgpack.Decoder(AnyAsk).decode
