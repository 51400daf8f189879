"""The seccomp filter of the sandbox: system calls that model-written code may not make, as a classic BPF program.

Namespaces and a dropped uid already isolate the code. This list also denies system calls with a history of sandbox
escapes (new namespaces, mounts, tracing, io_uring, bpf, keys) and those that evade the memory limits. Denied calls fail
with EPERM. clone3 fails with ENOSYS, so that the C library falls back to clone, whose flags a filter can inspect.

A program is a list of 8-byte instructions (linux/filter.h) over struct seccomp_data (linux/seccomp.h): the system call
number is at byte 0, the architecture at 4, and the low halves of the arguments from 16 in steps of 8.
"""

import errno
import platform
import struct

# Name -> numbers on (x86_64, aarch64); None if the architecture has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "move_mount": (429, 429), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "unshare": (272, 97), "setns": (308, 268), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    "syslog": (103, 116), "personality": (135, 92), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262), "vhangup": (153, 58), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "nfsservctl": (180, 42), "uselib": (134, None),
    "lookup_dcookie": (212, 18),
}  # fmt: skip
CLONE3 = 435
CLONE = (56, 220)
IOCTL = (16, 29)

MACHINES = {"x86_64": 0, "aarch64": 1}
"""platform.machine() -> index of its numbers in the tables above."""
AUDIT_ARCH = (0xC000003E, 0xC00000B7)
X32_BIT = 0x40000000
"""Bit of all call numbers of the x32 ABI, which the tables above do not cover."""
NAMESPACE_FLAGS = 0x7E020000
"""The flags CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
TERMINAL_INJECTIONS = (0x5412, 0x541C)
"""The ioctls TIOCSTI and TIOCLINUX, which simulate input on a terminal."""

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL_PROCESS = 0x80000000

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24

Instruction = tuple[int, int, int, int]
"""Operation, instructions to skip if true, instructions to skip if false, and constant."""


def program(machine: str | None = None) -> bytes:
    """Return the filter for an architecture (default: this machine's) in the format of `bwrap --seccomp`.

    Raises:
        ValueError: If the system calls of the architecture are not known.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"no seccomp filter for {machine}: known are {', '.join(MACHINES)}")
    return b"".join(struct.pack("HBBI", *instruction) for instruction in _instructions(MACHINES[machine]))


def _instructions(arch: int) -> list[Instruction]:
    deny = ERRNO | errno.EPERM
    code: list[Instruction] = [
        # A 32-bit call (int 0x80 on x86_64) arrives under another architecture, whose numbers mean other calls.
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[arch]),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if arch == MACHINES["x86_64"]:
        code += [(_JUMP_GREATER_EQUAL, 0, 1, X32_BIT), (_RETURN, 0, 0, deny)]
    for numbers in DENIED.values():
        number = numbers[arch]
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, deny)]
    code += [(_JUMP_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    code += [
        # fork and threads are allowed, new namespaces are not
        (_JUMP_EQUAL, 0, 4, CLONE[arch]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, NAMESPACE_FLAGS),
        (_RETURN, 0, 0, deny),
        (_RETURN, 0, 0, ALLOW),
        (_JUMP_EQUAL, 0, 4, IOCTL[arch]),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, TERMINAL_INJECTIONS[0]),
        (_JUMP_EQUAL, 0, 1, TERMINAL_INJECTIONS[1]),
        (_RETURN, 0, 0, deny),
        (_RETURN, 0, 0, ALLOW),
    ]
    return code
