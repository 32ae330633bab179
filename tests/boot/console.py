#!/usr/bin/env python3
"""A Linux guest's console and clock as a user has them. Prints unittest's lines.

  console.py --skep PROGRAM --skepctl PROGRAM --cache DIRECTORY [--slow N] [--long] [TEST ...]

--long: 100 MB of output in place of 2, and a minute of each clock source in place of a few seconds.
"""

import argparse
import hashlib
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import time
import unittest

import debian

POWEROFF = 1

INIT = r'''#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
# A command a line, each answered by "done".
stty raw -echo
echo ready
while read -r line; do
	eval "$line"
	echo done
done
'''


class Options:
    skep = skepctl = cache = None
    slow, long = 1, False


class Guest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix='skep-console-')
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.pending = b''
        self.vm = None

    def start(self, append=''):
        cpio = debian.Cpio()
        cpio.console()
        for name in ('proc', 'sys', 'tmp'):
            cpio.directory(name)
        cpio.file('bin/busybox', debian.busybox(Options.cache).read_bytes())
        cpio.file('init', INIT.encode())
        (self.dir / 'initrd').write_bytes(cpio.bytes())
        self.env = {**os.environ, 'XDG_RUNTIME_DIR': str(self.dir)}
        self.vm = subprocess.Popen(
            [Options.skep, '-q', '-E', 'soft', '-c', '2', '-m', '256M', '-l', 'com1,stdio', '--kernel',
             debian.kernel(Options.cache, 'cloud-amd64'), '--initrd', self.dir / 'initrd', '--append',
             f'console=ttyS0 quiet panic=-1 {append}', 'vm0'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.env)
        self.addCleanup(self.vm.stdin.close)
        self.addCleanup(self.vm.stdout.close)
        self.addCleanup(self.vm.wait)
        self.addCleanup(self.vm.kill)
        self.until(b'ready')

    def until(self, text, limit=60):
        """What comes before `text`, which is taken too."""
        end = time.monotonic() + limit * Options.slow
        while text not in self.pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.vm.stdout], [], [], left)[0]:
                self.fail(f'no {text!r} within {limit * Options.slow:.0f} s, but {self.pending[-300:]!r}')
            data = os.read(self.vm.stdout.fileno(), 1 << 16)
            if not data:
                self.fail(f'skep ended: {self.pending[-300:]!r}')
            self.pending += data
        before, self.pending = self.pending.split(text, 1)
        return before

    def send(self, data):
        self.vm.stdin.write(data)
        self.vm.stdin.flush()

    def ask(self, command, limit=60):
        self.send(command.encode() + b'\n')
        return self.until(b'done\n', limit).decode(errors='replace').strip()

    def power_off(self):
        self.send(b'poweroff -f\n')
        self.assertEqual(self.vm.wait(30 * Options.slow), POWEROFF)

    def test_output_is_whole(self):
        self.start()
        size = 100000000 if Options.long else 2000000
        line = b'0123456789abcdefghijklmnopqrstuvwxyz-skep' * 4 + b'\n'
        self.send(f'echo begin; yes {line.decode().strip()} | head -c {size}; echo; echo end\n'.encode())
        self.until(b'begin\n')
        end = time.monotonic() + (1200 if Options.long else 60) * Options.slow
        digest, got = hashlib.sha256(), 0
        while got < size:
            self.assertLess(time.monotonic(), end, f'{got} of {size} bytes came')
            if not self.pending and select.select([self.vm.stdout], [], [], 30 * Options.slow)[0]:
                self.pending = os.read(self.vm.stdout.fileno(), 1 << 16)
            self.assertTrue(self.pending, f'nothing more came after {got} of {size} bytes')
            part, self.pending = self.pending[:size - got], self.pending[size - got:]
            digest.update(part)
            got += len(part)
        wanted = (line * (size // len(line) + 1))[:size]
        self.assertEqual(digest.hexdigest(), hashlib.sha256(wanted).hexdigest())
        self.assertEqual(self.until(b'end\n').strip(), b'')
        self.power_off()

    def now(self):
        """(guest's monotonic clock, earliest and latest host time of that), in seconds."""
        before = time.monotonic()
        text = self.ask("sed -n 's/^now at \\([0-9]*\\) nsecs/\\1/p' /proc/timer_list")
        return int(re.search(r'\d+', text).group()) / 1e9, before, time.monotonic()

    def reading(self):
        """The closest of a few: a busy host answers late now and then."""
        return min((self.now() for _ in range(10)), key=lambda r: r[2] - r[1])

    def drift(self, a, b):
        """How far the guest's clock surely went off the host's between two readings."""
        guest = b[0] - a[0]
        least, most = b[1] - a[2], b[2] - a[1]
        return max(least - guest, guest - most, 0)

    def skepctl(self, *words):
        return subprocess.run([Options.skepctl, 'vm0', *words], env=self.env, check=True, stdout=subprocess.PIPE,
                              timeout=30 * Options.slow)

    def clock(self, name):
        self.start(f'clocksource={name}')
        self.assertEqual(self.ask('cat /sys/devices/system/clocksource/clocksource0/current_clocksource'), name)
        first = self.reading()
        time.sleep(60 if Options.long else 3)
        last = self.reading()
        self.assertLess(self.drift(first, last), 0.05)
        # A pause takes no time of the guest's, and nothing is off behind it.
        self.skepctl('pause')
        time.sleep(2)
        self.skepctl('resume')
        after = self.reading()
        self.assertLess(after[0] - last[0], after[2] - last[1] - 1.9)
        time.sleep(2)
        self.assertLess(self.drift(after, self.reading()), 0.05)
        self.assertNotIn('unstable', self.ask('dmesg'))
        self.power_off()

    def test_clock_tsc(self):
        self.clock('tsc')

    def test_clock_hpet(self):
        self.clock('hpet')

    def test_clock_acpi_pm(self):
        self.clock('acpi_pm')

    def test_clock_kvm(self):
        self.clock('kvm-clock')


def main():
    parser = argparse.ArgumentParser()
    for name in ('skep', 'skepctl'):
        parser.add_argument('--' + name, type=os.path.abspath)
    parser.add_argument('--cache', type=pathlib.Path)
    parser.add_argument('--slow', type=float, default=1)
    parser.add_argument('--long', action='store_true')
    args, rest = parser.parse_known_args()
    Options.skep, Options.skepctl, Options.slow, Options.long = args.skep, args.skepctl, args.slow, args.long
    Options.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache)).resolve()
    Options.cache.mkdir(parents=True, exist_ok=True)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)


if __name__ == '__main__':
    main()
