#!/usr/bin/env python3
"""A Linux guest's console, clock and power button as a user has them. Prints unittest's lines.

  console.py --skep PROGRAM --skepctl PROGRAM --cache DIRECTORY [--slow N] [--long] [TEST ...]

--long: 100 MB of output in place of 2, and a minute of each clock source in place of a few seconds.
"""

import argparse
import hashlib
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child  # noqa: E402
import debian  # noqa: E402

POWEROFF = 1

INIT = r'''#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
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

    def start(self, append='', options=(), modules=(), cpus=2):
        cpio = debian.Cpio()
        cpio.console()
        for name in ('proc', 'sys', 'tmp'):
            cpio.directory(name)
        cpio.file('bin/busybox', debian.busybox(Options.cache).read_bytes())
        cpio.file('init', INIT.encode())
        for name in modules:
            cpio.file(f'modules/{name}.ko', debian.module(Options.cache, 'cloud-amd64', name).read_bytes())
        (self.dir / 'initrd').write_bytes(cpio.bytes())
        self.env = {**os.environ, 'XDG_RUNTIME_DIR': str(self.dir)}
        self.vm = child.popen(
            [Options.skep, '-q', '-E', 'soft', '-c', str(cpus), '-m', '256M', '-l', 'com1,stdio', *options, '--kernel',
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

    def test_paste_is_whole(self):
        """64 KiB at once arrive whole: raw, and line by line through the guest's line editing, at a program that reads."""
        self.start()
        data = bytes(33 + i * i % 90 for i in range(65536))
        self.send(b'echo go; head -c 65536 | md5sum\n')
        self.until(b'go\n')
        self.send(data)
        self.assertEqual(self.until(b'done\n').decode().split()[0], hashlib.md5(data).hexdigest())
        lines = b''.join(data[i:i + 63] + b'\n' for i in range(0, len(data), 63))
        self.send(b'stty -raw icanon -echo; echo go; cat >/tmp/paste; stty raw -echo; md5sum </tmp/paste\n')
        self.until(b'go\r\n')
        self.send(lines + b'\x04')
        self.assertEqual(self.until(b'done\n').decode().split()[0], hashlib.md5(lines).hexdigest())
        self.power_off()

    def test_sigterm_presses_the_power_button(self):
        self.start(modules=('button', 'evdev'))
        for name in ('button', 'evdev'):
            self.ask(f'insmod /modules/{name}.ko')
        self.ask('mkdir -p /etc/acpi/PWRF')
        self.ask(r"printf '#!/bin/sh\necho the button was pressed; poweroff -f\n' >/etc/acpi/PWRF/00000080")
        self.ask('chmod +x /etc/acpi/PWRF/00000080; acpid -d >/dev/console 2>&1 & sleep 1')
        self.vm.send_signal(signal.SIGTERM)
        self.until(b'the button was pressed')
        self.assertEqual(self.vm.wait(30 * Options.slow), POWEROFF)

    def test_second_sigterm_ends_at_once(self):
        """A guest that has ACPI, but nobody who minds the button, lives on at the first."""
        self.start()
        self.vm.send_signal(signal.SIGTERM)
        self.assertEqual(self.ask('echo alive'), 'alive')
        # The NMI button, by the boot processor's LINT1.
        self.assertEqual(self.ask("grep -c NMI /proc/interrupts"), '1')
        self.skepctl('nmi')
        seen = self.ask("sleep 0.2; dmesg | grep 'NMI received'; sed -n 's/^NMI: *//p' /proc/interrupts")
        self.assertRegex(seen, r'NMI received for unknown reason .* on CPU 0')
        self.assertRegex(seen, r'(?m)^1 +0 ')
        self.vm.send_signal(signal.SIGTERM)
        self.assertEqual(self.vm.wait(10 * Options.slow), POWEROFF)

    def test_reboots_restart_in_the_same_process(self):
        self.start('reboot=triple', options=('-o', 'reboot=restart'))
        self.ask('echo 1 >/tmp/left; [ -e /tmp/left ]')
        self.send(b'reboot -f\n')
        self.until(b'ready\n')
        self.assertEqual(self.ask('[ -e /tmp/left ] || echo fresh'), 'fresh')
        self.ask('echo acpi >/sys/kernel/reboot/type')
        self.send(b'reboot -f\n')
        self.until(b'ready\n')
        self.power_off()

    def test_memory(self):
        """Guest RAM is taken as the guest touches it; the rest of skep is small."""
        self.start()
        with open(f'/proc/{self.vm.pid}/maps') as maps:
            if 'libasan' in maps.read():
                self.power_off()
                self.skipTest('the sanitizer takes memory of its own')
        used = self.resident()
        self.assertLess(used['guest'], 160 << 20, 'of 256 MiB, for the kernel, unpacking itself, and a busybox')
        self.assertLess(used['rest'], 10 << 20)
        self.ask('mount -t tmpfs -o size=64m none /tmp; dd if=/dev/zero of=/tmp/fill bs=1M count=48 2>/dev/null')
        more = self.resident()
        self.assertGreater(more['guest'], used['guest'])
        self.assertLess(more['guest'], used['guest'] + (64 << 20))
        self.assertLess(more['rest'], 10 << 20)
        self.power_off()

    def test_busy_guest_stays_live(self):
        """With each of four vCPUs busy, more than there are CPUs here, the console answers like one of a loaded machine."""
        self.start(cpus=4)
        self.assertEqual(self.ask('nproc'), '4')
        self.ask('for cpu in 0 1 2 3; do taskset $(printf %x $((1 << cpu))) sh -c "while :; do :; done" & done')
        took = []
        for _ in range(20):
            began = time.monotonic()
            self.assertEqual(self.ask('echo alive'), 'alive')
            took.append(time.monotonic() - began)
            time.sleep(0.2)
        took.sort()
        print(f'# answers after {took[0] * 1000:.0f} to {took[-1] * 1000:.0f} ms, half within {took[10] * 1000:.0f}')
        self.assertLess(took[10], 0.3 * Options.slow)
        self.assertLess(took[-1], 1.5 * Options.slow)
        # All four get on: none is starved while others spin.
        ticks = [int(text) for text in self.ask("sed -n 's/^cpu[0-9] \\([0-9]*\\) .*/\\1/p' /proc/stat").split()]
        print(f'# ticks of each {ticks}')
        self.assertGreater(min(ticks) * 8, sum(ticks))
        self.power_off()

    def resident(self):
        """skep's resident bytes: the guest's memory, and all but that, the code cache and its tables."""
        stats = dict(line.split()[:2] for line in self.skepctl('stats').stdout.decode().splitlines())
        text = pathlib.Path(f'/proc/{self.vm.pid}/smaps_rollup').read_text()
        rss = int(re.search(r'^Rss: *(\d+) kB', text, re.M).group(1)) << 10
        guest, code, tables = (int(stats['memory_' + name]) for name in ('guest', 'code', 'tables'))
        print(f'# guest {guest >> 10} KiB, code 2 * {code >> 10}, tables {tables >> 10}, '
              f'rest {(rss - guest - 2 * code - tables) >> 10}')
        return {'guest': guest, 'rest': rss - guest - 2 * code - tables}

    def now(self):
        """(guest's monotonic clock, earliest and latest host time of that), in seconds."""
        before = time.monotonic()
        text = self.ask("sed -n 's/^now at \\([0-9]*\\) nsecs/\\1/p' /proc/timer_list")
        return int(re.search(r'\d+', text).group()) / 1e9, before, time.monotonic()

    def reading(self):
        """One that is sure to 5 ms, or the closest of many: a busy host answers late."""
        best = self.now()
        for _ in range(200 if Options.long else 10):
            if best[2] - best[1] < 0.005:
                break
            best = min(best, self.now(), key=lambda r: r[2] - r[1])
        return best

    def drift(self, a, b):
        """How far the guest's clock surely went off the host's between two readings."""
        guest = b[0] - a[0]
        least, most = b[1] - a[2], b[2] - a[1]
        print(f'# {guest:.4f} s of the guest, {least:.4f} to {most:.4f} s here')
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
