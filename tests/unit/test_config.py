"""Configuration: each source, their order, where a value came from, and every refusal's words."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from api.common.limits import HttpLimits
from swarmd import values
from swarmd.config import Config, DownloadsSection, HttpSection, JobsSection
from swarmd.config_sources import LEAVES, load, report
from swarmd.domain.errors import Invalid, SwarmError
from swarmd.drivers.http import HttpSettings
from swarmd.paths import default_data_dir, find_data_dir, make_data_dir


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which nothing of this machine is found."""
    monkeypatch.setattr("swarmd.paths.SYSTEM_CONFIG_FILE", tmp_path / "etc" / "swarmd.toml")
    return {"HOME": str(tmp_path), "SWARMD_DATA_DIR": str(tmp_path / "data")}


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "some.toml"
    file.write_text(text)
    return file


def test_later_sources_win_and_each_value_remembers_its_own(
    home: dict[str, str], tmp_path: Path
) -> None:
    file = write(
        tmp_path,
        '[node]\nname = "from-file"\nbind = ["::1"]\n[jobs]\nslots = 1\n[http]\nheaders_max = 50\n',
    )
    env = home | {"SWARMD_NODE_NAME": "from-env", "SWARMD_JOBS_SLOTS": "2"}
    config = load(env, {"node.name": "from-flag", "node.bind": ()}, file=file)
    assert (config.node.name, config.jobs.slots) == ("from-flag", 2)
    assert (config.http.headers_max, config.node.bind) == (50, ("::1",))
    assert {p: config.origins[p] for p in ("node.name", "jobs.slots", "http.headers_max")} == {
        "node.name": "flag --name",
        "jobs.slots": "environment SWARMD_JOBS_SLOTS",
        "http.headers_max": f"file {file}",
    }
    assert config.origins["log.level"] == "default"
    assert config.origins["node.data_dir"] == "environment SWARMD_DATA_DIR"


def test_file_is_looked_for_in_the_data_directory_then_in_the_system(
    home: dict[str, str], tmp_path: Path
) -> None:
    system, own = tmp_path / "etc" / "swarmd.toml", tmp_path / "data" / "swarmd.toml"
    for place, name in ((system, "system"), (own, "own")):
        assert load(home).node.name != name
        place.parent.mkdir()
        place.write_text(f'[node]\nname = "{name}"\n')
        assert load(home).node.name == name
    named = write(tmp_path, '[node]\nname = "named"\n')
    assert load(home | {"SWARMD_CONFIG": str(named)}).node.name == "named"


