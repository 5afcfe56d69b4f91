"""Make a Python process live on its Pod's address: where servers listen, what names mean.

A Pod in a cluster has its own network; a process on this machine has not. So inside a replica
* listening on any or the loopback address (`0.0.0.0`, `::`, `""`, `localhost`) means the Pod's IP;
* connecting to loopback on a port of the Pod (a collocated container) means the Pod's IP;
* Service names (`iris-predictor.default`, with or without `.svc.cluster.local`) mean what the node
  agent says, and the host name is the Pod's;
* a connection to another Pod or a Service comes from the Pod's IP, which tells who calls.
Port 0 is left alone (a client's source port, a private helper), as are UDP and Unix sockets. Where
Pods have no address of their own, ports are mapped to the assigned ones instead.

Done by wrapping the Python-level functions that servers go through: `socket`, asyncio's and
uvloop's loops, grpc (its own resolver sees neither). A server that opens its socket in C or Rust
without these (granian) is not reached. Modules are wrapped when they get imported, or at once if
they were.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_ANY = frozenset({"", "0.0.0.0", "::", "::0", "*"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "ip6-localhost"})
_SUFFIXES = (".svc.cluster.local", ".svc")


_SERVICE_PORT = 80
# ip(7); Python has no name for it.
_BIND_ADDRESS_NO_PORT = 24


def _is_service_network(host: str) -> bool:
    """Tell an address out of 127.64.0.0/10, which Pods and Services have theirs from."""
    first, _, rest = host.partition(".")
    second = rest.partition(".")[0]
    return first == "127" and second.isdigit() and 64 <= int(second) < 128


class Network:
    """The Pod's view of the network. Pure, apart from remembering ports that were listened on.

    Args:
        config: `ip` (where to listen), `ports` (Pod's port -> real port), `listen` (ports of all
            containers of the Pod), `resolve` (name -> address, `*.x` for anything below x),
            `resolve_file` (JSON like `resolve`: the names of the namespace, read when first asked
            for one and again when it has changed; those of `resolve` come first),
            `namespace`, `hostname`, `service_port` (where port 80 of Services is listened on),
            `pod` and `calls` (the Pod's name and where to tell of calls within it; empty: nowhere).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.ip: str = config["ip"]
        self.ports = {int(k): int(v) for k, v in config.get("ports", {}).items()}
        self.listening = {int(p) for p in config.get("listen", ())} | set(self.ports)
        self.namespace: str = config.get("namespace", "")
        self.hostname: str = config.get("hostname", "")
        self.service_port = int(config.get("service_port", _SERVICE_PORT))
        self.pod: str = config.get("pod", "")
        self.calls: str = config.get("calls", "")
        self.names_file: str = config.get("resolve_file", "")
        self._read: tuple[int, int] = (0, 0)
        self._own: dict[str, str] = config.get("resolve", {})
        self._know({})

    def _know(self, names_there: dict[str, str]) -> None:
        both = {**names_there, **self._own}
        known = {k.lower().rstrip("."): v for k, v in both.items()}
        names = {k: v for k, v in known.items() if not k.startswith("*.")}
        if self.hostname:
            names.setdefault(self.hostname.lower(), self.ip)
        self.below = {k[1:]: v for k, v in known.items() if k.startswith("*.")}
        self.names = names

    def _know_more(self) -> None:
        """Read the names of the namespace anew if they have changed.

        Several threads may ask at once, so they count as read only when they are known.
        """
        try:
            found = os.stat(self.names_file)
            version = (found.st_mtime_ns, found.st_ino)
            if version == self._read:
                return
            with open(self.names_file) as file:
                names = json.load(file)
        except (OSError, ValueError):
            return
        self._know(names)
        self._read = version

    def server_address(self, host: Any, port: Any) -> tuple[Any, Any]:
        """Return where a server that asks for (host, port) listens; unchanged if none of ours."""
        if not isinstance(port, int) or port == 0:
            return host, port
        if host is None or (isinstance(host, str) and self._is_here(host.strip("[]"))):
            self.listening.add(port)
            return self.ip, self.ports.get(port, port)
        return host, port

    def is_within(self, host: str, port: int) -> bool:
        """Whether a client's (host, port) is a port of this Pod."""
        return port in self.listening and (self._is_here(host) or host == self.ip)

    def _is_here(self, host: str) -> bool:
        return host in _ANY or host.lower() in _LOOPBACK

    def peer_address(self, host: Any, port: Any) -> tuple[Any, Any]:
        """Return where a connection to (host, port) goes: Pod-local ports and Service names."""
        if not isinstance(host, str):
            return host, port
        if isinstance(port, int) and port in self.listening and self._is_here(host):
            return self.ip, self.ports.get(port, port)
        found = self.lookup(host) or host
        if port == _SERVICE_PORT and _is_service_network(found):
            port = self.service_port
        return found, port

    def comes_from(self, host: Any) -> str | None:
        """Return the address that a connection to `host` is to come from; None: any."""
        if not isinstance(host, str) or not _is_service_network(host):
            return None
        # Within the Pod it would be loopback.
        return self.ip if host != self.ip and _is_service_network(self.ip) else None

    def lookup(self, host: Any) -> str | None:
        """Return the address of a name the node agent gave; None: not one of ours.

        Raises:
            socket.gaierror: A `.svc` name that no Service has; the machine's DNS is not asked.
        """
        if isinstance(host, (bytes, bytearray)):
            host = bytes(host).decode("ascii", "replace")
        if not isinstance(host, str) or not host:
            return None
        name = host.lower().rstrip(".")
        short = next((name[: -len(s)] for s in _SUFFIXES if name.endswith(s)), name)
        found = self._known(name, short)
        # An address or a name of the outside world has no Service, however often one asks.
        if found is None and (short != name or name.count(".") < 2):
            self._know_more()
            # Without news, too: another thread may have read them since.
            found = self._known(name, short)
        if found is not None:
            return found
        if short != name:
            import socket

            raise socket.gaierror(socket.EAI_NONAME, f"no Service answers to {host}")
        return None

    def _known(self, name: str, short: str) -> str | None:
        for candidate in (name, short, f"{short}.{self.namespace}", f"{short}.svc"):
            if candidate in self.names:
                return str(self.names[candidate])
        for suffix, address in self.below.items():
            if name.endswith(suffix) or f"{short}.svc".endswith(suffix):
                return str(address)
        return None

    def server_target(self, address: Any) -> Any:
        """Return a gRPC listening address (`[::]:8081`) moved to the Pod's IP."""
        if not isinstance(address, str) or address.startswith(("unix:", "unix-abstract:")):
            return address
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            return address
        new = self.server_address(host.strip("[]"), int(port))
        return address if new == (host.strip("[]"), int(port)) else f"{new[0]}:{new[1]}"

    def client_target(self, target: Any) -> tuple[Any, str]:
        """Return a gRPC target with the name resolved, and the authority to keep ("" if same)."""
        if not isinstance(target, str):
            return target, ""
        plain = target
        for prefix in ("dns:///", "dns:"):
            if plain.startswith(prefix):
                plain = plain[len(prefix) :]
                break
        host, _, port = plain.rpartition(":")
        if not port.isdigit():
            host, port = plain, "443"
        new = self.peer_address(host.strip("[]"), int(port))
        if new == (host.strip("[]"), int(port)):
            return target, ""
        return f"{new[0]}:{new[1]}", plain


_installed: Network | None = None


def install(config: dict[str, Any]) -> None:
    """Wrap what is imported now and what will be. The second call does nothing."""
    global _installed
    if _installed is not None:
        return
    _installed = net = Network(config)
    patches: dict[str, Callable[[ModuleType, Network], None]] = {
        "socket": _patch_socket,
        "asyncio.base_events": _patch_asyncio,
        "uvloop": _patch_uvloop,
        "grpc._server": _patch_grpc_server,
        "grpc._channel": _patch_grpc_channel,
        "grpc.aio._server": _patch_grpc_aio_server,
        "grpc.aio._channel": _patch_grpc_channel,
    }
    if config.get("calls"):
        patches["kserve.inference_client"] = _watch_sdk
    later = {}
    for name, patch in patches.items():
        module = sys.modules.get(name)
        if module is None:
            later[name] = patch
        else:
            _apply(patch, module, net)
    sys.meta_path.insert(0, _WhenImported(later, net))


def _apply(patch: Callable[[ModuleType, Network], None], module: ModuleType, net: Network) -> None:
    try:
        patch(module, net)
    except AttributeError as error:
        # A version of the library with other inner names still runs, on its own address.
        sys.stderr.write(f"kserve-local: {module.__name__} not moved to the Pod address: {error}\n")


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the listed modules through the other finders and patches each once it has run."""

    def __init__(
        self, patches: dict[str, Callable[[ModuleType, Network], None]], net: Network
    ) -> None:
        self.patches = patches
        self.net = net

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        patch = self.patches.get(fullname)
        if patch is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: importlib.machinery.ModuleSpec | None = (
                find(fullname, path, target) if find is not None and finder is not self else None
            )
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Patching(spec.loader, patch, self.net)
                return spec
        return None


class _Patching(importlib.abc.Loader):
    def __init__(
        self, loader: Any, patch: Callable[[ModuleType, Network], None], net: Network
    ) -> None:
        self.loader = loader
        self.patch = patch
        self.net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module must not see that it came through us: resources and pickling ask the loader.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _apply(self.patch, module, self.net)


def _watch_sdk(module: Any, net: Network) -> None:
    from podlauncher import calls

    # Where it has other names its calls go on untold.
    with contextlib.suppress(AttributeError):
        calls.watch(module, calls.Calls(net.calls, net.pod, net.is_within))


def _patch_socket(socket: Any, net: Network) -> None:
    cls = socket.socket
    bind, connect, connect_ex = cls.bind, cls.connect, cls.connect_ex
    getaddrinfo, gethostbyname = socket.getaddrinfo, socket.gethostbyname
    gethostbyname_ex, gethostbyaddr = socket.gethostbyname_ex, socket.gethostbyaddr
    stream, v4, v6 = socket.SOCK_STREAM, socket.AF_INET, socket.AF_INET6

    def moved(sock: Any, address: Any, move: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
        if (
            sock.type != stream
            or sock.family not in (v4, v6)
            or not isinstance(address, tuple)
            or len(address) < 2
        ):
            return address
        host, port = move(address[0], address[1])
        if (host, port) == tuple(address[:2]):
            return address
        if sock.family == v4:
            return (host, port)
        if ":" not in host:
            # A dual-stack socket takes the IPv4 address in its mapped form.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            host = f"::ffff:{host}"
        return (host, port, *address[2:])

    def patched_bind(self: Any, address: Any) -> None:
        bind(self, moved(self, address, net.server_address))

    def leave(sock: Any, address: Any) -> Any:
        address = moved(sock, address, net.peer_address)
        if sock.type == stream and sock.family == v4 and isinstance(address, tuple):
            own = net.comes_from(address[0])
            if own is not None and sock.getsockname() == ("0.0.0.0", 0):
                # As for an unbound socket, the kernel picks a port when it knows both ends.
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                bind(sock, (own, 0))
        return address

    def patched_connect(self: Any, address: Any) -> Any:
        return connect(self, leave(self, address))

    def patched_connect_ex(self: Any, address: Any) -> Any:
        return connect_ex(self, leave(self, address))

    def patched_getaddrinfo(
        host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        address = net.lookup(host)
        if address is not None and family == v6:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has an IPv4 address only")
        return getaddrinfo(address or host, port, family, type, proto, flags)

    def patched_gethostbyname(name: Any) -> Any:
        return net.lookup(name) or gethostbyname(name)

    def patched_gethostbyname_ex(name: Any) -> Any:
        address = net.lookup(name)
        return (name, [], [address]) if address else gethostbyname_ex(name)

    def patched_gethostbyaddr(name: Any) -> Any:
        # `http.server` asks for the name of its own address; a DNS time-out would delay the start.
        if net.hostname and (name == net.ip or net.lookup(name) == net.ip):
            return (net.hostname, [], [net.ip])
        return gethostbyaddr(name)

    cls.bind, cls.connect, cls.connect_ex = patched_bind, patched_connect, patched_connect_ex
    socket.getaddrinfo, socket.gethostbyname = patched_getaddrinfo, patched_gethostbyname
    socket.gethostbyname_ex = patched_gethostbyname_ex
    socket.gethostbyaddr = patched_gethostbyaddr
    if net.hostname:
        socket.gethostname = lambda: net.hostname


def _patch_create_server(cls: Any, net: Network) -> None:
    create_server = cls.create_server

    async def patched(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        if options.get("sock") is None:
            if host is None or isinstance(host, str):
                host, port = net.server_address(host, port)
            else:
                moved = [net.server_address(item, port) for item in host]
                port = moved[0][1] if moved else port
                host = list(dict.fromkeys(item for item, _ in moved))
        return await create_server(self, protocol_factory, host, port, **options)

    cls.create_server = patched


def _patch_asyncio(module: Any, net: Network) -> None:
    # Connections end in socket.getaddrinfo and socket.connect, which are wrapped.
    _patch_create_server(module.BaseEventLoop, net)


def _patch_uvloop(module: Any, net: Network) -> None:
    loop = module.Loop
    create_connection, getaddrinfo = loop.create_connection, loop.getaddrinfo
    _patch_create_server(loop, net)

    async def patched_create_connection(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        if host is not None:
            where = net.peer_address(host, port)
            if where != (host, port) and options.get("ssl"):
                options.setdefault("server_hostname", host)
            host, port = where
            own = net.comes_from(host)
            if own is not None and options.get("local_addr") is None:
                options["local_addr"] = (own, 0)
        return await create_connection(self, protocol_factory, host, port, **options)

    async def patched_getaddrinfo(self: Any, host: Any, port: Any, **options: Any) -> Any:
        return await getaddrinfo(self, net.lookup(host) or host, port, **options)

    loop.create_connection, loop.getaddrinfo = patched_create_connection, patched_getaddrinfo


def _patch_ports(cls: Any, net: Network) -> None:
    insecure, secure = cls.add_insecure_port, cls.add_secure_port

    def add_insecure_port(self: Any, address: Any) -> Any:
        return insecure(self, net.server_target(address))

    def add_secure_port(self: Any, address: Any, server_credentials: Any) -> Any:
        return secure(self, net.server_target(address), server_credentials)

    cls.add_insecure_port, cls.add_secure_port = add_insecure_port, add_secure_port


def _patch_grpc_server(module: Any, net: Network) -> None:
    _patch_ports(module._Server, net)


def _patch_grpc_aio_server(module: Any, net: Network) -> None:
    _patch_ports(module.Server, net)


def _patch_grpc_channel(module: Any, net: Network) -> None:
    init = module.Channel.__init__

    def patched(self: Any, target: Any, options: Any, *args: Any, **kwargs: Any) -> None:
        target, authority = net.client_target(target)
        if authority:
            options = (*(options or ()), ("grpc.default_authority", authority))
        init(self, target, options, *args, **kwargs)

    module.Channel.__init__ = patched
