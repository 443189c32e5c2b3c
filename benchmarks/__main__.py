"""``python benchmarks`` prints every table as Markdown. Each table has a program of its own.

Times are measured on the device that JAX finds. The compilers' figures for TPUs and an H100 need no
such device but the extra `aot`; without it these programs say what is missing.
"""

import subprocess
import sys
from pathlib import Path

TABLES = [
    ("The dense losses", ["dense.py"]),
    ("The loss of a linear head", ["linear.py"]),
    ("Other losses of a linear head", ["linear.py", "--objectives"]),
    ("Its memory against the vocabulary", ["linear.py", "--vocabularies"]),
    ("What the compilers make of the losses", ["compilers.py"]),
    ("The loss of a linear head on TPUs and an H100, as compiled", ["linear_compiled.py"]),
    ("The loss of a linear head over TPU meshes", ["mesh.py"]),
    ("The errors of every loss", ["accuracy.py"]),
    ("The errors over every argument", ["exhaustive.py"]),
]


def main():
    """Runs the programs in turn; the exit status is 1 if one of them failed."""
    failed = False
    for title, (file, *options) in TABLES:
        print(f"## {title}\n", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(file)), *options]
        failed |= subprocess.run(command).returncode != 0
        print(flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
