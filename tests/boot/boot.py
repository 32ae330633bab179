#!/usr/bin/env python3
"""Boots Debian's kernels to an init that looks around, and judges what it says, the kernel's log and skep's exit status.
Prints TAP, one line a boot.

  boot.py --skep PROGRAM --cache DIRECTORY [--engine E] [--slow N] (--suite quick|long|qemu | CASE ...)
  boot.py --list

--slow N multiplies all time limits; --keep DIRECTORY leaves each boot's output there. The suite "qemu" boots each kernel
in QEMU's TCG too: whatever the kernel's log in skep has at the level of a warning or above, it has there as well.
"""

import argparse
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child  # noqa: E402
import debian  # noqa: E402

REBOOT, POWEROFF, HALT = range(3)
MARKER = b'skep' * 5000
MARKER_SUM = hashlib.md5(MARKER).hexdigest()
SEQ_SUM = hashlib.md5(b''.join(b'%d\n' % i for i in range(1, 20001))).hexdigest()

INIT = r'''#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
word() { sed -n "s/.*skep\\.$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
clock=/sys/devices/system/clocksource/clocksource0
echo "t:up=$(cut -d' ' -f1 /proc/uptime)"
echo "t:arch=$(uname -m)"
echo "t:cpus=$(grep -c ^processor /proc/cpuinfo)"
# Where the CPU does not tell the TSC's rate, as AMD's, the kernel measures it for a second before it is more than early.
for i in $(seq 50); do [ $(cat $clock/current_clocksource) = tsc-early ] || break; sleep 0.1; done
echo "t:clock=$(cat $clock/current_clocksource)"
echo "t:clocks=$(cat $clock/available_clocksource)"
echo "t:mib=$(($(sed -n 's/MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024))"
echo "t:model=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | sort -u)"
echo "t:ids=$(sed -n 's/^apicid.*: //p' /proc/cpuinfo | tr '\n' ' ')"
echo "t:topology=$(for cpu in /sys/devices/system/cpu/cpu[0-9]*/topology; do
	echo "$(cat $cpu/core_siblings_list):$(cat $cpu/thread_siblings_list)"; done | sort -u | tr '\n' ' ')"
echo "t:initrd=$(md5sum </marker | cut -c1-32)"
echo "t:sum=$(seq 20000 | md5sum | cut -c1-32)"
spread() {
	n=0
	for cpu in $(seq 0 $(($(nproc) - 1))); do
		[ "$(taskset $(printf %x $((1 << cpu))) sh -c 'cut -d" " -f39 /proc/self/stat')" != $cpu ] || n=$((n + 1))
	done
	echo "t:spread=$n"
}
hotplug() {
	for cpu in /sys/devices/system/cpu/cpu[1-9]*; do echo 0 >$cpu/online; done
	echo "t:offline=$(nproc)"
	for cpu in /sys/devices/system/cpu/cpu[1-9]*; do echo 1 >$cpu/online; done
	echo "t:online=$(nproc)"
}
# Touches memory beyond what the kernel itself uses, above 4 GiB too where that is.
memory() {
	mkdir /fill
	mount -t tmpfs -o size=100% none /fill
	mib=$(($(sed -n 's/MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024 / 2))
	for i in $(seq $((mib / 64))); do dd if=/pattern of=/fill/$i bs=64k 2>/dev/null; done
	echo "t:files=$(md5sum /fill/* | cut -c1-32 | sort -u | wc -l)"
	umount /fill
}
# The kernel's log with its levels, of lines that are a warning's or worse.
log() { dmesg -r | sed -n 's/^<\([0-9]*\)>\[[^]]*\] */\1 /p' | while read -r level text; do
	[ $((level & 7)) -gt 4 ] || echo "t:warn $text"
done; }
for what in $(word do | tr , ' '); do
	$what
done
echo "t:irqs=$(sed -n 's/^ *LOC: *//p' /proc/interrupts)"
echo "t:end"
case $(word end) in
reboot) reboot -f ;;
halt) halt -f ;;
panic) echo c >/proc/sysrq-trigger ;;
*) poweroff -f ;;
esac
sleep 60
'''

# The kernel's words for trouble, in any line, and the lines that say them without it: each is there on QEMU's TCG or
# a real machine too.
TROUBLE = re.compile(
    r'\b(error|warning|warn_on|fail|failed|failure|unable|bug|oops|unstable|could not|couldn.t|call trace|stalls?|lockup|'
    r'cut here|inconsistent|spurious|unexpected|invalid|mismatch|trouble|broken|not working|timed? ?out|conflict|'
    r'nobody cared|panic|not syncing|segfault|traps:|mce:)\b', re.I)
