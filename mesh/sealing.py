"""Datagrams between the swarm's nodes: nobody else reads or makes one, and each is taken once.

    1 version · 4 key id · 16 sender · 16 session · 8 counter · sealed bytes and their tag

A session is one start of one node. Its packets are sealed with a key of their own, made from the
ring's key, so that the counter is the nonce and starts anew with the session; the head is
authenticated with them. A session must be allowed before its packets are taken: who it is comes
over TLS or in gossip that was taken, else what was recorded before this node started could be
played to it again. With the counter that is told along, what lies before is refused as well. All
who have the ring have the same keys: a packet proves that a node of the swarm made it, and which
one only as far as they are honest.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from mesh.frames import Broken
from mesh.identity.boxes import hkdf
from mesh.identity.ids import id_bytes, id_text
from mesh.keyring import Keyring

VERSION = 1
PACKET_BYTES_MAX = 1400
"""So that a packet is never cut up on its way, tunnels included."""
SESSION_BYTES = 16
WINDOW = 1024
"""So many counters behind the highest may a packet come late."""
SENDERS_MAX = 8192

_HEAD = struct.Struct(">B4s16s16sQ")
_COUNTER = struct.Struct(">4xQ")
_TAG_BYTES = 16
PLAIN_BYTES_MAX = PACKET_BYTES_MAX - _HEAD.size - _TAG_BYTES
_MASK = (1 << WINDOW) - 1
_NOBODY: tuple[None, None] = (None, None)


class UnknownSession(Broken):
    """It is of the swarm, but perhaps an old one: ask the sender over TLS, then `allow` it."""

    def __init__(self, sender: str, session: bytes) -> None:
        super().__init__("unknown_session", f"{sender} sends in a session that was not told of")
        self.sender = sender
        self.session = session


class _Session:
    """What was taken of one session, and its ciphers by key id."""

    __slots__ = ("ciphers", "highest", "name", "seen")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.ciphers: dict[bytes, ChaCha20Poly1305] = {}
        self.highest = 0
        self.seen = _MASK
        """Bit n: the counter n below the highest was taken, or is not to be taken."""

    def is_new(self, counter: int) -> bool:
        behind = self.highest - counter
        return behind < 0 or (behind < WINDOW and not self.seen >> behind & 1)

    def take(self, counter: int) -> None:
        ahead = counter - self.highest
        if ahead > 0:
            self.seen = (self.seen << ahead & _MASK) | 1 if ahead < WINDOW else 1
            self.highest = counter
        else:
            self.seen |= 1 << -ahead

    def raise_floor(self, floor: int) -> None:
        if floor > self.highest:
            self.highest, self.seen = floor, _MASK
        elif self.highest - floor < WINDOW:
            self.seen |= _MASK << (self.highest - floor) & _MASK


class Sealing:
    """Of one start of a node: `session` are 16 random bytes that no other start has."""

    def __init__(self, me: str, session: bytes, keyring: Keyring) -> None:
        if len(session) != SESSION_BYTES:
            raise ValueError(f"a session has {SESSION_BYTES} bytes")
        self.session = session
        self.counter = 0
        """Of the last packet that was sealed."""
        self._me = id_bytes(me)
        self._known: OrderedDict[bytes, tuple[_Session | None, _Session | None]] = OrderedDict()
        """Of each sender its session, and the one before: should that be named again, what was
        taken of it is not taken twice. Whoever was told of last stands last."""
        self.use(keyring)

    def use(self, keyring: Keyring) -> None:
        """Another ring, between two packets: sessions and counters go on."""
        self._keyring = keyring
        self._keys = keyring.by_id
        self._primary = keyring.primary
        self._mine = self._cipher(self._keys[self._primary], self._me + self.session)
        for session in (each for both in self._known.values() for each in both if each is not None):
            for key_id in session.ciphers.keys() - self._keys.keys():
                del session.ciphers[key_id]

    @property
    def keyring(self) -> Keyring:
        return self._keyring

    def seal(self, plain: bytes) -> bytes:
        if len(plain) > PLAIN_BYTES_MAX:
            raise ValueError(f"{len(plain)} bytes; a packet takes {PLAIN_BYTES_MAX}")
        self.counter = counter = self.counter + 1
        head = _HEAD.pack(VERSION, self._primary, self._me, self.session, counter)
        return head + self._mine.encrypt(_COUNTER.pack(counter), plain, head)

    def open(self, packet: bytes) -> tuple[str, bytes]:
        """(who sealed it, what). Raises Broken with the reason to count it by: short, too_long,
        version, mine, unknown_key, forged, unknown_session, replayed."""
        if len(packet) < _HEAD.size + _TAG_BYTES:
            raise Broken("short", f"a packet of {len(packet)} bytes")
        if len(packet) > PACKET_BYTES_MAX:
            raise Broken("too_long", f"a packet of {len(packet)} bytes; {PACKET_BYTES_MAX} fit")
        version, key_id, sender, name, counter = _HEAD.unpack_from(packet)
        if version != VERSION:
            raise Broken("version", f"a packet of form {version}")
        key = self._keys.get(key_id)
        if key is None:
            raise Broken("unknown_key", f"a packet sealed with the key {key_id.hex()}")
        if sender == self._me:
            raise Broken("mine", "a packet in this node's own name")
        session, _ = self._known.get(sender, _NOBODY)
        if session is not None and session.name == name:
            if not session.is_new(counter):
                # Forged or not, nothing is to be had from it.
                raise Broken("replayed", f"counter {counter} of {id_text(sender)} comes again")
            cipher = session.ciphers.get(key_id)
            if cipher is None:
                cipher = session.ciphers[key_id] = self._cipher(key, sender + name)
        else:
            session = None
            cipher = self._cipher(key, sender + name)
        head_bytes = _HEAD.size
        try:
            plain = cipher.decrypt(_COUNTER.pack(counter), packet[head_bytes:], packet[:head_bytes])
        except InvalidTag:
            raise Broken("forged", "a packet that no key of the ring sealed") from None
        if session is None:
            raise UnknownSession(id_text(sender), name)
        session.take(counter)
        return id_text(sender), plain

    def allow(self, sender: str, session: bytes, floor: int = 0) -> None:
        """This is the sender's session now; any other of it is none from now on. Nothing up to the
        floor is taken: tell the highest counter that somebody had heard when this node started,
        less WINDOW."""
        if len(session) != SESSION_BYTES:
            raise ValueError(f"a session has {SESSION_BYTES} bytes")
        who = id_bytes(sender)
        if who == self._me:
            return
        current, former = self._known.pop(who, _NOBODY)
        if current is None or current.name != session:
            again = former is not None and former.name == session
            current, former = former if again else _Session(session), current
        assert current is not None, "one of three was chosen"
        current.raise_floor(floor)
        self._known[who] = (current, former)
        if len(self._known) > SENDERS_MAX:
            self._known.popitem(last=False)

    def forget(self, sender: str) -> None:
        """None of its sessions is taken any more, until one is allowed again."""
        who = id_bytes(sender)
        current, former = self._known.get(who, _NOBODY)
        if current is not None or former is not None:
            self._known[who] = (None, current or former)

    def heard(self, sender: str) -> tuple[bytes, int] | None:
        """Its session and the highest counter that came: what a node that starts is told."""
        current, _ = self._known.get(id_bytes(sender), _NOBODY)
        return (current.name, current.highest) if current is not None else None

    @staticmethod
    def _cipher(key: bytes, who: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(hkdf(key, b"", b"swarmd gossip 1" + who))
