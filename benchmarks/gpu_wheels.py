"""Collects wheels of what a machine without a network lacks, for `gpu.py` there.

    python benchmarks/gpu_wheels.py FOLDER [--python 3.12]

On that machine: python3 -m pip install --no-index --no-deps --target site FOLDER/*.whl, then PYTHONPATH=site:. before the
command. torch, torchvision, triton, NumPy, SciPy, OpenCV, pillow, PyYAML, pytest and safetensors are taken to be there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = ("pydantic", "pydantic-core", "typing-inspection", "typing-extensions", "annotated-types", "albumentations<2.1",
            "albucore==0.0.24", "stringzilla", "simsimd", "pycocotools", "hotcoco", "rich", "markdown-it-py", "mdurl",
            "pygments", "defusedxml")  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", help="version on that machine (default: 3.12)")
    args = parser.parse_args()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation", "cp",
               "--python-version", args.python, *(f"--platform={name}" for name in PLATFORMS)]  # fmt: skip
    # pydantic needs exactly one version of pydantic-core, so these two are resolved together.
    together = [p for p in PACKAGES if p.startswith("pydantic")]
    alone = [p for p in PACKAGES if p not in together]
    for names, more in ((together, []), (alone, ["--no-deps"])):
        if code := subprocess.run([*command, *more, "--dest", args.folder, *names]).returncode:
            sys.exit(code)
    for path in sorted(args.folder.glob("*.whl")):
        print(path.name)


if __name__ == "__main__":
    main()
