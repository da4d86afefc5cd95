"""Where settings come from: defaults, a TOML file, the environment, flags; the later one wins.

Whatever a source names that is no setting is refused with the nearest one that is.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from swarmd import values
from swarmd.config import SECTIONS, Config
from swarmd.domain.errors import Invalid
from swarmd.paths import default_data_dir, default_node_name, find_config_file, read_toml

MESH_PORT = 8473
INT_MAX = 2**53
LIST_MAX = 64
SHORT_NAMES = {"SWARMD_DATA_DIR": "node.data_dir", "ADMIN_KEY": "security.admin_key"}
"""Environment names beside the regular SWARMD_SECTION_KEY."""
NOT_SETTINGS = re.compile(
    r"SWARMD_(CONFIG|REQUIRE_PARTS|CONFORMANCE"
    r"|(JOB|ATTEMPT)(_.*)?"  # what a job finds in its environment
    r"|SERVICE_.*|PORT(_.*)?)"  # what Kubernetes sets beside a service of that name
)


def load(
    env: Mapping[str, str],
    flags: Mapping[str, object] = MappingProxyType({}),
    *,
    file: Path | None = None,
    uid: int | None = None,
) -> Config:
    """The configuration in force. `flags` are by dotted path, a None among them was not given."""
    given = {path: value for path, value in flags.items() if value not in (None, ())}
    from_env = dict(_from_environment(env))
    usual = default_data_dir(env, os.geteuid() if uid is None else uid)
    named = given.get("node.data_dir") or from_env.get("node.data_dir", (None, ""))[0]
    chosen = find_config_file(env, file, Path(str(named)).absolute() if named else usual)

    found = {"node.data_dir": (usual, "default"), "node.name": (default_node_name(), "default")}
    if chosen is not None:
        for path, value in _from_table(read_toml(chosen), chosen):
            found[path] = _read(path, value, chosen, f"file {chosen}", text=False), f"file {chosen}"
    for path, (words, name) in from_env.items():
        found[path] = _read(path, words, Path(), name, text=True), f"environment {name}"
    for path, value in given.items():
        flag = "--" + LEAVES[path].field.name.replace("_", "-")
        found[path] = _read(path, value, Path(), flag, text=True), f"flag {flag}"

    origins = {path: found[path][1] if path in found else "default" for path in LEAVES}
    config: Config = _with(Config(), {path: value for path, (value, _) in found.items()})
    config = replace(config, file=chosen, origins=MappingProxyType(origins))
    _check(config)
    return config


def report(config: Config) -> list[tuple[str, object, str]]:
    """Every setting in force: its path, its value in JSON's terms, its origin. Secrets masked."""
    rows: list[tuple[str, object, str]] = []
    for path, leaf in LEAVES.items():
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        if leaf.field.metadata["secret"] and value is not None:
            value = "***"
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        rows.append((path, value, config.origins.get(path, "default")))
    return rows


@dataclass(frozen=True)
class Leaf:
    path: str
    field: Field[Any]
    default: object

    @property
    def type(self) -> str:
        return str(self.field.type).removesuffix(" | None")

    @property
    def env_name(self) -> str:
        return "SWARMD_" + self.path.replace(".", "_").upper()

    @property
    def is_size(self) -> bool:
        return "_bytes" in self.field.name

    @property
    def is_duration(self) -> bool:
        return self.field.name.endswith("_s")


