"""What bench/run measures and how it tells: see docs/PERFORMANCE.md.

One round runs every engine once, one after the other, so that whatever else the machine does meets all of them; a row's
figure is the median over the rounds, and its ratios are medians of each round's own ratio.
"""
import argparse
import json
import lzma
import math
import os
import re
import select
import shutil
import statistics
import struct
import subprocess
import sys
import time
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
OUT = os.path.join(HERE, "out")

INTEGER = ["loop", "crc", "calls", "qsort", "gzip", "python-loop"]
NATIVE_LIKE = ["dgemm", "sincos", "simdcopy", "aes-gcm", "sha256"]
KERNEL = ["syscall", "signal", "pagefault", "mmap", "fork", "exec", "pipe"]
OTHER = ["chase64k", "chase256m", "stride", "thread", "futex", "timer", "xz", "python-start"]
GUEST_ROWS = INTEGER + NATIVE_LIKE + ["memcpy", "chase8m"] + KERNEL + ["gcc"] + OTHER + ["scale"]
PROGRAMS = {"gzip", "xz", "python-start", "python-loop", "gcc", "aes-gcm", "sha256"}
HOST_ROWS = ["boot-bzimage", "boot-vmlinux", "start", "idle", "rss"]

# row (or "integer", the geometric mean): at most this times native's figure, at most this times QEMU's, or a
# figure of its own.
BARS = [("integer", 2.0, 1 / 3, None)]
BARS += [(row, 1.5, None, None) for row in NATIVE_LIKE]
BARS += [("memcpy", 1.2, None, None), ("chase8m", 3.0, None, None)]
BARS += [(row, None, 0.6, None) for row in KERNEL]
BARS += [("gcc", 3.0, 0.4, None), ("boot", None, 0.4, None), ("start", None, None, 20e6),
         ("scale", 1 / 0.95, None, None), ("idle", None, None, 1.0), ("rss", None, None, 10.0)]


# ---- the guest image ---------------------------------------------------------------------------------

def libraries(path):
    """The shared objects that a program of the host loads."""
    text = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", text)


def copy_program(root, path, name):
    shutil.copy(path, os.path.join(root, "bin", name))
    for lib in libraries(path):
        to = os.path.join(root, lib.lstrip("/"))
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy(lib, to)


def source_file(work):
    """About 5,000 lines of C, preprocessed: functions of loops, tables, switches and structs."""
    lines = []
    for i in range(250):
        lines.append(f"""
struct s{i} {{ int a[{i % 7 + 3}]; unsigned long b; struct s{i} *next; double d; }};
static unsigned f{i}(const struct s{i} *s, unsigned n)
{{
	unsigned sum = n * {i * 2654435761 % 65521}u;
	for (; s && n--; s = s->next) {{
		switch ((s->b + n) % {i % 5 + 4}) {{
		case 0: sum += s->a[n % {i % 7 + 3}]; break;
		case 1: sum ^= (unsigned)s->b << {i % 13}; break;
		case 2: sum -= (unsigned)(s->d * {i}.5); break;
		default: sum = sum >> 3 | sum << 29;
		}}
		for (unsigned k = 0; k < {i % 5 + 2}; k++)
			sum = sum * 33 + s->a[k % 3];
	}}
	return sum;
}}
unsigned g{i}(void *p, unsigned n) {{ return f{i}(p, n) + f{max(i - 1, 0)}((void *)((char *)p + 8), n / 2); }}""")
    with open(work, "w") as f:
        f.write("\n".join(lines) + "\n")


def text_file(path):
    """4 MB that compress like text: words of a small vocabulary, drawn by a fixed generator."""
    x, words, size = 1, [], 0
    while size < 4 << 20:
        x = (x * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        words.append(f"word{(x >> 40) % 997 * (x >> 60) % 1009}")
        size += len(words[-1]) + 1
    with open(path, "w") as f:
        f.write(" ".join(words))


def make_initrd(root, path):
    # Not compressed: unpacking is not what is measured.
    with open(path, "wb") as f:
        names = subprocess.run(["find", "."], cwd=root, capture_output=True).stdout
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names, stdout=f, check=True)


