"""What a Docker engine is asked for, and what is read from its answers."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kserve_local.backends import control, docker_pause, docker_spec
from kserve_local.errors import Invalid, InvalidImageName
from kserve_local.interfaces.backend import (
    HOST_IP,
    POD_IP,
    ContainerSpec,
    Mount,
    ReplicaSpec,
    Security,
)
from kserve_local.interfaces.devices import Device

STATE = Path("/p/.kserve-local")


def spec(**more: Any) -> ContainerSpec:
    values: dict[str, Any] = {
        "name": "kserve-container",
        "image": "kserve/sklearnserver:v0.20.0",
        "argv": (),
        "log_path": Path("/l/c.log"),
    }
    return ContainerSpec(**(values | more))


def replica(*containers: ContainerSpec, **more: Any) -> ReplicaSpec:
    values: dict[str, Any] = {"id": "u-1", "namespace": "ns", "pod": "iris-predictor-00001-x"}
    return ReplicaSpec(containers=containers or (spec(),), **(values | more))


def request(container: ContainerSpec, **more: Any) -> dict[str, Any]:
    of = replica(container, **more)
    return docker_spec.container(
        STATE, of, container, sandbox_id="sandbox", address="172.18.0.7", hosts=Path("/run/hosts")
    )


@pytest.mark.parametrize(
    ("own", "images", "path"),
    [
        ((), (), "/run/kserve-local/podlauncher/hook"),
        ((), ("A=1", "PYTHONPATH=/app:/lib"), "/run/kserve-local/podlauncher/hook:/app:/lib"),
        # The Pod's replaces the image's, as without the launcher.
        (
            (("PYTHONPATH", "/mine"),),
            ("PYTHONPATH=/app",),
            "/run/kserve-local/podlauncher/hook:/mine",
        ),
    ],
    ids=["none", "the-images", "the-pods"],
)
def test_the_launcher_goes_along_with_source_and_keeps_its_path(
    own: tuple[tuple[str, str], ...], images: tuple[str, ...], path: str
) -> None:
    image = {"Config": {"Env": list(images), "WorkingDir": "/app"}}
    container = docker_spec.with_launcher(spec(env=(("B", "2"), *own)), image)
    assert container.source == "/app"
    env = dict(container.env)
    assert (env["PYTHONPATH"], env["B"], env[control.SOURCE]) == (path, "2", "/app")
    launcher = control.Launcher(Path("/lib/podlauncher"), Path("/run/u-1/control/c"))
    made = docker_spec.container(
        STATE, replica(container), container, sandbox_id="s", address="a", hosts=Path("/h"),
        launcher=launcher,
    )  # fmt: skip
    assert made["HostConfig"]["Binds"][:2] == [
        "/lib/podlauncher:/run/kserve-local/podlauncher:ro",
        "/run/u-1/control/c:/run/kserve-local/control:rw",
    ]
    mounts = [
        {"Source": "/x", "Destination": "/y"},
        {"Source": "/c", "Destination": control.INSIDE},
    ]
    assert docker_spec.control_of({"Mounts": mounts}) == Path("/c")
    assert docker_spec.control_of({"Mounts": None}) is None


@pytest.mark.parametrize(
    ("command", "args", "entrypoint", "cmd"),
    [
        ((), (), None, None),
        ((), ("--x",), None, ["--x"]),
        (("python",), ("m.py",), ["python"], ["m.py"]),
        # A command without arguments must not get the image's.
        (("python", "m.py"), (), ["python", "m.py"], []),
    ],
)
def test_command_and_args_replace_what_kubernetes_says(
    command: tuple[str, ...], args: tuple[str, ...], entrypoint: Any, cmd: Any
) -> None:
    made = request(spec(argv=(*command, *args), command=command))
    assert (made.get("Entrypoint"), made.get("Cmd")) == (entrypoint, cmd)


def test_the_pods_address_takes_its_place() -> None:
    made = request(
        spec(command=("run",), argv=("run", f"--at={POD_IP}:1"), env=(("POD_IP", POD_IP),))
    )
    assert made["Env"] == ["POD_IP=172.18.0.7"]
    assert made["Cmd"] == ["--at=172.18.0.7:1"]


def test_limits_are_the_kubelets() -> None:
    host = request(spec(cpu_limit=0.5, memory_limit_bytes=1 << 20))["HostConfig"]
    assert (host["CpuPeriod"], host["CpuQuota"]) == (100_000, 50_000)
    assert host["Memory"] == host["MemorySwap"] == 1 << 20
    assert request(spec(cpu_limit=0.001))["HostConfig"]["CpuQuota"] == 1000
    assert "Memory" not in request(spec())["HostConfig"]


def test_security_is_passed_on() -> None:
    wanted = Security(
        user=1000, group=2000, groups=(3000,), read_only_root=True, privilege_escalation=False,
        add=("NET_BIND_SERVICE",), drop=("ALL",),
    )  # fmt: skip
    made = request(spec(security=wanted))
    host = made["HostConfig"]
    assert made["User"] == "1000:2000"
    assert (host["CapAdd"], host["CapDrop"]) == (["NET_BIND_SERVICE"], ["ALL"])
    assert (host["GroupAdd"], host["ReadonlyRootfs"]) == (["3000"], True)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    plain = request(spec())
    assert "User" not in plain
    assert "SecurityOpt" not in plain["HostConfig"]
    assert plain["HostConfig"]["Privileged"] is False


def test_a_container_joins_the_sandbox_and_can_be_found_again() -> None:
    made = request(spec(mounts=(Mount("/mnt/models", Path("/m")), Mount("/w", Path("/v"), False))))
    host = made["HostConfig"]
    assert host["NetworkMode"] == "container:sandbox"
    assert host["Binds"] == ["/m:/mnt/models:ro", "/v:/w:rw", "/run/hosts:/etc/hosts:ro"]
    made = request(spec(mounts=(Mount("/mnt/models", Path("/m/iris:v1")),)))
    assert made["HostConfig"]["Mounts"] == [
        {"Type": "bind", "Source": "/m/iris:v1", "Target": "/mnt/models", "ReadOnly": True}
    ]
    assert made["Labels"][docker_spec.PROJECT] == docker_spec.project_id(STATE)
    assert made["Labels"][docker_spec.REPLICA] == "u-1"
    assert made["Labels"]["io.kubernetes.container.name"] == "kserve-container"
    assert docker_spec.project_id(STATE) != docker_spec.project_id(Path("/other"))
    name = docker_spec.container_name(replica(), "kserve-container", 2)
    assert name == "k8s_kserve-container_iris-predictor-00001-x_ns_u-1_2"


def test_a_sandbox_holds_the_network_and_publishes_only_where_it_must() -> None:
    of = replica(spec(ports=(("http1", 8080), ("", 9000))), spec(name="b", ports=(("", 8080),)))
    plain = docker_spec.sandbox(STATE, of, "net")
    assert plain["HostConfig"]["NetworkMode"] == "net"
    assert plain["HostConfig"]["PortBindings"] == {}
    published = docker_spec.sandbox(STATE, of, "net", publish=True)["HostConfig"]["PortBindings"]
    assert published == {
        f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}] for port in (8080, 9000)
    }
    found = {
        "NetworkSettings": {
            "Networks": {"net": {"IPAddress": "172.18.0.2"}},
            "Ports": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "49153"}], "9000/tcp": None},
        }
    }
    assert docker_spec.address(found, "net") == "172.18.0.2"
    assert docker_spec.address(found, "other") == ""
    assert docker_spec.published(found) == {8080: 49153}


def test_the_hosts_file_has_whole_names_only() -> None:
    of = replica(resolve=(("iris.default", "172.18.0.1"), ("*.example.com", "172.18.0.1")))
    lines = docker_spec.hosts_file(of, "172.18.0.2").splitlines()
    assert "172.18.0.2\tiris-predictor-00001-x" in lines
    assert "172.18.0.1\tiris.default" in lines
    assert not any("*" in line for line in lines)
    of = replica(resolve=(("iris.default", "127.77.0.1"),))
    assert "172.18.0.1\tiris.default" in docker_spec.hosts_file(of, "172.18.0.2", host="172.18.0.1")
    of = replica(resolve=(("own.test", "127.0.0.1"), ("far.test", "10.1.2.3")))
    lines = docker_spec.hosts_file(of, "172.18.0.2", host="172.18.0.1").splitlines()
    assert lines[-2:] == ["127.0.0.1\town.test", "10.1.2.3\tfar.test"]
    network = {"IPAM": {"Config": [{"Gateway": "fd00::1"}, {"Gateway": "172.18.0.1"}]}}
    assert docker_spec.gateway_of(network) == "172.18.0.1"
    assert docker_spec.gateway_of({}) == ""


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("iris", ("iris", "latest")),
        ("kserve/iris:v1", ("kserve/iris", "v1")),
        ("localhost:5000/iris", ("localhost:5000/iris", "latest")),
        ("localhost:5000/iris:v1", ("localhost:5000/iris", "v1")),
        ("iris@sha256:abc", ("iris", "sha256:abc")),
    ],
)
def test_what_to_pull(image: str, found: tuple[str, str]) -> None:
    assert docker_spec.repository_and_tag(image) == found


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"ExitCode": 0}, ("Completed", 0, None)),
        ({"ExitCode": 3}, ("Error", 3, None)),
        ({"ExitCode": 137}, ("Error", 137, 9)),
        ({"ExitCode": 137, "OOMKilled": True}, ("OOMKilled", 137, 9)),
        ({"ExitCode": 127, "Error": "no such file", "StartedAt": "0001-01-01T00:00:00Z"},
         ("ContainerCannotRun", 127, None)),
    ],
)  # fmt: skip
def test_how_a_container_ended(state: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert docker_spec.exit_reason(state)[:3] == expected


@pytest.mark.parametrize(
    ("user", "refused"),
    [
        ("1000", ""),
        ("1000:0", ""),
        ("", "will run as root"),
        ("0:1000", "will run as root"),
        ("root", "will run as root"),
        ("app", r"non-numeric user \(app\)"),
    ],
)
def test_an_image_that_would_be_root_is_refused(user: str, refused: str) -> None:
    if not refused:
        docker_spec.check_user(user)
        return
    with pytest.raises(Invalid, match=refused):
        docker_spec.check_user(user)


def test_time_stamps_of_an_engine() -> None:
    assert docker_spec.when("2026-01-01T00:00:10.5Z") == 1767225610.5
    assert docker_spec.when("2026-01-01T00:00:10Z") == 1767225610.0
    assert docker_spec.when("0001-01-01T00:00:00Z") is None
    assert docker_spec.when("") is None


@pytest.mark.parametrize("version", ["total_inactive_file", "inactive_file"])
def test_usage_leaves_out_what_the_cache_could_give_up(version: str) -> None:
    stats = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}},
        "memory_stats": {"usage": 100, "stats": {version: 40}},
    }
    assert docker_spec.usage(stats) == (1.5, 60)
    assert docker_spec.usage({}) == (0.0, 0)


@pytest.mark.skipif(platform.system() != "Linux", reason="it is a Linux program")
def test_the_pause_program_sleeps(tmp_path: Path) -> None:
    path = tmp_path / "pause"
    path.write_bytes(docker_pause.program(platform.machine()))
    path.chmod(0o755)
    process = subprocess.Popen([path])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        assert process.wait() == -9
    # Too small to be anything else, on both machines.
    assert {len(docker_pause.program(a)) < 200 for a in ("x86_64", "arm64")} == {True}
    with pytest.raises(KeyError):
        docker_pause.program("riscv64")


NVIDIA = (Device("GPU-a", 0, "L4"), Device("GPU-b", 1, "L4"))
AMD = Device(
    "amd-renderD128", 0, vendor="amd", paths=("/dev/kfd", "/dev/dri/renderD128"), groups=(44, 993)
)


def test_gpus_are_asked_for_by_id() -> None:
    """A count would let the engine choose, and two containers share."""
    made = request(spec(devices=NVIDIA))
    assert made["HostConfig"]["DeviceRequests"] == [
        {
            "Driver": "nvidia",
            "DeviceIDs": ["GPU-a", "GPU-b"],
            "Capabilities": [["gpu", "compute", "utility"]],
        }
    ]
    assert "Devices" not in made["HostConfig"]
    assert made["Env"] == []


def test_amd_gpus_are_files_and_groups() -> None:
    host = request(spec(devices=(AMD,), security=Security(groups=(2000, 44))))["HostConfig"]
    assert host["Devices"] == [
        {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}
        for path in ("/dev/kfd", "/dev/dri/renderD128")
    ]
    assert host["GroupAdd"] == ["2000", "44", "993"]
    assert "DeviceRequests" not in host


@pytest.mark.parametrize("devices", [(), (Device("simulated-0", 0, simulated=True),)])
def test_without_a_limit_no_gpu_is_seen(devices: tuple[Device, ...]) -> None:
    """CUDA's images ask for all of them, and NVIDIA's runtime may be the engine's default."""
    env = (("NVIDIA_VISIBLE_DEVICES", "all"), ("A", "1"))
    made = request(spec(devices=devices, env=env))
    assert made["Env"] == ["A=1", "NVIDIA_VISIBLE_DEVICES=void"]
    assert not {"DeviceRequests", "Devices"} & set(made["HostConfig"])


