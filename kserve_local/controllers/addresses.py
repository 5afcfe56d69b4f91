"""Loopback addresses for Pods and Services: a block of 127.64.0.0/10 per project, leased on the
machine.

Every Pod gets an address of its own, so that two Pods may both listen on port 8080 and `podIP` in
`kubectl get pod -o wide` can really be called. Projects must not collide, so each holds the lease
of one /20 block: a file under the shared cache, locked while a supervisor lives and kept while its
replicas may still run. Linux only; elsewhere every address is the empty string and the backend
assigns ports instead. Nothing here is copied from upstream.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import os
import struct
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson

from kserve_local import sock_diag
from kserve_local.api.meta import Key, Object, name_of, namespace_of
from kserve_local.errors import Missing

NETWORK = ipaddress.ip_network("127.64.0.0/10")
_BLOCK_BITS = 12
_BLOCK_SIZE = 1 << _BLOCK_BITS
_BLOCKS = NETWORK.num_addresses // _BLOCK_SIZE
_FIRST = int(NETWORK.network_address)
# The lower half of a block is for Pods, the upper half for Services; the ends stay unused, since
# x.x.0.0 and x.x.255.255 look like networks and broadcasts to some tools.
_POD_OFFSETS = range(2, _BLOCK_SIZE // 2)
_SERVICE_OFFSETS = range(_BLOCK_SIZE // 2, _BLOCK_SIZE - 2)


def _start_of(text: str, size: int) -> int:
    """Return where the probing for `text` begins: a stable number below `size`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % size


def _rotated(offsets: range, start: int) -> Iterator[int]:
    return (offsets[(start + i) % len(offsets)] for i in range(len(offsets)))


def listening_addresses() -> frozenset[int]:
    """Return the IPv4 addresses (as integers) inside the network that anybody listens on."""
    try:
        found = sock_diag.listening()
    except OSError:
        return listed_in(Path("/proc/net/tcp"))
    return frozenset(a for a, _ in found if _FIRST <= a < _FIRST + NETWORK.num_addresses)


def listed_in(proc: Path) -> frozenset[int]:
    """Return the same from a file like /proc/net/tcp, where the kernel cannot be asked.

    Source: proc(5), /proc/net/tcp: local address in hex, network order read as a native word;
    state 0A is LISTEN.
    """
    try:
        rows = proc.read_text().splitlines()[1:]
    except OSError:
        return frozenset()
    found = set()
    for row in rows:
        columns = row.split()
        if len(columns) > 3 and columns[3] == "0A":
            raw = struct.pack("=I", int(columns[1].partition(":")[0], 16))
            value = int.from_bytes(raw, "big")
            if _FIRST <= value < _FIRST + NETWORK.num_addresses:
                found.add(value)
    return frozenset(found)


def holder_of(host: str, port: int) -> str:
    """Return who listens on a TCP port, as `pid 123 (name)`; empty when nobody or not visible.

    An empty `host` asks for any local address. Meant for messages; never raises.
    """
    import psutil  # here: the only caller is the diagnosis of a failed start

    try:
        wanted = {host, "0.0.0.0", "::"} if host else None
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status != psutil.CONN_LISTEN or not local or local.port != port:
                continue
            if wanted is not None and local.ip not in wanted:
                continue
            if connection.pid is None:
                return "a process of another user"
            return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except (psutil.Error, OSError):
        pass
    return ""