def make_images(work):
    """The root directory with everything, its initrd, and the initrd with the benchmark program alone."""
    root, small = os.path.join(work, "root"), os.path.join(work, "small")
    for d in (root, small):
        shutil.rmtree(d, ignore_errors=True)
        os.makedirs(d)
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", os.path.join(small, "init"),
                    os.path.join(HERE, "rows.c"), "-lm"], check=True)
    for d in ("bin", "data", "tmp", "proc", "dev"):
        os.makedirs(os.path.join(root, d))
    shutil.copy(os.path.join(small, "init"), os.path.join(root, "init"))
    for name in ("gzip", "xz", "openssl"):
        copy_program(root, shutil.which(name), name)
    if os.path.exists("/usr/bin/python3"):
        python = os.path.realpath("/usr/bin/python3")
        copy_program(root, python, "python3")
        lib = os.path.join("usr/lib", os.path.basename(python))
        shutil.copytree(f"/{lib}/encodings", os.path.join(root, lib, "encodings"))
    cc1 = subprocess.run(["gcc", "-print-prog-name=cc1"], capture_output=True, text=True).stdout.strip()
    copy_program(root, cc1, "cc1")
    source_file(os.path.join(root, "data/source.i"))
    text_file(os.path.join(root, "data/text"))
    images = {"root": root, "full": os.path.join(work, "full.cpio"), "small": os.path.join(work, "small.cpio")}
    make_initrd(root, images["full"])
    make_initrd(small, images["small"])
    return images