def test_a_machine_without_gpus_says_nothing_of_them() -> None:
    made = request(spec(env=(("NVIDIA_VISIBLE_DEVICES", "all"),)))
    assert made["Env"] == ["NVIDIA_VISIBLE_DEVICES=all"]
    assert not {"DeviceRequests", "Devices"} & set(made["HostConfig"])


def test_what_an_engine_says_of_an_import_names_the_image() -> None:
    docker = '{"status":"sha256:abc"}\r\n'
    podman = '{"status":"sha256:abc","progress":"","progressDetail":{},"id":"sha256:abc"}\n'
    assert docker_spec.imported(docker) == docker_spec.imported(podman) == "sha256:abc"


def test_a_sandbox_goes_after_those_that_have_joined_it() -> None:
    def listed(id: str, container: str) -> dict[str, Any]:
        return {"Id": id, "Labels": {docker_spec.CONTAINER: container}}

    found = [listed("1", ""), listed("2", "kserve-container"), listed("3", ""), listed("4", "b")]
    assert [c["Id"] for c in docker_spec.sandboxes_last(found)] == ["2", "4", "1", "3"]


def test_only_podman_is_told_the_hostname_again() -> None:
    assert "Hostname" not in request(spec())
    made = docker_spec.container(
        STATE, replica(), spec(), sandbox_id="s", address="", hosts=Path("/h"), with_hostname=True
    )
    assert made["Hostname"] == "iris-predictor-00001-x"


