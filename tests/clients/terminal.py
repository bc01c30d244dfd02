"""Runs a command in a terminal of its own, as somebody sees it who types Ctrl-C once a word has come.

    terminal.py COLUMNS LINES WORD COMMAND...

What the command has written goes to stdout, as it is; it ends as the command does.
"""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

DEADLINE_S = 60


def main() -> int:
    columns, lines, word, *command = sys.argv[1:]
    child, terminal = pty.fork()
    if child == 0:
        size = struct.pack("HHHH", int(lines), int(columns), 0, 0)
        fcntl.ioctl(0, termios.TIOCSWINSZ, size)
        os.execvp(command[0], command)
    seen, has_typed, end = b"", False, time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], 1)
        if not ready:
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Nobody writes to it any more.
            break
        if not piece:
            break
        seen += piece
        if not has_typed and word.encode() in seen:
            os.write(terminal, b"\x03")
            has_typed = True
    else:
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    sys.stdout.buffer.write(seen)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
