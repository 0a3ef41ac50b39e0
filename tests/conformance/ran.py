"""Which stores the conformance suite really ran on, said at the end of a run.

The tests' properties carry it, because only they come back from the processes that run tests.
"""

PROPERTY = "conformance-store"


def summary(terminalreporter):
    """Print a line for each store: how many tests passed and failed on it."""
    counts = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY:
                    counts.setdefault(value, {"passed": 0, "failed": 0})[outcome] += 1
    if counts:
        terminalreporter.section("conformance")
        for store, count in sorted(counts.items()):
            terminalreporter.line(f"{store}: {count['passed']} passed, {count['failed']} failed")
