"""User code in the process backend: unmodified, on the Pod's address, by fork or plain start."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kserve_local.backends import processes
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import Mount, Probe
from tests.integration.process_world import (
    Project,
    get,
    is_running,
    next_event,
    post,
    until_dead,
)

KSERVE_MODEL = """
import argparse
import kserve


class Echo(kserve.Model):
    def load(self):
        self.ready = True

    def predict(self, payload, headers=None):
        return {"predictions": [self.name, *payload["instances"]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    model = Echo(parser.parse_args().model_name)
    model.load()
    kserve.ModelServer().start([model])
"""

# Serves one JSON document: what `tell()` returns.
TELL = """
import http.server, json, sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(tell()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(port=8080):
    http.server.ThreadingHTTPServer(("", port), Handler).serve_forever()
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p")


@pytest.fixture(params=["zygote", "process"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def preload_for(how: str, *modules: str) -> tuple[str, ...]:
    return modules if how == "zygote" else ()


async def test_a_kserve_model_runs_unmodified(project: Project, how: str):
    """Its arguments are its own, also where the SDK was imported before the fork."""
    project.write("model.py", KSERVE_MODEL)
    container = project.container(
        "model.py",
        "--model_name",
        "m-1",
        "--http_port",
        "8090",
        preload=preload_for(how, "kserve"),
        ports=(("", 8090),),
        readiness=Probe("http", port=8090, path="/v2/health/ready"),
    )
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert (status.containers[0].started_how, status.containers[0].note) == (how, ""), (
            project.log()
        )
        answer = await post(status, "/v1/models/m-1:predict", {"instances": [1, 2]}, 8090)
        assert answer == {"predictions": ["m-1", 1, 2]}
        # gRPC listens on the Pod's address as well, not on all.
        _, writer = await asyncio.open_connection(status.ip, 8081)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", 8081)


async def test_user_code_is_compiled_by_its_own_rules(project: Project, how: str):
    """Not by the `__future__` imports of what starts it: its annotations are what they say."""
    project.write(
        "serve.py", TELL + "def tell(x: int = 1): return str(tell.__annotations__)\nserve()\n"
    )
    container = project.container("serve.py", preload=preload_for(how, "http.server"))
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert status.containers[0].started_how == how
        assert await get(status, "/") == "{'x': <class 'int'>}"


async def test_two_workers_share_the_pods_port(project: Project, how: str):
    project.write("model.py", KSERVE_MODEL)
    container = project.container(
        "model.py",
        "--model_name=m",
        "--workers=2",
        "--enable_grpc=false",
        preload=preload_for(how, "kserve"),
        readiness=Probe("http", port=8080, path="/v2/health/ready", timeout=5),
    )
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        pid = status.containers[0].pid
        answer = await post(status, "/v1/models/m:predict", {"instances": [3]})
        assert answer == {"predictions": ["m", 3]}
        assert pid is not None
        children = processes.descendants(pid)[1:]
        assert len(children) >= 2
        await backend.stop(status.id, grace=20.0)
        # Killed is what `stop` promises; the kernel may still be taking the last one apart.
        await until_dead(*children)


async def test_two_pods_may_both_hard_code_a_port_and_be_strict(project: Project, how: str):
    project.write(
        "serve.py",
        TELL
        + "import argparse\n"
        + "argparse.ArgumentParser().parse_args()\n"
        + "def tell(): return sys.argv\n"
        + "serve(8080)\n",
    )
    preload = preload_for(how, "http.server", "argparse")
    async with project.backend() as backend:
        for _ in range(2):
            replica = project.replica(project.container("serve.py", preload=preload))
            await backend.start(replica)
            status = (await next_event(backend, "ready", "exited")).status
            assert await get(status, "/") == ["serve.py"]
            assert status.containers[0].started_how == how


async def test_main_path_and_directory_are_a_plain_starts(project: Project, how: str):
    project.write("helper.py", "VALUE = 41\n")
    project.write(
        "serve.py",
        TELL
        + "import os, pickle, helper\n"
        + "class Thing: pass\n"
        + "def tell():\n"
        + "    main = sys.modules['__main__']\n"
        + "    pickle.loads(pickle.dumps(Thing()))\n"
        + "    return [main.__file__, main.Thing is Thing, sys.path[0], os.getcwd(), __name__,\n"
        + "            __spec__ is None, os.environ['WHO'], helper.VALUE,\n"
        + "            os.getsid(0) == os.getpid(), sorted(map(kind, range(64)))]\n"
        + "def kind(fd):\n"
        + "    try:\n"
        + "        what = os.readlink(f'/proc/self/fd/{fd}')\n"
        + "    except OSError:\n"
        + "        return 'none'\n"
        + "    if not what.startswith('socket:'):\n"
        + "        return what\n"
        + "    with socket.socket(fileno=os.dup(fd)) as copy:\n"
        + "        return copy.family.name\n"
        + "import socket\n"
        + "serve()\n",
    )
    container = project.container(
        "serve.py", preload=preload_for(how, "http.server"), env=(("WHO", "me"),)
    )
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        told = await get(status, "/")
        assert isinstance(told, list)
        code = str(project.code)
        assert told[:9] == [f"{code}/serve.py", True, code, code, "__main__", True, "me", 41, True]
        # Nothing of the zygote's or the supervisor's: stdin, the log, its own connections and
        # its control socket.
        assert set(told[9]) == {"none", "/dev/null", str(container.log_path), "AF_INET", "AF_UNIX"}
        assert told[9].count("AF_INET") <= 3


async def test_a_module_runs_as_python_m_would(project: Project, how: str):
    package = project.code / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        TELL + "def tell(): return [__spec__.name, sys.argv[1:], sys.path[0]]\n" + "serve()\n"
    )
    container = project.container("-m", "app", "--x", preload=preload_for(how, "http.server"))
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert await get(status, "/") == ["app.__main__", ["--x"], str(project.code)]


async def test_a_traceback_names_only_the_users_code(project: Project, how: str):
    project.write("broken.py", "def f():\n    raise ValueError('no such luck')\nf()\n")
    container = project.container("broken.py", preload=preload_for(how, "json"))
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        [status] = (await next_event(backend, "exited")).status.containers
        assert (status.exit_code, status.reason) == (1, "Error")
        log = project.log()
        assert log.startswith("Traceback (most recent call last):\n")
        assert "ValueError: no such luck" in log
        assert "podlauncher" not in log


async def test_a_taken_port_is_the_servers_own_error(project: Project):
    project.write("serve.py", TELL + "def tell(): return 1\nserve()\n")
    async with project.backend() as backend:
        first = project.replica(project.container("serve.py"))
        await backend.start(first)
        await next_event(backend, "ready")
        await backend.start(project.replica(project.container("serve.py"), ip=first.ip))
        [status] = (await next_event(backend, "exited")).status.containers
        assert status.exit_code == 1
        assert "Address already in use" in project.log()


async def test_service_names_resolve_for_every_kind_of_client(project: Project, how: str):
    project.write("backend.py", TELL + "def tell(): return 'the predictor'\nserve()\n")
    project.write(
        "client.py",
        TELL
        + """
import asyncio, socket, urllib.request
import grpc, httpx, uvloop

URL = "http://iris-predictor.default.svc.cluster.local:8080/"


async def get():
    async with httpx.AsyncClient() as client:
        return (await client.get(URL)).json()


async def call():
    async with grpc.aio.insecure_channel("iris-predictor.default:8080") as channel:
        try:
            await asyncio.wait_for(channel.unary_unary("/a/b")(b""), 10)
        except grpc.aio.AioRpcError as error:
            return "refused" if "refused" in error.details() else "reached"


def unknown():
    try:
        socket.getaddrinfo("nobody.default.svc", 80)
    except socket.gaierror as error:
        return str(error)


def tell():
    return [
        json.load(urllib.request.urlopen(URL)),
        json.load(urllib.request.urlopen("http://iris-predictor:8080/")),
        asyncio.run(get()),
        uvloop.run(get()),
        asyncio.run(call()),
        socket.gethostname() == socket.gethostbyaddr(socket.gethostbyname(socket.gethostname()))[0],
        "no Service" in unknown(),
    ]


serve(8085)
""",
    )
    async with project.backend() as backend:
        served = project.replica(project.container("backend.py"))
        await backend.start(served)
        await next_event(backend, "ready")
        client = project.container(
            "client.py",
            ports=(("", 8085),),
            readiness=Probe("tcp", port=8085),
            preload=preload_for(how, "httpx", "uvloop", "grpc.aio"),
        )
        resolve = (("iris-predictor.default", served.ip),)
        await backend.start(project.replica(client, resolve=resolve))
        status = (await next_event(backend, "ready", "exited")).status
        assert status.containers[0].started_how == how, status.containers[0].note
        predictor = "the predictor"
        assert await get(status, "/", 8085) == [*[predictor] * 4, "reached", True, True], (
            project.log()
        )


async def test_localhost_is_the_pod_for_collocated_containers(project: Project):
    project.write("predictor.py", TELL + "def tell(): return 'beside'\nserve(8081)\n")
    project.write(
        "transformer.py",
        TELL
        + "import urllib.request\n"
        + "def tell(): return json.load(urllib.request.urlopen('http://localhost:8081'))\n"
        + "serve(8080)\n",
    )
    predictor = project.container(
        "predictor.py", name="p", ports=(("", 8081),), readiness=Probe("tcp", port=8081)
    )
    async with project.backend() as backend:
        await backend.start(project.replica(predictor, project.container("transformer.py")))
        await next_event(backend, "ready")
        status = (await next_event(backend, "ready")).status
        assert await get(status, "/") == "beside"


async def test_calls_come_from_the_pods_address(project: Project, how: str):
    """So whoever is asked knows which Pod asks, as on a cluster."""
    who = TELL.replace("tell()", "tell(self.client_address[0])", 1)
    project.write("predictor.py", who + "def tell(peer): return peer\nserve()\n")
    project.write(
        "transformer.py",
        TELL
        + """
import asyncio, urllib.request
import httpx, uvloop

URL = "http://iris-predictor.default:8080/"


async def get():
    async with httpx.AsyncClient() as client:
        return (await client.get(URL)).json()


def tell():
    return [json.load(urllib.request.urlopen(URL)), asyncio.run(get()), uvloop.run(get())]


serve()
""",
    )
    container = project.container(
        "transformer.py", preload=preload_for(how, "http.server", "httpx", "uvloop")
    )
    async with project.backend() as backend:
        predictor = project.replica(project.container("predictor.py"))
        await backend.start(predictor)
        await next_event(backend, "ready")
        resolve = (("iris-predictor.default", predictor.ip),)
        transformer = project.replica(container, resolve=resolve)
        await backend.start(transformer)
        status = (await next_event(backend, "ready", "exited")).status
        assert await get(status, "/") == [transformer.ip] * 3, project.log()


async def test_a_program_that_hangs_while_it_loads_says_where(project: Project, how: str):
    """The control socket's first use: what was not answered names the user's own line."""
    project.write("weights.py", "import time\ndef fetch():\n    time.sleep(600)\n")
    project.write("model.py", "import weights\ndef load():\n    weights.fetch()\nload()\n")
    startup = Probe("tcp", port=8080, period=0.5, failure_threshold=2)
    container = replace(
        project.container("model.py", preload=preload_for(how, "json")), startup=startup
    )
    async with project.backend() as backend:
        id = await backend.start(project.replica(container))
        told = (await next_event(backend, "unhealthy")).message
        assert told.startswith("Startup probe failed: dial tcp ")
        assert "\nMainThread is in weights.py, line 3, fetch().\n" in told
        assert "listens on no port yet" in told
        await backend.stop(id, grace=0)
        assert not list(project.settings.runtime.glob("c-*"))


async def test_children_of_user_code_have_the_pods_address_too(project: Project, how: str):
    project.write("serve.py", TELL + "def tell(): return 'child'\nserve()\n")
    project.write(
        "parent.py",
        "import subprocess, sys\nsys.exit(subprocess.call([sys.executable, 'serve.py']))\n",
    )
    container = project.container("parent.py", preload=preload_for(how, "subprocess"))
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert await get(status, "/") == "child", project.log()


async def test_without_an_address_ports_are_assigned(project: Project, how: str):
    project.write(
        "serve.py",
        TELL + "import os\ndef tell(): return [os.environ['PORT'], sys.argv]\nserve(8080)\n",
    )
    container = project.container("serve.py", preload=preload_for(how, "http.server"))
    async with project.backend() as backend:
        await backend.start(project.replica(container, ip=""))
        status = (await next_event(backend, "ready", "exited")).status
        real = status.containers[0].ports[8080]
        assert real != 8080
        assert await get(status, "/") == [str(real), ["serve.py"]]


async def test_mnt_models_is_the_real_directory(project: Project, tmp_path: Path):
    models = tmp_path / "real"
    models.mkdir()
    (models / "weights").write_text("w")
    project.write(
        "serve.py",
        TELL
        + "import os\n"
        + "def tell(): return [open(sys.argv[1] + '/weights').read(), os.environ['M']]\n"
        + "serve()\n",
    )
    container = project.container(
        "serve.py",
        "/mnt/models",
        env=(("M", "/mnt/models/x"),),
        mounts=(Mount("/mnt/models", models),),
    )
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert await get(status, "/") == ["w", f"{models}/x"]


async def test_last_words_go_to_the_file_that_arguments_and_variables_name(project: Project):
    """Each run begins with an empty one; what is too long is cut at its beginning."""
    project.write(
        "last.py",
        "import os, sys\n"
        "with open(sys.argv[1], 'a') as file: file.write('x' * 5000 + os.environ['WORDS'])\n"
        "sys.exit(int(os.environ['CODE']))\n",
    )
    path = "/dev/termination-log"
    for code, words in ((0, "bye"), (3, "no licence")):
        container = project.container(
            "last.py", path, termination_path=path, readiness=None,
            env=(("CODE", str(code)), ("WORDS", words), ("TO", path)),
        )  # fmt: skip
        async with project.backend() as backend:
            await backend.start(project.replica(container, id="uid-last"))
            ended = (await next_event(backend, "exited")).status.containers[0]
            assert ended.exit_code == code
            assert ended.termination == "x" * (4096 - len(words)) + words


async def test_a_command_that_is_no_python_runs_as_it_is(project: Project):
    container = project.container(
        "sh", "-c", "echo port $PORT in $PWD; sleep 600", is_python=False, readiness=None
    )
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready")).status
        pid = status.containers[0].pid
        async with asyncio.timeout(20):
            while "port" not in project.log():  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.02)
        assert project.log() == f"port 8080 in {project.code}\n"
        await backend.stop(status.id, grace=5.0)
        assert not is_running(pid)


@pytest.mark.parametrize(
    ("argv", "more", "message"),
    [
        (("nothing-here",), {"is_python": False}, 'exec: "nothing-here": executable file not'),
        (("./data",), {"is_python": False}, 'exec: "./data": Permission denied'),
    ],
)
async def test_what_cannot_run_says_so(
    project: Project, argv: tuple[str, ...], more: dict[str, object], message: str
):
    project.write("data", "no program")
    async with project.backend() as backend:
        await backend.start(project.replica(project.container(*argv, **more)))
        [status] = (await next_event(backend, "exited")).status.containers
        assert (status.reason, status.exit_code) == ("ContainerCannotRun", 128)
        assert message in project.log()


async def test_a_missing_interpreter_is_missing_and_leaves_nothing(project: Project):
    async with project.backend() as backend:
        container = project.container("x.py", python=Path("/no/python"))
        with pytest.raises(Missing, match="/no/python"):
            await backend.start(project.replica(container))
        assert await backend.list() == []


async def test_interpreter_options_get_an_interpreter_of_their_own(project: Project):
    project.write("serve.py", TELL + "def tell(): return sys.flags.optimize\nserve()\n")
    container = project.container("-O", "serve.py", preload=("http.server",))
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert await get(status, "/") == 1
        assert status.containers[0].started_how == "process"
        assert "interpreter" in status.containers[0].note


async def test_a_two_cpu_limit_reaches_the_math_libraries(project: Project, how: str):
    project.write(
        "serve.py",
        TELL
        + "import os, numpy, threadpoolctl\n"
        + "def tell():\n"
        + "    pools = threadpoolctl.threadpool_info()\n"
        + "    return [os.environ['OMP_NUM_THREADS'], sorted({p['num_threads'] for p in pools})]\n"
        + "serve()\n",
    )
    container = project.container(
        "serve.py", preload=preload_for(how, "numpy", "threadpoolctl"), cpu_limit=2.0
    )
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert status.containers[0].started_how == how, status.containers[0].note
        assert await get(status, "/") == ["2", [2]]


async def test_forks_have_random_numbers_of_their_own(project: Project):
    project.write(
        "serve.py",
        TELL
        + "import random, numpy, uuid, multiprocessing.process as p\n"
        + "VALUES = [random.random(), float(numpy.random.rand()), uuid.uuid4().hex,\n"
        + "          bytes(p.current_process().authkey).hex()]\n"
        + "def tell(): return VALUES\n"
        + "serve()\n",
    )
    container = project.container(
        "serve.py", preload=("http.server", "random", "numpy", "uuid", "multiprocessing.process")
    )
    told = []
    async with project.backend() as backend:
        for _ in range(2):
            await backend.start(project.replica(container))
            status = (await next_event(backend, "ready", "exited")).status
            assert status.containers[0].started_how == "zygote"
            told.append(await get(status, "/"))
    assert isinstance(told[0], list)
    assert isinstance(told[1], list)
    assert not set(told[0]) & set(told[1])


async def test_a_grpc_server_is_probed_on_the_pods_address(project: Project, how: str):
    project.write(
        "serve.py",
        """
import concurrent.futures, grpc


class Health(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\\x08\\x01")


server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Health()])
server.add_insecure_port("0.0.0.0:9000")
server.start()
server.wait_for_termination()
""",
    )
    container = project.container(
        "serve.py",
        ports=(("h2c", 9000),),
        readiness=Probe("grpc", port=9000, timeout=5),
        preload=preload_for(how, "grpc"),
    )
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        event = await next_event(backend, "ready", "exited")
        assert event.kind == "ready", project.log()
        assert event.status.containers[0].started_how == how
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", 9000)


async def test_exec_probes_see_the_containers_environment(project: Project):
    project.write("serve.py", TELL + "def tell(): return 1\nserve()\n")
    probe = Probe("exec", command=("/bin/sh", "-c", 'test "$WHO" = me'), timeout=20)
    container = project.container("serve.py", env=(("WHO", "me"),), readiness=probe)
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        await next_event(backend, "ready")


async def test_the_pods_end_is_the_end_of_all_its_descendants(project: Project, how: str):
    """Also of those in a session of their own whose parent has ended."""
    project.write(
        "serve.py",
        TELL
        + """
import os, subprocess
subprocess.Popen(["sh", "-c", "setsid sleep 601 & echo done"]).wait()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import time
        time.sleep(602)
    os._exit(0)


def tell():
    return os.getpid()


serve()
""",
    )
    container = project.container("serve.py", preload=preload_for(how, "http.server", "subprocess"))
    async with project.backend() as backend:
        await backend.start(project.replica(container))
        status = (await next_event(backend, "ready", "exited")).status
        assert status.containers[0].started_how == how
        token = json.loads(
            (project.settings.run_dir / "pods" / status.id / "kserve-container.json").read_text()
        )["token"].encode()
        async with asyncio.timeout(20):
            # The children tell nobody when they have started.
            while len(family := [p for p in _pids() if token in _environ(p)]) < 3:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.02)
        assert status.containers[0].pid in family
        await backend.stop(status.id, grace=5.0)
        await until_dead(*family)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


async def test_the_current_interpreter_serves_the_builtin_runtimes(project: Project):
    async with project.backend() as backend:
        container = project.container("-m", "sklearnserver", kind="runtime", python=None)
        program = container.program
        assert program is not None
        found = await backend.environments.find(replace(program, runtime="sklearnserver"))
        assert found == Path(sys.executable)
