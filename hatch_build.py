"""Makes the links of the README absolute: on PyPI it stands without the files that they lead to."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class LongDescription(MetadataHookInterface):
    """Hatchling finds the class by its base."""

    def update(self, metadata):
        """Adds the README, with links to the files of this version in the repository."""
        files = f"{metadata['urls']['Homepage']}/{{}}/v{metadata['version']}/"
        text = (Path(self.root) / "README.md").read_text("utf-8")
        text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{files.format('raw')}", text)
        text = re.sub(r"(\]\()(?!https?:)", rf"\1{files.format('blob')}", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
