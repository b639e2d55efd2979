"""Builds the compiled module mcd._C: ninja compiles csrc/, without torch and its headers.

Environment:
    MCD_CUDA              auto (default): CUDA if a toolkit is found; 0: CPU only; 1: CUDA or an error;
                          pypi: CUDA with the toolkit of PyPI's nvidia packages, wherever else one may be.
    CUDA_HOME             the toolkit to use; else /usr/local/cuda, that of nvcc on PATH, PyPI's.
    TORCH_CUDA_ARCH_LIST  GPU architectures, default "8.0;9.0+PTX" (newer ones run the PTX).
    MCD_SANITIZE          1: address and undefined-behaviour sanitizers, for this processor alone (`make sanitize`).
    MCD_LABEL             1: the version says what the build is for, +cpu or +cu13 (`make wheels-dist`).
    CXX                   the C++ compiler. Without one, and none named, the package has the reference operators alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SOURCES = ROOT / "csrc"
VERSION = re.findall(r'^__version__ = "(.+)"$', (ROOT / "mcd/__init__.py").read_text(), re.MULTILINE)[0]
ARCHITECTURES = "8.0;9.0+PTX"
# bindings.cpp asks the processor for these features before it offers a target.
X86_TARGETS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma",
}


def cuda_home() -> Path | None:
    """The CUDA toolkit to build with, or None for a CPU build."""
    choice = os.environ.get("MCD_CUDA", "auto")
    if choice not in ("auto", "0", "1", "pypi"):
        raise SystemExit(f"MCD_CUDA is {choice!r}, it should be auto, 0, 1 or pypi")
    if choice == "0":
        return None
    pypi = Path(sysconfig.get_path("purelib"), "nvidia", "cu13")
    on_path = shutil.which("nvcc")
    elsewhere = [
        Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")),
        *([Path(on_path).resolve().parent.parent] if on_path else []),
    ]
    for home in [pypi] if choice == "pypi" else [*elsewhere, pypi]:
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home
    if choice != "auto":
        raise SystemExit(
            f"MCD_CUDA={choice}: no CUDA toolkit found; CUDA_HOME names one, requirements-cuda.txt gets one"
        )
    return None


def compiler() -> str | None:
    """The C++ compiler, or None where there is none and nobody asked for one."""
    name = os.environ.get("CXX") or "c++"
    if shutil.which(name) is not None:
        return name
    if os.environ.get("CXX") or os.environ.get("MCD_CUDA") in ("1", "pypi") or os.environ.get("MCD_SANITIZE") == "1":
        raise SystemExit(f"no C++ compiler: {name} is not on PATH; install g++, or name one in CXX")
    return None


def version() -> str:
    """The package's version, with a label for what is built if MCD_LABEL asks for it."""
    if os.environ.get("MCD_LABEL") != "1":
        return VERSION
    cuda = cuda_home()
    if cuda is None:
        return f"{VERSION}+cpu"
    said = subprocess.run([cuda / "bin" / "nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    # The runtime that is linked in wants a driver of this major release.
    return f"{VERSION}+cu{re.findall(r'release ([0-9]+)', said)[0]}"


def gencode() -> str:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST."""
    flags = []
    for architecture in re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architecture)
        if not match:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: {architecture!r} is no architecture such as 9.0 or 9.0+PTX")
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


def ninja_file(compiler: str, cuda: Path | None, module: str) -> str:
    """What ninja is to do: compile csrc/ for each target, link the file `module`.

    The operators know nothing of Python: their objects serve every version of it, and builds with and without CUDA.
    """
    import pybind11

    machine = subprocess.run([compiler, "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    targets = X86_TARGETS if machine.startswith("x86_64") else {"baseline": ""}
    optimize = "-O3"
    if os.environ.get("MCD_SANITIZE") == "1":
        # Compiling takes minutes, and one target shows what all do: the widest packs of this processor reach farthest.
        targets, optimize = {"baseline": "-march=native"}, "-fsanitize=address,undefined -g1 -O1"
    # No errno, no trap: neither changes a result.
    cxxflags = f"-std=c++17 -fPIC -fvisibility=hidden -fopenmp {optimize} -fno-math-errno -fno-trapping-math"
    nvccflags = f"-std=c++17 -O3 --expt-relaxed-constexpr -Xptxas=-v -Xcompiler -fPIC,-fvisibility=hidden {gencode()}"
    python = f"-isystem{pybind11.get_include()} -isystem{sysconfig.get_path('include')}"
    python += f" -DMCD_VERSION='\"{VERSION}\"'"
    python += " -DMCD_WITH_X86" * ("avx2" in targets) + " -DMCD_WITH_CUDA" * (cuda is not None)
    ldflags = f"-shared -fopenmp {optimize} -Wl,--exclude-libs,ALL"
    if cuda:
        # Linked statically, the runtime need not be the version that torch brings; both use the primary context.
        library = next(path for path in (cuda / "lib64", cuda / "lib") if (path / "libcudart_static.a").exists())
        ldflags += f" -L{library} -lcudart_static -ldl -lrt -lpthread"
    lines = [
        "rule cxx",
        f"  command = {compiler} -MD -MF $out.d {cxxflags} -Wall -Wextra -Wno-psabi $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        # What ptxas says of registers and spills stays beside the object, where tests/gates reads it.
        f"  command = {cuda}/bin/nvcc -ccbin {compiler} -MD -MF $out.d {nvccflags} -c $in -o $out > $out.log 2>&1"
        " || (cat $out.log; exit 1)",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} $in -o $out {ldflags}",
    ]
    objects = []

    def compile_file(source: Path, rule: str, target: str, flags: str = "") -> None:
        objects.append(f"{source.relative_to(SOURCES)}.{target}.o")
        lines.extend([f"build {objects[-1]}: {rule} {source}", f"  flags = {flags}"])

    compile_file(SOURCES / "bindings.cpp", "cxx", module, python)
    for source in sorted(SOURCES.glob("*/*.cpp")):
        for target, flags in targets.items():
            compile_file(source, "cxx", target, f"-DMCD_TARGET={target} {flags}")
    for source in sorted(SOURCES.glob("*/*.cu") if cuda else ()):
        compile_file(source, "nvcc", "cuda")
    lines += [f"build {module}: link {' '.join(objects)}", f"default {module}"]
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    """Incremental: the build folder stays between runs."""

    def build_extension(self, extension: Extension) -> None:
        cuda, cxx = cuda_home(), compiler()
        if cxx is None:
            print(
                "mcd: no C++ compiler (c++ is not on PATH): without native operators, the slower reference serves;"
                " install g++ and build again for them",
                file=sys.stderr,
            )
            return
        devices = f"CPU and CUDA, with {cuda}" if cuda else "CPU only, without a CUDA toolkit"
        print(f"mcd: building for {devices}", file=sys.stderr)
        folder = ROOT / "build" / ("native-sanitize" if os.environ.get("MCD_SANITIZE") == "1" else "native")
        module = f"_C.{sysconfig.get_config_var('SOABI')}-{'cuda' if cuda else 'cpu'}.so"
        script = folder / "build.ninja"
        text = ninja_file(cxx, cuda, module)
        if self.dry_run:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if not script.exists() or script.read_text() != text:
            script.write_text(text)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs], check=True)
        target = Path(self.get_ext_fullpath(extension.name))
        self.force = True  # a module of another kind is replaced though it may be newer
        self.mkpath(str(target.parent))
        self.copy_file(str(folder / module), str(target))


setup(
    version=version(),
    packages=[*find_packages(include=["mcd*"]), "mcd.kernels", "mcd.configs"],
    # These stand beside the package and are installed inside it: `kernels` is another project's name.
    package_dir={"mcd.kernels": "kernels", "mcd.configs": "configs"},
    package_data={
        "mcd": ["py.typed", "weights/*"],
        "mcd.configs": ["*.yaml"],
        "mcd.report": ["*.html", "*.css", "*.js"],
    },
    # optional: without a compiler there is no file to copy.
    ext_modules=[Extension("mcd._C", sources=[], optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
