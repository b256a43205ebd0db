"""``sgtm families``: which model families can be masked, and why not."""

from sgtm.model.architectures import ARCHITECTURES, REFUSED

_NOTE = """
pass: the laws of model/tests/test_laws.py hold. An export is without heads where the family's configuration allows the
number that is left (some want hidden_size to be a multiple of it); what cannot be cut out is zero."""
_HEAD = ("family", "heads", "neurons", "an export is without", "why not")


def table() -> str:
    """A line a family: whether heads and neurons pass the laws, what is cut out of an export, and the reasons."""
    rows = [_HEAD]
    for family, a in sorted(ARCHITECTURES.items()):
        cut = [name for name, can in (("heads", a.cuts_heads and not a.no_heads), ("neurons", a.mlp_width)) if can]
        if a.no_neurons:
            cut = [name for name in cut if name != "neurons"]
        reasons = [f"{name}: {why}" for name, why in (("heads", a.no_heads), ("neurons", a.no_neurons)) if why]
        reasons += [f"{key}=True: {why}" for key, why in a.refused_with.items()]
        passes = ("no" if a.no_heads else "pass", "no" if a.no_neurons else "pass")
        what = " and ".join(cut) or ("(zeros)" if "pass" in passes else "")
        rows.append((family, *passes, what, "; ".join(reasons)))
    rows += [(family, "no", "no", "", why) for family, why in sorted(REFUSED.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join((*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4])) for row in rows]
    lines.append(_NOTE)
    return "\n".join(line.rstrip() for line in lines)
