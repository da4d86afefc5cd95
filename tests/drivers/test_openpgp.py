"""The swarm's key before its judge, gpg: what one of the two signs the other accepts."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.domain.errors import Invalid, SwarmError, TooLarge
from swarmd.drivers.openpgp import KEY_BYTES_MAX, PublicKey, SigningKey, split_clear
from tests.cli import ROOT
from tests.parts import need

NOW_S = int(time.time())
KEY = SigningKey.make("A swarm <swarm@example.org>", NOW_S)
TEXTS = [
    b"DATA gpkg-1 0 SHA512 00\n",
    b"- a dash\n-and another\n--\n",
    b"blanks at the end  \t\nand none\n\n\n",
    b"From here\n\n-----BEGIN PGP SIGNATURE-----\nof another\n",
    b"\n",
]


class Gpg:
    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = ["gpg", "--homedir", self.home, "--batch", "--no-tty", "--status-fd", "2"]
        return subprocess.run(
            [*command, *arguments], input=given, capture_output=True, timeout=30, check=False
        )

    def says_good(self, *arguments: str | Path, given: bytes = b"") -> bool:
        done = self.run(*arguments, given=given)
        return done.returncode == 0 and b"[GNUPG:] VALIDSIG" in done.stderr


@pytest.fixture
def gpg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    need("gpg")
    home = tmp_path_factory.mktemp("g")
    home.chmod(0o700)
    yield Gpg(home)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], timeout=30, check=True)


def test_gpg_checks_what_the_swarm_signs(gpg: Gpg, tmp_path: Path) -> None:
    assert gpg.run("--import", given=KEY.public.armored()).returncode == 0
    listed = gpg.run("--with-colons", "--list-keys").stdout.decode()
    assert f"fpr:::::::::{KEY.public.fingerprint}:" in listed
    assert "A swarm <swarm@example.org>" in listed
    file, signature = tmp_path / "file", tmp_path / "file.sig"
    for at_s in (0, NOW_S):
        for size in (0, 1, 100_000):
            file.write_bytes(bytes(size))
            signature.write_bytes(KEY.sign(hashlib.sha512(bytes(size)), at_s))
            assert gpg.says_good("--verify", signature, file)
            file.write_bytes(bytes(size + 1))
            assert not gpg.says_good("--verify", signature, file)
    for text in TEXTS:
        signed = KEY.sign_clear(text, NOW_S)
        assert gpg.says_good("--verify", given=signed)
        if b"PGP" not in text:
            assert not gpg.says_good(
                "--verify", given=signed.replace(b"a", b"b", 1).replace(b"\n\n", b"\n\nx\n", 1)
            )


def test_a_host_that_did_as_the_page_says_believes_the_key(gpg: Gpg, tmp_path: Path) -> None:
    """Portage asks gpg as somebody who may not write to that home, so what is trusted has to be
    known before."""
    page = (ROOT / "docs" / "build-swarm.md").read_text()
    block = page.partition("```\ngetuto\n")[2].partition("```")[0]
    assert block.count("gpg --homedir /etc/portage/gnupg") == 3
    said = block.replace("/etc/portage/gnupg", str(gpg.home))
    said = said.replace("FINGERPRINT", KEY.public.fingerprint)
    (tmp_path / "swarm.asc").write_bytes(KEY.public.armored())
    done = subprocess.run(
        ["sh", "-e", "-c", said], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    file, signature = tmp_path / "file", tmp_path / "file.sig"
    file.write_bytes(b"content")
    signature.write_bytes(KEY.sign(hashlib.sha512(b"content"), NOW_S))
    seen = gpg.run("--no-auto-check-trustdb", "--verify", signature, file).stderr
    assert b"[GNUPG:] TRUST_ULTIMATE" in seen, seen


def test_the_swarm_checks_what_gpg_signs_with_the_exported_key(gpg: Gpg) -> None:
    assert gpg.run("--import", given=KEY.export()).returncode == 0
    done = gpg.run("--digest-algo", "SHA512", "--armor", "--detach-sign", given=b"content")
    KEY.public.check(hashlib.sha512(b"content"), done.stdout)
    with pytest.raises(Invalid, match="over something else"):
        KEY.public.check(hashlib.sha512(b"Content"), done.stdout)
    done = gpg.run("--digest-algo", "SHA512", "--clear-sign", given=b"- a line\nanother\n")
    assert KEY.public.check_clear(done.stdout) == b"- a line\nanother\n"
    for armor in ((), ("--armor",)):
        exported = PublicKey.load(gpg.run(*armor, "--export").stdout)
        assert exported.fingerprint == KEY.public.fingerprint
    ended = gpg.run(
        "--digest-algo", "SHA512", "--default-sig-expire", "1d", "--armor", "--detach-sign",
        given=b"content",
    )  # fmt: skip
    with pytest.raises(Invalid, match="condition"):
        KEY.public.check(hashlib.sha512(b"content"), ended.stdout)


def test_a_key_of_another_kind_is_refused(gpg: Gpg) -> None:
    made = gpg.run("--passphrase", "", "--quick-gen-key", "Other <o@example.org>", "rsa2048")
    assert made.returncode == 0
    with pytest.raises(Invalid, match="Ed25519"):
        PublicKey.load(gpg.run("--export").stdout)
    done = gpg.run("--digest-algo", "SHA512", "--armor", "--detach-sign", given=b"content")
    with pytest.raises(Invalid):
        KEY.public.check(hashlib.sha512(b"content"), done.stdout)


def test_what_is_exported_is_the_key() -> None:
    assert SigningKey.load(KEY.export()) == KEY
    assert PublicKey.load(KEY.public.armored()) == KEY.public
    assert PublicKey.load(KEY.public.certificate) == KEY.public
    assert (KEY.public.created_s, KEY.public.made_s) == (NOW_S - 86_400, NOW_S)
    assert KEY._seed.hex() not in repr(KEY)
    assert repr(KEY._seed) not in repr(KEY)


def test_a_signature_is_the_same_for_the_same() -> None:
    content = hashlib.sha512(b"content")
    assert KEY.sign(content, NOW_S) == KEY.sign(content, NOW_S)
    assert content.digest() == hashlib.sha512(b"content").digest()
    for number in range(300):  # numbers that begin with zeros are written shorter
        hashed = hashlib.sha512(b"%d" % number)
        KEY.public.check(hashed, KEY.sign(hashed, NOW_S))


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nline", "a\x00null", "ä" * 128])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="printable"):
        SigningKey.make(name, NOW_S)


@pytest.mark.parametrize("text", [b"", b"no end", b"of windows\r\n"])
def test_a_text_that_is_not_of_lines_is_not_signed(text: bytes) -> None:
    with pytest.raises(Invalid, match="line"):
        KEY.sign_clear(text, NOW_S)


@pytest.mark.parametrize("text", TEXTS)
def test_a_clear_signed_text_comes_back(text: bytes) -> None:
    signed = KEY.sign_clear(text, NOW_S)
    assert KEY.public.check_clear(signed) == text
    for wrong in (b"before\n" + signed, signed + signed, signed + b"behind", signed[:-40]):
        with pytest.raises(Invalid):
            KEY.public.check_clear(wrong)
    with pytest.raises(Invalid):
        split_clear(signed.replace(b"\n\n", b"\nCharset: utf-8\n\n", 1))


def test_a_key_over_the_bound_is_refused() -> None:
    with pytest.raises(TooLarge):
        PublicKey.load(b"\xc6" * (KEY_BYTES_MAX + 1))


def test_changed_keys_and_signatures_are_refused_in_words() -> None:
    chance = random.Random(3)
    content = hashlib.sha512(b"content")
    signature, armored = KEY.sign(content, NOW_S), KEY.public.armored()
    plain, secret = KEY.public.certificate, KEY.export()
    clear = KEY.sign_clear(b"a text\nof lines\n", NOW_S)

    def changed(data: bytes) -> bytes:
        made = bytearray(data)
        match chance.randrange(3):
            case 0:
                del made[chance.randrange(len(made)) :]
            case 1:
                made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
            case _:
                at = chance.randrange(len(made))
                made[at:at] = chance.randbytes(chance.randrange(1, 9))
        return bytes(made)

    for _ in range(3000):
        for load, whole in (
            (PublicKey.load, armored), (PublicKey.load, plain), (SigningKey.load, secret),
        ):  # fmt: skip
            try:
                load(changed(whole))
            except SwarmError as error:
                assert KEY._seed.hex() not in error.message
        try:
            KEY.public.check(content, changed(signature))
        except SwarmError:
            pass
        else:
            # Blanks around the armor, or its checksum left out, change nothing that is signed.
            continue
        try:
            assert KEY.public.check_clear(changed(clear)).split() == [
                b"a",
                b"text",
                b"of",
                b"lines",
            ]
        except SwarmError:
            pass
