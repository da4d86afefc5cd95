"""An identity on disk: whole or as it was before, and nobody else's to read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import files
from mesh.identity.contexts import tls_of
from mesh.identity.errors import IdentityError
from mesh.identity.files import (
    FILE_NAME,
    Identity,
    load_identity,
    make_identity,
    parse_identity,
    save_identity,
)
from tests.unit.test_identity import CA, DAY_S, ID, NOW, OTHER, member

WHOLE = member()
BARE = make_identity(ID, os.urandom)


def same(one: Identity | None, other: Identity) -> bool:
    return one is not None and one.pem() == other.pem()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    assert load_identity(folder) is None
    for identity in (BARE, WHOLE):
        save_identity(folder, identity)
        found = load_identity(folder)
        assert same(found, identity) and found is not None
        assert (found.node_id, found.public_key) == (ID, identity.public_key)
        assert found.box_key == identity.box_key and found.certificate == identity.certificate
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in folder.iterdir()] == [FILE_NAME]
    assert (folder / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(WHOLE)


def test_an_ended_certificate_is_loaded_all_the_same(tmp_path: Path) -> None:
    old = member(now=NOW - 1000 * DAY_S)
    save_identity(tmp_path / "identity", old)
    assert same(load_identity(tmp_path / "identity"), old)


def test_an_empty_folder_is_no_identity_and_leftovers_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    folder.mkdir(mode=0o700)
    (folder / f"{FILE_NAME}.new").write_bytes(WHOLE.pem()[:100])
    assert load_identity(folder) is None
    save_identity(folder, BARE)
    assert same(load_identity(folder), BARE)
    assert not (folder / f"{FILE_NAME}.new").exists()


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "sync", "mkdir"])
def test_a_stop_at_any_point_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Stop

    for before in (None, BARE):
        folder = tmp_path / f"{call}-{before is None}"
        if before is not None:
            save_identity(folder, before)
        with monkeypatch.context() as patch:
            if call == "fsync":
                patch.setattr(os, "fsync", stop)
            elif call == "write":
                patch.setattr(os, "fchmod", stop)
            elif call == "replace":
                patch.setattr(Path, "replace", stop)
            elif call == "sync":
                patch.setattr(files, "_sync_directory", stop)
            else:
                patch.setattr(Path, "mkdir", stop)
            if call == "mkdir" and before is not None:
                continue
            with pytest.raises(Stop):
                save_identity(folder, WHOLE)
        found = load_identity(folder)
        assert (found is None and before is None) or any(
            same(found, identity) for identity in (before or WHOLE, WHOLE)
        )
        save_identity(folder, WHOLE)
        assert same(load_identity(folder), WHOLE)


def test_files_that_others_may_read_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    save_identity(folder, WHOLE)
    file = folder / FILE_NAME
    file.chmod(0o640)
    with pytest.raises(IdentityError, match=f"chmod 600 {file}"):
        load_identity(folder)
    file.chmod(0o600)
    folder.chmod(0o755)
    with pytest.raises(IdentityError, match=f"chmod 700 {folder}"):
        load_identity(folder)
    folder.chmod(0o700)
    assert same(load_identity(folder), WHOLE)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    folder.mkdir(mode=0o700)
    (folder / FILE_NAME).symlink_to("/dev/zero")
    with pytest.raises(OSError):
        load_identity(folder)
    (folder / FILE_NAME).unlink()
    os.mkfifo(folder / FILE_NAME, 0o600)
    with pytest.raises(IdentityError, match="no plain file"):
        load_identity(folder)


@given(st.data())
def test_torn_or_changed_files_are_refused(data: st.DataObject) -> None:
    raw = bytearray((WHOLE if data.draw(st.booleans()) else BARE).pem())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IdentityError) as caught:
        parse_identity(bytes(raw), Path("node.pem"))
    assert caught.value.reason == "file"
    # Nothing of the keys comes into the words.
    assert not any(line in caught.value.message for line in WHOLE.pem().decode().splitlines()[3:])


@given(st.binary(max_size=3000))
def test_any_bytes_are_no_identity(raw: bytes) -> None:
    with pytest.raises(IdentityError):
        parse_identity(raw, Path("node.pem"))


def test_a_certificate_of_another_is_not_taken() -> None:
    fresh = make_identity(ID, os.urandom)
    of_other = member(node_id=ID.replace("1", "2"))
    assert WHOLE.certificate is not None and of_other.certificate is not None
    for wrong in (WHOLE.certificate.der, of_other.certificate.der):
        with pytest.raises(IdentityError, match="of another node or key"):
            fresh.certified(wrong, CA.certificate, NOW)
    moved = OTHER.issue(ID, WHOLE.public_key, NOW)
    with pytest.raises(IdentityError, match="another swarm's authority"):
        WHOLE.certified(moved, OTHER.certificate, NOW)
    newer = CA.issue(ID, WHOLE.public_key, NOW + 60 * DAY_S)
    renewed = WHOLE.certified(newer, CA.certificate, NOW + 60 * DAY_S)
    assert renewed.certificate is not None and renewed.public_key == WHOLE.public_key
    assert renewed.certificate.ends_s == NOW + 150 * DAY_S


def test_there_is_no_tls_without_a_certificate() -> None:
    with pytest.raises(IdentityError, match="no certificate yet"):
        tls_of(BARE)
    with pytest.raises(IdentityError, match="not joined a swarm yet"):
        _ = BARE.pin
    assert WHOLE.pin == CA.pin
