"""The text of PTX as kernels, basic blocks and instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

SYNCHRONISES = ("bar", "barrier")
_GAP = 128  # bytes between shared variables, which belong to none


def width_of(kind: str) -> int:
    return 1 if kind == "pred" else 2 if kind in ("bf16", "f16") else int(kind.lstrip("busf")) // 8


@dataclass
class Instruction:
    text: str
    guard: str | None
    negated: bool
    op: list[str]
    """The parts of its name: ["ld", "global", "v2", "f32"]."""
    operands: list[str]

    @property
    def name(self) -> str:
        return self.op[0]

    @property
    def kind(self) -> str:
        return self.op[-1]

    @property
    def waits(self) -> bool:
        """For all threads of the block, or of its cluster."""
        return self.name in SYNCHRONISES and "warp" not in self.op and "arrive" not in self.op

    @property
    def space(self) -> str | None:
        return next((part for part in self.op if part in ("global", "shared", "local", "param", "const")), None)

    @property
    def targets(self) -> list[str]:
        """The registers that it writes."""
        if self.name in ("st", "red", "bra", "ret", "exit", "stmatrix", "membar", "fence") or not self.operands:
            return []
        if self.name in SYNCHRONISES and "red" not in self.op:
            return []
        return registers(self.operands[0])

    @property
    def sources(self) -> list[str]:
        """The registers that it reads; of a guarded one also those that it may leave as they are."""
        rest = self.operands if not self.targets else self.operands[1:]
        found = [register for operand in rest for register in registers(operand)]
        if self.guard is not None:
            found += [self.guard, *(() if self.name == "bra" else self.targets)]
        return found


@dataclass
class Block:
    """Instructions that run one after another; the last alone may be a branch, a return or a barrier."""

    number: int
    instructions: list[Instruction] = field(default_factory=list)
    next: int | None = None
    """Where it goes on if its branch is not taken; None: nowhere."""
    branch: int | None = None
    live_in: set[str] = field(default_factory=set)
    live_out: set[str] = field(default_factory=set)


@dataclass
class Kernel:
    name: str
    parameters: dict[str, tuple[int, int]]
    """Offset and bytes of each."""
    registers: dict[str, int]
    """Name -> bytes; a predicate has one."""
    variables: dict[str, tuple[int, int]]
    """Offset and bytes in shared or local memory; dynamic shared memory is the last, of 0 bytes."""
    local_bytes: int
    shared_end: int
    """Where dynamic shared memory begins."""
    blocks: list[Block]
    constants: dict[str, bytes]
    max_threads: int
    cluster: int
    """Blocks that run together."""

    @property
    def parameter_bytes(self) -> int:
        return max((offset + size for offset, size in self.parameters.values()), default=0)

    @property
    def shared_bytes(self) -> int:
        """What it uses besides dynamic shared memory, without gaps."""
        return sum(size for name, (_, size) in self.variables.items() if not name.startswith("__local"))

    @cached_property
    def size(self) -> int:
        return sum(len(block.instructions) for block in self.blocks)


def registers(operand: str) -> list[str]:
    return [name for name in re.findall(r"%[A-Za-z_]\w*", operand) if name not in _SPECIAL]


_SPECIAL = {"%tid", "%ntid", "%ctaid", "%nctaid", "%laneid", "%warpid", "%clock", "%clock64", "%globaltimer"}
_VARIABLE = re.compile(
    r"(?:\.visible |\.weak )?(\.extern )?\.(shared|global|const|local) (?:\.attribute\(\w+\) )?(?:\.align (\d+) )?"
    r"\.(\w+) ([\w$]+)(?:\[(\d*)\])?(?:\s*=\s*([^;]*))?;"
)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", re.S)
_PARAMETER = re.compile(
    r"\.param (?:\.align (\d+) )?\.(\w+)(?: \.ptr[^,\n]*?)? ([A-Za-z_$][\w$]*)(?:\[(\d+)\])?(?=[,\s]|$)"
)


class Module(Mapping[str, Kernel]):
    """The entries of a text of PTX, each parsed when it is asked for."""

    def __init__(self, text: str):
        text = re.sub(r"^\s*\.loc\s[^\n]*|//[^\n]*", "", text, flags=re.M)  # no semicolon ends them
        self._entries: dict[str, tuple[str, str, str]] = {}
        self._kernels: dict[str, Kernel] = {}
        between, end = [], 0
        for entry in _ENTRY.finditer(text):
            between.append(text[end : entry.start()])
            end = _closing(text, entry.end() - 1) + 1
            self._entries[entry[1]] = (entry[2], entry[3], text[entry.end() : end - 1])
        between.append(text[end:])
        self._between = between
        self._variables = [match for part in between for match in _VARIABLE.finditer(" ".join(part.split()))]

    def without_unrolling(self, name: str, architecture: str) -> str:
        """A text of this entry alone, whose loops ptxas must leave as they are."""
        head, directives, body = self._entries[name]
        labels = [(match[1], match.end()) for match in re.finditer(r"^([\w$]+):", body, re.M)]
        loops = {at for label, at in labels if re.search(rf"\bbra(?:\.uni)?\s+{re.escape(label)};", body[at:])}
        for at in sorted(loops, reverse=True):
            body = f'{body[:at]}\n.pragma "nounroll";{body[at:]}'
        if architecture < "sm_90":  # there code has no clusters
            directives = re.sub(r"\.(explicitcluster|reqnctapercluster[^.\n]*)", "", directives)
        version = re.search(r"\.version [\d.]+", self._between[0])[0]
        variables = "\n".join(match[0] for match in self._variables if match[5] in body)
        start = f"{version}\n.target {architecture}\n.address_size 64\n{variables}\n"
        return f"{start}.visible .entry {name}({head}){directives}{{{body}}}\n"

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._kernels:
            self._kernels[name] = _kernel(name, *self._entries[name], self._variables)
        return self._kernels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _closing(text: str, at: int) -> int:
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise ValueError("a brace stays open")


def _kernel(name: str, head: str, directives: str, body: str, module_level: list[re.Match]) -> Kernel:
    parameters, offset = {}, 0
    for align, kind, parameter, count in _PARAMETER.findall(" ".join(head.split())):
        size = width_of(kind) * int(count or 1)
        step = int(align or width_of(kind))
        offset = -(-offset // step) * step
        parameters[parameter] = offset, size
        offset += size
    # Scopes are forgotten: a brace at the end of a line ends a statement. Those of vectors stand inside a line.
    statements = [statement.strip() for statement in re.sub(r"[{}](?=\s*(?:\n|$))", ";", body).split(";")]
    names: dict[str, int] = {"%SP": 8, "%SPL": 8}
    variables: dict[str, tuple[int, int]] = {}
    local_bytes = 0
    code: list[Instruction | str] = []
    words = set(re.findall(r"[\w$]+", body))
    shared_end, dynamic, constants = _GAP, [], {}
    own = [match for statement in statements for match in [_VARIABLE.match(" ".join(statement.split()) + ";")] if match]
    for match in [*module_level, *own]:
        extern, space, align, kind, variable, count, value = match.groups()
        size = width_of(kind) * int(count or 1)
        if variable not in words:
            continue
        if space == "local":
            step = int(align or 8)
            local_bytes = -(-local_bytes // step) * step
            variables[variable] = local_bytes, size
            local_bytes += size
        elif extern:
            dynamic.append(variable)
        elif space == "shared":
            variables[variable] = shared_end, size
            shared_end = -(-(shared_end + size + _GAP) // 128) * 128
        else:
            constants[variable] = _bytes_of(value, kind, size)
    for variable in dynamic:
        variables[variable] = shared_end, 0
    for statement in statements:
        while label := re.match(r"([\w$]+):\s*", statement):
            code.append(label[1])
            statement = statement[label.end() :]
        if declared := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S):
            for item in declared[2].split(","):
                item = item.strip()
                if several := re.match(r"(%\w+)<(\d+)>", item):
                    names |= {f"{several[1]}{i}": width_of(declared[1]) for i in range(int(several[2]))}
                else:
                    names[item] = width_of(declared[1])
        elif statement and not statement.startswith("."):
            code.append(_instruction(statement))
    threads = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)", directives)
    cluster = re.search(r"\.reqnctapercluster\s+(\d+)", directives)
    blocks = _blocks(code)
    _find_live(blocks)
    return Kernel(
        name,
        parameters,
        names,
        variables,
        local_bytes,
        shared_end,
        blocks,
        constants,
        int(threads[1]) if threads else 0,
        int(cluster[1]) if cluster else 1,
    )


def _bytes_of(value: str | None, kind: str, size: int) -> bytes:
    width = width_of(kind)
    numbers = [int(number, 0) for number in re.findall(r"-?\b(?:0x)?[0-9a-fA-F]+\b", value or "")]
    return b"".join((number % 256**width).to_bytes(width, "little") for number in numbers).ljust(size, b"\0")


def _instruction(statement: str) -> Instruction:
    text = " ".join(statement.split())
    guard = re.match(r"@(!?)(%\w+)\s+", text)
    rest = text[guard.end() :] if guard else text
    op, _, operands = rest.partition(" ")
    return Instruction(
        text, guard[2] if guard else None, bool(guard and guard[1]), op.replace("::", ".").split("."), _split(operands)
    )


def _split(operands: str) -> list[str]:
    parts = re.split(r",(?![^{]*\})(?![^\[]*\])", operands)
    return [part.strip().replace(" ", "") for part in parts if part.strip()]


def _blocks(code: list[Instruction | str]) -> list[Block]:
    blocks, labels, open_block = [Block(0)], {}, True
    goals = {item.operands[0] for item in code if isinstance(item, Instruction) and item.name == "bra"}
    for item in code:
        if isinstance(item, str) and item not in goals:
            continue
        if isinstance(item, str):
            if blocks[-1].instructions or not open_block:
                blocks.append(Block(len(blocks)))
            labels[item] = blocks[-1].number
            open_block = True
            continue
        if not open_block:
            blocks.append(Block(len(blocks)))
            open_block = True
        blocks[-1].instructions.append(item)
        if item.waits or item.name in ("bra", "ret", "exit", "trap"):
            open_block = False
    for block in blocks:
        last = block.instructions[-1] if block.instructions else None
        always = last is not None and last.guard is None and last.name in ("bra", "ret", "exit", "trap")
        block.next = None if always or block.number + 1 == len(blocks) else block.number + 1
        if last is not None and last.name == "bra":
            block.branch = labels[last.operands[0]]
    return blocks


def _find_live(blocks: list[Block]) -> None:
    """Which registers are read before they are written in each block or after it, and after it alone."""
    writes: list[set[str]] = []
    for block in blocks:
        written: set[str] = set()
        for instruction in block.instructions:
            block.live_in.update(set(instruction.sources) - written)
            written.update(instruction.targets)
        writes.append(written)
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            after = [number for number in (block.next, block.branch) if number is not None]
            live = {name for number in after for name in blocks[number].live_in}
            if live != block.live_out:
                block.live_out, changed = live, True
                block.live_in |= live - writes[block.number]
