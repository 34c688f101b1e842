"""Holds the main thread of a process in its next request to rtnetlink: hang.py PID.

Says "attached" when it waits for that, "held" when it has come, and goes on holding until the
process ends or this program does. x86_64.
"""

import ctypes
import os
import sys

PTRACE_PEEKUSER = 3
PTRACE_SYSCALL = 24
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
ORIG_RAX = 15 * 8
SENDTO = 44

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, address: int = 0) -> int:
    """ptrace(2) without data. Raises OSError."""
    ctypes.set_errno(0)
    answer: int = libc.ptrace(request, pid, address, None)
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def main() -> None:
    """Attach, run to the system call, stay."""
    pid = int(sys.argv[1])
    ptrace(PTRACE_SEIZE, pid)
    ptrace(PTRACE_INTERRUPT, pid)
    os.waitpid(pid, 0)
    print("attached", flush=True)
    while ptrace(PTRACE_PEEKUSER, pid, ORIG_RAX) != SENDTO:
        ptrace(PTRACE_SYSCALL, pid)
        os.waitpid(pid, 0)
    print("held", flush=True)
    while not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
        pass


main()