def _leaves(section: Any, prefix: str) -> Iterator[Leaf]:
    for each in fields(section):
        value = getattr(section, each.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{each.name}.")
        elif prefix:
            yield Leaf(f"{prefix}{each.name}", each, value)


LEAVES: Mapping[str, Leaf] = {leaf.path: leaf for leaf in _leaves(Config(), "")}
_ENV_NAMES = {leaf.env_name: path for path, leaf in LEAVES.items()} | SHORT_NAMES
_TABLES = {path.rpartition(".")[0] for path in LEAVES} | set(SECTIONS)


def _from_environment(env: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """An empty variable counts as one that is not set; a short name wins over the regular one."""
    for name in sorted(env, key=lambda name: (name in SHORT_NAMES, name)):
        if name in _ENV_NAMES:
            if env[name]:
                yield _ENV_NAMES[name], (env[name], name)
        elif name.startswith("SWARMD_") and not NOT_SETTINGS.fullmatch(name):
            raise Invalid(f"{name} in the environment is no setting{_nearest(name, _ENV_NAMES)}")


def _from_table(
    table: Mapping[str, object], file: Path, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        path = prefix + key
        if path in LEAVES:
            yield path, value
        elif path not in _TABLES:
            known = {p for p in (*LEAVES, *_TABLES) if p.rpartition(".")[0] == prefix[:-1]}
            near = _nearest(path, known) or _nearest(path, LEAVES)
            raise Invalid(f"{path} in {file} is no setting{near}")
        elif not isinstance(value, dict):
            raise Invalid(f"{path} in {file} is a section: write [{path}] and its keys below")
        else:
            yield from _from_table(value, file, f"{path}.")


def _nearest(name: str, known: Mapping[str, object] | set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; `swarmd config` lists all"


def _read(path: str, value: object, file: Path, source: str, *, text: bool) -> object:
    """The value as its section holds it, or a refusal that names setting, source and remedy."""
    leaf = LEAVES[path]
    try:
        result = _READERS[leaf.type](leaf, value, text)
        if isinstance(result, Path):
            result = (file.parent / result.expanduser()).absolute()
        _check_bounds(leaf, result)
        strict = _KINDS.get(leaf.field.metadata["kind"])
        if strict is None:
            return result
        return tuple(map(strict, result)) if isinstance(result, tuple) else strict(result)
    except Invalid as problem:
        raise Invalid(f"{path} from {source}: {problem.message}", setting=path) from None


def _read_str(leaf: Leaf, value: object, text: bool) -> str:
    if not isinstance(value, str):
        raise Invalid(f"is {_shown(value)}; write a text in quotes")
    if not value.isprintable() or len(value) > 4096:
        raise Invalid("holds characters that cannot be printed, or more than 4096 of them")
    return value


def _read_int(leaf: Leaf, value: object, text: bool) -> int:
    if isinstance(value, str) and leaf.is_size:
        return values.size_bytes(value)
    if isinstance(value, str) and text and re.fullmatch(r"-?\d{1,18}", value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        example = 'a size such as 65536 or "64MiB"' if leaf.is_size else "a whole number"
        raise Invalid(f"is {_shown(value)}; write {example}")
    return value


def _read_float(leaf: Leaf, value: object, text: bool) -> float:
    if isinstance(value, str) and leaf.is_duration:
        return values.duration_s(value)
    if isinstance(value, str) and text and re.fullmatch(r"-?\d{1,15}(\.\d{1,15})?", value.strip()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        example = 'a length of time such as 30 or "30s"' if leaf.is_duration else "a number"
        raise Invalid(f"is {_shown(value)}; write {example}")
    return float(value)


def _read_bool(leaf: Leaf, value: object, text: bool) -> bool:
    if isinstance(value, str) and text:
        return values.truth(value)
    if not isinstance(value, bool):
        raise Invalid(f"is {_shown(value)}; write true or false")
    return value


def _read_path(leaf: Leaf, value: object, text: bool) -> Path:
    words = str(value) if isinstance(value, Path) else _read_str(leaf, value, text)
    if not words:
        raise Invalid("is empty; write a directory")
    return Path(words)


def _read_list(leaf: Leaf, value: object, text: bool) -> tuple[str, ...]:
    if isinstance(value, str) and text:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or len(value) > LIST_MAX:
        raise Invalid(f"is {_shown(value)}; write a list of up to {LIST_MAX} texts in quotes")
    return tuple(_read_str(leaf, part, text) for part in value)


def _read_pairs(leaf: Leaf, value: object, text: bool) -> Mapping[str, str]:
    if isinstance(value, str) and text:
        value = values.pairs(value)
    if not isinstance(value, dict) or len(value) > LIST_MAX:
        raise Invalid(f'is {_shown(value)}; write a table of up to {LIST_MAX} NAME = "VALUE"')
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9_.\-/]{1,64}", name):
            raise Invalid(
                f"{name[:80]!r} is no name for a label; use up to 64 letters, digits and _ . - /"
            )
    found = {name: _read_str(leaf, part, text) for name, part in value.items()}
    if any(not re.fullmatch(r"\S{1,128}", part) for part in found.values()):
        raise Invalid("a label's value has 1 to 128 characters and no space, as constraints need")
    return MappingProxyType(found)


_READERS: dict[str, Callable[[Leaf, object, bool], object]] = {
    "str": _read_str,
    "int": _read_int,
    "float": _read_float,
    "bool": _read_bool,
    "Path": _read_path,
    "tuple[str, ...]": _read_list,
    "Mapping[str, str]": _read_pairs,
}


def _read_key(text: Any) -> str:
    if not re.fullmatch(r"[!-~]{1,256}", text):
        # Its value is a secret: the refusal must not repeat it.
        raise Invalid("a key has 1 to 256 printable ASCII characters and no space")
    return str(text)


def _read_file(text: Any) -> str:
    if not text.startswith("/"):
        raise Invalid(f"is {_shown(text)}; write an absolute path")
    return str(text)


def _read_token(text: Any) -> str:
    from mesh.identity.tokens import parse_token  # late: few commands need it
    from mesh.wires import WireError

    try:
        parse_token(text)
    except WireError as error:
        raise Invalid(error.message) from None
    return str(text).strip()


def _read_unit(text: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,240}\.service", text):
        raise Invalid(f"is {_shown(text)}; write a unit such as swarmd-runner.service")
    return str(text)


def _read_mode(text: Any) -> str:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise Invalid(f'is {_shown(text)}; write three octal digits in quotes, such as "0755"')
    return str(text)


def _read_service(text: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@:._-]{0,127}", text):
        raise Invalid(f"is {_shown(text)}; write the name of a service, such as swarm-drone")
    return str(text)


def _read_command(text: Any) -> str:
    try:
        words = shlex.split(text)
    except ValueError as problem:
        raise Invalid(f"is {_shown(text)}, which is no command: {problem}") from None
    if not words:
        raise Invalid("is empty; write a command such as emerge, or leave it out")
    return str(text)


def _read_variable(text: Any) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}=.*", text):
        raise Invalid(f"holds {_shown(text)}; write NAME=VALUE, such as FEATURES=ccache")
    return str(text)


_KINDS: dict[str, Callable[[Any], str]] = {
    "name": values.node_name,
    "ip": values.ip_address,
    "host": values.host_name,
    "host-port": lambda text: values.joined(*values.host_and_port(text, MESH_PORT)),
    "key": _read_key,
    "join-token": _read_token,
    "file": _read_file,
    "unit": _read_unit,
    "service": _read_service,
    "mode": _read_mode,
    "command": _read_command,
    "variable": _read_variable,
}


def _check_bounds(leaf: Leaf, value: object) -> None:
    facts = leaf.field.metadata
    if facts["choices"] and value not in facts["choices"]:
        raise Invalid(f"is {_shown(value)}; write one of {', '.join(facts['choices'])}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low = 0 if facts["low"] is None else facts["low"]
        high = INT_MAX if facts["high"] is None else facts["high"]
        if not low <= value <= high:
            raise Invalid(f"is {value:g}; write {low:g} to {high:g}")


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 80 else words[:77] + "..."


def _with(section: Any, found: Mapping[str, object]) -> Any:
    """The section with its found values in place, whole subtrees at a time."""
    changes: dict[str, Any] = {}
    for each in fields(section):
        inner = {path.partition(".")[2]: value for path, value in found.items()
                 if path.partition(".")[0] == each.name}  # fmt: skip
        if "" in inner:
            changes[each.name] = inner[""]
        elif inner:
            changes[each.name] = _with(getattr(section, each.name), inner)
    return replace(section, **changes)


def _check(config: Config) -> None:
    """What no single setting can be wrong about by itself."""
    places: dict[tuple[str, int], str] = {}
    for name, surface in config.surfaces.by_name().items():
        if not surface.enabled or surface.port == 0:
            continue
        for address in surface.bind or config.node.bind:
            other = places.setdefault((address, surface.port), name)
            if other != name:
                raise Invalid(
                    f"surfaces.{other}.port and surfaces.{name}.port are both"
                    f" {surface.port} at {address}; move one, or switch one off"
                )
    if config.surfaces.buildadmin.open:
        raise Invalid(
            "surfaces.buildadmin.open cannot be true: that surface takes the admin key always"
        )
    if config.jobs.log_bytes_max > config.jobs.logs_total_bytes_max:
        raise Invalid("jobs.log_bytes_max is larger than jobs.logs_total_bytes_max")
    origin = config.origins.get("security.admin_key", "")
    if (
        config.file is not None
        and origin.startswith("file ")
        and config.file.stat().st_mode & 0o077
    ):
        raise Invalid(
            f"{config.file} holds security.admin_key and others may read it;"
            f" say chmod 600 {config.file}, or give the key as ADMIN_KEY"
        )
