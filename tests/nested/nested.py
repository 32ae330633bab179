#!/usr/bin/env python3
"""Real KVM anywhere: Debian's kernel in QEMU's TCG, whose `-cpu max` emulates AMD SVM with nested paging, runs skep
on its /dev/kvm. All tiny guests run there, and a Linux guest to its init, whose whole output is the same as on soft.
Prints TAP, one line a guest.

  nested.py --skep PROGRAM --dir GUEST_IMAGES --probe PROGRAM --cache DIRECTORY [--only NAME ...] [--repeat N] [--log]

--repeat runs each guest N times in one nest, to find those that fail now and then. --log runs Linux alone and has its
kernel tell all: its log too is the same as on soft, but for what DIFFERS lists.

The kernel comes from Debian's linux-image-amd64 and the user space from busybox-static: downloaded once into the cache
(apt-get download; nothing is installed); SKEP_TEST_CACHE names another one, for several builds. The nest has no
python: its init is a shell script made here, which reports on the second serial port, and what it reports is judged
here by the table of tests/guests/guests.py.
"""

import argparse
import collections
import copy
import hashlib
import os
import pathlib
import random
import re
import select
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'guests'))
import guests  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'boot'))
import debian  # noqa: E402
from debian import Cpio, libraries, note  # noqa: E402

MODULES = ('kvm-amd',)
DISK_MODULES = ('virtio_pci', 'virtio_blk')
# One thread: with one a CPU QEMU 7.2 is not to be relied on where the host is busy. A CPU kept an INT3 that was gone from memory
# (see hold() in probe_kvm.c), a nest of several hundred hung before it had loaded KVM, and two Linux guests ended in a triple
# fault (see run() below).
QEMU = ['qemu-system-x86_64', '-accel', 'tcg,thread=single', '-machine', 'q35', '-cpu', 'max', '-smp', '2', '-m', '1G',
        '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-nic', 'none']
CASE_TIMEOUT = 30    # seconds, in the nest, twice
LINUX_TIMEOUT = 100  # for Linux there
SILENCE = 20         # seconds more than that, here, without a word: the nest hangs
NESTS = 2            # see main()
LOG_SLOWER = 4       # times, with all that a kernel has to tell

# How every nest's init begins: its console is the second serial port.
START = '''#!/bin/sh
export PATH=/bin XDG_RUNTIME_DIR=/run
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
for module in {modules}; do insmod /modules/$module.ko || echo "@note insmod $module failed"; done
# For as long as the nest is: see hold() there.
/probe_kvm --hold >/run/held </dev/null &
for i in $(seq 200); do [ ! -s /run/held ] || break; sleep 0.05; done
[ -s /run/held ] || echo "@note no VM could be held"
'''

INIT = START + '''exec </dev/null
echo "@probe $(/probe_kvm | tr '\\n' ' ')"

# seconds: since the nest began, into $now.
seconds() {{
	read now rest </proc/uptime
	now=${{now%.*}}
}}

# attempt command...: SIGTERM once $button is a line of the output; SIGKILL, and fails, after $limit seconds.
attempt() {{
	seconds
	end=$((now + limit)) press=$button killed=
	"$@" >/run/out 2>/run/err <$stdin &
	pid=$!
	while kill -0 $pid 2>/dev/null; do
		if [ -n "$press" ] && grep -qxF "$press" /run/out; then
			kill $pid
			press=
		fi
		seconds
		[ -n "$killed" ] || [ $now -lt $end ] || {{ killed=1; kill -9 $pid; }}
		sleep 0.05
	done
	wait $pid
	status=$?
	[ -z "$killed" ]
}}

# run LIMIT NAME STDIN BUTTON command...: the command's output and status. What hangs gets a second chance: VMRUN of QEMU's TCG
# does not load the interrupt shadow before 9.1 ("target/i386: fix INHIBIT_IRQ/TF/RF handling for VMRUN", June 2024), so an
# interrupt that comes between STI and HLT is taken before the HLT, which then waits for another one. So does Linux that ends in a
# triple fault before it has said a word: seen twice, of some hundred starts on busy hosts. An interrupt that VMRUN injects is
# delivered twice there, IF or not, if QEMU's thread is asked to leave its loop right after: the helper leaves exception_index set,
# which cpu_handle_interrupt() then takes for an exception that waits (so read in its sources, and seen in nested-system: a
# timer interrupt in the first instruction of its own entry, with IF clear).
run() {{
	limit=$1 name=$2 stdin=$3 button=$4
	shift 4
	if ! attempt "$@"; then
		echo "@note $name: killed after $limit s, and tried again"
		attempt "$@"
	elif [ $name = linux ] && [ ! -s /run/out ] && grep -q 'triple fault' /run/err; then
		echo "@note $name: a triple fault, and tried again"
		attempt "$@"
	fi
	echo "@guest $name"
	sed 's/^/o:/' /run/out
	sed 's/^/e:/' /run/err
	echo
	echo "@status $status"
}}
{runs}
echo "@end"
sync
reboot -f
'''