FINE = re.compile(
    r'This is not a bug|and report a bug|Kernel command line:|Command line:|'
    # Without kvm-clock the kernel counts loops against jiffies, and on a CPU that does not tell its TSC's rate, as AMD's,
    # the TSC, and a 32-bit one the PM timer, against the PIT: on a busy host with little luck.
    r'calibrate_delay_direct\(\)|PM-Timer running at invalid rate|Fast TSC calibration failed|Unable to calibrate against PIT|'
    # 32-bit kernels, of CPUs that are open to Meltdown; those without PAE, of the window above 4 GiB
    r'ignored, not CPU addressable|'
    r'\*\* WARNING! WARNING!|32-bit PTI on a 64-bit')

# What the kernel says, which does not wait for the end of others' lines.
KERNEL = re.compile(r'\[ *\d+\.\d{6}\] .*')
# From its first line to the last that comes before the reboot.
PANIC = re.compile(r'Kernel panic - not syncing: sysrq triggered crash.*Call Trace:.*RIP: .*</TASK>.*\] Kernel Offset: ', re.S)

# What the kernel may say in skep as a warning that it does not in QEMU.
EXPLAINED = re.compile(
    # There is no mouse, and the ACPI tables have none.
    r'PS/2 appears to have AUX port disabled|'
    # 64-bit BARs have a window above 4 GiB, which a kernel without PAE cannot use.
    r'ignored, not CPU addressable|'
    # By the host's load, in QEMU too: see FINE.
    r'calibrate_delay_direct\(\)|PM-Timer running at invalid rate')


def complaints(output):
    """What the kernel's log has of warnings and trouble: by text without numbers, the line."""
    found = {}
    for line in output.replace('\r', '').split('\n'):
        text = re.sub(r'^\[ *[0-9.]+\] |^t:warn \d+ ', '', line)
        if line.startswith('t:warn ') or TROUBLE.search(text) and not re.search('[Cc]ommand line:', text):
            found[re.sub(r'(0x)?[0-9a-f]*[0-9][0-9a-f]*', 'N', text)] = line
    return found


class Case:
    def __init__(self, name, kernel='cloud-amd64', cpus=2, mem=512, options=(), append='', loader='bzimage', do='spread',
                 end='poweroff', status=None, seen=None, clock=None, arch=None, limit=60, console='-l com1,stdio',
                 parts='', **facts):
        self.name = name
        self.flavour = kernel
        self.arch = arch or ('i386' if kernel.startswith('686') else 'amd64')
        self.cpus, self.mem, self.options, self.append = cpus, mem, tuple(options), append
        self.loader, self.do, self.end, self.limit = loader, do, end, limit
        acpi = 'acpi=off' not in append
        self.status = {'poweroff': POWEROFF if acpi else HALT, 'reboot': REBOOT, 'halt': HALT,
                       'panic': REBOOT}[end] if status is None else status
        self.seen = seen if seen is not None else cpus
        self.clock = clock
        self.console, self.parts = console, parts
        self.facts = facts
        self.qemu_output = None

    def command(self, args, work):
        kernel = debian.kernel(args.cache, self.flavour, self.arch)
        if self.loader == 'elf':
            elf = work / f'vmlinux-{self.flavour}'
            if not elf.exists():
                elf.write_bytes(debian.vmlinux(kernel))
            kernel = elf
        return [args.skep, '-q', '-E', args.engine, '-AHP', '-c', f'{self.cpus}{self.parts}', '-m', f'{self.mem}M',
                *self.console.split(),
                '-s', '0,hostbridge', '-s', '31,lpc', *self.options, '--kernel', kernel,
                '--initrd', initrd(args, work, self.arch), '--append',
                f'console=ttyS0 panic=-1 skep.do={self.do} skep.end={self.end} {self.append}'.strip(),
                f'boot-{os.getpid()}']

    def qemu(self, args, work):
        """The same boot in QEMU's TCG."""
        command = self.command(args, work)
        rest = command[command.index('--kernel'):-1]
        return ['qemu-system-x86_64', '-accel', 'tcg,thread=multi', '-machine', 'q35', '-cpu', 'max', '-smp', str(self.cpus),
                '-m', str(self.mem), '-nodefaults', '-no-user-config', '-display', 'none', '-serial', 'stdio', '-no-reboot',
                *(word[1:] if str(word).startswith('--') else word for word in rest)]

    def problems(self, output, status, took):
        lines = output.replace('\r', '').split('\n')
        facts = dict(KERNEL.sub('', line)[2:].split('=', 1) for line in lines if re.match(r't:\w+=', line))
        wanted = {'cpus': str(self.seen), 'initrd': MARKER_SUM, 'sum': SEQ_SUM,
                  'arch': 'i686' if self.arch == 'i386' else 'x86_64', **self.facts}
        if 'spread' in self.do:
            wanted['spread'] = str(self.seen)
        if 'hotplug' in self.do:
            wanted.update(offline='1', online=str(self.seen))
        if 'memory' in self.do:
            wanted['files'] = '1'
        if self.clock:
            wanted['clock'] = self.clock
        for key, value in wanted.items():
            if facts.get(key) != value:
                yield f'{key}: got {facts.get(key)}, want {value}'
        # The kernel keeps some for itself, more of it at its image and its page structures.
        mib = int(facts.get('mib', 0))
        most = min(self.mem, 3500) if self.flavour == '686' else self.mem
        if not most * 0.93 - 75 < mib <= self.mem:
            yield f'memory: the guest sees {mib} of {self.mem} MiB'
        if status != self.status:
            yield f'exit status: got {status}, want {self.status}'
        if 't:end' not in lines:
            yield f'init did not come to its end ({took:.0f} s)'
        for line in lines:
            text = re.sub(r'^\[ *[0-9.]+\] ', '', line)
            if TROUBLE.search(text) and not FINE.search(text) and not self.end == 'panic':
                yield f'the kernel says: {line}'
        if self.qemu_output is not None:
            theirs = complaints(self.qemu_output)
            if 't:end' not in self.qemu_output:
                yield 'in QEMU, init did not come to its end'
            for text, line in complaints(output).items():
                if text not in theirs and not EXPLAINED.search(line):
                    yield f'not in QEMU: {line}'
        if self.end == 'panic' and not PANIC.search(output):
            yield 'the panic is not seen whole'


