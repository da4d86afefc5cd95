"""Hosts over ssh that are not who they were, hang at every step, or mean harm."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from swarmd.domain.errors import Conflict, Forbidden, Invalid, Unauthorized, Unavailable
from swarmd.drivers.ssh import (
    HostKey,
    HostKeyChanged,
    HostKeyUnknown,
    Ssh,
    SshSettings,
    SshTarget,
    open_ssh,
)
from tests.netns import switched_network
from tests.parts import need
from tests.sshd import Sshd, make_key, running_sshd

SHORT = SshSettings(
    connect_timeout_s=0.5, login_timeout_s=1.0, open_timeout_s=1.0, end_timeout_s=1.0
)
REAL = SshSettings(connect_timeout_s=5, login_timeout_s=5, open_timeout_s=5, end_timeout_s=1)
"""For a real sshd, which has to come so far before it hangs, on a slow machine as well."""


@pytest.fixture
def many_keys(tmp_path: Path) -> Iterator[Sshd]:
    need("sshd")
    with running_sshd(tmp_path / "sshd", kinds=("ed25519", "ecdsa", "rsa")) as sshd:
        yield sshd


# -- host keys -----------------------------------------------------------------------------------


async def test_an_unknown_host_is_refused_and_its_key_named(ssh: Ssh, sshd: Sshd) -> None:
    with pytest.raises(HostKeyUnknown) as caught:
        await ssh.exec(sshd.target(host_keys=()), "true", timeout_s=20)
    assert isinstance(caught.value, Forbidden)
    assert sshd.fingerprint() in caught.value.message
    assert caught.value.facts["host_key"] == sshd.host_key()
    # Without somebody to keep it, the first key is not taken either.
    with pytest.raises(HostKeyUnknown):
        await ssh.exec(sshd.target(host_keys=(), pin_first=True), "true", timeout_s=20)
    assert "Accepted" not in (sshd.folder / "sshd.log").read_text()


async def test_the_first_key_is_kept_before_anybody_logs_in(sshd: Sshd) -> None:
    kept: list[tuple[SshTarget, HostKey]] = []
    log = sshd.folder / "sshd.log"

    async def keep(target: SshTarget, key: HostKey) -> None:
        assert len(kept) > 1 or "Accepted" not in log.read_text()
        kept.append((target, key))
        if len(kept) == 1:
            raise Conflict("not today")

    target = sshd.target(host_keys=(), pin_first=True)
    async with open_ssh(keep_key=keep) as ssh:
        with pytest.raises(Conflict, match="not today"):
            await ssh.exec(target, "true", timeout_s=20)
        await ssh.exec(target, "true", timeout_s=20)
        await ssh.exec(target, "true", timeout_s=20)
        assert [(t, k.line, k.fingerprint) for t, k in kept[1:]] == [
            (target, sshd.host_key(), sshd.fingerprint())
        ]
        sshd.rebuild()
        # It is known from then on, whatever the target still says.
        with pytest.raises(HostKeyChanged):
            await ssh.exec(target, "true", timeout_s=20)
        assert len(kept) == 2
        ssh.forget(target)
        await ssh.exec(target, "true", timeout_s=20)
    assert kept[2][1].line == sshd.host_key()


async def test_a_changed_key_is_refused_and_both_are_named(ssh: Ssh, many_keys: Sshd) -> None:
    target, before = many_keys.target(), many_keys.fingerprint()
    await ssh.exec(target, "true", timeout_s=20)
    many_keys.rebuild()
    with pytest.raises(HostKeyChanged) as caught:
        await ssh.exec(target, "true", timeout_s=20)
    assert isinstance(caught.value, Conflict)
    assert before in caught.value.message and many_keys.fingerprint() in caught.value.message
    assert caught.value.facts["host_key"] == many_keys.host_key()
    await ssh.exec(many_keys.target(), "true", timeout_s=20)


async def test_a_host_that_lost_the_pinned_kind_of_key_has_changed(
    ssh: Ssh, many_keys: Sshd
) -> None:
    target = many_keys.target(host_keys=(many_keys.host_key("rsa"),))
    await ssh.exec(target, "true", timeout_s=20)
    many_keys.stop()
    many_keys.kinds = ("ed25519",)
    many_keys.start()
    with pytest.raises(HostKeyChanged, match="it shows"):
        await ssh.exec(target, "true", timeout_s=20)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
async def test_a_pin_of_any_kind_and_form_is_enough(ssh: Ssh, many_keys: Sshd, kind: str) -> None:
    key = many_keys.host_key(kind)
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMVzw1GPxQ8bUnLbZPBr9uXB9VbYGFhU1OZHpPHPfvEG"
    for pins in (
        (key,),
        (key + " root@host",),
        (many_keys.fingerprint(kind),),
        (f"[{many_keys.host}]:{many_keys.port} {key}",),
        (f"127.0.0.* {key} comment",),
        (f"elsewhere {other}", other, f"[127.0.0.1]:{many_keys.port} {key}"),
    ):
        await ssh.exec(many_keys.target(host_keys=pins), "true", timeout_s=20)
    for pins in ((f"elsewhere {key}",), (other,), ("SHA256:" + "A" * 43,)):
        with pytest.raises((HostKeyUnknown, HostKeyChanged)):
            await ssh.exec(many_keys.target(host_keys=pins), "true", timeout_s=20)
    with pytest.raises(HostKeyChanged):
        revoked = f"@revoked * {key}"
        await ssh.exec(many_keys.target(host_keys=(key, revoked, other)), "true", timeout_s=20)


@pytest.mark.parametrize(
    "pin",
    ["", "nonsense", "SHA256:short", "# a comment", "ssh-ed25519 %%%", "ssh-rsa AAAA", "host x y",
     "host ssh-ed25519", "ssh-ed25519 AAAA\nssh-ed25519 BBBB", "@cert-authority * ssh-rsa AAAA",
     "MD5:aa:bb", "host ssh-ed25519 AAAAC3NzaC1yc2E="],
)  # fmt: skip
async def test_what_is_no_pin_is_refused(ssh: Ssh, sshd: Sshd, pin: str) -> None:
    with pytest.raises(Invalid, match="pin 1"):
        await ssh.exec(sshd.target(host_keys=(pin,)), "true", timeout_s=5)


@pytest.mark.parametrize(
    "changes",
    [{"host": ""}, {"host": "a b"}, {"host": "x" * 300}, {"port": 0}, {"port": 70000}, {"user": ""},
     {"user": "a\nb"}, {"key_file": None}, {"private_key": b"x" * 20_000},
     {"host_keys": ("x",) * 100}],
)  # fmt: skip
def test_what_is_no_target_is_refused(sshd: Sshd, changes: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        sshd.target(**changes)


def test_a_target_says_nothing_secret() -> None:
    target = SshTarget("host", private_key=b"very-secret")
    assert "secret" not in repr(target) and "secret" not in f"{target}"


# -- our own key ---------------------------------------------------------------------------------


async def test_a_key_that_the_host_does_not_take_is_unauthorized(
    ssh: Ssh, sshd: Sshd, tmp_path: Path
) -> None:
    make_key(tmp_path / "other", "ed25519")
    with pytest.raises(Unauthorized, match="authorized_keys"):
        await ssh.exec(sshd.target(key_file=str(tmp_path / "other")), "true", timeout_s=20)
    with pytest.raises(Unauthorized):
        await ssh.exec(sshd.target(user="nobody-of-that-name"), "true", timeout_s=20)
    key = (sshd.folder / "client").read_bytes()
    await ssh.exec(sshd.target(private_key=key, key_file=None), "true", timeout_s=20)


async def test_a_key_that_is_none_is_refused(ssh: Ssh, sshd: Sshd, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be read: no such file"):
        await ssh.exec(sshd.target(key_file=str(tmp_path / "none")), "true", timeout_s=5)
    with pytest.raises(Invalid, match="ssh-keygen"):
        await ssh.exec(sshd.target(private_key=os.urandom(400)), "true", timeout_s=5)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "word", "-f", str(tmp_path / "locked")]
    await trio.run_process(command)
    with pytest.raises(Invalid, match="passphrase"):
        await ssh.exec(sshd.target(key_file=str(tmp_path / "locked")), "true", timeout_s=5)


# -- peers that hang, and peers that are none ----------------------------------------------------


@asynccontextmanager
async def peer(
    serve: Callable[[trio.SocketStream], Awaitable[None]], key: bytes
) -> AsyncIterator[SshTarget]:
    """Something that listens, and is no sshd."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        pins = ("SHA256:" + "A" * 43,)
        yield SshTarget("127.0.0.1", port, private_key=key, host_keys=pins)
        nursery.cancel_scope.cancel()


