"""A real Portage with a tree of the test's own: hosts side by side, each with its configuration,
its installed packages and its directory of binary packages below one folder. Nothing of the
machine's own is read or written, and nothing is fetched but from where a test says.

`need("portage")` first; `lay_overlay` makes the tree, `lay_host` a host that uses it. A fresh host
with `binhost=` a URL installs from there: `host.emerge("--getbinpkgonly", "=app-misc/hello-1.0")`.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swarmd.domain.packages import split
from swarmd.drivers.portage import PortageSettings

REPOSITORY = "swarmrepo"
FEATURES = (
    "-sandbox -usersandbox -userpriv -usersync -userfetch -ipc-sandbox -network-sandbox"
    " -pid-sandbox -mount-sandbox -news -cgroup binpkg-multi-instance"
)
HELLO = """\
	printf '#include <stdio.h>\\nint main(){puts("hello %s");}\\n' "$(usex loud LOUD quiet)" > h.c
	gcc ${CFLAGS} h.c -o ${PN} || die"""


@dataclass(frozen=True)
class Overlay:
    path: Path
    distfiles: Path
    """What its mirror has: a directory, named to hosts as a mirror of theirs."""

    def ebuild(
        self, cpv: str, *, compile: str = HELLO, install: str = "dobin ${PN}", eapi: int = 8,
        slot: str = "0", keywords: str = "amd64", license: str = "MIT", src_uri: str = "",
        **variables: str,
    ) -> Path:  # fmt: skip
        """A package of the tree: by default a C program of its own name, built by gcc. Further
        variables (DEPEND, RDEPEND, IUSE …) as they are."""
        package = split(cpv)
        named = {
            "DESCRIPTION": f"{package.name} of the tests", "HOMEPAGE": "https://example.org",
            "SRC_URI": src_uri, "LICENSE": license, "SLOT": slot, "KEYWORDS": keywords,
            "IUSE": "loud", **variables,
        }  # fmt: skip
        lines = [f"EAPI={eapi}", *(f'{key}="{value}"' for key, value in named.items())]
        lines += [] if src_uri else ['S="${WORKDIR}"']
        lines += [f"src_compile() {{\n\t{compile.strip()}\n}}" if compile else ""]
        lines += [f"src_install() {{ {install}; }}" if install else ""]
        folder = self.path / package.key
        folder.mkdir(parents=True, exist_ok=True)
        self._category(package.category)
        file = folder / f"{package.file_stem}.ebuild"
        file.write_text("\n".join(lines) + "\n")
        return file

    def distfile(self, package: str, name: str, files: Mapping[str, str]) -> Path:
        """A source archive on the mirror, and its line in the Manifest of category/package."""
        self.distfiles.mkdir(parents=True, exist_ok=True)
        archive = self.distfiles / name
        with tarfile.open(archive, "w:gz") as tar:
            for path, text in files.items():
                info = tarfile.TarInfo(f"{name.removesuffix('.tar.gz')}/{path}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
        data = archive.read_bytes()
        digests = f"BLAKE2B {hashlib.blake2b(data).hexdigest()}"
        digests += f" SHA512 {hashlib.sha512(data).hexdigest()}"
        folder = self.path / package
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "Manifest").open("a") as manifest:
            manifest.write(f"DIST {name} {len(data)} {digests}\n")
        return archive

    def mask(self, *atoms: str) -> None:
        (self.path / "profiles" / "package.mask").write_text("".join(f"{a}\n" for a in atoms))

    def system(self, *atoms: str) -> None:
        """What @system is made of."""
        packages = self.path / "profiles" / "default" / "packages"
        packages.write_text("".join(f"*{a}\n" for a in atoms))

    def _category(self, name: str) -> None:
        categories = self.path / "profiles" / "categories"
        if name not in categories.read_text().split():
            with categories.open("a") as file:
                file.write(f"{name}\n")


@dataclass(frozen=True)
class Host:
    path: Path
    overlay: Overlay
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Where its packages are installed."""
        return self.path / "root"

    @property
    def pkgdir(self) -> Path:
        return self.path / "pkg"

    @property
    def env(self) -> dict[str, str]:
        """What makes Portage this host's: a prefix for its own needs (configuration, caches), and
        a root without one, so that a package fits every other host too."""
        return {
            "PATH": f"{Path(sys.prefix) / 'bin'}:{self.path / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PORTAGE_OVERRIDE_EPREFIX": str(self.path), "EPREFIX": "",
            "PORTAGE_CONFIGROOT": str(self.path), "ROOT": str(self.root),
            "SYSROOT": str(self.root), "LC_ALL": "C.UTF-8", **self.variables,
        }  # fmt: skip

    def settings(
        self, *, options: tuple[str, ...] = (), install_dependencies: bool = False
    ) -> PortageSettings:
        return PortageSettings(
            options=options, env=self.env, install_dependencies=install_dependencies
        )

    def emerge(self, *arguments: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        env = {"HOME": str(self.path), "TERM": "dumb", "NO_COLOR": "1", **self.env}
        command = ["emerge", "--color=n", "--ask=n", *arguments]
        return subprocess.run(
            command, env=env, timeout=timeout_s, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def world(self, *atoms: str) -> None:
        """What its owner selected: @selected, and with @system @world."""
        file = self.root / "var" / "lib" / "portage" / "world"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{atom}\n" for atom in atoms))


def lay_overlay(path: Path) -> Overlay:
    """A tree with a profile and no packages."""
    profile = path / "profiles" / "default"
    profile.mkdir(parents=True)
    _write(path / "metadata" / "layout.conf", """\
        masters =
        thin-manifests = true
        sign-manifests = false
        profile-formats = portage-2
        """)  # fmt: skip
    _write(path / "profiles" / "repo_name", REPOSITORY)
    _write(path / "profiles" / "arch.list", "amd64")
    _write(path / "profiles" / "categories", "app-misc\nvirtual")
    _write(path / "profiles" / "profiles.desc", "amd64 default stable")
    _write(profile / "eapi", "8")
    _write(profile / "packages", "")
    _write(profile / "make.defaults", """\
        ARCH="amd64"
        ACCEPT_KEYWORDS="amd64"
        ACCEPT_LICENSE="* -@EULA"
        CHOST="x86_64-pc-linux-gnu"
        CFLAGS="-O2 -pipe"
        CXXFLAGS="-O2 -pipe"
        USE=""
        IUSE_IMPLICIT=""
        FEATURES=""
        USE_EXPAND=""
        ENV_UNSET=""
        CONFIG_PROTECT="/etc"
        """)  # fmt: skip
    _write(path / "licenses" / "MIT", "MIT")
    _write(path / "licenses" / "Strange", "Strange")
    _write(path / "profiles" / "license_groups", "EULA Strange")
    return Overlay(path, path.parent / f"{path.name}-mirror")


def lay_host(
    path: Path, overlay: Overlay, *, use: str = "loud", binhost: str | None = None,
    verify_signatures: bool = False, features: str = "", make_conf: str = "",
) -> Host:  # fmt: skip
    """A host of its own that builds from the tree, and where `binhost` is a URL installs from it.
    `features` and `make_conf` (lines) come after our own, and so may undo them."""
    etc = path / "etc" / "portage"
    for folder in ("bin", "root/tmp", "pkg", "distfiles", "tmp", "etc/portage/repos.conf"):
        (path / folder).mkdir(parents=True)
    (path / "bin" / "gtar").symlink_to(shutil.which("tar") or "/usr/bin/tar")
    # What Portage reads below its own prefix; without its repos.conf, which names Gentoo's tree.
    shutil.copytree(
        Path(sys.prefix) / "share" / "portage" / "config", path / "share" / "portage" / "config",
        ignore=shutil.ignore_patterns("repos.conf", "binrepos.conf"),
    )  # fmt: skip
    _write(etc / "make.conf", f"""\
        PORTAGE_TMPDIR="{path}/tmp"
        PKGDIR="{path}/pkg"
        DISTDIR="{path}/distfiles"
        GENTOO_MIRRORS="{overlay.distfiles}"
        FEATURES="{FEATURES} {features}"
        BINPKG_FORMAT="gpkg"
        PORTAGE_USERNAME="root"
        PORTAGE_GRPNAME="root"
        USE="{use}"
        {make_conf}
        """)  # fmt: skip
    _write(etc / "repos.conf" / "main.conf", f"""\
        [DEFAULT]
        main-repo = {REPOSITORY}
        [{REPOSITORY}]
        location = {overlay.path}
        """)  # fmt: skip
    if binhost is not None:
        _write(etc / "binrepos.conf", f"""\
            [swarm]
            priority = 1
            sync-uri = {binhost}
            location = {path}/binhost
            verify-signature = {"true" if verify_signatures else "false"}
            """)  # fmt: skip
    (etc / "make.profile").symlink_to(overlay.path / "profiles" / "default")
    return Host(path, overlay)


def build(host: Host, *cpvs: str) -> None:
    """Build binary packages into the host's own PKGDIR, and see that it went well."""
    done = host.emerge("--buildpkgonly", "--oneshot", *(f"={cpv}" for cpv in cpvs))
    assert done.returncode == 0, done.stdout


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (line.strip() for line in text.strip().splitlines())
    file.write_text("".join(f"{line}{os.linesep}" for line in lines))
