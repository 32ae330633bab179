"""How tests start programs: none outlives the test, also if that is killed."""

import os
import subprocess
import threading
import time


def popen(command, **options):
    """subprocess.Popen() of a program that gets SIGKILL when the thread that calls this ends, whatever ends it."""
    return subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', *command], **options)


def output(command, limit, keep=None):
    """(what it says on stdout and stderr, its status, the seconds it took); killed after `limit` seconds.

    keep: a file that has the output so far at any time."""
    said = bytearray()
    started = time.monotonic()
    process = popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    timer = threading.Timer(limit, process.kill)
    timer.start()
    for data in iter(lambda: os.read(process.stdout.fileno(), 65536), b''):
        said += data
        if keep:
            keep.write_bytes(said)
    process.stdout.close()
    status = process.wait()
    timer.cancel()
    return said.decode(errors='replace'), status, time.monotonic() - started