VIRTIO = ('virtio', 'virtio_ring', 'virtio_pci_legacy_dev', 'virtio_pci_modern_dev', 'virtio_pci', 'virtio_blk')
DISK = random.Random(4).randbytes(1 << 20)
LINUX_INIT = '''#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module.ko; done
/bin/busybox dd if=/dev/vda of=/copy bs=64k 2>/dev/null
/bin/busybox dd if=/copy of=/dev/vda bs=64k conv=fsync 2>/dev/null && echo "disk $(/bin/busybox md5sum </copy)"
echo "init reached with $(/bin/busybox nproc) CPUs"
/bin/busybox grep -m1 -o 'skep\\.marker=[a-z]*' /proc/cmdline
# Waits until all of it is out: the kernel's own words do not wait for the terminal's.
/bin/busybox stty -echo
/bin/busybox poweroff -f
'''
LINUX_LINES = ('init reached with 2 CPUs', 'skep.marker=here', f'disk {hashlib.md5(DISK).hexdigest()}', 'reboot: Power down')
DOORBELLS = 2 * 2  # the disk has a queue a CPU, each with a modern and a legacy one

# What the kernel's log says differently on kvm in the nest and on soft.
DIFFERS = re.compile(
    # When it was, how fast the CPU is and how much was free
    r'sched offset|^tsc: Detected|BogoMIPS|audit: type|setting system clock|^sched_clock: Marking stable|^Memory: |'
    r'hrtimer: interrupt took|'
    # The CPU: kvm shows QEMU's, an AMD, soft the host's. Its name, widths, TLBs, counters and registers, its faults and what
    # is done for them, a chip set that its makers had once
    r'smpboot: CPU0: |max_arch_pfn|Last level [id]TLB|Performance Events|PMU|intel_pstate|signal: max sigframe|x86/fpu: |'
    r'Spect|Vulnerable|Mitigation|mitigation|active return thunk|AGP: |E400 aware|physical \d+ to logical die|'
    r'Register File Data Sampling|^TAA|^ITS|RETBleed|Enabling retpoline|'
    # CPUID 0DH keeps its size after XSETBV there, so Linux warns and uses FXSAVE: QEMU's TCG looks at SVM's intercept of XSETBV
    # only since 8.2 ("target/i386: check intercept for XSETBV", October 2023), so KVM does not see it in Debian 12's, 7.2.
    r'^CPUID\[0d, ..\]|'
    # The TSCs of QEMU's CPUs are apart, so the kernel does not take the TSC as its clock.
    r'TSCs unsynchronized|^clocksource: tsc|Switched to clocksource tsc')
XSAVE_WARNING = re.compile(r'^-+\[ cut here \]-+\nXSAVE consistency problem.*?\n-+\[ end trace \w+ \]-+\n', re.M | re.S)


def kernel(cache):
    """(vmlinuz, modules by name)."""
    tree = debian.unpacked(cache, debian.kernel_package(cache, 'amd64'), 'amd64', './boot/vmlinuz-*',
                           *(f'*/{name}.ko' for name in ('kvm', 'kvm-amd', 'irqbypass', 'ccp', *VIRTIO)))
    return next((tree / 'boot').glob('vmlinuz-*')), {path.stem: path for path in tree.rglob('*.ko')}


def in_order(files, wanted):
    """Those modules with what they need, in the order to insert them."""
    order = []

    def add(name):
        match = re.search(rb'\0depends=([^\0]*)\0', files[name].read_bytes())
        for need in match.group(1).decode().split(',') if match else ():
            if need in files:
                add(need)
        if files[name] not in order:
            order.append(files[name])

    for name in wanted:
        add(name)
    return order


def stripped(program, work):
    """The program's bytes without debug information, which would only be loaded slowly."""
    target = work / (pathlib.Path(program).name + '.stripped')
    if shutil.which('strip') and subprocess.run(['strip', '-g', '-o', target, program]).returncode == 0:
        return target.read_bytes()
    return pathlib.Path(program).read_bytes()


def quote(words):
    return ' '.join("'" + str(word).replace("'", "'\\''") + "'" for word in words)


def linux_command(skep, engine, where, log):
    # With ticks a CPU that halts with work to do (run() above says why) wakes up.
    return [skep, '-q', '-E', engine, '-c', '2', '-m', '256M', '-s', f'3,virtio-blk,{where}/disk', '-o', 'stats=true',
            '--kernel', f'{where}/vmlinuz', '--initrd', f'{where}/initrd', '--append',
            f'console=ttyS0 {"" if log else "quiet "}panic=-1 nohz=off skep.marker=here', f'linux-{os.getpid()}']


