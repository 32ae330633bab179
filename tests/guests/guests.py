"""The tiny guests: which there are, how each is run, and what it must show.

A guest's expected output is in its source, as the lines that begin with ";> ". What is here is the rest: options,
exit status, and what the host's KVM must be able to do for it (probe_kvm.c). tests/nested runs the same table.
"""

import pathlib
import re

SOURCE = pathlib.Path(__file__).resolve().parent
PASS = 0x10 << 1 | 1  # the test device's exit status for EXIT_PASS
RESET, POWEROFF, HALT, TRIPLE_FAULT, ERROR = range(5)


class Guest:
    def __init__(self, name, *options, source=None, status=PASS, needs=(), button=None, stderr=(), com1='stdio', stdin=None,
                 timeout=60, engines=('kvm', 'soft')):
        self.name = name              # of the test
        self.source = source or name  # .asm
        self.options = options
        self.status = status
        self.needs = needs
        self.button = button          # when this line has come, SIGTERM
        self.stderr = stderr          # regular expressions that must match in stderr
        self.com1 = com1
        self.stdin = stdin            # a file of the image directory; none: /dev/null
        self.timeout = timeout        # seconds
        self.engines = engines        # those it is for

    @property
    def is_rom(self):
        return self.source.startswith('real_')

    @property
    def image(self):
        return self.source + ('.rom' if self.is_rom else '.elf')

    def expected(self):
        text = (SOURCE / (self.source + '.asm')).read_text()
        return [line[3:] for line in text.splitlines() if line.startswith(';> ')]

    def command(self, skep, engine, directory, vm_name):
        """The words of the command line; the image and the modules are in `directory`."""
        words = [skep, '-q', '-E', engine, '-m', '64M', '-l', f'com1,{self.com1}', '-l', 'com2,null', '-l', 'pc-testdev']
        words += [word.replace('@DIR@', str(directory)) for word in self.options]
        image = f'{directory}/{self.image}'
        words += ['-l', f'bootrom,{image}'] if self.is_rom else ['--kernel', image]
        return words + [vm_name]

    def problems(self, output, status, stderr):
        """What is wrong with a run, as lines for a person; none if it passed. `stderr` may be None: unknown."""
        found = []
        lines = output.replace('\r', '').splitlines()
        expected = self.expected()
        if lines != expected:
            for i in range(max(len(lines), len(expected))):
                got = lines[i] if i < len(lines) else '(nothing)'
                want = expected[i] if i < len(expected) else '(nothing)'
                if got != want:
                    found.append(f'output line {i + 1}: got "{got}", want "{want}"')
        if status != self.status:
            found.append(f'exit status: got {status}, want {self.status}')
        if stderr is not None:
            found += [f'stderr lacks "{text}"' for text in self.stderr if not re.search(text, stderr)]
        return found


NATIVE = ('native',)
# A CPU that keeps to the manuals where QEMU's TCG, which the nest's KVM runs on, does not.
HARDWARE = ('native', 'hardware')
LEGACY = ('native', 'legacy-irq')
MODULES = ('--initrd', '@DIR@/module1.txt', '--initrd', '@DIR@/module2.txt')
PRESSED = ('-o', 'soft.cache=256K', '-o', 'stats=1', '--append', 'press')
FLUSHED = (r'cache_flushes +[1-9]',)

