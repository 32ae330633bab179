#!/usr/bin/env python3
"""Runs one tiny guest on one engine and compares what it shows with what it should.

  run.py --list --engine kvm|soft                  the names of the engine's guests, one a line
  run.py --skep PROGRAM --dir IMAGES --engine kvm|soft [--probe PROGRAM] GUEST

Exit status: 0 as expected, 1 not, 77 skipped because the host's KVM cannot do it (the reason is printed).
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child  # noqa: E402
import guests  # noqa: E402


def kvm_words(probe, directory):
    """What probe_kvm says, asked once a boot of the host."""
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    cache = pathlib.Path(directory) / f'probe_kvm.{boot}.{int(os.stat(probe).st_mtime)}'
    if not cache.exists():
        words = subprocess.run([probe], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
        part = cache.with_suffix(f'.{os.getpid()}')
        part.write_text(words)
        part.rename(cache)
    return cache.read_text().split()


def run(guest, command, directory, env):
    """Returns output, exit status, stderr and whether it had to be killed."""
    with open(f'{directory}/{guest.stdin}' if guest.stdin else os.devnull, 'rb') as stdin:
        process = child.popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    output, errors = bytearray(), bytearray()

    def collect(pipe, into):
        for line in iter(pipe.readline, b''):
            into.extend(line)
            if into is output and guest.button and line.decode(errors='replace').strip() == guest.button:
                process.send_signal(signal.SIGTERM)

    threads = [threading.Thread(target=collect, args=pair)
               for pair in ((process.stdout, output), (process.stderr, errors))]
    for thread in threads:
        thread.start()
    try:
        process.wait(guest.timeout)
        killed = False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        killed = True
    for thread in threads:
        thread.join()
    return output.decode(errors='replace'), process.returncode, errors.decode(errors='replace'), killed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--skep')
    parser.add_argument('--dir')
    parser.add_argument('--engine', choices=('kvm', 'soft'))
    parser.add_argument('--probe')
    parser.add_argument('guest', nargs='?')
    args = parser.parse_args()
    if args.list:
        print('\n'.join(guest.name for guest in guests.GUESTS if args.engine in guest.engines))
        return 0

    guest = guests.find(args.guest)
    if args.engine == 'kvm':
        words = kvm_words(args.probe, args.dir)
        if 'native' in words:
            words = [*words, 'hardware']
        missing = [word for word in ('kvm', *guest.needs) if word not in words]
        if missing:
            print(f'SKIP: this host\'s KVM lacks: {", ".join(missing)}')
            return 77
    with tempfile.TemporaryDirectory(prefix='skep-guest-') as runtime:
        command = guest.command(args.skep, args.engine, args.dir, f'{guest.name}-{os.getpid()}')
        started = time.monotonic()
        output, status, stderr, killed = run(guest, command, args.dir, {**os.environ, 'XDG_RUNTIME_DIR': runtime})
    problems = guest.problems(output, status, stderr)
    if killed:
        problems.append(f'killed after {guest.timeout} s')
    print(f'{" ".join(command)}\n--- output\n{output}--- stderr\n{stderr}---')
    for problem in problems:
        print(f'FAIL: {problem}')
    print(f'{"FAIL" if problems else "OK"} {guest.name} on {args.engine}: {time.monotonic() - started:.2f} s')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