def test_a_child_that_ran_out_of_memory_leaves_the_containers_own_exit_code():
    """`sh -c "python3 big.py; exit 0"`: the engine's flag is about the whole group."""
    state = {"OOMKilled": True, "StartedAt": "2026-01-01T00:00:00Z"}
    assert docker_spec.exit_reason({**state, "ExitCode": 0}) == ("Completed", 0, None, "")
    assert docker_spec.exit_reason({**state, "ExitCode": 1}) == ("Error", 1, None, "")
    assert docker_spec.exit_reason({**state, "ExitCode": 137}) == ("OOMKilled", 137, 9, "")


def test_seccomp_goes_to_the_engine_beside_the_other_option() -> None:
    security = Security(seccomp="unconfined", privilege_escalation=False)
    made = request(spec(security=security))["HostConfig"]
    assert made["SecurityOpt"] == ["no-new-privileges", "seccomp=unconfined"]
    assert "SecurityOpt" not in request(spec())["HostConfig"]


def test_a_pod_calls_itself_what_it_says() -> None:
    """And is known under its full name, as with the kubelet, where it is in a subdomain."""
    named = replica(hostname="head", domain="ring.ns.svc.cluster.local")
    assert docker_spec.sandbox(STATE, named, "net")["Hostname"] == "head"
    lines = docker_spec.hosts_file(named, "172.18.0.7").splitlines()
    assert "172.18.0.7\thead.ring.ns.svc.cluster.local\thead" in lines
    lines = docker_spec.hosts_file(replica(), "172.18.0.7").splitlines()
    assert "172.18.0.7\tiris-predictor-00001-x" in lines