def linux_limit(args):
    return LINUX_TIMEOUT * (LOG_SLOWER if args.log else 1)


def on_soft(args, work):
    """Linux on the soft engine, here."""
    with open(work / 'soft.out', 'wb') as out, open(work / 'soft.err', 'wb') as err:
        return child.popen(linux_command(args.skep, 'soft', work / 'linux', args.log),
                           stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def comparable(output):
    """Lines as often as they come, without their times and what differs: CPUs that come up make the order theirs."""
    text = re.sub(r'^\[ *[0-9.]+\] ?', '', output.replace('\r', ''), flags=re.M)
    lines = XSAVE_WARNING.sub('', text).split('\n')
    return collections.Counter(line for line in lines if line and not DIFFERS.search(line))


def differences(ours, theirs):
    for name, only in (('kvm', ours - theirs), ('soft', theirs - ours)):
        for line in only.elements():
            yield f'on {name} alone: {line}'


def linux_files(vmlinuz, files, box, work):
    """What Linux takes, into work/linux."""
    modules = in_order(files, DISK_MODULES)
    inner = Cpio()
    inner.console()
    inner.file('bin/busybox', box)
    inner.file('init', LINUX_INIT.format(modules=' '.join(path.stem for path in modules)).encode())
    for path in modules:
        inner.file(f'modules/{path.name}', path.read_bytes(), 0o100644)
    (work / 'linux').mkdir()
    for name, data in (('initrd', inner.bytes()), ('vmlinuz', vmlinuz.read_bytes()), ('disk', DISK)):
        (work / 'linux' / name).write_bytes(data)


def nest_cpio(args, programs, modules, work):
    """What is in every nest: busybox, programs by their names, with their libraries, and modules."""
    cpio = Cpio()
    cpio.console()
    for name in ('proc', 'sys', 'run', 'tmp'):
        cpio.directory(name)
    box = debian.busybox(args.cache).read_bytes()
    for name in ('bin/busybox', 'bin/sh'):
        cpio.file(name, box)
    for name, path in programs.items():
        cpio.file(name, stripped(path, work))
    for asked, path in {pair for program in programs.values() for pair in libraries(program)}:
        cpio.file(asked.lstrip('/'), path.read_bytes())
    for path in modules:
        cpio.file(f'modules/{path.name}', path.read_bytes(), 0o100644)
    return cpio


def initramfs(args, cases, with_linux, vmlinuz, files, work):
    modules = in_order(files, MODULES)
    cpio = nest_cpio(args, {'skep': args.skep, 'probe_kvm': args.probe}, modules, work)
    runs = [quote(['run', CASE_TIMEOUT, case.name, f'/guests/{case.stdin}' if case.stdin else '/dev/null', case.button or '',
                   *case.command('/skep', 'kvm', '/guests', case.name)])
            for case in cases]
    if with_linux:
        runs.append(quote(['run', linux_limit(args), 'linux', '/dev/null', '',
                           *linux_command('/skep', 'kvm', '/linux', args.log)]))
        for path in (work / 'linux').iterdir():
            cpio.file(f'linux/{path.name}', path.read_bytes(), 0o100644)
    for path in sorted({case.image for case in cases} | {'module1.txt', 'module2.txt'}):
        cpio.file(f'guests/{path}', (pathlib.Path(args.dir) / path).read_bytes(), 0o100644)
    script = INIT.format(modules=' '.join(path.stem for path in modules), runs='\n'.join(runs))
    cpio.file('init', script.encode())
    target = work / 'initramfs'
    target.write_bytes(cpio.bytes())
    return target


class Report:
    """Reads the nest's lines and prints a TAP line for each guest as it comes."""

    def __init__(self, cases, with_linux, soft_output):
        self.soft_output = soft_output
        self.cases = {case.name: case for case in cases}
        self.waiting = [case.name for case in cases] + (['linux'] if with_linux else [])
        self.number = 0
        self.failed = 0
        self.started = time.monotonic()
        self.name = None

    def result(self, name, problems, output=(), errors=()):
        self.number += 1
        self.waiting.remove(name)
        now = time.monotonic()
        print(f'{"not ok" if problems else "ok"} {self.number} - {name}', flush=True)
        note(f'{name}: {now - self.started:.2f} s')
        self.started = now
        if problems:
            self.failed += 1
            for text in (*problems, '--- output', *output, '--- stderr', *errors):
                note(text)

    def line(self, line):
        if line.startswith('@probe'):
            note(f'the nest\'s KVM: {line[7:]}')
            self.started = time.monotonic()
        elif line.startswith('@note'):
            note(line[6:])
        elif line.startswith('@guest '):
            self.name, self.output, self.errors = line[7:], [], []
        elif line.startswith('o:') and self.name:
            self.output.append(line[2:])
        elif line.startswith('e:') and self.name:
            self.errors.append(line[2:])
        elif line.startswith('@status ') and self.name in self.waiting:
            self.judge(int(line[8:]))

    def judge(self, status):
        output, errors = '\n'.join(self.output), '\n'.join(self.errors)
        if self.name == 'linux':
            problems = [f'output lacks "{text}"' for text in LINUX_LINES if text not in output]
            problems += differences(comparable(output), comparable(self.soft_output()))
            if status != guests.POWEROFF:
                problems.append(f'exit status: got {status}, want {guests.POWEROFF}')
            counted = re.search(r'kvm_doorbells +(\d+)', errors)
            if not counted or int(counted.group(1)) != DOORBELLS:
                problems.append(f'{counted.group(1) if counted else "no"} doorbells are KVM\'s, want {DOORBELLS}')
        else:
            problems = self.cases[self.name].problems(output, status, errors)
        self.result(self.name, problems, self.output, self.errors)
        self.name = None


def run_nest(args, vmlinuz, image, console, report):
    """Until it ends, or says nothing for longer than any guest may take."""
    nest = child.popen([*QEMU, '-kernel', vmlinuz, '-initrd', image, '-append',
                        'console=ttyS0 quiet panic=-1 tsc=reliable', '-serial', f'file:{console}', '-serial', 'stdio'],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    silence = linux_limit(args) + SILENCE
    pending = b''
    try:
        while select.select([nest.stdout], [], [], silence)[0]:
            data = os.read(nest.stdout.fileno(), 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b'\n')
            for raw in lines:
                report.line(raw.decode(errors='replace').rstrip('\r'))
        else:
            note(f'nothing from the nest for {silence} s')
    finally:
        nest.kill()
        nest.wait()


def repetition(case, i):
    case = copy.copy(case)
    case.name += f'.{i + 1}'
    return case


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--skep', required=True)
    parser.add_argument('--dir', required=True)
    parser.add_argument('--probe', required=True)
    parser.add_argument('--cache', required=True, type=pathlib.Path)
    parser.add_argument('--only', nargs='*')
    parser.add_argument('--repeat', type=int, default=1)
    parser.add_argument('--log', action='store_true')
    args = parser.parse_args()
    if args.log:
        args.only = ['linux']
    # Build directories can share what was downloaded.
    args.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache)).resolve()
    work = args.cache / f'work.{os.getpid()}'
    work.mkdir(parents=True)
    with_linux = not args.only or 'linux' in args.only

    cases = [case for case in guests.GUESTS
             if 'kvm' in case.engines and (not args.only or case.name in args.only)]
    for case in [case for case in cases if 'hardware' in case.needs]:
        note(f'{case.name}: not run here, QEMU\'s TCG departs from the manuals in what it looks at')
        cases.remove(case)
    if args.repeat > 1:
        cases = [repetition(case, i) for i in range(args.repeat) for case in cases]
    try:
        vmlinuz, files = kernel(args.cache)
        if with_linux:
            linux_files(vmlinuz, files, debian.busybox(args.cache).read_bytes(), work)
    except (OSError, subprocess.CalledProcessError, StopIteration, AttributeError) as error:
        print(f'Bail out! cannot make the nest (apt-get update, and a Debian mirror in reach?): {error!r}')
        return 1
    soft = on_soft(args, work) if with_linux else None

    def soft_output():
        if soft.wait(60) != guests.POWEROFF:
            note(f'on soft: status {soft.returncode}: ' + (work / 'soft.err').read_text(errors='replace'))
        return (work / 'soft.out').read_text(errors='replace')

    report = Report(cases, with_linux, soft_output)
    try:
        # A guest that hangs is killed in the nest and told of. That the nest itself hangs is QEMU's or its kernel's doing
        # (see hold() in probe_kvm.c for one way): what is left then gets another one.
        for number in range(NESTS):
            left = [case for case in cases if case.name in report.waiting]
            image = initramfs(args, left, 'linux' in report.waiting, vmlinuz, files, work)
            run_nest(args, vmlinuz, image, work / 'console.log', report)
            if not report.waiting:
                break
            note(f'nest {number + 1} of {NESTS} ended before {report.waiting[0]}')
    finally:
        if soft:
            soft.kill()
            soft.wait()
    for name in list(report.waiting):
        report.result(name, ['the nest ended before it'])
    console = work / 'console.log'
    if report.failed:
        for text in console.read_text(errors='replace').splitlines()[-30:] if console.exists() else ():
            note(f'nest console: {text}')
    print(f'1..{report.number}')
    shutil.rmtree(work)
    return 0


if __name__ == '__main__':
    sys.exit(main())
