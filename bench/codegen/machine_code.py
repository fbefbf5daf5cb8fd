"""Read a compiled kernel: on NVIDIA its machine code (SASS), of which the full-block path counts; on AMD its assembly.

cuobjdump, which disassembles, comes with Triton's wheel.
"""

import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import dropwhile

from triton import knobs
from triton.compiler import CompiledKernel

_SIZES = ("BLOCK_SIZE", "ROWS", "COLUMNS")  # the templates' names for how many elements a program handles
# A line of cuobjdump's SASS: the address in a comment, perhaps a predicate, the opcode, its operands.
_SASS_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", re.MULTILINE)
_JUMPS = ("BRA", "JMP", "CALL")
_ENDS = ("BRA", "BRX", "JMP", "RET", "EXIT")
_AMD_BITS = {"dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: ``opcode`` with its modifiers (``LDG.E.128``), ``jump`` the address it names, if any."""

    address: int
    opcode: str
    predicated: bool
    jump: int | None

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def access(self) -> str | None:
        """``load`` or ``store`` for an access to global memory."""
        return {"LDG": "load", "STG": "store"}.get(self.name)

    @property
    def bits(self) -> int:
        """Width of a memory access, per thread."""
        size = re.search(r"\.[US]?(\d+)\b", self.opcode)
        return int(size[1]) if size else 32


@dataclass(frozen=True)
class MachineCode:
    """A kernel compiled for NVIDIA: resources of the whole kernel, instructions of its full-block path.

    ``path`` runs from the first global load of the full-block path to the EXIT or branch that ends it; it is empty
    where the kernel has no unmasked path. Counts are per thread, of which each works on ``elements`` elements.
    """

    elements: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_accesses: int
    path: tuple[Instruction, ...]

    def count(self, *names: str) -> int:
        """How many instructions of the path begin with one of ``names``, such as ``MUFU`` or ``MUFU.EX2``."""
        return sum(i.opcode.startswith(names) for i in self.path)

    @property
    def instructions_per_element(self) -> float:
        return len(self.path) / self.elements

    @property
    def control_flow(self) -> Counter[str]:
        """Branches, calls and what comes with them, on the path, without the one that ends it."""
        names = (*_JUMPS, *_ENDS, "BSSY", "BSYNC", "WARPSYNC", "BAR")
        return Counter(i.name for i in self.path[:-1] if i.name in names)

    def access_bits(self, access: str) -> Counter[int]:
        """Widths of the path's global accesses of one kind (``load`` or ``store``), and how many there are of each."""
        return Counter(i.bits for i in self.path if i.access == access)


def read_machine_code(compiled: CompiledKernel) -> MachineCode:
    """The facts of a kernel compiled for NVIDIA."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resources = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump)}
    names = compiled.src.fn.arg_names
    elements = math.prod(value for (i, *_), value in compiled.src.constants.items() if names[i] in _SIZES)
    return MachineCode(
        elements=elements // (compiled.metadata.num_warps * compiled.metadata.warp_size),
        registers=resources["REG"],
        stack_bytes=resources["STACK"] + resources["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        local_accesses=sum(i.name in ("LDL", "STL") for i in _parse_sass(dump)),
        path=read_path(dump),
    )


def amd_access_bits(compiled: CompiledKernel, access: str) -> Counter[int]:
    """Widths of all global accesses of one kind (``load`` or ``store``) in a kernel compiled for AMD."""
    words = re.findall(rf"(?:global|buffer|flat)_{access}_(\w+)", compiled.asm["amdgcn"])
    return Counter(_AMD_BITS.get(word, 8 if "byte" in word else 16) for word in words)


def read_path(sass: str) -> tuple[Instruction, ...]:
    """The full-block path in cuobjdump's text of a kernel, from its first global load on.

    It consists of the blocks that lead to a store and share no way with a masked load: Triton predicates every masked
    load, and a sum's store, which one thread does for many. The block that chooses between both paths leads to masked
    ones, too.
    """
    instructions = _parse_sass(sass)
    targets = {i.jump for i in instructions}
    blocks: list[list[Instruction]] = [[]]
    for instruction in instructions:
        if blocks[-1] and (instruction.address in targets or blocks[-1][-1].name in (*_JUMPS, *_ENDS)):
            blocks.append([])
        blocks[-1].append(instruction)
    successors = [_successors(block, index, blocks) for index, block in enumerate(blocks)]
    predecessors = [{i for i, after in enumerate(successors) if index in after} for index in range(len(blocks))]
    masked = {index for index, block in enumerate(blocks) if any(i.access == "load" and i.predicated for i in block)}
    stores = {index for index, block in enumerate(blocks) if any(i.access == "store" for i in block)}
    passed = _reachable(masked, successors) | _reachable(masked, predecessors)
    path = [i for index in sorted(_reachable(stores, predecessors) - passed) for i in blocks[index]]
    return tuple(dropwhile(lambda i: i.access != "load", path))


def _parse_sass(dump: str) -> list[Instruction]:
    instructions = []
    for address, predicate, opcode, operands in _SASS_LINE.findall(dump):
        target = re.search(r"\b0x([0-9a-f]+)\s*$", operands) if opcode.startswith(_JUMPS) else None
        # BRA.U and BRA.DIV have their condition among the operands.
        predicated = bool(predicate) or opcode.startswith(("BRA.U", "BRA.DIV"))
        instructions.append(Instruction(int(address, 16), opcode, predicated, int(target[1], 16) if target else None))
    return instructions


def _successors(block: list[Instruction], index: int, blocks: list[list[Instruction]]) -> set[int]:
    last = block[-1]
    falls_through = (last.predicated or last.name not in _ENDS) and index + 1 < len(blocks)
    jumps = {i for i, other in enumerate(blocks) if other[0].address == last.jump}
    return jumps | ({index + 1} if falls_through else set())


def _reachable(start: set[int], edges: list[set[int]]) -> set[int]:
    """``start`` and all that is reached from it."""
    found: set[int] = set()
    waiting = set(start)
    while waiting:
        index = waiting.pop()
        found.add(index)
        waiting |= edges[index] - found
    return found
