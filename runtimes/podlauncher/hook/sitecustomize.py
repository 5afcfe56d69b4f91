"""Runs at the start of every Python process below a replica, `multiprocessing` spawn included.

The launcher puts this folder on PYTHONPATH, so worker processes that user code starts get the
Pod's address and names as well. The interpreter's own sitecustomize, if any, still runs.
"""

import importlib
import os
import sys


def _install() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    run_file = os.environ.get("KSERVE_LOCAL_RUN_FILE")
    if not run_file:
        return
    home = os.path.dirname(os.path.dirname(here))
    sys.path.append(home)
    try:
        from podlauncher import child, network

        network.install(child.read(run_file)["network"])
    except (OSError, ValueError, KeyError, ImportError) as error:
        # A worker without the patches still runs; it must say why it may listen elsewhere.
        sys.stderr.write("kserve-local: Pod address not applied: %s\n" % (error,))  # noqa: UP031 - runs on old Pythons
    finally:
        sys.path.remove(home)


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
