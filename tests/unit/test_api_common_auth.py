"""Who may ask: hosts, origins and keys, per kind of listening address."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from api.common.auth import Bearer, Guard, Peer, is_loopback, split_host, take_query_key
from api.common.surface import Access
from api.common.wire import Head
from swarmd.domain.errors import Forbidden, Unauthorized

PEER = Peer("192.0.2.7", 40000)


def guard(
    access: Access = Access.LOOPBACK,
    *,
    loopback: bool = True,
    unix: bool = False,
    admin_key: Callable[[], str | None] = lambda: "secret-key",
) -> Guard:
    return Guard(
        "jobqueue",
        access,
        loopback=loopback,
        unix=unix,
        names=frozenset({"swarm.example", "192.0.2.1"}),
        ports=frozenset({8080, 8470}),
        origins=frozenset({"https://pages.example"}),
        admin_key=admin_key,
        key_wanted="",
    )


def head(
    host: str | None = "localhost:8080",
    *,
    origin: str | None = None,
    site: str | None = None,
    key: str | None = None,
) -> Head:
    return Head("GET", b"/", 1, [], host=host, origin=origin, fetch_site=site, key=key)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "127.8.8.8", "localhost", "LocalHost.:1", "[::1]:8080",
     "swarm.example:8080", "Swarm.Example.", "192.0.2.1", None],
)  # fmt: skip
def test_own_hosts_are_welcome_on_loopback(host: str | None) -> None:
    assert guard().admit(head(host), PEER).name == "anonymous"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "",
     "192.0.2.9", "[::2]", "0.0.0.0", "127.0.0.1@evil"],
)  # fmt: skip
def test_a_foreign_host_is_refused_on_loopback(host: str) -> None:
    found = guard()
    for _ in range(2):
        with pytest.raises(Forbidden, match="Host is"):
            found.admit(head(host), PEER)


@pytest.mark.parametrize(
    ("origin", "host"),
    [("http://localhost:8080", "localhost:8080"), ("http://localhost:8470", "localhost:8080"),
     ("http://127.0.0.1:8470", "localhost:8080"), ("http://swarm.example:8080", "localhost:8080"),
     ("http://localhost", "localhost"), ("https://pages.example", "localhost:8080")],
)  # fmt: skip
def test_pages_of_the_swarm_may_call(origin: str, host: str) -> None:
    assert guard().admit(head(host, origin=origin), PEER).name == "anonymous"


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://evil.example:8080", "null", "", "http://localhost:3000",
     "http://localhost", "http://[::1", "http://x:99999999", "file://", "http://localhost:8080.evil"],
)  # fmt: skip
@pytest.mark.parametrize("where", [guard(), guard(Access.OPEN, loopback=False)])
def test_a_cross_site_origin_is_refused(origin: str, where: Guard) -> None:
    with pytest.raises(Forbidden, match="Origin is"):
        where.admit(head("localhost:8080", origin=origin), PEER)


def test_a_cross_site_fetch_is_refused_even_with_a_key() -> None:
    with pytest.raises(Forbidden):
        guard().admit(head(site="cross-site", key="secret-key"), PEER)
    assert guard().admit(head(site="same-origin"), PEER).name == "anonymous"


def test_off_loopback_a_key_is_needed() -> None:
    found = guard(loopback=False)
    assert found.needs_key
    assert found.admit(head("any.name", key="secret-key"), PEER).name == "admin"
    with pytest.raises(Unauthorized, match="a key is needed"):
        found.admit(head("any.name"), PEER)
    with pytest.raises(Unauthorized, match="not the right one"):
        found.admit(head("any.name", key="secret-kez"), PEER)
    with pytest.raises(Unauthorized):
        found.admit(head("any.name", key="sécret"), PEER)


def test_no_known_key_means_closed() -> None:
    for shown in (None, "", "x"):
        with pytest.raises(Unauthorized, match="closed"):
            guard(loopback=False, admin_key=lambda: None).admit(head(key=shown), PEER)
        with pytest.raises(Unauthorized, match="closed"):
            guard(loopback=False, admin_key=lambda: "").admit(head(key=shown), PEER)


def test_a_lesser_credential_is_enough_where_a_route_takes_it() -> None:
    found, one, nobody = guard(loopback=False), Bearer("drone one"), Bearer(None, "ask for one")
    assert found.admit(head("x"), PEER, bearer=one).name == "drone one"
    assert found.admit(head("x", key="a token"), PEER, bearer=one).name == "drone one"
    assert found.admit(head("x", key="secret-key"), PEER, bearer=one).name == "admin"
    with pytest.raises(Unauthorized, match=r"a key is needed.*a token will do: ask for one"):
        found.admit(head("x"), PEER, bearer=nobody)
    with pytest.raises(Unauthorized, match=r"not the right one.*ask for one"):
        found.admit(head("x", key="y"), PEER, bearer=nobody)
    # It says who somebody is where nothing is needed, too, and excuses no foreign page.
    assert guard().admit(head(key="a token"), PEER, bearer=one).name == "drone one"
    assert guard().admit(head(key="y"), PEER, bearer=nobody).name == "anonymous"
    assert guard(unix=True).admit(head(), PEER, bearer=one).name == "local"
    with pytest.raises(Forbidden):
        found.admit(head(site="cross-site"), PEER, bearer=one)
    with pytest.raises(Forbidden):
        guard().admit(head("evil.example"), PEER, bearer=one)


def test_a_health_check_needs_no_key() -> None:
    assert guard(loopback=False).admit(head("x"), PEER, probe=True).name == "anonymous"
    with pytest.raises(Forbidden):
        guard().admit(head("evil.example"), PEER, probe=True)


def test_a_surface_that_wants_a_key_wants_it_on_loopback_too() -> None:
    found = guard(Access.KEY)
    with pytest.raises(Unauthorized):
        found.admit(head(), PEER)
    assert found.admit(head(key="secret-key"), PEER).name == "admin"


def test_an_opened_surface_is_open_by_any_name() -> None:
    found = guard(Access.OPEN, loopback=False)
    assert not found.needs_key
    assert found.admit(head("node1.lan:8080"), PEER).name == "anonymous"
    assert found.admit(head("node1.lan:8080", key="of another service"), PEER).name == "anonymous"


def test_on_the_unix_socket_its_permissions_decide() -> None:
    found = guard(Access.KEY, loopback=False, unix=True)
    actor = found.admit(head("anything", origin="http://evil.example"), Peer("uid:1000"))
    assert (actor.name, actor.address, actor.surface) == ("local", "uid:1000", "jobqueue")


def test_what_is_loopback() -> None:
    assert all(is_loopback(a) for a in ("127.0.0.1", "::1", "[::1]", "localhost", "127.1.2.3"))
    assert not any(is_loopback(a) for a in ("0.0.0.0", "::", "10.0.0.1", "", "evil", "127.0.0.1.x"))


def test_hosts_are_split() -> None:
    assert split_host("A.b.:80") == ("a.b", 80)
    assert split_host("[::1]:8080") == ("::1", 8080)
    assert split_host("a:x") == ("a", None)


@pytest.mark.parametrize(
    ("target", "key", "left"),
    [
        (b"/ws/x?key=s%2Fe+c", "s/e c", b"/ws/x"),
        (b"/ws/x?a=1&key=secret&b=2", "secret", b"/ws/x?a=1&b=2"),
        (b"/ws/x?key=one&key=two", "one", b"/ws/x"),
        (b"/ws/x?%6bey=secret", "secret", b"/ws/x"),
        (b"/ws/x?key", "", b"/ws/x"),
        (b"/ws/x?keys=1", None, b"/ws/x?keys=1"),
        (b"/ws/x", None, b"/ws/x"),
        (b"/ws/x?", None, b"/ws/x?"),
    ],
)
def test_a_key_in_a_query_is_taken_out_of_it(target: bytes, key: str | None, left: bytes) -> None:
    for upgrade, shown in ((True, None), (True, "header"), (False, None)):
        asked = Head("GET", target, 1, [], upgrade=upgrade, key=shown)
        take_query_key(asked)
        assert asked.target == left
        assert asked.key == (shown or (key if upgrade else None))


@pytest.mark.parametrize("query", [b"", b"?key=", b"?key=None"])
def test_where_no_key_is_known_none_of_a_query_opens_anything(query: bytes) -> None:
    asked = Head("GET", b"/ws/x" + query, 1, [], upgrade=True)
    take_query_key(asked)
    for unknown in (None, ""):
        with pytest.raises(Unauthorized, match="closed"):
            guard(Access.KEY, admin_key=lambda known=unknown: known).admit(asked, PEER)
