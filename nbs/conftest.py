"""Let nbval work on cleaned notebooks: it needs an execution count, and it does not know nbdev's skip flags."""

import re, pytest

SKIP = re.compile(r"^#\|\s*(slow|net|eval:\s*false)\b", re.M)


def pytest_collection_modifyitems(items):
    for i in items:
        c = getattr(i, "cell", None)
        if c is None:
            continue
        if c.get("outputs") and c.execution_count is None:
            c.execution_count = 1
        if SKIP.search(c.source):
            i.add_marker(pytest.mark.skip(reason="nbdev flag"))
