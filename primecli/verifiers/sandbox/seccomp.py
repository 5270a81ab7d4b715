"""What the kernel refuses the process of a program: system calls, by a filter, and other processes, by Landlock.

The process may start threads. It may not start processes, run another program, send signals, leave its group, change
the limits or priority of others, trace, mount, make namespaces, allocate memory that no limit counts, or open a socket
other than a local one. Each of these fails with an
error, which the program can handle as on any other machine. Reading about other processes in /proc needs no system
call that could be refused, so Landlock does that.

The filter is assembled by hand, so that no library is needed.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_REFUSED = {  # the number of each system call on x86_64 and on aarch64
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
    "setpgid": (109, 154),  # a process stays in the group that its caller kills
    "setsid": (112, 157),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
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
_PRLIMIT, _FCNTL, _IOCTL = (302, 261), (72, 25), (16, 29)
_CLONE_THREAD = 0x00010000
_SIGNAL_OWNER = (8, 10, 15)  # F_SETOWN, F_SETSIG and F_SETOWN_EX: the kernel would signal any process of this user
_SOCKET_OWNER = (0x8901, 0x8902)  # FIOSETOWN and SIOCSPGRP: the same for sockets
_AF_UNIX = 1

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # system calls; the same numbers on every machine
# struct landlock_ruleset_attr: it handles bind and connect, and no right to files
_LANDLOCK_NO_TCP = struct.pack("=QQ", 0, 3)

# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: without them root might be unable to read the standard library
_CAP_FILES = 1 << 1 | 1 << 2

# instructions of the filter, offsets in struct seccomp_data (little-endian), and what the filter returns
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000  # in the numbers of a second set of system calls on x86_64, all refused


def supported() -> bool:
    """Whether there is a filter for this machine."""
    return sys.platform == "linux" and os.uname().machine in _AUDIT_ARCH


def program() -> list[tuple[int, int, int, int]]:
    """The filter, as (code, jump if true, jump if false, operand) for each instruction."""
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
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),  # a filter cannot see its flags; the C library then uses clone
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
        (_JUMP_EQUAL, 0, 4, _SOCKET[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, _AF_UNIX),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQUAL, 0, 4, _PRLIMIT[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, 0),  # the limits of this process, not of another
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    for numbers, commands in ((_FCNTL, _SIGNAL_OWNER), (_IOCTL, _SOCKET_OWNER)):
        lines += [(_JUMP_EQUAL, 0, 2 + 2 * len(commands), numbers[column]), (_LOAD, 0, 0, _SECOND_ARGUMENT)]
        for command in commands:
            lines += [(_JUMP_EQUAL, 0, 1, command), refuse]
        lines.append((_RETURN, 0, 0, _ALLOW))
    lines.append((_RETURN, 0, 0, _ALLOW))
    return lines


def install() -> None:
    """Applies the filter to this process, for good. Raises OSError where the kernel refuses it."""
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


def hide_other_processes() -> None:
    """Keeps this process, for good, from the memory, environment, open files and folders of others in /proc.

    A process in a Landlock domain can inspect only processes of the same domain, whatever else the domain forbids. This
    domain forbids TCP, which the filter does already; to handle rights to files would also forbid renames between
    directories. Root's capabilities are dropped first, since some of them open /proc in spite of Landlock and others
    lift resource limits.

    Call it after `install`. Without Landlock, or before Linux 6.7, /proc stays as open as the sandbox leaves it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    version_3, this_process = 0x20080522, 0
    header = struct.pack("=Ii", version_3, this_process)
    # effective, permitted and inheritable capabilities; then the same for the numbers from 32 on
    capabilities = (ctypes.c_uint32 * 6)()
    libc.capget(header, capabilities)
    libc.capset(header, (ctypes.c_uint32 * 6)(capabilities[0] & _CAP_FILES, capabilities[1] & _CAP_FILES))
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, _LANDLOCK_NO_TCP, ctypes.c_size_t(len(_LANDLOCK_NO_TCP)), 0)
    if rules >= 0:
        libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
        os.close(rules)


def die_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when the one that started it ends. Linux only."""
    import ctypes
    import signal

    set_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(0)
