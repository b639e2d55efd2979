"""Basic blocks of PTX as Python functions over arrays of lanes.

A function takes the machine, the registers, which lanes run (None: all), their numbers and how many they are. A
register is an array of unsigned integers, or of bools; inside a block it is looked at as what an instruction takes it
for. Only what a later block reads is written back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from gates.ptx import arithmetic
from gates.ptx.emit_memory import MemoryWriter
from gates.ptx.kinds import class_of, dtype_of
from gates.ptx.parse import Block, Instruction, Kernel, registers, width_of

_OPERATORS = {"add": "{} + {}", "sub": "{} - {}", "and": "{} & {}", "or": "{} | {}", "xor": "{} ^ {}"}
_HELPERS = {"div": "divide", "rem": "remainder", "popc": "popcount", "clz": "leading_zeros", "brev": "reversed_bits"}
NOTHING = ("membar", "fence", "prefetch", "nanosleep", "trap", "bra", "ret", "exit", "bar", "barrier", "griddepcontrol")


class Writer(MemoryWriter):
    """Writes the function of one block."""

    def __init__(self, kernel: Kernel, block: Block, first: int):
        self.kernel, self.block, self.first = kernel, block, first
        self.loads: list[tuple[str, str]] = []
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self._known: dict[str, dict[str, str]] = {}
        self._roots: dict[str, str] = {}  # register -> the variable that its array came from
        self._written: set[str] = set()
        self._count = 0

    def function(self) -> tuple[str, str]:
        """(name, text)."""
        for position, instruction in enumerate(self.block.instructions):
            self._instruction(instruction, self.first + position)
        result = self._result()
        stores, taken = [], {variable for _, variable in self.loads}
        for register in sorted(self._written & self.block.live_out):
            root = self._roots[register]
            value = self._view(register, self._unsigned(register))
            if root in taken:
                value += ".copy()"
            taken.add(root)
            stores.append((register, value))
        text = [f"def block_{self.block.number}(m, R, ix, L, n):"]
        if self.loads:
            text += ["  if ix is None:", *(f"    {v} = R[{r!r}]" for r, v in self.loads)]
            text += ["  else:", *(f"    {v} = R[{r!r}][ix]" for r, v in self.loads)]
        text += [f"  {line}" for line in self.lines]
        if stores:
            text += ["  if ix is None:", *(f"    R[{r!r}] = {v}" for r, v in stores)]
            text += ["  else:", *(f"    R[{r!r}][ix] = {v}" for r, v in stores)]
        return f"block_{self.block.number}", "\n".join([*text, f"  return {result}"])

    def _result(self) -> str:
        last = self.block.instructions[-1] if self.block.instructions else None
        if last is not None and last.name in ("bra", "ret", "exit") and last.guard is not None:
            return self._guard(last)
        if last is not None and last.name in ("bar", "barrier") and "red" in last.op:
            return self.use(last.operands[-1], "pred")
        return "None"

    def _unsigned(self, register: str) -> str:
        size = self.kernel.registers[register]
        return "?" if size == 1 else f"u{size}"

    def new(self, expression: str) -> str:
        self._count += 1
        self.lines.append(f"v{self._count} = {expression}")
        return f"v{self._count}"

    def constant(self, value: Any) -> str:
        name = f"k{len(self.names)}_{self.block.number}"
        self.names[name] = value
        return name

    def _view(self, register: str, dtype: str) -> str:
        if register not in self._known:
            self._count += 1
            variable = f"v{self._count}"
            self.loads.append((register, variable))
            self._known[register] = {self._unsigned(register): variable}
            self._roots[register] = variable
        views = self._known[register]
        if dtype not in views:
            any_dtype, any_variable = next(iter(views.items()))
            if int(dtype[1:]) == int(any_dtype[1:]):
                views[dtype] = self.new(f"{any_variable}.view('{dtype}')")
            else:  # the lower part of a wider register
                views[dtype] = self.new(f"{self._view(register, self._unsigned(register))}.astype('{dtype}')")
        return views[dtype]

    def use(self, operand: str, kind: str) -> str:
        """A variable or constant with the operand's value as this type."""
        dtype = dtype_of(kind)
        if operand.startswith("!"):
            return self.new(f"~{self.use(operand[1:], kind)}")
        if operand.startswith("%"):
            if operand in self.kernel.registers:
                return self._view(operand, dtype)
            return self.new(f"m.special({operand[1:]!r}, L).astype('{dtype}')")
        if operand[:2] in ("0f", "0F"):
            return self.constant(np.uint32(int(operand[2:], 16)).view(np.float32).astype(dtype) if dtype == "f8" else
                                 np.uint32(int(operand[2:], 16)).view(dtype))  # fmt: skip
        if operand[:2] in ("0d", "0D"):
            return self.constant(np.uint64(int(operand[2:], 16)).view(dtype))
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            number = int(operand.rstrip("U"), 0)
            if dtype == "?":
                return self.constant(np.bool_(number != 0))
            if dtype[0] == "f":
                raise NotImplementedError(f"the number {operand} for a float")
            return self.constant(np.array(number % 256 ** int(dtype[1:])).astype(f"u{dtype[1:]}").view(dtype)[()])
        return self.constant(np.array(self._symbol(operand), dtype)[()])

    def _symbol(self, name: str) -> int:
        name, _, offset = name.partition("+")
        if name in self.kernel.constants:
            raise NotImplementedError(f"the address of the constant {name}")
        table = self.kernel.variables if name in self.kernel.variables else self.kernel.parameters
        return table[name][0] + int(offset or "0", 0)

    def set(self, register: str, expression: str, kind: str, known: bool = False) -> None:
        """The register's new value, an expression of this type; `known`: a variable that another register may share."""
        if register == "_":
            return
        dtype, own = dtype_of(kind), self._unsigned(register)
        variable = expression if known else self.new(expression)
        if own != "?" and int(dtype[1:]) < int(own[1:]):
            dtype, known = ("i" if dtype[0] == "i" else "u") + own[1:], False
            variable = self.new(f"{variable}.astype('{dtype}')")
        self._known[register] = {dtype: variable}
        self._roots[register] = variable
        self._written.add(register)

    def _guard(self, instruction: Instruction) -> str:
        p = self.use(instruction.guard, "pred")
        return self.new(f"~{p}") if instruction.negated else p

    def _instruction(self, instruction: Instruction, number: int) -> None:
        if instruction.name in NOTHING and instruction.op[1:2] != ["warp"]:
            return
        memory = {"ld": self._load, "st": self._store, "atom": self._atomic, "red": self._atomic}
        if instruction.name in memory:
            memory[instruction.name](instruction, number)
            return
        before = {}
        if instruction.guard is not None:
            guard = self._guard(instruction)
            before = {register: self._view(register, self._unsigned(register)) for register in instruction.targets}
        method: Callable[..., None] | None = getattr(self, f"_{instruction.name}", None)
        if method is not None:
            method(instruction, instruction.operands, number)
        else:
            self._compute(instruction, instruction.operands)
        for register, old in before.items():
            new = self._view(register, self._unsigned(register))
            self.set(register, f"where({guard}, {new}, {old})", self._kind(register))

    def _kind(self, register: str) -> str:
        size = self.kernel.registers[register]
        return "pred" if size == 1 else f"b{8 * size}"

    def _arguments(self, operands: list[str], kinds: list[str]) -> list[str]:
        """Where all are constants the first becomes an array."""
        found = [self.use(operand, kind) for operand, kind in zip(operands, kinds, strict=True)]
        if all(name.startswith("k") for name in found):
            found[0] = self.new(f"full(n, {found[0]})")
        return found

    def _compute(self, instruction: Instruction, operands: list[str]) -> None:
        name, op, kind = instruction.name, instruction.op, instruction.kind
        is_float = kind[0] == "f"
        if kind in ("bf16", "f16x2", "bf16x2") or "sat" in op or "cc" in op:
            raise NotImplementedError(instruction.text)
        target, sources = operands[0], operands[1:]
        if name in ("shl", "shr"):
            a, by = self._arguments(sources, [kind, "u32"])
            self.set(target, f"shift_{'left' if name == 'shl' else 'right'}({a}, {by})", kind)
            return
        if name in ("bfe", "bfi"):
            kinds = [kind] * (len(sources) - 2) + ["u32", "u32"]
            function = "extract" if name == "bfe" else "insert"
            self.set(target, f"{function}({', '.join(self._arguments(sources, kinds))})", kind)
            return
        args = self._arguments(sources, [kind] * len(sources))
        if "ftz" in op:
            args = [self.new(f"flushed({argument})") for argument in args]
        if name in _OPERATORS:
            self.set(target, _OPERATORS[name].format(*args), kind)
        elif name == "div" and is_float:
            self.set(target, f"{args[0]} / {args[1]}", kind)
        elif name in _HELPERS:
            result = "u32" if name in ("popc", "clz") else kind
            self.set(target, f"{_HELPERS[name]}({', '.join(args)})", result)
        elif name in ("neg", "not"):
            self.set(target, f"{'-' if name == 'neg' else '~'}{args[0]}", kind)
        elif name == "abs":
            self.set(target, f"abs({args[0]})", kind)
        elif name in ("min", "max"):
            function = f"f{name}" if is_float and "NaN" not in op else f"{name}imum"
            self.set(target, f"{function}({', '.join(args)})", kind)
        elif name == "mul":
            self._product(target, op, kind, args)
        elif name == "copysign":
            self.set(target, f"copysign({args[1]}, {args[0]})", kind)
        elif name in arithmetic.APPROXIMATE:
            exact = {"rcp": "1 / {}", "sqrt": "sqrt({})"}.get(name) if "approx" not in op else None
            one = self.constant(np.dtype(dtype_of(kind)).type(1))
            text = exact.replace("1", one).format(args[0]) if exact else f"approximate({name!r}, {args[0]})"
            self.set(target, text, kind)
        else:
            raise NotImplementedError(instruction.text)
        if "ftz" in op:
            self.set(target, f"flushed({self.use(target, kind)})", kind)

    def _product(self, target: str, op: list[str], kind: str, args: list[str]) -> None:
        if "wide" in op:
            self.set(target, f"wide({', '.join(args)})", kind[0] + str(2 * int(kind[1:])))
        elif "hi" in op:
            self.set(target, f"high({', '.join(args)})", kind)
        else:
            self.set(target, f"{args[0]} * {args[1]}", kind)

    def _mad(self, instruction: Instruction, operands: list[str], _: int) -> None:
        kind, op = instruction.kind, instruction.op
        if kind[0] == "f":
            self._fma(instruction, operands, _)
            return
        a, b = self._arguments(operands[1:3], [kind, kind])
        result = kind[0] + str(2 * int(kind[1:])) if "wide" in op else kind
        product = f"wide({a}, {b})" if "wide" in op else f"high({a}, {b})" if "hi" in op else f"{a} * {b}"
        self.set(operands[0], f"{product} + {self.use(operands[3], result)}", result)

    def _fma(self, instruction: Instruction, operands: list[str], _: int) -> None:
        kind = instruction.kind
        if "ftz" in instruction.op or "sat" in instruction.op:
            raise NotImplementedError(instruction.text)
        args = self._arguments(operands[1:], [kind] * 3)
        self.set(operands[0], f"fma{dtype_of(kind)[1:]}({', '.join(args)})", kind)

    def _lop3(self, instruction: Instruction, operands: list[str], _: int) -> None:
        args = self._arguments(operands[1:4], ["b32"] * 3)
        self.set(operands[0], f"logic({', '.join(args)}, {int(operands[4], 0)})", "b32")

    def _shf(self, instruction: Instruction, operands: list[str], _: int) -> None:
        args = ", ".join(self._arguments(operands[1:], ["b32", "b32", "u32"]))
        self.set(operands[0], f"funnel({args}, {'l' in instruction.op}, {'wrap' in instruction.op})", "b32")

    def _prmt(self, instruction: Instruction, operands: list[str], _: int) -> None:
        self.set(operands[0], f"permute({', '.join(self._arguments(operands[1:], ['b32'] * 3))})", "b32")

    def _mov(self, instruction: Instruction, operands: list[str], _: int) -> None:
        target, source = operands
        kind = instruction.kind
        if target.startswith("{"):
            parts = target[1:-1].split(",")
            size = 8 * width_of(kind) // len(parts)
            whole = self.use(source, f"b{8 * width_of(kind)}")
            for i, part in enumerate(parts):
                shift = self.constant(np.dtype(dtype_of(f"b{8 * width_of(kind)}")).type(size * i))
                self.set(part, f"({whole} >> {shift}).astype('u{size // 8}')", f"b{size}")
        elif source.startswith("{"):
            parts = source[1:-1].split(",")
            size, dtype = 8 * width_of(kind) // len(parts), dtype_of(f"b{8 * width_of(kind)}")
            found = self._arguments(parts, [f"b{size}"] * len(parts))
            terms = [f"({v}.astype('{dtype}') << {self.constant(np.dtype(dtype).type(size * i))})" for i, v in
                     enumerate(found)]  # fmt: skip
            self.set(target, " | ".join(terms), f"b{8 * width_of(kind)}")
        else:
            (value,) = self._arguments([source], [kind])
            self.set(target, value, kind, known=True)
            self._roots[target] = self._roots.get(source, value)

    def _cvta(self, instruction: Instruction, operands: list[str], number: int) -> None:
        self._mov(instruction, operands, number)

    def _selp(self, instruction: Instruction, operands: list[str], _: int) -> None:
        kind = instruction.kind
        a, b, p = (self.use(operand, k) for operand, k in zip(operands[1:], (kind, kind, "pred"), strict=True))
        self.set(operands[0], f"where({p}, {a}, {b})", kind)

    def _setp(self, instruction: Instruction, operands: list[str], _: int) -> None:
        op, kind = instruction.op, instruction.kind
        if "ftz" in op:
            raise NotImplementedError(instruction.text)
        a, b = self._arguments(operands[1:3], [kind, kind])
        found = self.new(f"compare({op[1]!r}, {a}, {b})")
        targets = operands[0].split("|")
        values = [found] if len(targets) == 1 else [found, self.new(f"~{found}")]
        for target, value in zip(targets, values, strict=True):
            if len(operands) > 3:
                joined = {"and": "&", "or": "|", "xor": "^"}[
                    next(part for part in op[2:] if part in ("and", "or", "xor"))
                ]
                value = self.new(f"{value} {joined} {self.use(operands[3], 'pred')}")
            self.set(target, value, "pred", known=True)

    def _cvt(self, instruction: Instruction, operands: list[str], _: int) -> None:
        op = instruction.op
        to, of = (part for part in op[1:] if re.fullmatch(r"[busf]\d+|bf16", part))
        if "sat" in op or "ftz" in op:
            raise NotImplementedError(instruction.text)
        (value,) = self._arguments(operands[1:], [of])
        rounding = next((part[1] for part in op[1:] if re.fullmatch(r"r[nzmp]i?", part)), "n")
        if of == "bf16":
            value, of = self.new(f"from_bfloat16({value})"), "f32"
        if to == "bf16":
            self.set(operands[0], f"to_bfloat16({value})", "b16")
        elif of[0] == "f" and to[0] != "f":
            self.set(operands[0], f"to_integer({value}, '{dtype_of(to)}', '{rounding}')", to)
        elif of[0] == "f" and to == of:
            whole = any(re.fullmatch(r"r[nzmp]i", part) for part in op)
            self.set(operands[0], f"to_whole({value}, '{rounding}')" if whole else f"{value}.copy()", to)
        elif to[0] == "f" and (of[0] != "f" or width_of(to) < width_of(of)):
            self.set(operands[0], f"narrow({value}, '{rounding}', dtype('{dtype_of(to)}'))", to)
        else:
            self.set(operands[0], f"{value}.astype('{dtype_of(to)}')", to)

    def _shfl(self, instruction: Instruction, operands: list[str], number: int) -> None:
        arguments = self._arguments(operands[1:], ["b32", "u32", "u32", "b32"])
        value, found = self.new(f"m.shuffle('{instruction.op[2]}', {', '.join(arguments)}, L, {number})"), None
        names = operands[0].split("|")
        found = [self.new(f"{value}[{i}]") for i in range(len(names))]
        for name, variable, kind in zip(names, found, ("b32", "pred"), strict=False):
            self.set(name, variable, kind, known=True)

    def _vote(self, instruction: Instruction, operands: list[str], number: int) -> None:
        value, mask = self.use(operands[1], "pred"), self.use(operands[2], "b32")
        how = instruction.op[2]
        self.set(operands[0], f"m.vote('{how}', {value}, {mask}, L, {number})", "b32" if how == "ballot" else "pred")

    def _redux(self, instruction: Instruction, operands: list[str], number: int) -> None:
        value, mask = self._arguments(operands[1:], [instruction.kind, "b32"])
        self.set(operands[0], f"m.reduce('{instruction.op[2]}', {value}, {mask}, L, {number})", instruction.kind)

    def _bar(self, instruction: Instruction, operands: list[str], number: int) -> None:
        self.lines.append(f"m.warp_barrier({self._arguments(operands, ['b32'])[0]}, L, {number})")

    def _stmatrix(self, instruction: Instruction, operands: list[str], number: int) -> None:
        address = self._address(operands[0])
        for i, part in enumerate(registers(operands[1])):
            self.lines.append(
                f"m.store('shared', m.rows({address}, L, {i}), [{self.use(part, 'b32')}], L, None, {number})"
            )

    def _ldmatrix(self, instruction: Instruction, operands: list[str], number: int) -> None:
        address = self._address(operands[1])
        for i, part in enumerate(registers(operands[0])):
            self.set(part, f"m.load('shared', m.rows({address}, L, {i}), 'u4', 1, L, None, {number})[0]", "b32")

    def _activemask(self, instruction: Instruction, operands: list[str], number: int) -> None:
        self.set(operands[0], "m.active(L)", "b32")


def functions_of(kernel: Kernel) -> tuple[list[Callable], list[Counter], list[Instruction]]:
    """The function of each block, the classes of its instructions, and all instructions by their numbers."""
    namespace: dict[str, Any] = {name: getattr(arithmetic, name) for name in vars(arithmetic) if name[0] != "_"}
    for name in ("where", "full", "dtype", "sqrt", "fmin", "fmax", "minimum", "maximum", "copysign", "abs"):
        namespace[name] = getattr(np, name)
    namespace["popcount"] = lambda a: np.bitwise_count(a).astype("u4")
    texts, names, everything = [], [], []
    for block in kernel.blocks:
        writer = Writer(kernel, block, len(everything))
        everything += block.instructions
        name, text = writer.function()
        namespace |= writer.names
        names.append(name)
        texts.append(text)
    exec(compile("\n".join(texts), f"<{kernel.name}>", "exec"), namespace)
    classes = [Counter(map(class_of, block.instructions)) for block in kernel.blocks]
    return [namespace[name] for name in names], classes, everything
