"""`python -m kserve_local.gateway`: started by the supervisor, configured over stdin."""

from kserve_local.gateway.main import main

if __name__ == "__main__":
    raise SystemExit(main())
