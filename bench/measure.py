"""What bench/run measures: see docs/PERFORMANCE.md for how, report.py for what becomes of the figures.

One round runs every engine once, one after the other, so that whatever else the machine does meets all of them; a row's
figure is the median over the rounds, and its ratios are medians of each round's own ratio.
"""
import argparse
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time

import images as image
import report

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
OUT = os.path.join(HERE, "out")
WORK = os.path.join(TOP, "build/bench")
ENGINES = ("native", "soft", "kvm", "qemu")
GROUPS = {"integer": report.INTEGER, "kernel": report.KERNEL, "boot": ["boot-bzimage", "boot-vmlinux"],
          "guest": report.GUEST_ROWS, "host": report.HOST_ROWS}
HELLO = os.path.join(TOP, "build/tests/guests/hello.elf")
IDLE_SECONDS = 4


# ---- engines -----------------------------------------------------------------------------------------------------

class Machine:
    """A VM that runs; killed at the end, whatever it did."""

    def __init__(self, argv):
        self.name = argv[-1]
        self.started = time.monotonic()
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.text = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def until(self, mark, seconds):
        """Seconds from the start until the console shows `mark`, None if it never does."""
        fd = self.process.stdout.fileno()
        os.set_blocking(fd, False)
        end = self.started + seconds
        while mark not in self.text:
            left = end - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                return None
            got = os.read(fd, 65536)
            if not got:
                return None
            self.text += got
        return time.monotonic() - self.started

    def cpu_seconds(self):
        total, tasks = 0, f"/proc/{self.process.pid}/task"
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/schedstat") as f:
                total += int(f.read().split()[0])
        return total / 1e9

    def anonymous_mib(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1)) / 1024


def skep(options, engine, cpus, memory, kernel, initrd=None, append=""):
    argv = [options.skep, "-q", "-E", engine, "-c", str(cpus), "-m", f"{memory}M", "-l", "com1,stdio",
            "--kernel", kernel]
    if initrd:
        argv += ["--initrd", initrd, "--append", f"console=ttyS0 quiet panic=-1 {append}"]
    return argv + [f"bench{os.getpid()}x{time.monotonic_ns()}"]


