"""Runs at the start of every Python process below a replica, `multiprocessing` spawn included.

This folder is on PYTHONPATH, so worker processes that user code starts get the Pod's address and
names as well, and a control socket; in a real container, which has its own network, only the
latter. The interpreter's own sitecustomize, if any, still runs.
"""

import importlib
import os
import sys


def _install() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    run_file = os.environ.get("KSERVE_LOCAL_RUN_FILE")
    if not run_file and not os.environ.get("KSERVE_LOCAL_CONTROL"):
        return
    before = set(sys.modules)
    home = os.path.dirname(os.path.dirname(here))
    sys.path.append(home)
    try:
        from podlauncher import control, shadow

        scripts = [item for item in getattr(sys, "orig_argv", ()) if item.endswith(".py")]
        # The launcher itself does both once it is what it is to become.
        if os.path.join(home, "podlauncher", "main.py") not in scripts:
            control.start()
            if run_file:
                _enter_pod(run_file)
        for folder in (os.getcwd(), *(os.path.dirname(os.path.abspath(s)) for s in scripts)):
            # The program's own modules of these names come first, as if nobody had been here.
            for name in shadow.shadowed(folder, set(sys.modules) - before):
                del sys.modules[name]
    except (OSError, ValueError, KeyError, ImportError) as error:
        # A worker without the patches still runs; it must say why it may listen elsewhere.
        sys.stderr.write(f"kserve-local: Pod address not applied: {error}\n")
    finally:
        sys.path.remove(home)


def _enter_pod(run_file: str) -> None:
    import json

    from podlauncher import network

    with open(run_file, encoding="utf-8") as file:
        network.install(json.load(file)["network"])


def _chain() -> None:
    mine = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")  # the interpreter's own, now this folder is gone
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        if mine is not None:
            sys.modules["sitecustomize"] = mine


_install()
_chain()
