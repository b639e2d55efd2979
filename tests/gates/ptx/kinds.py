"""What kind of value a register holds for an instruction, and what kind of work the instruction is."""

from __future__ import annotations

from gates.ptx import arithmetic
from gates.ptx.parse import Instruction, width_of


def dtype_of(kind: str) -> str:
    """NumPy's name of a PTX type."""
    if kind == "pred":
        return "?"
    return {"b": "u", "u": "u", "s": "i", "f": "f"}[kind[0]] + str(width_of(kind)) if kind != "bf16" else "u2"


def class_of(instruction: Instruction) -> str:
    """What kind of work it is, for counting."""
    name, kind = instruction.name, instruction.kind
    if name in ("ld", "st"):
        return f"{name} {instruction.space or 'generic'}"
    if name in ("atom", "red"):
        return f"atomic {instruction.space or 'global'}"
    if name in ("bra", "ret", "exit"):
        return "branch"
    if name in ("bar", "barrier"):
        return "barrier"
    if name in ("div", "rem") and kind in ("s64", "u64"):
        return "division"
    if name in ("shfl", "vote", "redux"):
        return "warp"
    if name in arithmetic.APPROXIMATE or (name == "div" and kind[0] == "f"):
        return "special"
    if name in ("mov", "cvta", "selp"):
        return "move"
    if name == "cvt":
        return "convert"
    return {"f32": "float", "f64": "double", "pred": "predicate"}.get(kind, "integer" if kind[0] in "bsu" else "float")
