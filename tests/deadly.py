"""For scripts that are killed, the start of their source: `deadly(f)` does what f does, and the n-th call kills."""

DEADLY = """
import os, signal
calls, n = [0], None

def deadly(real):
    def act(*args, **named):
        calls[0] += 1
        if calls[0] == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)
    return act
"""
