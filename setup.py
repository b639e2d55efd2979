"""Builds the compiled module mcd._C: ninja compiles csrc/, without torch and its headers.

Environment:
    MCD_CUDA              auto (default): CUDA if a toolkit is found; 0: CPU only; 1: CUDA or an error;
                          pypi: CUDA with the toolkit of PyPI's nvidia packages, wherever else one may be.
    CUDA_HOME             the toolkit to use; else /usr/local/cuda, that of nvcc on PATH, PyPI's.
    TORCH_CUDA_ARCH_LIST  GPU architectures, default "8.0;9.0+PTX" (newer ones run the PTX).
    MCD_SANITIZE          1: address and undefined-behaviour sanitizers, for `make sanitize`.
    CXX                   the C++ compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SOURCES = ROOT / "csrc"
ARCHITECTURES = "8.0;9.0+PTX"


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
        raise SystemExit(f"MCD_CUDA={choice}, but no CUDA toolkit was found; CUDA_HOME names one, requirements-cuda.txt gets one")
    return None


def gencode() -> list[str]:
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
    return flags


def ninja_file(cuda: Path | None) -> str:
    """What ninja is to do: compile each file of csrc/, link _C.so."""
    import pybind11

    sanitize = ["-fsanitize=address,undefined", "-g", "-O1"] if os.environ.get("MCD_SANITIZE") == "1" else ["-O3"]
    common = ["-std=c++17", "-fPIC", "-fvisibility=hidden", *(["-DMCD_WITH_CUDA"] if cuda else [])]
    # Neither flag touches a result: they let loops vectorise that choose between values.
    vectorise = ["-fno-math-errno", "-fno-trapping-math"]
    cxx = [*common, *vectorise, *sanitize, "-fopenmp", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    python = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    link = ["-shared", "-fopenmp", *sanitize, "-Wl,--exclude-libs,ALL"]
    compiler = os.environ.get("CXX") or "c++"
    lines = [
        f"cxx = {compiler}",
        f"cxxflags = {' '.join(cxx)}",
        "rule cxx",
        "  command = $cxx -MD -MF $out.d $cxxflags $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cxx $in -o $out $ldflags",
    ]
    if cuda:
        # Linked statically, the runtime is not another version than torch's shared one; both use the primary context.
        library = next(path for path in (cuda / "lib64", cuda / "lib") if (path / "libcudart_static.a").exists())
        link += [f"-L{library}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        nvcc = ["-O3", *common[:1], *common[3:], "-Xcompiler", "-fPIC,-fvisibility=hidden", *gencode(), f"-I{cuda / 'include'}"]
        lines += [
            f"nvcc = {cuda / 'bin' / 'nvcc'}",
            f"nvccflags = {' '.join(nvcc)}",
            "rule nvcc",
            f"  command = $nvcc -ccbin {compiler} -MD -MF $out.d $nvccflags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    lines.append(f"ldflags = {' '.join(link)}")
    objects = []
    for source in sorted([*SOURCES.rglob("*.cpp"), *(SOURCES.rglob("*.cu") if cuda else ())]):
        target = f"{source.relative_to(SOURCES)}.o"
        lines.append(f"build {target}: {'nvcc' if source.suffix == '.cu' else 'cxx'} {source}")
        if source.name == "bindings.cpp":
            lines.append(f"  extra = {' '.join(python)}")
        objects.append(target)
    lines += [f"build _C.so: link {' '.join(objects)}", "default _C.so"]
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    """Incremental: the build folder stays between runs, one for each kind of build."""

    def build_extension(self, extension: Extension) -> None:
        cuda = cuda_home()
        if cuda is None:
            print("mcd: building for CPU only (no CUDA toolkit found, or MCD_CUDA=0)", file=sys.stderr)
        else:
            print(f"mcd: building for CPU and CUDA with {cuda}", file=sys.stderr)
        kind = ("sanitize" if os.environ.get("MCD_SANITIZE") == "1" else "cpu" if cuda is None else "cuda")
        folder = ROOT / "build" / f"{sysconfig.get_config_var('SOABI')}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "build.ninja"
        text = ninja_file(cuda)
        if not script.exists() or script.read_text() != text:
            script.write_text(text)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs], check=True)
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Put in place at once: a process that has the old module open keeps it.
        temporary = target.with_suffix(".new")
        shutil.copyfile(folder / "_C.so", temporary)
        temporary.replace(target)


setup(ext_modules=[Extension("mcd._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
