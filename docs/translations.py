"""Lists the English sections that have changed since they were translated into Chinese.

``translations.txt`` has a hash of each section's English text at its translation. When the Chinese
pages are up to date, ``python docs/translations.py --update`` stores the hashes of today.
"""

import difflib
import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRANSLATED = Path(__file__).with_suffix(".txt")


def text(path):
    """Returns the text of a page, or of a notebook's cells, in which only headings begin with #."""
    page = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = [(c["cell_type"], "".join(c["source"])) for c in json.loads(page)["cells"]]
        page = "\n".join(s if kind == "markdown" else f"```\n{s}\n```" for kind, s in cells)
    return re.sub(r"^```.*?^```$", lambda m: m[0].replace("\n#", "\n #"), page, flags=re.M | re.S)


def today():
    """Yields the hash, page and heading of each English section that is translated."""
    for translation in sorted(
        p for d in (".", "docs", "notebooks") for p in ROOT.glob(f"{d}/*.zh*")
    ):
        page = translation.with_name(re.sub(r"\.zh(-CN)?", "", translation.name))
        for section in re.split(r"^(?=#)", text(page), flags=re.M)[1:]:
            digest = hashlib.sha256(section.strip().encode()).hexdigest()[:12]
            yield f"{digest} {page.relative_to(ROOT).as_posix()} {section.splitlines()[0]}"


def stale():
    """Returns page and heading of each section that has changed since it was translated."""
    changes = difflib.ndiff(TRANSLATED.read_text("utf-8").splitlines(), list(today()))
    return list(dict.fromkeys(line[15:] for line in changes if line[0] in "+-"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--update"]:
        TRANSLATED.write_text("\n".join(today()) + "\n", "utf-8")
    print(*stale(), sep="\n")
