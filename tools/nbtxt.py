"""Percent-text view of a notebook that keeps cell ids and tags: `nbtxt get NB > x.py`, edit, `nbtxt put NB < x.py`."""

import hashlib, re, sys
from itertools import count
from pathlib import Path
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb

META = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
HDR = re.compile(r"# %%(?: \[(markdown|raw)\])?(?: #([\w-]+))?(?: :([\w,-]+))?")


def to_text(nb):
    "Cells of `nb` as text; prose is commented, so the text is valid Python"

    def cell(c):
        src = c.source if c.cell_type == "code" else "\n".join("# " + l if l else "#" for l in c.source.split("\n"))
        kind, tags = ("" if c.cell_type == "code" else f" [{c.cell_type}]"), ",".join(c.metadata.get("tags", []))
        return f"# %%{kind} #{c.id}{tags and ' :' + tags}\n" + re.sub(r"^(\\*# %%)", r"\\\1", src, flags=re.M) + "\n"

    return "\n".join(map(cell, nb.cells))


def parse(text):
    "Yield `(kind, id, tags, source)` of each block of `text`"
    pre, *blocks = re.split(r"^(?=# %%)", text, flags=re.M)
    if pre.strip():
        raise ValueError(f"text before the first marker: {pre[:40]!r}")
    for b in blocks:
        head, _, src = b.partition("\n")
        if not (m := HDR.fullmatch(head.rstrip())):
            raise ValueError(f"bad marker: {head!r}")
        lines = re.sub(r"^\\(\\*# %%)", r"\1", src.strip("\n"), flags=re.M).rstrip().split("\n")
        if m[1] and any(l and l[0] != "#" for l in lines):
            raise ValueError(f"prose must be commented: {lines[0]!r}")
        if m[1]:
            lines = [l[2:] if l.startswith("# ") else l[1:] for l in lines]
        yield m[1] or "code", m[2], m[3].split(",") if m[3] else [], "\n".join(lines)


def from_text(text, nb=None):
    "`nb` with the cells of `text`, matched by id; a changed code cell loses its outputs, a new cell gets a hash as id"
    old, new = {c.id: c for c in nb.cells} if nb else {}, {}
    for kind, cid, tags, src in parse(text):
        if cid in new or (cid and nb and cid not in old):
            raise ValueError(f"duplicate or unknown cell id {cid}")
        ids = (hashlib.sha1(f"{n}{kind}{src}".encode()).hexdigest()[:8] for n in count())
        cid = cid or next(i for i in ids if i not in old and i not in new)
        c = old.get(cid)
        if c is None or c.cell_type != kind:
            c = mk_cell(src, cell_type=kind, id=cid)
        elif c.source.strip() != src.strip():
            c.set_source(src)
            if kind == "code":
                c.outputs, c.execution_count = [], None
        c.metadata.pop("tags", None)
        if tags:
            c.metadata["tags"] = tags
        new[cid] = c
    nb = nb or new_nb([], meta=META)
    nb.cells = list(new.values())
    return nb


def main():
    cmd, path = sys.argv[1], Path(sys.argv[2])
    if cmd == "get":
        sys.stdout.write(to_text(read_nb(path)))
    else:
        write_nb(from_text(sys.stdin.read(), read_nb(path) if path.exists() else None), path)


if __name__ == "__main__":
    main()
