"""The part of a block's function that reads and writes memory."""

from __future__ import annotations

import re
from typing import Any

from gates.ptx.kinds import dtype_of
from gates.ptx.parse import Block, Instruction, Kernel, registers, width_of

_ATOMIC = ("add", "min", "max", "exch", "cas", "and", "or", "xor", "inc")


class MemoryWriter:
    kernel: Kernel
    block: Block
    first: int
    """The number of the block's first instruction."""
    lines: list[str]
    use: Any
    new: Any
    set: Any
    _view: Any
    _kind: Any
    _guard: Any
    _symbol: Any
    _unsigned: Any

    def _address(self, operand: str) -> str:
        base, sign, offset = re.fullmatch(r"\[([^+\-\]]+)(?:(\+-?|-)(\w+))?\]", operand).groups()
        step = int(offset or "0", 0) * (-1 if sign and "-" in sign else 1)
        if not base.startswith("%"):
            number = int(base, 0) if base.isdigit() else self._symbol(base)
            return self.new(f"full(n, {number + step})")
        address = self.use(base, f"u{8 * self.kernel.registers[base]}")
        return self.new(f"{address}.astype('i8')" + (f" + {step}" if step else ""))

    def _where(self, instruction: Instruction) -> str:
        return "None" if instruction.guard is None else self._guard(instruction)

    def _load(self, instruction: Instruction, number: int) -> None:
        targets, kind, space = (
            registers(instruction.operands[0].replace("_", "%_")),
            instruction.kind,
            instruction.space,
        )
        if space is None or space == "const":
            raise NotImplementedError(instruction.text)
        where = self._where(instruction)
        if space == "param":
            address = self._address(instruction.operands[1])
            found = self.new(f"m.parameter({address}, '{dtype_of(kind)}', {len(targets)})")
        else:
            address = self._address(instruction.operands[1])
            found = self.new(f"m.load('{space}', {address}, '{dtype_of(kind)}', {len(targets)}, L, {where}, {number})")
        for i, target in enumerate(targets):
            value = self.new(f"{found}[{i}]")
            if where != "None":
                old = self._view(target, self._unsigned(target))
                self.set(target, value, kind, known=True)
                new = self._view(target, self._unsigned(target))
                self.set(target, f"where({where}, {new}, {old})", self._kind(target))
            else:
                self.set(target, value, kind, known=True)

    def _store(self, instruction: Instruction, number: int) -> None:
        kind = instruction.kind
        if instruction.space not in ("global", "shared", "local"):
            raise NotImplementedError(instruction.text)
        address = self._address(instruction.operands[0])
        parts = instruction.operands[1].strip("{}").split(",")
        values = [self.use(part, f"b{8 * width_of(kind)}") for part in parts]
        values = [self.new(f"full(n, {value})") if value.startswith("k") else value for value in values]
        where = self._where(instruction)
        self.lines.append(f"m.store('{instruction.space}', {address}, [{', '.join(values)}], L, {where}, {number})")

    def _atomic(self, instruction: Instruction, number: int) -> None:
        kind, space = instruction.kind, instruction.space
        has_result = instruction.name == "atom" and instruction.operands[0] != "_"
        operands = instruction.operands[1:] if instruction.name == "atom" else instruction.operands
        how = next(part for part in instruction.op[1:] if part in _ATOMIC)
        values = [self.use(operand, kind) for operand in operands[1:]]
        values = [self.new(f"full(n, {value})") if value.startswith("k") else value for value in values]
        address, where = self._address(operands[0]), self._where(instruction)
        target = instruction.operands[0]
        wanted = has_result and self._is_read_later(target, number)
        call = f"m.atomic('{space}', '{how}', {address}, [{', '.join(values)}], L, {where}, {number}, {wanted})"
        if not wanted:
            self.lines.append(call)
        elif where == "None":
            self.set(target, call, kind)
        else:
            old = self._view(target, dtype_of(kind))
            self.set(target, f"where({where}, {call}, {old})", kind)

    def _is_read_later(self, register: str, number: int) -> bool:
        for instruction in self.block.instructions[number - self.first + 1 :]:
            if register in instruction.sources:
                return True
            if register in instruction.targets:
                return False
        return register in self.block.live_out