@pytest.mark.parametrize(("machine", "shown"), [("172.18.0.1", "172.18.0.1"), ("", "127.0.0.1")])
def test_the_host_is_where_containers_reach_this_machine(machine: str, shown: str) -> None:
    """Not 127.0.0.1, which is the Pod itself, where there is another."""
    own = spec(env=(("HOST", HOST_IP),))
    made = docker_spec.container(
        STATE, replica(own), own, sandbox_id="s", address="172.18.0.7", hosts=Path("/h"),
        machine=machine,
    )  # fmt: skip
    assert f"HOST={shown}" in made["Env"]


@pytest.mark.parametrize(
    "image",
    ["a", "python:3.11-slim", "reg.io:5000/Team-X/a".lower(), "Reg.io:5000/a/b__c:V1.0", "my/a-b.c",
     "[::1]:5000/a", "a@sha256:" + "0" * 64, "localhost/a:b@sha256:" + "0" * 64],
)  # fmt: skip
def test_names_of_images(image: str) -> None:
    docker_spec.check_image(image)


@pytest.mark.parametrize("image", ["Bad Name!!", "up/Case", "a:", "a:b:c", "a//b", "", "a@b", "-a"])
def test_what_can_be_no_image_is_refused_in_kubelets_words(image: str) -> None:
    words = f'Failed to apply default image tag "{image}": couldn\'t parse image name "{image}": '
    with pytest.raises(InvalidImageName) as caught:
        docker_spec.check_image(image)
    assert caught.value.message == f"{words}invalid reference format"


@pytest.mark.parametrize(
    ("built", "machine", "told"),
    [
        ("amd64", "x86_64", ""),
        ("arm64", "aarch64", ""),
        ("", "x86_64", ""),
        ("riscv64", "riscv64", ""),
        ("arm64", "x86_64", 'image "i:1" is built for arm64, and this machine is amd64'),
        ("amd64", "aarch64", 'image "i:1" is built for amd64, and this machine is arm64'),
    ],
)
def test_an_image_for_another_machine_is_named_as_such(built: str, machine: str, told: str) -> None:
    assert docker_spec.foreign("i:1", {"Architecture": built}, machine) == told


def test_what_an_engine_refuses_gets_the_way_out() -> None:
    spec = ContainerSpec("c", "mine:1", (), Path("log"))
    assert "give the container a command" in docker_spec.hint_for(spec, "No command specified")
    assert "mine:1" in docker_spec.hint_for(spec, "No command specified")
    assert docker_spec.hint_for(spec, "privileged mode is incompatible") == ""
    spec = ContainerSpec("c", "mine:1", (), Path("log"), security=Security(privileged=True))
    told = docker_spec.hint_for(spec, "privileged mode is incompatible with user namespaces")
    assert "capabilities.add" in told
