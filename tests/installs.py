"""A user's host, which installs what the swarm has built and believes the keys alone that its user
has imported. Needs the parts `portage` and `gpg`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.portage import Host, Overlay, lay_host


def lay_user(folder: Path, tree: Overlay, binhost: str, *keys: bytes, **more: str) -> Host:
    """Of a user who installs from this URL, and only what one of these keys has signed."""
    home = folder / "gnupg"
    home.mkdir(mode=0o700, parents=True)
    for key in keys:
        gpg(home, "--import", given=key)
    shown = gpg(home, "--with-colons", "--list-keys").decode().splitlines()
    prints = [line.split(":")[9] for line in shown if line.startswith("fpr:")]
    assert len(prints) == len(keys)
    gpg(home, "--import-ownertrust", given="".join(f"{p}:6:\n" for p in prints).encode())
    gpg(home, "--check-trustdb")
    return lay_host(
        folder / "host", tree, verify_signatures=True, binhost=binhost,
        features="binpkg-request-signature",
        # The account that gpg runs as must get at its home, and this one lies in a test's folder.
        make_conf=f'BINPKG_GPG_VERIFY_GPG_HOME="{home}"\nGPG_VERIFY_USER_DROP=""\n'
        'GPG_VERIFY_GROUP_DROP=""',
        **more,
    )  # fmt: skip


def gpg(home: Path, *arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(
        ["gpg", "--homedir", home, "--batch", "--no-autostart", *arguments],
        input=given, check=True, capture_output=True, timeout=30,
    ).stdout  # fmt: skip


def install(host: Host, *atoms: str) -> subprocess.CompletedProcess[str]:
    return host.emerge("--getbinpkgonly", "--oneshot", *atoms)
