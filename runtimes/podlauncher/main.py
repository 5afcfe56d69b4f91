"""The launcher's command line: `python .../podlauncher/main.py run|zygote FILE`.

Started as a file, not with -m, because the interpreter may be anybody's: the folder above is put
on the path just long enough to import this package, and user code finds it last, if at all.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run a container (`run RUN_FILE`) or a warm parent (`zygote ZYGOTE_FILE`)."""
    here = os.path.dirname(os.path.abspath(__file__))
    home = os.path.dirname(here)
    sys.path[:] = [home, *(p for p in sys.path if os.path.abspath(p or ".") not in (here, home))]
    from podlauncher import child, shadow

    what, path = sys.argv[1], sys.argv[2]
    if what == "zygote":
        from podlauncher import zygote

        zygote.main(path)
        return
    launch = child.read(path)
    child.own_session()
    child.record(path, {**launch, "started_how": "process"})
    folder = shadow.first_folder(launch["argv"], launch["cwd"])
    own = shadow.shadowed(folder, sys.modules)
    child.run(path, launch, forked=False, fresh=bool(own) and not launch["home_first"])


if __name__ == "__main__":
    main()