def initrd(args, work, arch):
    path = work / f'initrd-{arch}'
    if not path.exists():
        cpio = debian.Cpio()
        cpio.console()
        for name in ('proc', 'sys', 'tmp'):
            cpio.directory(name)
        cpio.file('bin/busybox', debian.busybox(args.cache, arch).read_bytes())
        cpio.file('init', INIT.encode())
        cpio.file('marker', MARKER)
        cpio.file('pattern', bytes(range(256)) * (1 << 12))
        path.write_bytes(cpio.bytes())
    return path


QUICK = [
    Case('cloud', do='spread,hotplug'),
    Case('amd64-elf-mptable', 'amd64', cpus=4, loader='elf', append='acpi=off', topology='0:0 1:1 2:2 3:3 '),
    # One package of two cores of two threads
    Case('cloud-x2apic-hpet', cpus=4, parts=',sockets=1,cores=2,threads=2', topology='0-3:0-1 0-3:2-3 ', options=['-x'],
         append='clocksource=hpet', clock='hpet', end='reboot'),
    # The console is the serial port on PCI: what an UART, its interrupt and 8250_pci get wrong is not heard.
    Case('pci-uart', cpus=1, mem=256, console='-s 5,uart,stdio'),
    Case('686-pae', '686-pae', cpus=2, append='clocksource=kvm-clock', clock='kvm-clock', end='halt'),
]

