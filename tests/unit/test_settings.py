"""Settings: precedence, unknown keys, values that are refused with the key's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_local import settings
from kserve_local.errors import Invalid, UsageError
from kserve_local.settings import parse_duration


def load(folder: Path, text: str = "", **flags: object) -> settings.Settings:
    if text:
        (folder / settings.CONFIG_FILE).write_text(text)
    return settings.load(folder, environ={"HOME": str(folder)}, **flags)  # type: ignore[arg-type] # flags are free-form


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    got = load(tmp_path)
    assert (got.gateway_port, got.api_port, got.namespace) == (8080, 8089, "default")
    assert got.state == tmp_path.resolve() / ".kserve-local"


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    got = load(tmp_path, "gateway: {port: 9000}\nnamespace: a\n", gateway_port="auto")
    assert (got.gateway_port, got.namespace) == (None, "a")


def test_a_profile_is_merged_over_the_file(tmp_path: Path) -> None:
    text = "gateway: {port: 9000, domain: a.b}\nprofiles: {ci: {gateway: {port: auto}}}\n"
    got = load(tmp_path, text, profile="ci")
    assert (got.gateway_port, got.gateway_domain) == (None, "a.b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gatway: {}", 'unknown key "gatway"; did you mean "gateway"?'),
        ("gateway: {prot: 1}", 'unknown key "gateway.prot"; did you mean "port"?'),
        ("gateway: {port: many}", 'kserve-local.yaml: gateway.port: "many" is not a port'),
        ("gateway: {port: 70000}", "70000 is not a port"),
        ("gateway: {requestTimeout: soon}", '"soon" is not a duration'),
        ("gateway: 5", '"gateway" must hold keys'),
        ("gpu: first", 'gpu (--gpu): "first" is not auto, none or numbers of GPUs'),
        ("simulateGpus: -1", "simulateGpus (--simulate-gpus)"),
        ("simulateGpus: some", "simulateGpus (--simulate-gpus)"),
        ("backend: podman", 'backend "podman" is unknown'),
        ("runtimes: {a: {backend: podman}}", 'runtimes."a".backend "podman" is unknown'),
        ("gateway: {host: 0.0.0.0}", "set auth.token"),
        ("auth: {token: '${NOT_SET}'}", "uses ${NOT_SET}, which is not set"),
        ("images: {a: {context: nowhere}}", "nowhere"),
        ("images: {a: {comand: [x]}}", 'did you mean "command"?'),
        ("images: {a: {command: python model.py}}", "must be a list"),
        ("a: [", "kserve-local.yaml:2:1: not valid YAML"),
        ("- a", "must be a mapping"),
        ("resources: k8s/", '"resources" must be a list, e.g. resources: [k8s/]'),
        ("gateway: {maxHeldRequests: many}", '"many" is not a number'),
        ("requests: {enabled: 'no'}", 'requests.enabled: "no" is not true or false'),
        ("requests: {keep: some}", 'requests.keep: "some" is not a number'),
        ("requests: {maxBytes: lots}", 'requests.maxBytes "lots" is no size'),
        ("requests: {redactFields: password}", '"redactFields" must be a list'),
        ("requests: {redactFields: ['a b']}", 'requests.redactFields: "a b" is no name'),
        ("requests: {redactFields: [a..b]}", 'requests.redactFields: "a..b" is no name'),
        ("requests: {redactHeaders: ['x: y']}", 'requests.redactHeaders: "x: y" is no name'),
        ("services: {a: {debug: {prot: 1}}}", 'in services."a".debug; did you mean "port"?'),
        ("services: {a: {debug: {port: 0}}}", 'services."a".debug.port: 0 is no port'),
    ],
)
def test_bad_values_name_the_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path, text + "\n")
    assert words in caught.value.message


def test_what_is_kept_of_calls_is_read(tmp_path: Path) -> None:
    assert load(tmp_path).requests == settings.RequestsConfig()
    text = "requests: {enabled: false, keep: 7, maxBytes: 2Mi, redactHeaders: [X-Tenant], "
    got = load(tmp_path, text + "redactFields: [password, instances.*.ssn, '*.0']}\n").requests
    assert got == settings.RequestsConfig(
        enabled=False,
        keep=7,
        max_bytes=2 << 20,
        redact_headers=("X-Tenant",),
        redact_fields=("password", "instances.*.ssn", "*.0"),
    )


def test_a_key_of_a_later_version_warns(tmp_path: Path) -> None:
    got = load(tmp_path, "llm: {backend: auto}\n")
    assert got.warnings == ("kserve-local.yaml: llm has no effect in this version",)


def test_a_single_file_that_is_to_be_reloaded_warns(tmp_path: Path) -> None:
    """A bind mount holds on to the file that it was given; saving mostly makes another one."""
    (tmp_path / "src").mkdir()
    (tmp_path / "model.py").touch()
    got = load(tmp_path, "images: {'a:b': {context: ., reload: [src, model.py, gone.py]}}\n")
    [warning] = got.warnings
    assert warning.startswith('kserve-local.yaml: images."a:b".reload: model.py is a file;')
    assert "Name the folder" in warning


def test_relative_paths_start_at_the_project(tmp_path: Path) -> None:
    text = "storage: {mirrors: {'gs://b/': ./mirror}}\nimages: {x: {context: ., command: [python]}}"
    got = load(tmp_path, text)
    assert got.mirrors == {"gs://b/": tmp_path.resolve() / "mirror"}
    assert got.images["x"].context == tmp_path.resolve()


def test_a_project_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load(tmp_path / "no")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("5m", 300), ("1h30m", 5400), ("50ms", 0.05), (7, 7), ("2m5s", 125)],
)
def test_durations(text: str | int, seconds: float) -> None:
    assert parse_duration(text, what="x") == seconds


@pytest.mark.parametrize("text", ["", "5 minutes", "m", "-5s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(Invalid):
        parse_duration(text, what="x")


def test_a_file_in_the_place_of_the_project_is_told_as_what_it_is(tmp_path: Path) -> None:
    manifest = tmp_path / "a b.yaml"
    manifest.touch()
    with pytest.raises(UsageError) as caught:
        settings.load(manifest)
    assert "is a file" in caught.value.message
    assert caught.value.hint == f"kserve-local up -f '{manifest}'"


def test_of_a_wrong_file_what_is_right_still_counts(tmp_path: Path) -> None:
    """`down` needs the folder only, but the place of the cache should not be guessed anew."""
    (tmp_path / settings.CONFIG_FILE).write_text(
        "gatway: {}\nnamespace: a\nauth: {token: '${NOT_SET}'}\n"
        "images: {x: {context: nowhere}}\nstorage: {cacheDir: models}\nresources: k8s\n"
    )
    got = settings.load_what_is_right(tmp_path, environ={"HOME": str(tmp_path)})
    assert (got.namespace, got.cache) == ("a", tmp_path.resolve() / "models")
    assert (got.auth_token, got.images, got.resources) == ("", {}, ())
    assert [text for word in ("NOT_SET", "gatway", "nowhere", "resources") for text in got.problems
            if word in text] == list(got.problems)  # fmt: skip


def test_a_service_has_a_port_for_its_debugger(tmp_path: Path) -> None:
    text = "services: {a: {debug: {port: 5000}}, b: {debug: {port: auto}}, c: {pin: true}}\n"
    got = load(tmp_path, text)
    assert got.debug_ports == {"a": 5000, "b": None}
    assert not [w for w in got.warnings if "debug" in w]


@pytest.mark.parametrize("text", ["a: [", "- a", "gateway: {host: 0.0.0.0}", ""])
def test_a_file_without_anything_right_leaves_the_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / settings.CONFIG_FILE).write_text(text)
    got = settings.load_what_is_right(
        tmp_path, environ={"HOME": str(tmp_path)}, profile="" if text else "nope"
    )
    assert (got.gateway_host, got.namespace, len(got.problems)) == ("127.0.0.1", "default", 1)


def test_with_a_home_of_our_own_nothing_is_kept_elsewhere(tmp_path: Path) -> None:
    """UX.md 3.4: state and cache, so that a project folder may be read-only."""
    home, one, two = tmp_path / "home", tmp_path / "a" / "iris", tmp_path / "b" / "iris"
    one.mkdir(parents=True)
    two.mkdir(parents=True)
    environ = {"KSERVE_LOCAL_HOME": str(home)}
    states = {settings.load(folder, environ=environ).state for folder in (one, two, one)}
    assert len(states) == 2
    assert {state.parent for state in states} == {home / "projects"}
    assert settings.load(one, environ=environ).cache == home / "cache"


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("", "auto"),
        ("gpu: none", "none"),
        ("gpu: 0", "0"),
        ("gpu: '1, 0,1'", "1,0"),
        ("gpu: [2, 3]", "2,3"),
    ],
)
def test_gpus_are_named_by_number(tmp_path: Path, text: str, gpu: str) -> None:
    assert load(tmp_path, text).gpu == gpu
    assert load(tmp_path, text, gpu="none").gpu == "none"