def qemu(options, cpus, memory, kernel, initrd=None, append=""):
    argv = ["qemu-system-x86_64", "-M", "microvm", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", str(cpus),
            "-m", str(memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", "stdio", "-kernel", kernel]
    if initrd:
        # This machine has no timer but the PIT to tell the TSC's rate by, and on a busy host Linux does not get that
        # done, says so and hangs, or has a clock of 4 ms. So it is told; skep's CPUID tells it.
        argv += ["-initrd", initrd,
                 "-append", f"console=ttyS0 quiet panic=-1 tsc_early_khz={options.tsc_khz} tsc=reliable {append}"]
    return argv


def vm(options, engine, *args):
    return qemu(options, *args) if engine == "qemu" else skep(options, engine, *args)


def complain(what, machine):
    print(f"\nbench: {what}; the console's end:\n" + machine.text.decode(errors="replace")[-600:], file=sys.stderr)


# ---- rows --------------------------------------------------------------------------------------------------------

def parse_rows(text):
    return {name: float(ns) for name, ns in re.findall(r"ROW (\S+) ([\d.]+)", text) if float(ns) > 0}


def native_rows(root, rows, timeout):
    argv = ["unshare", "-r", "chroot", root, "/init", ",".join(rows)]
    if os.getuid() == 0:
        argv = argv[2:]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        print(f"\nbench: native: {done.stderr}", file=sys.stderr)
    return parse_rows(done.stdout)


def guest_rows(options, engine, rows, cpus):
    if not rows:
        return {}
    if engine == "native":
        return native_rows(options.images["root"], rows, options.timeout)
    with Machine(vm(options, engine, cpus, 1536, options.images["vmlinux"], options.images["full"],
                    "bench=" + ",".join(rows))) as m:
        if m.until(b"BENCH-END", options.timeout) is None:
            complain(f"{engine} did not finish its rows", m)
        return parse_rows(m.text.decode(errors="replace"))


def boot_ns(options, engine, kernel):
    with Machine(vm(options, engine, 1, 256, kernel, options.images["small"], "bench=sleep")) as m:
        took = m.until(b"BENCH-INIT", 60)
        if not took:
            complain(f"{engine} did not boot within 60 s", m)
        return took and took * 1e9


def start_ns(options, engine):
    """Process start to the first output of a tiny guest, the fastest of a few; skep finds its engine itself."""
    best = None
    for _ in range(5):
        with Machine(vm(options, "auto" if engine == "soft" else engine, 1, 64, HELLO)) as m:
            took = m.until(b"hello", 20)
            if took:
                best = min(took * 1e9, best or took * 1e9)
    return best


def cache_tables_mib(options, name):
    """What the soft engine says that its code cache's metadata takes; 0 for other engines."""
    text = subprocess.run([os.path.join(os.path.dirname(options.skep), "skepctl"), name, "stats"],
                          capture_output=True, text=True).stdout
    found = re.search(r"memory_tables\s+(\d+)", text)
    return int(found.group(1)) / (1 << 20) if found else 0


def idle_and_rss(options, engine):
    """Per cent of a core that a guest asleep takes, and MiB of anonymous memory: of skep neither guest memory nor code
    cache are in that, and the code cache's metadata is left out; in QEMU's, guest memory and code are."""
    with Machine(vm(options, engine, 1, 256, options.images["vmlinux"], options.images["small"], "bench=sleep")) as m:
        if m.until(b"BENCH-INIT", 60) is None:
            complain(f"{engine} did not boot within 60 s", m)
            return {}
        time.sleep(1)
        cpu, began = m.cpu_seconds(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle = (m.cpu_seconds() - cpu) / (time.monotonic() - began) * 100
        rss = m.anonymous_mib() - (cache_tables_mib(options, m.name) if engine != "qemu" else 0)
        return {"idle": max(idle, 0.01), "rss": rss}


def two_vms_ns(options, engine):
    """Two VMs with a CPU each, started at once, that boot and do a fixed piece of work; until both are through."""
    argv = [vm(options, engine, 1, 256, options.images["vmlinux"], options.images["small"], "bench=work")
            for _ in range(2)]
    with Machine(argv[0]) as a, Machine(argv[1]) as b:
        took = [m.until(b"BENCH-END", options.timeout) for m in (a, b)]
        return max(took) * 1e9 if all(took) else None


def measure(options, engine):
    """One engine's figures of one round."""
    rows, cpus = options.rows, 2
    got = guest_rows(options, engine, [r for r in report.GUEST_ROWS if r in rows], cpus)
    if "mix4" in rows:
        got.update(guest_rows(options, engine, ["mix4"], 4))
    if engine == "native":
        return got
    if "boot-bzimage" in rows:
        got["boot-bzimage"] = boot_ns(options, engine, options.kernel)
    if "boot-vmlinux" in rows:
        got["boot-vmlinux"] = boot_ns(options, engine, options.images["vmlinux"])
    if "start" in rows:
        got["start"] = start_ns(options, engine)
    if "idle" in rows or "rss" in rows:
        got.update(idle_and_rss(options, engine))
    if "two-vms" in rows:
        got["two-vms"] = two_vms_ns(options, engine)
    return {row: value for row, value in got.items() if value}


# ---- the whole ---------------------------------------------------------------------------------------------------

def arguments(argv):
    p = argparse.ArgumentParser(
        prog="bench/run", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures skep's engines beside the host itself and QEMU's TCG; prints a table and leaves\n"
        "bench/out/result.json and bench/out/chart.svg.",
        epilog="rows: " + " ".join(report.ROWS) + "\ngroups of rows: " + " ".join(GROUPS))
    p.add_argument("-r", "--rounds", type=int, default=5, help="every row is measured so often (default: 5)")
    p.add_argument("--minutes", type=float, default=60, help="no new round after so many (default: 60)")
    p.add_argument("-e", "--engines", help="some of native,soft,kvm,qemu (default: all that this host has)")
    p.add_argument("--kernel", help="a bzImage (default: Debian's cloud kernel, downloaded)")
    p.add_argument("--skep", default=os.path.join(TOP, "build/skep"), help="another build of skep")
    p.add_argument("--timeout", type=float, default=600, help="seconds for all rows of one engine (default: 600)")
    p.add_argument("--show", metavar="FILE", help="measure nothing: table and chart of an earlier result.json")
    p.add_argument("--chart", default=os.path.join(OUT, "chart.svg"), help="where the chart goes (default: bench/out)")
    p.add_argument("--check", action="store_true", help=argparse.SUPPRESS)  # bench/run: before it builds
    p.add_argument("rows", nargs="*", metavar="ROW", help="only these rows, or groups of rows (default: all)")
    options = p.parse_args(argv)
    if options.rounds < 1:
        p.error("--rounds: at least 1")
    chosen = []
    for row in options.rows or ["guest", "host"]:
        if row not in GROUPS and row not in report.ROWS:
            p.error(f"there is no row '{row}'; bench/run -h lists them")
        chosen += GROUPS.get(row, [row])
    options.rows = [r for r in report.ROWS if r in chosen]
    if options.engines is not None:
        options.engines = options.engines.split(",")
        for engine in options.engines:
            if engine not in ENGINES:
                p.error(f"there is no engine '{engine}': native, soft, kvm, qemu")
    return options


def kvm_usable(options):
    """What `-E auto` finds."""
    argv = [a for a in skep(options, "auto", 1, 64, HELLO) if a != "-q"]
    with Machine(argv) as m:
        m.until(b"hello", 20)
        return b"engine kvm" in m.text


def prepare(options):
    os.makedirs(WORK, exist_ok=True)
    os.makedirs(OUT, exist_ok=True)
    options.images = image.make_images(WORK)
    options.images["vmlinux"] = os.path.join(WORK, "vmlinux")
    image.unpack_kernel(options.kernel, options.images["vmlinux"])
    options.tsc_khz = round(native_rows(options.images["root"], ["tsc-khz"], 20)["tsc-khz"])
    if options.engines is None:
        options.engines = [e for e in ENGINES if e != "kvm" or kvm_usable(options)]


def first_line(path, pattern):
    with open(path) as f:
        found = re.search(pattern, f.read())
        return found.group(1) if found else "?"


def run_text(*argv):
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else "?"


def conditions(options):
    """What a reader has to know of the machine."""
    return {"when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
            "cpu": first_line("/proc/cpuinfo", r"model name\s*: (.*)"), "host_cpus": os.cpu_count(),
            "tsc_khz": options.tsc_khz, "qemu": run_text("qemu-system-x86_64", "--version"),
            "skep": run_text("git", "describe", "--always", "--dirty"), "kernel": os.path.basename(options.kernel)}


def save(options, rounds, loads):
    result = {"conditions": conditions(options), "loads": loads, "engines": options.engines, "rounds": rounds,
              "rows": report.summary(rounds, options.engines)}
    with open(os.path.join(OUT, "result.json"), "w") as f:
        json.dump(result, f, indent=1)
    return result


def run_rounds(options):
    """The result, saved after each round: a run that is interrupted leaves those that it did."""
    rounds, loads, end = [], [], time.monotonic() + options.minutes * 60
    for n in range(options.rounds):
        if rounds and time.monotonic() > end:
            print(f"no time for more than {n} rounds", file=sys.stderr)
            break
        print(f"round {n + 1} of {options.rounds}: ", end="", file=sys.stderr, flush=True)
        result, before = {}, os.getloadavg()[0]
        for engine in options.engines:
            began = time.monotonic()
            print(engine, end=" ", file=sys.stderr, flush=True)
            result[engine] = measure(options, engine)
            print(f"({time.monotonic() - began:.0f} s)", end=" ", file=sys.stderr, flush=True)
        loads.append({"before": round(before, 2), "after": round(os.getloadavg()[0], 2)})
        print("load average {before} before, {after} after".format(**loads[-1]), file=sys.stderr)
        rounds.append(result)
        saved = save(options, rounds, loads)
    return saved


def show(result, chart):
    """The table on stdout, the chart into a file."""
    print(report.table(result["rows"], result["engines"]))
    n = len(result["rounds"])
    caption = "{cpu}, {host_cpus} CPUs; {when}; median of {n}; load average {low:.1f} to {high:.1f}".format(
        n=f"{n} rounds" if n > 1 else "1 round", low=min(l["before"] for l in result["loads"]),
        high=max(l["after"] for l in result["loads"]), **result["conditions"])
    print(caption)
    with open(chart, "w") as f:
        f.write(report.chart(result["rows"], caption))


def main():
    options = arguments(sys.argv[1:])
    if options.check:
        return
    if options.show:
        with open(options.show) as f:
            result = json.load(f)
        result["rows"] = report.summary(result["rounds"], result["engines"])
        return show(result, options.chart)
    if not options.kernel or not shutil.which("qemu-system-x86_64"):
        sys.exit("bench: to be started as bench/run, which fetches what is needed")
    prepare(options)
    show(run_rounds(options), options.chart)


if __name__ == "__main__":
    main()
