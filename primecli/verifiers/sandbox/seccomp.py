"""A system call filter for the program's process, made by hand so that it needs no library.

It may start threads but no process, replace its program, signal others, trace, mount, make namespaces or memory
that no limit counts, or open a socket other than a local one. Each is refused with an error, so that a program
that tries is told, and ends as it would. What /proc shows of other processes takes no call of its own to read; that
is Landlock's to refuse.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_REFUSED = {  # name: number on x86_64, on aarch64
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "personality": (135, 92),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # on every machine
_LANDLOCK_NO_TCP = struct.pack("=QQ", 0, 3)  # struct landlock_ruleset_attr: no right to files, bind and connect handled

_CAP_FILES = 1 << 1 | 1 << 2  # reading what others own: without it root might not find the standard library

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000


def supported() -> bool:
    """Whether there is a filter for this machine."""
    return sys.platform == "linux" and os.uname().machine in _AUDIT_ARCH


def program() -> list[tuple[int, int, int, int]]:
    """The filter: (code, jump if true, jump if false, operand) for each instruction."""
    machine = os.uname().machine
    column = list(_AUDIT_ARCH).index(machine)
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    lines = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        refuse,
        (_JUMP_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),  # its flags are out of reach; the C library falls back to clone
    ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            lines += [(_JUMP_EQUAL, 0, 1, number), refuse]
    lines += [
        (_JUMP_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_BITS, 1, 0, _CLONE_THREAD),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQUAL, 0, 3, _SOCKET[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, _AF_UNIX),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    return lines


def install() -> None:
    """Applies the filter to this process for good. Raises OSError where the kernel does not take it."""
    import ctypes

    lines = program()
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(lines), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(set_no_new_privileges, 1, 0, 0, 0) or libc.prctl(
        set_seccomp, filter_mode, ctypes.c_char_p(header), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the system call filter was not taken")


def look_at_no_other() -> None:
    """Keeps this process from the memory, environment, open files and folders of others in /proc, for good.

    A process in a Landlock domain can look at those in the domain alone, whatever else the domain forbids. This one
    forbids TCP, which the filter has done already: a right to files would take renames between folders with it.
    Root's rights go first, as some of them open /proc all the same and others lift limits.
    After `install`. Without Landlock, or with one from before Linux 6.7, /proc stays as open as the sandbox has it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    version_and_process = struct.pack("=Ii", 0x20080522, 0)
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same of those from 32 on
    libc.capget(version_and_process, rights)
    libc.capset(version_and_process, (ctypes.c_uint32 * 6)(rights[0] & _CAP_FILES, rights[1] & _CAP_FILES))
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, _LANDLOCK_NO_TCP, ctypes.c_size_t(len(_LANDLOCK_NO_TCP)), 0)
    if rules >= 0:
        libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
        os.close(rules)


def die_with_parent(parent: int) -> None:
    """Has the kernel end this process when the one that started it ends."""
    import ctypes
    import signal

    set_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