GUESTS = [
    # long mode, PVH
    Guest('hello', status=POWEROFF),
    Guest('hello_yield', '-AHP', source='hello', status=POWEROFF),
    Guest('hello_bhyve_line', '-AHP', '-c', '2', '-s', '0,hostbridge', '-s', '31,lpc', source='hello', status=POWEROFF),
    Guest('pvhinfo', '--append', 'one two=3 "four five"', *MODULES),
    Guest('except', needs=NATIVE),
    Guest('system64', needs=HARDWARE),
    Guest('entries', needs=HARDWARE),
    Guest('vectors', needs=HARDWARE),
    Guest('transfer', needs=HARDWARE),
    Guest('paging', needs=NATIVE),
    Guest('paging_rsvd', needs=HARDWARE),
    Guest('remap', needs=HARDWARE),
    Guest('remap_smp', '-c', '2', needs=HARDWARE),
    Guest('runs', needs=HARDWARE),
    # The disk is the image itself.
    Guest('dma', '-c', '2', '-s', '3,ahci-hd,@DIR@/dma.elf,ro', needs=HARDWARE),
    Guest('smc', needs=NATIVE),
    Guest('smc_next', needs=HARDWARE),
    Guest('xmc', '-c', '2', needs=HARDWARE),
    Guest('hammer', '-c', '2', needs=NATIVE),
    Guest('shadow', '-c', '2', needs=HARDWARE),
    # bhyve's answer, as other monitors read zeroes there.
    Guest('outside', engines=('soft',)),
    Guest('churn', '-c', '2', needs=NATIVE),
    Guest('pio'),
    Guest('mmio'),
    Guest('msr_strict'),
    Guest('msr_lax', '-w'),
    Guest('strictio', '-e', status=ERROR, stderr=('0x5f0',)),
    Guest('pit'),
    Guest('ioapic', needs=NATIVE),
    Guest('hpet', needs=NATIVE),
    Guest('rtc'),
    Guest('cmos'),
    Guest('pm', needs=NATIVE, button='ready for the power button'),
    Guest('ps2'),
    Guest('uart'),
    Guest('input', stdin='module1.txt'),
    Guest('hostile'),
    Guest('misc', '-o', 'bvmcons.path=null', '-o', 'stats=1', stderr=(r'notifications +3\b',)),
    Guest('bvmcons', '-b', com1='null'),
    Guest('pci'),
    Guest('timers'),
    Guest('smp_start', '-c', '4'),
    Guest('topology', '-c', 'cpus=6,sockets=2,cores=3'),
    Guest('ipi', '-c', '4'),
    Guest('ipi_x2apic', '-c', '4', '-x'),
    # By the manual, which KVM's local APIC does not follow in every corner.
    Guest('lapic', engines=('soft',)),
    Guest('lapic_x2apic', '-x', engines=('soft',)),
    # The same while the code cache is too small for them.
    Guest('system64_pressed', *PRESSED, source='system64', stderr=FLUSHED, engines=('soft',)),
    Guest('entries_pressed', *PRESSED, source='entries', stderr=FLUSHED, engines=('soft',)),
    Guest('churn_pressed', '-c', '2', *PRESSED, source='churn', stderr=FLUSHED, engines=('soft',)),
    Guest('smc_pressed', *PRESSED, source='smc', stderr=FLUSHED, engines=('soft',)),
    Guest('debug', engines=('soft',)),
    # ways to end
    Guest('poweroff', status=POWEROFF),
    Guest('halt', status=HALT),
    Guest('halt4', '-c', '4', status=HALT),
    Guest('triple', status=TRIPLE_FAULT, needs=('triple-fault',)),
    # KVM on AMD puts the vCPU into the state after INIT before it tells: it cannot be seen there.
    Guest('reset_triple', status=RESET, engines=('soft',)),
    Guest('reset_kbd', status=RESET),
    Guest('reset_cf9', status=RESET),
    Guest('reset_92', status=RESET),
    Guest('restart', '-c', '2', '-o', 'reboot=restart'),
    # protected mode, multiboot
    Guest('prot_boot', '--append', 'multiboot test', *MODULES),
    Guest('prot_basic', needs=NATIVE),
    Guest('prot_vectors', needs=HARDWARE),
    Guest('prot_stacks', needs=HARDWARE),
    Guest('prot_paging', needs=HARDWARE),
    Guest('prot_irq', needs=LEGACY),
    # real mode, boot ROM
    Guest('real_basic', needs=NATIVE),
    Guest('real_modes', needs=HARDWARE),
    Guest('real_irq', needs=('legacy-irq',)),
    Guest('real_reset', status=RESET),
]

# The suite `long`: a minute's work and more.
LONG_GUESTS = [
    Guest('xmc_pressed', '-c', '2', *PRESSED, source='xmc', stderr=FLUSHED, engines=('soft',), timeout=1000),
    Guest('hammer_long', '-c', '2', '--append', 'long', source='hammer', needs=NATIVE, timeout=1000),
    Guest('hammer4_long', '-c', '4', '--append', 'long', source='hammer', needs=NATIVE, timeout=1000),
]


def find(name):
    for guest in GUESTS + LONG_GUESTS:
        if guest.name == name:
            return guest
    raise SystemExit(f'no guest {name}')
