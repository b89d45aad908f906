"""Looks through a pickle before it is loaded: only opcodes that checkpoint metadata is made of, in bounded amounts.

A pickle is a program for a machine with a stack and a memo. A few bytes of it can ask for any amount of memory (an
entry of the memo with a high number, a text of a claimed length) or of time (a tuple that holds another one twice, and
so on: its hash takes forever). The program is followed here without making any object, only adding up what each would
hold when written out.
"""

from __future__ import annotations

from pathlib import Path

from qwen_megatron.errors import CheckpointError

# A hundred times what a checkpoint of thousands of ranks takes; the worst content within them takes less than 1 GiB.
LARGEST_BYTES = 64 << 20
MOST_OPCODES = 12_000_000
MOST_CONTAINERS = 2_000_000
# Values are shared; written out, metadata has about half as many as its pickle has bytes.
LONGEST_WRITTEN_OUT = 10

PROTO, FRAME, STOP, MARK, MEMOIZE = 0x80, 0x95, 0x2E, 0x28, 0x94
# None, true, false, integers of 4, 1 and 2 bytes: bytes of the argument.
ATOMS = {0x4E: 0, 0x88: 0, 0x89: 0, 0x4A: 4, 0x4B: 1, 0x4D: 2}
# Short and long text, long integers: bytes of the length.
SIZED = {0x8C: 1, 0x58: 4, 0x8A: 1}
# Empty tuple, list and dictionary.
EMPTY = {0x29, 0x5D, 0x7D}
# From the memo: bytes of the number.
GET = {0x68: 1, 0x6A: 4}
# Tuples of one to three; a class by name, a new object, a call: values taken for one.
TAKES = {0x85: 1, 0x86: 2, 0x87: 3, 0x93: 2, 0x81: 2, 0x52: 2}
TUPLE = 0x74
# One value or one pair into a container, a state into an object: values taken. To the last mark: many values or pairs.
GROWS = {0x61: 1, 0x73: 2, 0x62: 1}
GROWS_TO_MARK = {0x65, 0x75}

LONGEST_TEXT_BYTES = 1 << 16


class Container:
    """What a value with others in it would hold, written out; fixed once it is shared, as in any pickle that was saved.

    Attributes:
        weight: Values in it, repeated ones counted each time.
        shared: It was taken from the memo.
    """

    __slots__ = ("shared", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.shared = False


class Refused(Exception):
    """The pickle is no metadata; the message says why."""


class PickleScan:
    """Follows one pickle.

    Args:
        content: The whole file.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 0
        self.stack: list[int | Container] = []
        self.marks: list[int] = []
        self.memo: list[int | Container] = []
        self.num_containers = 0
        self.heaviest = LONGEST_WRITTEN_OUT * len(content) + 1000

    def run(self) -> None:
        """Follows the pickle to its end.

        Raises:
            Refused: it is cut short, has other opcodes, or goes beyond a limit.
        """
        content, size, step = self.content, len(self.content), self.step
        for _ in range(MOST_OPCODES):
            if self.place >= size:
                raise Refused("it is cut short")
            opcode = content[self.place]
            self.place += 1
            if opcode == STOP:
                if self.place != size or len(self.stack) != 1 or self.marks:
                    raise Refused("it does not end with one value")
                return
            step(opcode)
        raise Refused(f"it has more than {MOST_OPCODES} opcodes")

    def step(self, opcode: int) -> None:
        """One opcode but the last, the frequent ones first: metadata has hundreds of thousands of them."""
        stack = self.stack
        if opcode == MEMOIZE:
            self.memo.append(self.top())
        elif opcode in GET:
            self.get(self.number(GET[opcode]))
        elif opcode in ATOMS:
            self.skip(ATOMS[opcode])
            stack.append(1)
        elif opcode in TAKES:
            self.push(self.taken(TAKES[opcode]) + 1)
        elif opcode == MARK:
            self.marks.append(len(stack))
        elif opcode in GROWS:
            self.grow(self.taken(GROWS[opcode]))
        elif opcode in SIZED:
            length = self.number(SIZED[opcode])
            if length > LONGEST_TEXT_BYTES:
                raise Refused(f"it has a text of {length} bytes")
            self.skip(length)
            stack.append(1 + (length >> 3))
        elif opcode in EMPTY:
            self.push(1)
        elif opcode == TUPLE:
            self.push(self.taken_to_mark() + 1)
        elif opcode in GROWS_TO_MARK:
            self.grow(self.taken_to_mark())
        elif opcode == PROTO:
            self.skip(1)
        elif opcode == FRAME:
            if self.number(8) > len(self.content) - self.place:
                raise Refused("it is cut short")
        else:
            raise Refused(f"it has the opcode {opcode:#04x} at byte {self.place - 1}")

    def number(self, num_bytes: int) -> int:
        """The little-endian number that comes next."""
        start = self.place
        self.skip(num_bytes)
        if num_bytes == 1:
            return self.content[start]
        return int.from_bytes(self.content[start : self.place], "little")

    def skip(self, num_bytes: int) -> None:
        """Goes over bytes that need not be looked at; refuses to go beyond the end."""
        self.place += num_bytes
        if self.place > len(self.content):
            raise Refused("it is cut short")

    def top(self) -> int | Container:
        """The last value, which must have come after the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Refused("it takes a value where there is none")
        return self.stack[-1]

    def get(self, number: int) -> None:
        """Puts a kept value on the stack once more."""
        if number >= len(self.memo):
            raise Refused(f"it asks for the value {number} of {len(self.memo)} that it keeps")
        value = self.memo[number]
        if isinstance(value, Container):
            value.shared = True
        self.stack.append(value)

    def push(self, weight: int) -> None:
        """A new value with others in it."""
        self.num_containers += 1
        if self.num_containers > MOST_CONTAINERS:
            raise Refused(f"it makes more than {MOST_CONTAINERS} objects")
        self.stack.append(Container(self.allowed(weight)))

    def grow(self, weight: int) -> None:
        """More into the last value."""
        value = self.top()
        if not isinstance(value, Container) or value.shared:
            raise Refused("it fills a value that is no container, or that others hold already")
        value.weight = self.allowed(value.weight + weight)

    def allowed(self, weight: int) -> int:
        """Lets a weight pass that is not above the limit."""
        if weight > self.heaviest:
            raise Refused("its values hold each other many times")
        return weight

    def taken(self, count: int) -> int:
        """Takes values off the stack; how much they hold together."""
        stack = self.stack
        if len(stack) - count < (self.marks[-1] if self.marks else 0):
            raise Refused("it takes a value where there is none")
        weight = 0
        for _ in range(count):
            value = stack.pop()
            weight += value.weight if isinstance(value, Container) else value
        return weight

    def taken_to_mark(self) -> int:
        """Takes what came after the last mark off the stack, and the mark; how much it holds together."""
        if not self.marks:
            raise Refused("it goes back to a mark that it did not set")
        weight = self.taken(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return weight


def check_pickle(content: bytes, path: Path) -> None:
    """Refuses a pickle that is no checkpoint metadata, before anything is made of it.

    Args:
        content: The whole file.
        path: For the message.
    Raises:
        CheckpointError: saying what it has that metadata never has.
    """
    try:
        PickleScan(content).run()
    except Refused as error:
        raise CheckpointError(f"{path}: damaged checkpoint metadata ({error}); nothing in it was run") from error
