"""Runs the filter in a BPF interpreter, and compares its numbers with the kernel's headers."""

import errno
import re
import struct
from pathlib import Path

import pytest

from megatron_prime.rewards.code import seccomp as seccomp

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
DENY, NOT_THERE = seccomp.ERRNO | errno.EPERM, seccomp.ERRNO | errno.ENOSYS


def decide(machine, number, arguments=(), architecture=None):
    """Return the filter's decision on a system call, by interpreting classic BPF as linux/bpf_common.h defines it."""
    place = seccomp.MACHINES[machine]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, architecture or seccomp.AUDIT_ARCH[place], 0, *padded)
    code = list(struct.iter_unpack("HBBI", seccomp.program(machine)))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x15:
                at += if_true if accumulator == constant else if_false
            case 0x35:
                at += if_true if accumulator >= constant else if_false
            case 0x45:
                at += if_true if accumulator & constant else if_false
            case 0x06:
                return constant
            case _:
                raise AssertionError(operation)


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_every_call_is_decided_by_the_table(machine):
    place = seccomp.MACHINES[machine]
    denied = {numbers[place] for numbers in seccomp.DENIED.values()} - {None}
    for number in range(600):
        expected = DENY if number in denied else NOT_THERE if number == seccomp.CLONE3 else seccomp.ALLOW
        assert decide(machine, number) == expected, number


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_arguments_are_inspected(machine):
    place = seccomp.MACHINES[machine]
    clone, ioctl = seccomp.CLONE[place], seccomp.IOCTL[place]
    assert decide(machine, clone, [0x1200011]) == seccomp.ALLOW  # fork
    assert decide(machine, clone, [0x3D0F00]) == seccomp.ALLOW  # a thread
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(machine, clone, [flag | 17]) == DENY, hex(flag)
    assert decide(machine, ioctl, [0, 0x5401]) == seccomp.ALLOW
    assert decide(machine, ioctl, [0, 0x5412]) == DENY
    assert decide(machine, ioctl, [0, 0x541C]) == DENY


def test_other_system_call_interfaces_are_closed():
    assert decide("x86_64", 0, architecture=0x40000003) == seccomp.KILL_PROCESS  # 32-bit calls
    assert decide("x86_64", 0x40000000 | 101) == DENY  # the x32 ABI


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_numbers_equal_the_kernels(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]} (apt-get install linux-libc-dev)")
    pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)"
    known = {name: int(number) for name, number in re.findall(pattern, HEADERS[machine].read_text())}
    place = seccomp.MACHINES[machine]
    table = {name: numbers[place] for name, numbers in seccomp.DENIED.items()}
    table |= {"clone": seccomp.CLONE[place], "ioctl": seccomp.IOCTL[place], "clone3": seccomp.CLONE3}
    table = {name: number for name, number in table.items() if name in known or number is None}
    assert {name: known.get(name) for name in table} == table
    assert len(table) > 60


def test_an_unknown_architecture_is_rejected():
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.program("riscv64")