def test_sizes_times_lists_and_pairs_are_read_as_people_write_them(
    home: dict[str, str], tmp_path: Path
) -> None:
    file = write(
        tmp_path,
        '[http]\nbody_bytes_max = "8MiB"\nidle_timeout_s = "2m"\nbody_timeout_s = 5\n'
        '[node.labels]\ndisk = "ssd"\n[surfaces.console]\nhosts = ["a.example", "[fd00::1]"]\n',
    )
    env = home | {"SWARMD_NODE_BIND": "127.0.0.1, [::1]", "SWARMD_JOBS_EXECUTOR": "off"}
    config = load(env, file=file)
    assert (config.http.body_bytes_max, config.http.idle_timeout_s) == (8 * 1024**2, 120.0)
    assert config.http.body_timeout_s == 5.0
    assert dict(config.node.labels) == {"disk": "ssd"}
    assert config.surfaces.console.hosts == ("a.example", "fd00::1")
    assert config.node.bind == ("127.0.0.1", "::1")
    assert config.jobs.executor is False
    assert dict(load(home | {"SWARMD_NODE_LABELS": "a=1,b=2"}).node.labels) == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nodes]\n", "did you mean node?"),
        ('[node]\nnam = "a"\n', "did you mean node.name?"),
        ("[surfaces.jobqeue]\nport = 1\n", "did you mean surfaces.jobqueue?"),
        ("[surfaces.jobqueue]\nprot = 1\n", "did you mean surfaces.jobqueue.port?"),
        ("node = 3\n", "node in"),
        ("file = 3\n", "is no setting"),
        ("origins = 3\n", "is no setting"),
        ('[jobs]\nslots = "four"\n', "write a whole number"),
        ('[surfaces.jobqueue]\nport = "8080"\n', "write a whole number"),
        ("[surfaces.jobqueue]\nport = 70000\n", "write 0 to 65535"),
        ("[surfaces.jobqueue]\nport = true\n", "write a whole number"),
        ("[jobs]\nslots = -1\n", "write 1 to"),
        ("[jobs]\ngrace_s = nan\n", "write a length of time"),
        ("[jobs]\nkeep_s = inf\n", "write a length of time"),
        ('[jobs]\nkeep_s = "2 weeks"\n', "500ms, 30s, 5m or 48h"),
        ('[jobs]\ncache_bytes_max = "4 quarts"\n', "64MiB, 400MB or 65536"),
        ("[jobs]\ncache_bytes_max = 1.5\n", "a size such as"),
        ("[jobs]\nexecutor = 1\n", "write true or false"),
        ('[node]\nbind = "127.0.0.1"\n', "write a list"),
        ('[node]\nbind = ["localhost"]\n', "is no IP address"),
        ('[node]\nbind = ["127.0.0.1:80"]\n', "without a port"),
        ('[node]\nadvertise = "300.1.1.1"\n', "is no HOST[:PORT]"),
        ('[node]\nname = "a b"\n', "is no node name"),
        ('[node]\nname = "a\\u0000b"\n', "cannot be printed"),
        ('[node.labels]\n"a b" = "1"\n', "is no name for a label"),
        ('[node.labels]\na = "1 2"\n', "no space"),
        ('[log]\nlevel = "loud"\n', "write one of debug, info, warning, error"),
        ('[downloads]\nca_file = "ca.pem"\n', "write an absolute path"),
        ("[jobs]\nlog_bytes_max = 2000000\nlogs_total_bytes_max = 1500000\n", "is larger than"),
        ("[surfaces.console]\nport = 8080\n", "are both 8080 at 127.0.0.1"),
        ("[surfaces.buildadmin]\nopen = true\n", "takes the admin key always"),
        ('[payloads]\nbinary_mode = "rwx"\n', "three octal digits"),
        ('[builder]\ncommand = "chroot \'/mnt emerge"\n', "is no command: No closing quotation"),
        ('[builder]\ncommand = " "\n', "write a command such as emerge"),
        ('[builder]\nenv = ["FEATURES"]\n', "write NAME=VALUE, such as FEATURES=ccache"),
        ('[payloads]\nconfig = "etc/config"\n', "write an absolute path"),
        ("[node\n", "is no TOML"),
        ("a = " + "[" * 10_000, "is no TOML"),
    ],
)
def test_file_that_is_wrong_is_refused_with_what_would_be_right(
    home: dict[str, str], tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(SwarmError) as refusal:
        load(home, file=write(tmp_path, text))
    assert words in refusal.value.message
    assert refusal.value.message.isprintable()


def test_every_setting_has_words_and_takes_its_own_default(home: dict[str, str]) -> None:
    for path, value, origin in report(load(home)):
        assert LEAVES[path].field.metadata["words"], path
        if value not in (None, [], {}) and origin == "default":
            text = ",".join(value) if isinstance(value, list) else str(value)
            again = load(home | {LEAVES[path].env_name: text})
            assert {p: v for p, v, _ in report(again)}[path] == value
            assert again.origins[path] == f"environment {LEAVES[path].env_name}"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("SWARMD_JOB_SLOT", None),  # what a job finds in its environment
        ("SWARMD_PORT_8080_TCP_ADDR", None),  # what Kubernetes puts there
        ("SWARMD_SERVICE_HOST", None),
        ("SWARMD_JOBS_SLOT", "SWARMD_JOBS_SLOTS"),
        ("SWARMD_DATADIR", "SWARMD_DATA_DIR"),
        ("SWARMD_XYZZY", "`swarmd config` lists all"),
    ],
)
def test_variable_that_is_no_setting_is_refused(
    home: dict[str, str], name: str, near: str | None
) -> None:
    if near is None:
        load(home | {name: "x"})
        return
    with pytest.raises(Invalid, match=f"{name} in the environment is no setting.*{near}"):
        load(home | {name: "1"})


