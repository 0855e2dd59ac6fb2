"""The command. Task processes import this module as well: it must stay small."""

from __future__ import annotations

if __name__ == "__main__":
    from benchmarks.command import main

    raise SystemExit(main())