def unpack_kernel(bzimage, path):
    """The vmlinux inside of a bzImage (Documentation/arch/x86/boot.rst, payload_offset)."""
    data = open(bzimage, "rb").read()
    setup = (data[0x1f1] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[setup + offset:setup + offset + length]
    if payload[:6] == b"\xfd7zXZ\0":
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload[:2] == b"\x1f\x8b":
        elf = zlib.decompressobj(31).decompress(payload)
    else:  # the last four bytes are the size (scripts/Makefile.lib, size_append)
        tool = "lz4" if payload[:4] == b"\x02!L\x18" else "zstd"
        elf = subprocess.run([tool, "-dc"], input=payload[:-4], capture_output=True).stdout
    if elf[:4] != b"\x7fELF":
        sys.exit("bench: cannot unpack the kernel")
    with open(path, "wb") as f:
        f.write(elf)


# ---- engines ------------------------------------------------------------------------------------------

class Machine:
    """A VM that runs; killed at the end, whatever it did."""

    def __init__(self, argv):
        self.started = time.monotonic()
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.text = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def until(self, mark, seconds):
        """Seconds from the start until the console shows `mark`, None if it never does."""
        fd = self.process.stdout.fileno()
        os.set_blocking(fd, False)
        end = self.started + seconds
        while mark not in self.text:
            left = end - time.monotonic()
            if left <= 0:
                return None
            if not select.select([fd], [], [], left)[0]:
                return None
            got = os.read(fd, 65536)
            if not got:
                return None
            self.text += got
        return time.monotonic() - self.started

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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
        argv += ["-initrd", initrd, "-append", f"console=ttyS0 quiet panic=-1 {append}"]
    return argv


def vm(options, engine, *args):
    return qemu(options, *args) if engine == "qemu" else skep(options, engine, *args)


def parse_rows(text):
    return {name: float(ns) for name, ns in re.findall(r"ROW (\S+) ([\d.]+)", text) if float(ns) > 0}


def run_rows(options, engine, images, rows):
    if engine == "native":
        argv = ["unshare", "-r", "chroot", images["root"], "/init", ",".join(rows)]
        return parse_rows(subprocess.run(argv, capture_output=True, text=True).stdout)
    with Machine(vm(options, engine, 2, 1536, images["vmlinux"], images["full"],
                    "bench=" + ",".join(rows))) as m:
        if m.until(b"BENCH-END", options.timeout) is None:
            print(f"bench: {engine} did not finish its rows; the console's end:\n"
                  + m.text.decode(errors="replace")[-600:], file=sys.stderr)
        return parse_rows(m.text.decode(errors="replace"))


def boot_ns(options, engine, kernel, images):
    for _ in range(3):  # QEMU's microvm does not always come up
        with Machine(vm(options, engine, 1, 256, kernel, images["small"], "bench=sleep")) as m:
            took = m.until(b"BENCH-INIT", 20)
            if took:
                return took * 1e9
        print(f"({engine} did not boot within 20 s) ", end="", file=sys.stderr)
    return None


def start_ns(options, engine):
    hello = os.path.join(TOP, "build/tests/guests/hello.elf")
    with Machine(vm(options, engine, 1, 64, hello)) as m:
        took = m.until(b"hello", 20)
        return took and took * 1e9


def idle_and_rss(options, engine, images):
    """Per cent of a core that a guest asleep takes, and MiB of anonymous memory (of skep: no guest memory)."""
    with Machine(vm(options, engine, 1, 256, images["vmlinux"], images["small"], "bench=sleep")) as m:
        if m.until(b"BENCH-INIT", 60) is None:
            return {}
        time.sleep(1)
        cpu, began = m.cpu_seconds(), time.monotonic()
        time.sleep(5)
        idle = (m.cpu_seconds() - cpu) / (time.monotonic() - began) * 100
        return {"idle": max(idle, 0.01), "rss": m.anonymous_mib()}


def host_rows(options, engine, images):
    if engine == "native":
        return {}
    got = {"boot-vmlinux": boot_ns(options, engine, images["vmlinux"], images),
           "start": start_ns(options, engine)}
    if engine != "qemu":
        got["boot-bzimage"] = boot_ns(options, engine, options.kernel, images)
    if not options.rows:
        got.update(idle_and_rss(options, engine, images))
    return {row: value for row, value in got.items() if value}


# ---- figures ------------------------------------------------------------------------------------------

def paired(rounds, row, a, b):
    """The ratios a : b of the rounds that have both."""
    return [r[a][row] / r[b][row] for r in rounds if row in r.get(a, {}) and row in r.get(b, {})]


def middle(values):
    return statistics.median(values) if values else None


def summary(rounds, engines):
    rows = {}
    for row in GUEST_ROWS + HOST_ROWS:
        entry = {}
        for engine in engines:
            values = [r[engine][row] for r in rounds if row in r.get(engine, {})]
            if values:
                entry[engine] = {"median": middle(values), "min": min(values), "max": max(values)}
        for other in ("native", "qemu"):
            ratios = paired(rounds, row, "soft", other)
            if ratios:
                entry[f"soft/{other}"] = {"median": middle(ratios), "min": min(ratios), "max": max(ratios)}
        ratios = paired(rounds, row, "qemu", "native")
        if ratios:
            entry["qemu/native"] = {"median": middle(ratios)}
        if entry:
            rows[row] = entry
    derive(rows)
    return rows


def derive(rows):
    """The geometric mean of the integer rows, and the better of the boots."""
    entry = {}
    for ratio in ("soft/native", "soft/qemu", "qemu/native"):
        values = [rows[r][ratio]["median"] for r in INTEGER if ratio in rows.get(r, {})]
        if values:
            entry[ratio] = {"median": math.exp(sum(map(math.log, values)) / len(values)), "rows": len(values)}
    if entry:
        rows["integer"] = entry
    ours = [rows[r]["soft"]["median"] for r in ("boot-bzimage", "boot-vmlinux") if "soft" in rows.get(r, {})]
    if ours and "qemu" in rows.get("boot-vmlinux", {}):
        theirs = rows["boot-vmlinux"]["qemu"]["median"]
        rows["boot"] = {"soft": {"median": min(ours)}, "qemu": {"median": theirs},
                        "soft/qemu": {"median": min(ours) / theirs}}


def verdict(rows, bar):
    row, native, tcg, absolute = bar
    entry, texts, met = rows.get(row), [], True
    if not entry:
        return "not measured"
    for limit, ratio in ((native, "soft/native"), (tcg, "soft/qemu")):
        if limit is None:
            continue
        if ratio not in entry:
            return "not measured"
        met &= entry[ratio]["median"] <= limit
        texts.append(f"<= {limit:.2f}x {ratio.split('/')[1]}")
    if absolute is not None:
        if "soft" not in entry:
            return "not measured"
        met &= entry["soft"]["median"] <= absolute
        texts.append(f"<= {absolute / 1e6:.0f} ms" if row == "start" else f"<= {absolute:.0f}")
    return ("met   " if met else "MISSED") + " " + ", ".join(texts)


def quantity(row, value):
    if row in ("idle",):
        return f"{value:.2f} %"
    if row in ("rss",):
        return f"{value:.1f} MiB"
    if row == "scale":
        return f"{value / 1000:.3f}"
    for unit, ns in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if value >= ns:
            return f"{value / ns:.3g} {unit}"
    return f"{value:.3g} ns"


def table(rows, engines):
    bars = {b[0]: b for b in BARS}
    order = list(bars) + [r for r in rows if r not in bars]
    lines = [f"{'row':13}" + "".join(f"{e:>11}" for e in engines) +
             f"{'soft:native':>13}{'(spread)':>14}{'soft:qemu':>11}{'qemu:native':>13}  bar"]
    for row in order:
        entry = rows.get(row)
        if not entry:
            continue
        line = f"{row:13}"
        for engine in engines:
            line += f"{quantity(row, entry[engine]['median']) if engine in entry else '-':>11}"
        native = entry.get("soft/native")
        line += f"{native['median']:12.2f}x" if native else f"{'-':>13}"
        line += (f"{native['min']:8.2f}-{native['max']:<5.2f}" if native and "min" in native else " " * 14)
        for ratio, width in (("soft/qemu", 10), ("qemu/native", 12)):
            line += f"{entry[ratio]['median']:{width}.2f}x" if ratio in entry else f"{'-':>{width + 1}}"
        lines.append(line + "  " + (verdict(rows, bars[row]) if row in bars else ""))
    return "\n".join(lines)


def chart(rows):
    """Bars of soft and QEMU against native, on a logarithmic scale."""
    shown = [r for r in GUEST_ROWS if "soft/native" in rows.get(r, {}) and r != "scale"]
    left, unit, step = 110, 150, 26
    height = 60 + step * len(shown)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" '
           'font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{left}" y="16">times native, logarithmic: '
           '<tspan fill="#2a7">skep soft</tspan>, <tspan fill="#c63">QEMU TCG</tspan></text>']
    for k, name in enumerate(("1x", "10x", "100x", "1000x")):
        x = left + unit * (k + 0.5)
        out.append(f'<line x1="{x}" x2="{x}" y1="36" y2="{height}" stroke="#ccc"/>'
                   f'<text x="{x}" y="32" text-anchor="middle" fill="#888">{name}</text>')
    for i, row in enumerate(shown):
        y = 44 + i * step
        out.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{row}</text>')
        for k, (ratio, colour) in enumerate((("soft/native", "#2a7"), ("qemu/native", "#c63"))):
            if ratio in rows[row]:
                value = rows[row][ratio]["median"]
                width = max(unit * (math.log10(value) + 0.5), 2)
                out.append(f'<rect x="{left}" y="{y + k * 10}" width="{width:.0f}" height="9" fill="{colour}"/>'
                           f'<text x="{left + width + 3:.0f}" y="{y + k * 10 + 9}" font-size="9">{value:.2f}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def cpu_name():
    with open("/proc/cpuinfo") as f:
        return re.search(r"model name\s*: (.*)", f.read()).group(1)


def main():
    p = argparse.ArgumentParser(prog="bench/run", description="Measures skep against the host itself and QEMU's TCG.")
    p.add_argument("--kernel", help="a bzImage (Debian's cloud kernel)")
    p.add_argument("--skep", default=os.path.join(TOP, "build/skep"))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--engines", default="native,soft,qemu", help="native,soft,kvm,qemu")
    p.add_argument("--rows", help="only these rows of the guest")
    p.add_argument("--timeout", type=float, default=240, help="seconds for all rows of one engine")
    p.add_argument("--no-host-rows", action="store_true", help="leave out boot, start, idle and memory")
    options = p.parse_args()
    engines = options.engines.split(",")
    rows = options.rows.split(",") if options.rows else GUEST_ROWS
    work = os.path.join(TOP, "build/bench")
    os.makedirs(work, exist_ok=True)
    os.makedirs(OUT, exist_ok=True)
    images = make_images(work)
    images["vmlinux"] = os.path.join(work, "vmlinux")
    unpack_kernel(options.kernel, images["vmlinux"])
    rounds = []
    for n in range(options.rounds):
        print(f"round {n + 1} of {options.rounds}: ", end="", file=sys.stderr, flush=True)
        result = {}
        for engine in engines:
            print(engine, end=" ", file=sys.stderr, flush=True)
            result[engine] = run_rows(options, engine, images, rows)
            if not options.no_host_rows:
                result[engine].update(host_rows(options, engine, images))
        print(file=sys.stderr)
        rounds.append(result)
    figures = summary(rounds, engines)
    print(table(figures, engines))
    with open(os.path.join(OUT, "result.json"), "w") as f:
        json.dump({"cpu": cpu_name(), "host_cpus": os.cpu_count(), "rounds": rounds, "rows": figures}, f, indent=1)
    with open(os.path.join(OUT, "chart.svg"), "w") as f:
        f.write(chart(figures))


if __name__ == "__main__":
    main()