def _is_alive(lease: Path) -> bool:
    """Whether someone may still use the block: its supervisor holds the lock, or its state folder
    still has Pods that outlive a supervisor.
    """
    try:
        with lease.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            content = file.read()
    except FileNotFoundError:
        return False
    try:
        state = Path(orjson.loads(content)["state"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False
    pods = state / "run" / "pods"
    return pods.is_dir() and any(pods.iterdir())


@contextmanager
def _machine_lock(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class AddressPool:
    """Hands out the addresses of one project's block. Not thread-safe; lives on one event loop.

    Args:
        state: The project's state folder; identifies the project.
        cache: The machine-wide cache folder that holds the leases.
        enabled: False: every address is empty. The default is Linux only.
        listening: What is listened on inside the network; for tests.

    Raises:
        Missing: Every block is held by another project.
    """

    def __init__(
        self,
        state: Path,
        cache: Path,
        *,
        enabled: bool = sys.platform == "linux",
        listening: Callable[[], Collection[int]] = listening_addresses,
    ) -> None:
        self._state = state
        self._folder = cache / "addresses"
        self._listening = listening
        self._lock_fd: int | None = None
        self._lease: Path | None = None
        self._base = 0
        self._taken: dict[int, str] = {}
        self._owner: dict[str, int] = {}
        if enabled:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._acquire()

    @property
    def block(self) -> str:
        """The leased block in CIDR form, empty where addresses are not used."""
        if self._lease is None:
            return ""
        return f"{ipaddress.ip_address(self._base)}/{32 - _BLOCK_BITS}"

    def _acquire(self) -> None:
        start = _start_of(str(self._state), _BLOCKS)
        # Block 0 is left out: examples in documents use its addresses.
        order = [n for n in ((start + i) % _BLOCKS for i in range(_BLOCKS)) if n]
        with _machine_lock(self._folder):
            mine = self._own_lease()
            busy = frozenset(
                (a - _FIRST) // _BLOCK_SIZE for a in self._listening()
            )  # also blocks leased through another cache folder
            for number in [mine] if mine is not None else order:
                lease = self._folder / f"{number}.json"
                if mine is None and (number in busy or _is_alive(lease)):
                    continue
                fd = os.open(lease, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    raise Missing(
                        f"the loopback addresses of {self._state} are in use by another supervisor "
                        "of this project; stop it with `kserve-local down`"
                    ) from None
                os.ftruncate(fd, 0)
                os.pwrite(fd, orjson.dumps({"state": str(self._state), "pid": os.getpid()}), 0)
                self._lock_fd, self._lease = fd, lease
                self._base = _FIRST + number * _BLOCK_SIZE
                return
        raise Missing(
            f"no free block of loopback addresses in {NETWORK}: every lease under {self._folder} "
            "is held; stop projects you no longer need with `kserve-local down`"
        )

    def _own_lease(self) -> int | None:
        for lease in sorted(self._folder.glob("*.json")):
            try:
                if orjson.loads(lease.read_bytes())["state"] == str(self._state):
                    return int(lease.stem)
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, FileNotFoundError):
                continue
        return None

    def _assign(self, owner: str, offsets: range) -> str:
        if self._lease is None:
            return ""
        if owner in self._owner:
            return str(ipaddress.ip_address(self._owner[owner]))
        # Pods only: on a Service's address a surviving gateway listens, and rightly so.
        listened = self._listening() if offsets is _POD_OFFSETS else ()
        for offset in _rotated(offsets, _start_of(owner, len(offsets))):
            address = self._base + offset
            if address not in self._taken and address not in listened:
                self._taken[address] = owner
                self._owner[owner] = address
                return str(ipaddress.ip_address(address))
        raise Missing(f"no free loopback address left in {self.block} for {owner}")

    def pod_ip(self, uid: str) -> str:
        """Return the Pod's address; the same for the same uid until `release`."""
        return self._assign(f"pod/{uid}", _POD_OFFSETS)

    def service_ip(self, key: Key) -> str:
        """Return the Service's clusterIP; the same for the same key until `release_service`."""
        return self._assign(f"service/{key.namespace}/{key.name}", _SERVICE_OFFSETS)

    def keep_pod(self, uid: str, address: str) -> bool:
        """Take an address that a Pod's status already shows; False when it is not ours to give.

        Called for every stored Pod before any new address is handed out.
        """
        return self._keep(f"pod/{uid}", address, _POD_OFFSETS)

    def keep_service(self, key: Key, address: str) -> bool:
        """Take a clusterIP that a stored Service already has; False when it is not ours."""
        return self._keep(f"service/{key.namespace}/{key.name}", address, _SERVICE_OFFSETS)

    def _keep(self, owner: str, address: str, offsets: range) -> bool:
        if self._lease is None or not address:
            return False
        value = int(ipaddress.ip_address(address))
        if value - self._base not in offsets or self._taken.get(value, owner) != owner:
            return False
        self._taken[value] = owner
        self._owner[owner] = value
        return True

    def release(self, uid: str) -> None:
        """Give a Pod's address back. Idempotent."""
        self._release(f"pod/{uid}")

    def release_service(self, key: Key) -> None:
        """Give a Service's address back. Idempotent."""
        self._release(f"service/{key.namespace}/{key.name}")

    def _release(self, owner: str) -> None:
        address = self._owner.pop(owner, None)
        if address is not None:
            del self._taken[address]

    def close(self, *, give_up: bool = False) -> None:
        """Let go of the lock; with `give_up` (after `down`) also of the block itself."""
        if self._lock_fd is not None:
            if give_up and self._lease is not None:
                self._lease.unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = None
            self._lease = None


def service_names(services: Sequence[Object], *, namespace: str) -> tuple[tuple[str, str], ...]:
    """Return every DNS name that a Pod in `namespace` may use for a Service, with its clusterIP.

    Shapes: `<svc>` (same namespace only), `<svc>.<ns>`, `<svc>.<ns>.svc`,
    `<svc>.<ns>.svc.cluster.local`. Services without an address, and ExternalName ones whose target
    has none either, are left out.

    Source: Kubernetes DNS for Services and Pods; ExternalName as KServe's top-level Service.
    """
    by_host: dict[str, str] = {}
    external: list[tuple[Object, str]] = []
    for service in services:
        spec = service.get("spec") or {}
        address = str(spec.get("clusterIP") or "")
        if spec.get("type") == "ExternalName":
            external.append((service, str(spec.get("externalName") or "")))
        if address and address != "None":
            by_host[f"{name_of(service)}.{namespace_of(service)}"] = address
    for service, target in external:
        short = target.removesuffix(".cluster.local").removesuffix(".svc")
        own = f"{name_of(service)}.{namespace_of(service)}"
        if own not in by_host and short in by_host:
            by_host[own] = by_host[short]
    names: dict[str, str] = {}
    for host, address in sorted(by_host.items()):
        name, _, owner_namespace = host.rpartition(".")
        if owner_namespace == namespace:
            names[name] = address
        for form in (host, f"{host}.svc", f"{host}.svc.cluster.local"):
            names[form] = address
    return tuple(names.items())