@pytest.fixture
def key(tmp_path: Path) -> bytes:
    need("sshd")
    make_key(tmp_path / "key", "ed25519")
    return (tmp_path / "key").read_bytes()


async def silence(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def banner_and_silence(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    while await stream.receive_some(65536):
        pass


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")


async def web_server(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100_000)
    await trio.sleep_forever()


async def banner_without_end(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"hello\r\n" * 10_000)


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (silence, "did not say that it speaks ssh within 1 s"),
        (banner_and_silence, "did not agree on keys within 1 s"),
        (hang_up, "hung up"),
        (web_server, "breaks the protocol"),
        (banner_without_end, "breaks the protocol"),
    ],
)
async def test_what_is_no_ssh_server_ends_within_its_bound(
    key: bytes, serve: Callable[[trio.SocketStream], Awaitable[None]], words: str
) -> None:
    async with peer(serve, key) as target, open_ssh(SHORT) as ssh:
        with trio.fail_after(5), pytest.raises(Unavailable, match=words):
            await ssh.exec(target, "true", timeout_s=5)
        with trio.fail_after(5), pytest.raises(Unavailable):
            await ssh.scan(target)


@pytest.mark.parametrize("seed", range(20))
async def test_noise_in_place_of_a_handshake_is_only_unavailable(key: bytes, seed: int) -> None:
    chance = random.Random(seed)

    async def noise(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-x\r\n")
        ours = await stream.receive_some(65536)
        if seed % 2:  # what was sent, sent back with some of it spoilt
            data = bytearray(ours * 3)
            for _ in range(20):
                data[chance.randrange(len(data))] = chance.randrange(256)
            await stream.send_all(bytes(data))
        else:
            size = chance.choice([20, 300, 5000, 30_000])
            await stream.send_all(size.to_bytes(4, "big") + chance.randbytes(size))
        await stream.send_all(chance.randbytes(10_000))
        await trio.sleep_forever()

    async with peer(noise, key) as target, open_ssh(SHORT) as ssh:
        for _ in range(2):
            with trio.fail_after(5), pytest.raises(Unavailable):
                await ssh.exec(target, "true", timeout_s=5)


@pytest.mark.needs("root", "sshd")
async def test_a_host_that_never_answers_the_login_ends_within_its_bound(tmp_path: Path) -> None:
    # sshd runs only what no one but root may write, all the way up.
    options = ("AuthorizedKeysCommand /bin/sleep 60", "AuthorizedKeysCommandUser root")
    with running_sshd(tmp_path / "sshd", options=options) as sshd:
        make_key(tmp_path / "other", "ed25519")
        target = sshd.target(key_file=str(tmp_path / "other"))
        async with open_ssh(REAL) as ssh:
            with trio.fail_after(40), pytest.raises(Unavailable, match="answer the login within"):
                await ssh.exec(target, "true", timeout_s=60)


async def test_a_host_that_stops_ends_within_its_bounds(sshd: Sshd) -> None:
    async with open_ssh(REAL) as ssh:
        target = sshd.target()
        await ssh.exec(target, "true", timeout_s=20)
        assert sshd.process is not None
        stopped = [*sshd.sessions(), sshd.process.pid]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        # On the kept connection nothing begins, and on a new one nobody answers.
        with trio.fail_after(60), pytest.raises(Unavailable, match=r"speaks ssh|did not begin"):
            await ssh.exec(target, "true", timeout_s=60)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await ssh.exec(target, "true", timeout_s=20)


async def test_leaving_a_host_that_hangs_takes_no_longer_than_its_bound(
    sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    async with open_ssh(REAL) as ssh:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                command = f"echo $$ >{file}; sleep 1000"
                nursery.start_soon(lambda: ssh.exec(sshd.target(), command, timeout_s=99))
                while not await trio.Path(file).exists():
                    await trio.sleep(0.02)
                for pid in sshd.sessions():
                    os.kill(pid, signal.SIGSTOP)
                began = trio.current_time()
                nursery.cancel_scope.cancel()
        assert trio.current_time() - began < REAL.end_timeout_s + 15


async def test_many_who_wait_for_one_dead_host_wait_but_once(key: bytes) -> None:
    async with peer(silence, key) as target, open_ssh(SHORT) as ssh:
        refused: list[str] = []

        async def ask() -> None:
            try:
                await ssh.exec(target, "true", timeout_s=5)
            except Unavailable as error:
                refused.append(error.message)

        with trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask)
        assert len(refused) == 20


# -- networks ------------------------------------------------------------------------------------


@pytest.mark.needs("sshd", "netns")
async def test_a_cable_that_is_cut_is_noticed_wherever_it_happens(tmp_path: Path) -> None:
    settings = SshSettings(
        connect_timeout_s=3.0, open_timeout_s=10.0, end_timeout_s=0.5, keepalive_s=2.0
    )
    begun = tmp_path / "begun"
    with ExitStack() as stack:
        network = stack.enter_context(switched_network(2))
        one = network.hosts[0]
        with one.entered():
            sshd = stack.enter_context(running_sshd(tmp_path / "sshd", one.address))
        stack.enter_context(network.entered())

        async def cut() -> None:
            while not begun.exists():
                await trio.sleep(0.02)
            network.cut_clients(one)

        async with open_ssh(settings) as ssh:
            target = sshd.target()
            await ssh.exec(target, "true", timeout_s=20)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut)
                with trio.fail_after(60), pytest.raises(Unavailable, match="was lost"):
                    command = f"read word; touch {begun}; sleep 1000"
                    await ssh.exec(target, command, input=b"go\n", timeout_s=99)
            with trio.fail_after(60), pytest.raises(Unavailable, match=r"no connection within"):
                await ssh.exec(target, "true", timeout_s=60)
            network.heal()
            with trio.fail_after(60):
                await ssh.exec(target, "true", timeout_s=60)
            with trio.fail_after(60), pytest.raises(Unavailable, match="cannot reach"):
                await ssh.exec(sshd.target(host="10.77.0.199"), "true", timeout_s=60)
