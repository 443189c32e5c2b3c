"""``python benchmarks``: every table, as Markdown; each of them is a program of its own.

Times are those of the device that JAX has here. The compilers' figures for TPUs and an H100 take
neither, but the extra `aot`; without it they say what is missing.
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
    ("The memory of a linear head on TPUs and an H100", ["linear_compiled.py"]),
    ("The loss of a linear head over TPU meshes", ["mesh.py"]),
]


def main():
    """Run them in turn; the status is 1 if one of them failed."""
    failed = False
    for title, (file, *options) in TABLES:
        print(f"## {title}\n", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(file)), *options]
        failed |= subprocess.run(command).returncode != 0
        print(flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
