"""The job queue's bodies and queries: what is taken, and that each refusal names its field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.common.jobfields import ARGUMENT_BYTES_MAX, memory_bytes_of
from api.jobqueue.requests import JobIn, known_form, list_filter
from swarmd.domain.errors import Invalid, NotFound
from swarmd.domain.jobs import Constraint, Fetch, JobKind, JobSpec, JobStatus, Priority, Resources

SHA256 = "ab" * 32
PLAIN: dict[str, Any] = {
    "type": "data-processing",
    "binary_url": "https://example.com/binary",
    "binary_sha256": SHA256,
    "priority": "background",
}


def spec_of(**members: Any) -> JobSpec:
    return msgspec.convert({**PLAIN, **members}, JobIn).spec()


def test_the_least_a_job_can_say() -> None:
    assert spec_of() == JobSpec(
        type="data-processing",
        source=Fetch("https://example.com/binary", SHA256),
        priority=Priority.BACKGROUND,
    )


def test_all_that_a_job_can_say() -> None:
    spec = spec_of(
        arguments=["a", "", "ü"],
        env_variables={"KEY": "v=w"},
        timeout_seconds=1.5,
        disconnect_seconds=90,
        max_retries=3,
        depends_on=["x", "y", "x"],
        idempotency_key="once",
        resources={"cpus": 0.5, "memory": "64MiB", "gpus": 1, "pids": 10},
        constraints=["node.labels.disk == ssd"],
        labels={"team": "blue"},
    )
    assert spec.arguments == ("a", "", "ü")
    assert spec.env == {"KEY": "v=w"}
    assert (spec.timeout_s, spec.max_retries, spec.depends_on) == (1.5, 3, ("x", "y"))
    assert spec.disconnect_s == 90
    assert spec.idempotency_key == "once"
    assert spec.resources == Resources(cpus=0.5, memory_bytes=64 * 2**20, gpus=1, pids=10)
    assert spec.constraints == (Constraint("node.labels.disk", "==", "ssd"),)
    assert spec.labels == {"team": "blue"}


def test_null_is_as_good_as_absent_and_unknown_members_are_ignored() -> None:
    optional = [name for name in JobIn.__struct_fields__ if name not in PLAIN]
    assert spec_of(**dict.fromkeys(optional), colour="red") == spec_of()


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/x",
        "HTTPS://user:secret@example.com:8443/x?y=1",
        "http://[::1]:80/",
        f"blob:sha256:{SHA256}",
        f"blob:sha256:{SHA256.upper()}",
    ],
)
def test_urls_that_are_taken(url: str) -> None:
    spec = spec_of(binary_url=url)
    assert isinstance(spec.source, Fetch)
    assert spec.source.url.lower() == url.lower()


@pytest.mark.parametrize(
    "url",
    [
        "", "ftp://a/b", "file:///bin/true", "/bin/true", "http://", "http:///x", "http://[::1",
        "http://a:0/", "http://a:99999/", "http://a b/", "http://a/\n", "http://a/\0",
        "javascript:alert(1)", "blob:sha256:zz", "blob:" + SHA256, "blob:sha256:" + "cd" * 32,
        "http://" + "a" * 9000,
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(Invalid) as refusal:
        spec_of(binary_url=url)
    assert refusal.value.facts["field"] == "binary_url"


def test_a_refused_url_never_repeats_its_password() -> None:
    with pytest.raises(Invalid) as refusal:
        spec_of(binary_url="ftp://user:secret@host/x")
    assert "secret" not in str(refusal.value.facts) + refusal.value.message


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"type": ""}, "type"),
        ({"type": "two words"}, "type"),
        ({"type": "tab\t"}, "type"),
        ({"type": "nul\0"}, "type"),
        ({"type": "x" * 129}, "type"),
        ({"binary_sha256": "ab"}, "binary_sha256"),
        ({"binary_sha256": "g" * 64}, "binary_sha256"),
        ({"priority": ""}, "priority"),
        ({"priority": "urgent"}, "priority"),
        ({"arguments": ["a", "b\0"]}, "arguments[1]"),
        ({"arguments": ["a"] * 1001}, "arguments"),
        ({"arguments": ["a" * (ARGUMENT_BYTES_MAX + 1)]}, "arguments[0]"),
        ({"arguments": ["ü" * 70_000]}, "arguments[0]"),
        ({"arguments": ["a" * 100_000] * 3}, "arguments"),
        ({"env_variables": {"": "x"}}, "env_variables"),
        ({"env_variables": {"A=B": "x"}}, "env_variables"),
        ({"env_variables": {"A": "\0"}}, "env_variables.A"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"disconnect_seconds": -1}, "disconnect_seconds"),
        ({"disconnect_seconds": 604_801}, "disconnect_seconds"),
        ({"disconnect_seconds": float("nan")}, "disconnect_seconds"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 101}, "max_retries"),
        ({"depends_on": ["x"] * 101}, "depends_on"),
        ({"depends_on": [""]}, "depends_on"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "k" * 129}, "idempotency_key"),
        ({"resources": {"cpus": 0}}, "resources.cpus"),
        ({"resources": {"gpus": -1}}, "resources.gpus"),
        ({"resources": {"pids": 0}}, "resources.pids"),
        ({"resources": {"memory": "lots"}}, "resources.memory"),
        ({"resources": {"memory": 1}}, "resources.memory"),
        ({"resources": {"memory": 2**30, "memory_bytes": 2**30}}, "resources.memory"),
        ({"constraints": ["disk is ssd"]}, "constraints"),
        ({"labels": {"a b": "c"}}, "labels"),
        ({"labels": {"a": "\n"}}, "labels.a"),
        ({"labels": {str(n): "x" for n in range(65)}}, "labels"),
    ],
)
def test_a_refusal_names_its_field(members: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        spec_of(**members)
    assert refusal.value.facts["field"] == field


def test_a_limit_that_is_not_known_is_refused_rather_than_ignored() -> None:
    with pytest.raises(msgspec.ValidationError):
        spec_of(resources={"cpu": 1})


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (5 * 2**20, 5 * 2**20),
        ("5242880", 5 * 2**20),
        ("512MiB", 512 * 2**20),
        ("512m", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("2G", 2 * 2**30),
        ("500MB", 500_000_000),
    ],
)
def test_sizes(text: int | str, size_bytes: int) -> None:
    assert memory_bytes_of(text) == size_bytes


def test_a_list_without_parameters() -> None:
    wanted = list_filter({})
    assert (wanted.kind, wanted.limit, wanted.offset) == (JobKind.BINARY, 100, 0)
    assert (wanted.statuses, wanted.type, wanted.priority) == ((), None, None)


def test_pending_takes_in_what_has_a_node_but_has_not_started() -> None:
    assert set(list_filter({"status": "pending"}).statuses) == {
        JobStatus.PENDING,
        JobStatus.ASSIGNED,
    }


def test_a_limit_above_the_greatest_is_the_greatest() -> None:
    wanted = list_filter({"limit": "9" * 900, "offset": "9" * 900})
    assert wanted.limit == 1000
    assert wanted.offset < 2**63


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": "1.5"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"limit": "1" * 5000}, "limit"),
        ({"offset": "-1"}, "offset"),
        ({"offset": "x"}, "offset"),
        ({"status": "assigned"}, "status"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_queries_that_are_refused(query: dict[str, str], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        list_filter(query)
    assert refusal.value.facts["field"] == field


@pytest.mark.parametrize("job_id", ["", "\0", "a\nb", "x" * 10_000])
def test_an_id_that_no_job_can_have_is_unknown(job_id: str) -> None:
    with pytest.raises(NotFound):
        known_form(job_id)
