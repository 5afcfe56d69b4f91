"""From a container's spec to what its process gets; and the Pod's view of the network."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from kserve_local.backends import launch
from kserve_local.interfaces.backend import ContainerSpec, Mount, Program, ReplicaSpec
from kserve_local.interfaces.devices import Device
from podlauncher.network import Network

MODELS = Mount("/mnt/models", Path("/real/iris"))
PLACE = launch.Place(
    home=Path("/home"), state=Path("/state"), base_env={"PATH": "/bin", "AWS_KEY": "x"}, cpus=8
)


def container(**more: object) -> ContainerSpec:
    values: dict[str, object] = {
        "name": "c",
        "image": "i",
        "argv": (),
        "log_path": Path("/log"),
        "mounts": (MODELS,),
        "ports": (("", 8080),),
    }
    return ContainerSpec(**(values | more))  # type: ignore[arg-type]  # test shorthand


def launched(spec: ContainerSpec, program: Program, ip: str = "127.64.0.2") -> dict[str, object]:
    spec = replace(spec, program=program)
    replica = ReplicaSpec(id="u", namespace="ns", pod="pod", containers=(spec,), ip=ip)
    wanted = launch.pod_ports(replica)
    ports = {p: p if ip else p + 40000 for p in wanted}
    return launch.launch(
        replica,
        spec,
        program,
        python=Path("/venv/bin/python"),
        ports=ports,
        token="t",
        run_file=Path("/run/c.json"),
        exit_file=Path("/run/c.exit"),
        names_file=Path("/run/names/ns.json"),
        control=Path("/run/control"),
        place=PLACE,
    )


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("/mnt/models", "/real/iris"),
        ("/mnt/models/", "/real/iris/"),
        ("--model_dir=/mnt/models/v1", "--model_dir=/real/iris/v1"),
        ("file:///mnt/models/x", "file:///real/iris/x"),
        ("/mnt/models:/mnt/models", "/real/iris:/real/iris"),
        ("['/mnt/models']", "['/real/iris']"),
        ("/mnt/models2", "/mnt/models2"),
        ("/mnt/models-old/x", "/mnt/models-old/x"),
        ("/mnt/models.bak", "/mnt/models.bak"),
        ("/data/mnt/models", "/data/mnt/models"),
        ("s3://bucket/mnt/models", "s3://bucket/mnt/models"),
    ],
)
def test_paths_are_rewritten_at_their_boundaries(text: str, want: str):
    assert launch.rewrite_paths(text, [MODELS]) == want


def test_the_longest_mount_wins_and_backslashes_stay():
    inner = Mount("/mnt/models/lora", Path("/real/\\1lora"))
    assert launch.rewrite_paths("/mnt/models/lora/a", [MODELS, inner]) == "/real/\\1lora/a"


def test_arguments_and_environment_see_the_real_directory():
    spec = container(env=(("MODEL", "/mnt/models/a"), ("NAME", "x")))
    program = Program("runtime", "sklearnserver", ("-m", "s", "--model_dir", "/mnt/models"))
    made = launched(spec, program)
    assert made["argv"] == ["-m", "s", "--model_dir", "/real/iris"]
    env = made["env"]
    assert isinstance(env, dict)
    assert (env["MODEL"], env["NAME"], env["PORT"], env["HOSTNAME"]) == (
        "/real/iris/a",
        "x",
        "8080",
        "pod",
    )
    assert env["PATH"] == "/venv/bin:/bin"
    assert "AWS_KEY" not in env


@pytest.mark.parametrize(
    ("limit", "env", "want"),
    [
        (None, (), 8),
        (2.0, (), 2),
        (0.5, (), 1),
        (1.5, (), 2),
        (2.0, (("OMP_NUM_THREADS", "5"),), 5),
        (2.0, (("OMP_NUM_THREADS", "many"),), 2),
    ],
)
def test_threads_follow_the_cpu_limit(limit: float | None, env: tuple[object, ...], want: int):
    assert launch.thread_count(container(cpu_limit=limit, env=env), 8) == want


def test_a_cpu_limit_sets_the_libraries_variables_but_not_over_the_pods():
    spec = container(cpu_limit=2.0, env=(("MKL_NUM_THREADS", "1"),))
    env = launched(spec, Program("source", "i", ("model.py",)))["env"]
    assert isinstance(env, dict)
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("2", "1")
    unlimited = launched(container(), Program("source", "i", ("model.py",)))["env"]
    assert isinstance(unlimited, dict)
    assert "OMP_NUM_THREADS" not in unlimited


def test_without_an_address_built_in_servers_get_their_ports():
    program = Program("runtime", "s", ("-m", "s", "--http_port=8080", "--grpc_port", "9000"))
    made = launched(container(), program, ip="")
    assert made["argv"] == ["-m", "s", "--http_port=48080", "--grpc_port", "49000"]
    bare = launched(container(), Program("runtime", "s", ("-m", "s")), ip="")
    assert bare["argv"] == ["-m", "s", "--http_port", "48080"]


def test_without_an_address_nothing_is_appended_to_the_users_arguments():
    made = launched(container(), Program("source", "i", ("model.py", "--strict")), ip="")
    assert made["argv"] == ["model.py", "--strict"]
    env = made["env"]
    assert isinstance(env, dict)
    assert env["PORT"] == "48080"
    network = made["network"]
    assert isinstance(network, dict)
    assert network["ports"] == {"8080": 48080}


def test_import_time_environment_chooses_the_zygote():
    env = {"HF_HOME": "/x", "OMP_NUM_THREADS": "4", "MY_NAME": "y", "PYTHONHASHSEED": "0"}
    assert launch.import_time_env(env) == (("HF_HOME", "/x"), ("PYTHONHASHSEED", "0"))


def test_pod_ports_come_from_all_containers():
    other = container(name="d", ports=(("h2c", 9000),))
    replica = ReplicaSpec("u", "ns", "p", (container(), other, container(name="e")))
    assert launch.pod_ports(replica) == (8080, 9000)
    code = Program("source", "i", ("model.py", "--http_port=8085", "--grpc_port", "8086"))
    beside = replace(replica, containers=(container(), container(name="p", program=code, ports=())))
    assert launch.pod_ports(beside) == (8080, 8085, 8086)
    bare = replace(replica, containers=(container(ports=()),))
    assert launch.pod_ports(bare) == (8080,)


@pytest.fixture
def net() -> Network:
    return Network(
        {
            "ip": "127.64.0.9",
            "listen": [8080, 8085],
            "namespace": "default",
            "hostname": "pod-1",
            "resolve": {"iris.default": "127.64.8.1", "*.example.com": "127.64.8.2"},
        }
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", None, "localhost", "127.0.0.1", "[::]"])
def test_servers_move_to_the_pods_address(net: Network, host: str | None):
    assert net.server_address(host, 8080) == ("127.64.0.9", 8080)


@pytest.mark.parametrize(("host", "port"), [("0.0.0.0", 0), ("127.0.0.1", 0), ("10.0.0.1", 80)])
def test_other_addresses_and_port_zero_stay(net: Network, host: str, port: int):
    assert net.server_address(host, port) == (host, port)


def test_loopback_means_the_pod_for_the_pods_ports_only(net: Network):
    assert net.peer_address("localhost", 8085) == ("127.64.0.9", 8085)
    assert net.peer_address("localhost", 5432) == ("localhost", 5432)
    net.server_address("0.0.0.0", 7000)
    assert net.peer_address("127.0.0.1", 7000) == ("127.64.0.9", 7000)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.64.8.1", "127.64.0.9"),
        ("127.64.0.9", None),
        ("127.0.0.1", None),
        ("10.0.0.1", None),
        ("huggingface.co", None),
        ("::1", None),
        (None, None),
    ],
)
def test_only_pods_and_services_are_called_from_the_pods_address(
    net: Network, host: str | None, own: str | None
):
    assert net.comes_from(host) == own


def test_a_pod_without_an_address_of_its_own_calls_from_anywhere():
    assert Network({"ip": "127.0.0.1"}).comes_from("127.64.8.1") is None


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("iris.default", "127.64.8.1"),
        ("iris.default.svc", "127.64.8.1"),
        ("IRIS.default.svc.cluster.local.", "127.64.8.1"),
        ("iris", "127.64.8.1"),
        ("a.b.example.com", "127.64.8.2"),
        ("pod-1", "127.64.0.9"),
        ("example.com", None),
        ("huggingface.co", None),
    ],
)
def test_service_names(net: Network, name: str, address: str | None):
    assert net.lookup(name) == address


def test_an_unknown_service_fails_without_asking_dns(net: Network):
    with pytest.raises(socket.gaierror, match="no Service answers to other"):
        net.lookup("other.default.svc.cluster.local")


def test_grpc_addresses(net: Network):
    assert net.server_target("[::]:8081") == "127.64.0.9:8081"
    assert net.server_target("unix:/tmp/x") == "unix:/tmp/x"
    assert net.server_target("10.0.0.1:8081") == "10.0.0.1:8081"
    assert net.client_target("iris.default:80") == ("127.64.8.1:80", "iris.default:80")
    assert net.client_target("dns:///iris.default:80") == ("127.64.8.1:80", "iris.default:80")
    assert net.client_target("elsewhere:80") == ("elsewhere:80", "")


def test_services_are_found_where_nobody_may_listen_on_their_port(net: Network):
    """Without the privilege the gateway listens for port 80 elsewhere, on the same address."""
    unprivileged = Network(
        {"ip": "127.64.0.9", "resolve": {"iris.default": "127.64.8.1"}, "service_port": 61080}
    )
    assert net.peer_address("iris.default", 80) == ("127.64.8.1", 80)
    assert unprivileged.peer_address("iris.default", 80) == ("127.64.8.1", 61080)
    # What asyncio has resolved is connected to by its address.
    assert unprivileged.peer_address("127.64.8.1", 80) == ("127.64.8.1", 61080)
    assert unprivileged.client_target("iris.default:80") == (
        "127.64.8.1:61080",
        "iris.default:80",
    )
    for host, port in (("iris.default", 8080), ("example.com", 80), ("127.0.0.1", 80)):
        assert unprivileged.peer_address(host, port)[1] == port


def test_ports_are_mapped_where_pods_have_no_address():
    net = Network({"ip": "127.0.0.1", "ports": {"8080": 41000}})
    assert net.server_address("0.0.0.0", 8080) == ("127.0.0.1", 41000)
    assert net.peer_address("localhost", 8080) == ("127.0.0.1", 41000)
    assert net.server_address("127.0.0.1", 41000) == ("127.0.0.1", 41000)


NVIDIA = (Device("GPU-a", 0), Device("GPU-b", 3))
AMD = (Device("amd-renderD128", 2, vendor="amd"),)


@pytest.mark.parametrize(
    ("devices", "given", "cuda", "hip"),
    [
        (NVIDIA, {}, "GPU-a,GPU-b", None),
        # Numbers count within the Pod's own, as in a container.
        (NVIDIA, {"CUDA_VISIBLE_DEVICES": "1"}, "GPU-b", None),
        (NVIDIA, {"CUDA_VISIBLE_DEVICES": "1,0"}, "GPU-b,GPU-a", None),
        (NVIDIA, {"CUDA_VISIBLE_DEVICES": "2"}, "GPU-a,GPU-b", None),
        (NVIDIA, {"CUDA_VISIBLE_DEVICES": "GPU-of-another"}, "GPU-a,GPU-b", None),
        (AMD, {}, "", "2"),
        ((), {}, "", "-1"),
        ((), {"CUDA_VISIBLE_DEVICES": "0"}, "", "-1"),
        ((Device("simulated-0", 0, simulated=True),), {}, "", "-1"),
        (None, {}, None, None),
        (None, {"CUDA_VISIBLE_DEVICES": "0"}, "0", None),
    ],
)
def test_a_process_sees_the_pods_gpus_and_no_other(
    devices: tuple[Device, ...] | None, given: dict[str, str], cuda: str | None, hip: str | None
) -> None:
    program = Program("source", "i", ("model.py",))
    made = launched(container(devices=devices, env=tuple(given.items())), program)
    env = made["env"]
    assert isinstance(env, dict)
    assert (env.get("CUDA_VISIBLE_DEVICES"), env.get("HIP_VISIBLE_DEVICES")) == (cuda, hip)


def test_pods_with_different_gpus_share_a_zygote() -> None:
    """Which are visible is read at the first use, after the fork."""
    assert launch.import_time_env({"CUDA_VISIBLE_DEVICES": "GPU-a"}) == ()


def test_a_pod_calls_itself_what_it_says():
    """And finds itself under its full name, where it is in a subdomain."""
    program = Program("source", "i", ("m.py",))
    spec = container(program=program)
    named = ReplicaSpec(
        id="u", namespace="ns", pod="pod", containers=(spec,), ip="127.64.0.2",
        hostname="head", domain="ring.ns.svc.cluster.local",
    )  # fmt: skip
    python = Path("/venv/bin/python")
    assert launch.container_env(named, spec, python, {}, 1)["HOSTNAME"] == "head"
    made = launch.launch(
        named, spec, program, python=python, ports={8080: 8080}, token="t",
        run_file=Path("/run/c.json"), exit_file=Path("/run/c.exit"),
        names_file=Path("/run/names/ns.json"), control=Path("/run/control"), place=PLACE,
    )  # fmt: skip
    assert made["network"]["hostname"] == "head"
    assert made["network"]["resolve"] == {"head.ring.ns.svc.cluster.local": "127.64.0.2"}


def test_a_name_is_known_to_a_thread_that_asked_while_another_one_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first requests of a new process ask all at once, each in a thread of the loop's."""
    names = tmp_path / "names.json"
    names.write_text('{"iris-predictor.default": "127.64.0.9"}')
    net = Network({"ip": "127.64.0.2", "namespace": "default", "resolve_file": str(names)})
    read = net._know_more
    others = iter([lambda: net.lookup("iris-predictor.default")])

    def read_after_another() -> None:
        """As if this thread had to wait between its look and its read."""
        for other in others:
            assert other() == "127.64.0.9"
        read()

    monkeypatch.setattr(net, "_know_more", read_after_another)
    assert net.lookup("iris-predictor.default") == "127.64.0.9"
