"""One control loop per kind; each a pure plan and the calls that carry it out."""