LONG = [
    # Not acpi_pm with 686 kernels: they refuse it if the host was away while they measured its rate against the PIT.
    # Pairs of kernel, vCPUs, memory, x2APIC, ACPI and interrupt controllers, clock source, and the other words.
    Case('cloud-1', cpus=1, mem=128, append='clocksource=kvm-clock', clock='kvm-clock'),
    Case('cloud-2-6g', cpus=2, mem=6144, append='clocksource=tsc nokaslr', clock='tsc', do='spread,memory', limit=240),
    Case('cloud-4-x2apic', cpus=4, mem=1024, options=['-x'], append='clocksource=acpi_pm mitigations=off', clock='acpi_pm'),
    Case('cloud-4-noapic', cpus=4, mem=128, append='noapic clocksource=hpet', clock='hpet'),
    Case('cloud-2-nolapic-timer', cpus=2, mem=1024, append='nolapic_timer clocksource=kvm-clock', clock='kvm-clock'),
    Case('cloud-no-kvmclock', cpus=2, append='no-kvmclock', clock='tsc'),
    Case('cloud-4-6g', cpus=4, mem=6144, append='mitigations=off clocksource=hpet', clock='hpet'),
    Case('amd64-1', 'amd64', cpus=1, mem=1024, append='noapic clocksource=acpi_pm nokaslr', clock='acpi_pm'),
    Case('amd64-2-x2apic-6g', 'amd64', cpus=2, mem=6144, options=['-x'], append='clocksource=kvm-clock', clock='kvm-clock'),
    Case('amd64-4-mptable', 'amd64', cpus=4, mem=6144, append='acpi=off clocksource=tsc mitigations=off', clock='tsc'),
    Case('amd64-2-hpet', 'amd64', cpus=2, mem=1024, append='nolapic_timer clocksource=hpet', clock='hpet',
         do='spread,hotplug'),
    Case('amd64-1-mptable', 'amd64', cpus=1, mem=256, append='acpi=off nokaslr clocksource=kvm-clock', clock='kvm-clock'),
    Case('amd64-elf', 'amd64', cpus=2, mem=1024, loader='elf', append='clocksource=tsc', clock='tsc'),
    Case('rt-elf-1', 'rt-amd64', cpus=1, mem=1024, loader='elf', append='clocksource=tsc mitigations=off', clock='tsc'),
    Case('rt-4-x2apic', 'rt-amd64', cpus=4, mem=1024, options=['-x'], append='nolapic_timer clocksource=hpet nokaslr',
         clock='hpet'),
    Case('rt-2-6g', 'rt-amd64', cpus=2, mem=6144, append='clocksource=acpi_pm', clock='acpi_pm', do='spread,hotplug'),
    Case('rt-4-mptable', 'rt-amd64', cpus=4, mem=256, append='acpi=off clocksource=kvm-clock', clock='kvm-clock'),
    Case('rt-2-noapic', 'rt-amd64', cpus=2, mem=1024, append='noapic clocksource=kvm-clock', clock='kvm-clock'),
    Case('686-pae-4-6g', '686-pae', cpus=4, mem=6144, append='clocksource=tsc', clock='tsc'),
    Case('686-pae-1', '686-pae', cpus=1, mem=128, append='noapic clocksource=hpet mitigations=off', clock='hpet'),
    Case('686-pae-2-mptable', '686-pae', cpus=2, mem=1024, append='acpi=off clocksource=kvm-clock nokaslr',
         clock='kvm-clock'),
    Case('686-2', '686', cpus=2, mem=1024, append='clocksource=kvm-clock nokaslr', clock='kvm-clock'),
    Case('686-4-nolapic-timer', '686', cpus=4, mem=1024, append='nolapic_timer clocksource=tsc', clock='tsc'),
    Case('686-1', '686', cpus=1, mem=128, append='noapic clocksource=hpet mitigations=off', clock='hpet'),
    # Every way down
    Case('reboot-acpi', end='reboot', append='reboot=acpi'),
    Case('reboot-kbd', end='reboot', append='reboot=kbd'),
    Case('reboot-triple', end='reboot', append='reboot=triple'),
    Case('reboot-cf9', end='reboot', append='reboot=pci'),
    Case('halt', end='halt'),
    Case('halt-1', cpus=1, end='halt'),
    Case('panic', end='panic'),
]

QEMU = [Case(f'{kernel}-beside-qemu', kernel, do='spread,log', limit=120)
        for kernel in ('cloud-amd64', 'amd64', 'rt-amd64', '686-pae', '686')]
SUITES = {'quick': QUICK, 'long': LONG, 'qemu': QEMU}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--skep')
    parser.add_argument('--cache', type=pathlib.Path)
    parser.add_argument('--engine', default='soft')
    parser.add_argument('--slow', type=float, default=1)
    parser.add_argument('--suite', choices=SUITES)
    parser.add_argument('--keep', type=pathlib.Path)
    parser.add_argument('names', nargs='*')
    args = parser.parse_args()
    if args.list:
        print('\n'.join(case.name for case in QUICK + LONG + QEMU))
        return 0
    cases = SUITES[args.suite] if args.suite else [c for c in QUICK + LONG + QEMU if c.name in args.names]
    args.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache)).resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='skep-boot-') as name:
        work = pathlib.Path(name)
        for number, case in enumerate(cases, 1):
            try:
                if case in QEMU:
                    case.qemu_output = child.output(case.qemu(args, work), case.limit * args.slow)[0]
                output, status, took = child.output(case.command(args, work), case.limit * args.slow)
            except (OSError, subprocess.CalledProcessError, StopIteration, AttributeError) as error:
                print(f'Bail out! {case.name}: apt-get update, and a Debian mirror in reach? {error!r}')
                return 1
            problems = list(case.problems(output, status, took))
            print(f'{"not ok" if problems else "ok"} {number} - {case.name}', flush=True)
            up = re.search(r't:up=([0-9.]+)', output)
            debian.note(f'{case.name}: {took:.2f} s, init after {up.group(1) if up else "?"} s of guest time')
            if args.keep:
                (args.keep / case.name).write_text(output)
            for text in problems:
                debian.note(text)
            for text in output.splitlines()[-25:] if problems else ():
                debian.note('| ' + text.rstrip('\r'))
    print(f'1..{len(cases)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