def test_admin_key_is_masked_everywhere(home: dict[str, str], tmp_path: Path) -> None:
    config = load(home | {"ADMIN_KEY": "open-sesame", "SWARMD_SECURITY_ADMIN_KEY": "other"})
    assert config.security.admin_key == "open-sesame"
    assert "open-sesame" not in json.dumps(report(config)) + repr(config)
    with pytest.raises(Invalid) as refusal:
        load(home | {"ADMIN_KEY": "open sesame"})
    assert "sesame" not in refusal.value.message
    assert load(home | {"ADMIN_KEY": ""}).security.admin_key is None


def test_admin_key_in_a_file_that_others_may_read_is_refused(
    home: dict[str, str], tmp_path: Path
) -> None:
    file = write(tmp_path, '[security]\nadmin_key = "open-sesame"\n')
    file.chmod(0o644)
    with pytest.raises(Invalid, match="chmod 600"):
        load(home, file=file)
    file.chmod(0o600)
    assert load(home, file=file).security.admin_key == "open-sesame"


def test_missing_file_is_an_error_only_where_it_was_named(home: dict[str, str]) -> None:
    load(home)
    with pytest.raises(Invalid, match="cannot be read: No such file"):
        load(home, file=Path("/nonexistent/swarmd.toml"))


def test_data_directory_of_root_and_of_others() -> None:
    assert default_data_dir({}, 0) == Path("/var/lib/swarmd")
    assert default_data_dir({"HOME": "/home/u"}, 1) == Path("/home/u/.local/state/swarmd")
    env = {"HOME": "/home/u", "XDG_STATE_HOME": "/state"}
    assert default_data_dir(env, 1) == Path("/state/swarmd")
    with pytest.raises(Invalid, match="give --data-dir"):
        default_data_dir({}, 1)


def test_commands_find_the_directory_that_up_would_choose(
    home: dict[str, str], tmp_path: Path
) -> None:
    file = write(tmp_path, '[node]\ndata_dir = "place"\n')
    env = {"HOME": str(tmp_path), "SWARMD_CONFIG": str(file)}
    assert find_data_dir(env, None, 1000) == tmp_path / "place"
    assert load(env, uid=1000).node.data_dir == tmp_path / "place"
    assert find_data_dir(env | {"SWARMD_DATA_DIR": "/d"}, None, 1000) == Path("/d")
    assert find_data_dir(env, Path("/e"), 1000) == Path("/e")


def test_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    make_data_dir(made)
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    make_data_dir(made)
    assert made.stat().st_mode & 0o777 == 0o711
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="cannot be made"):
        make_data_dir(tmp_path / "file" / "x")
    if os.geteuid() == 0:
        os.chown(made, 12345, 12345)
        with pytest.raises(Invalid, match="belongs to user 12345"):
            make_data_dir(made)


def test_sections_mirror_the_settings_of_their_components() -> None:
    """The daemon fills a component's settings by name: both have to agree, defaults too."""
    limits = HttpLimits()
    for each in dataclasses.fields(HttpSection):
        assert getattr(limits, each.name) == getattr(HttpSection(), each.name), each.name
    settings = HttpSettings()
    for each in dataclasses.fields(DownloadsSection):
        assert getattr(settings, each.name) == getattr(DownloadsSection(), each.name), each.name


def test_config_and_its_sections_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().jobs.slots = 3  # type: ignore[misc]
    assert JobsSection().keep_s == 48 * 3600


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 8473),
        ("10.0.0.1:99", "10.0.0.1", 99),
        ("[fd00::1]:99", "fd00::1", 99),
        ("[FD00:0::1]", "fd00::1", 8473),
        ("fd00::1", "fd00::1", 8473),
        ("Name.Example:1", "name.example", 1),
        ("node_1", "node_1", 8473),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert values.host_and_port(text, 8473) == (host, port)
    assert values.host_and_port(values.joined(host, port), 1) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":80", "a:", "a:0", "a:65536", "a:b", "[a]:1", "[::1", "::1]", "1.2.3", "1.2.3.4.5",
     "-a", "a..b", "a b", "http://a", "a/b", "[::1]x", "a" * 64, "é.example", "a:1:2", "a\n"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is no HOST"):
        values.host_and_port(text, 8473)
